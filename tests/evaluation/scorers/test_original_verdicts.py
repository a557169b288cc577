"""`paper` agrees with the original functions.

`original_verdicts.jsonl` was made by running the functions of `inspect_ai` 0.3.150 and `inspect_evals` 0.3.103 (the reference's
versions) on random mixtures of answer pieces; of 60 151 completions, on which they agree but where the original raises, 380
are kept here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrainbench.evaluation.scorers.choice import paper_choice
from posttrainbench.evaluation.scorers.code import paper_body
from posttrainbench.evaluation.scorers.numeric import paper_aime, paper_numeric

FILE = Path(__file__).with_name("original_verdicts.jsonl")
OURS: dict[str, Callable[[str, str], object]] = {
    "gsm8k": paper_numeric,
    "aime2025": paper_aime,
    "gpqamain": paper_choice,
    "humaneval": lambda completion, _: paper_body(completion),
}


@pytest.mark.parametrize("benchmark", OURS)
def test_agreement(benchmark: str) -> None:
    rows = [json.loads(line) for line in FILE.read_text(encoding="utf-8").split("\n") if line]
    rows = [row for row in rows if row["benchmark"] == benchmark]
    assert len(rows) >= 50
    assert [row for row in rows if OURS[benchmark](row["completion"], row["target"]) != row["original"]] == []
