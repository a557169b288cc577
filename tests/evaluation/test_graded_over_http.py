"""The two LLM-graded benchmarks whole, over HTTP: failures on the way, the quota's end in the middle, and what follows."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from posttrainbench.evaluation import data, runner
from posttrainbench.evaluation.grading import GradingStopped
from posttrainbench.evaluation.request import EvaluationRequest
from tests.evaluation.grading_server import QUOTA, RATE_LIMIT, SERVER_ERROR, Reply, grader_server

VERDICT = {
    "arenahardwriting": "My final verdict is: [[A>B]]",
    "healthbench": '{"explanation": "yes", "criteria_met": true}',
}
# failures of the kinds that pass, at these requests
TROUBLE: dict[int, Reply] = {
    5: RATE_LIMIT,
    50: SERVER_ERROR,
    120: "I would rather not say.",
    200: RATE_LIMIT,
    333: SERVER_ERROR,
}


class Script:
    """Counts requests; fails at some; after `quota` requests the money is gone. `answered` holds what was paid for."""

    def __init__(self, good: str, *, quota: int | None = None) -> None:
        self.good, self.quota = good, quota
        self.count = 0
        self.answered: list[str] = []
        self.lock = threading.Lock()

    def __call__(self, question: str) -> Reply:
        with self.lock:
            self.count += 1
            if self.quota is not None and self.count > self.quota:
                return QUOTA
            if self.count in TROUBLE:
                return TROUBLE[self.count]
            self.answered.append(question)
            return self.good


@pytest.mark.parametrize(
    ("benchmark", "items", "gradings"), [("arenahardwriting", 250, 500), ("healthbench", 245, None)]
)
def test_all_items_through_trouble_and_an_empty_account(
    benchmark: str,
    items: int,
    gradings: int | None,
    shared_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = data.LOADERS[benchmark](shared_data).rows
    names = [row.get("uid") or row["prompt_id"] for row in rows]
    completions = tmp_path / "answers.jsonl"
    completions.write_text(
        "".join(json.dumps({"id": name, "completion": f"Answer {n}"}) + "\n" for n, name in enumerate(names))
    )
    request = EvaluationRequest(
        benchmark=benchmark,
        base_model="Qwen3-4B-Base",
        template="qwen3",
        output=str(tmp_path / "out"),
        engine="replay",
        completions=str(completions),
        data_dir=str(shared_data),
    )
    monkeypatch.setenv("OPENAI_API_KEY", "key")

    first = Script(VERDICT[benchmark], quota=400)
    with grader_server(first) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        with pytest.raises(GradingStopped, match="quota"):
            runner.run(request)
    assert not (tmp_path / "out" / "metrics.json").exists(), "a stopped grading is no score"

    second = Script(VERDICT[benchmark])
    with grader_server(second) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        metrics: dict[str, Any] = runner.run(request)
    assert metrics["n"] == items
    for name in ("strict", "paper"):
        assert (metrics[name]["scored"], metrics[name]["missing"]) == (items, 0)
    if gradings is not None:
        # A>B in both positions: once for each side, so a tie by the strict rule
        assert metrics["strict"]["accuracy"] == pytest.approx(0.5)
        paid = len(first.answered) + len(second.answered)
        assert gradings <= paid <= gradings + 3, "nothing is paid for twice, but for answers that could not be read"
    else:
        assert metrics["strict"]["by_axis"] and metrics["strict"]["by_theme"]
        twice = set(second.answered) & set(first.answered)
        assert not twice, "a criterion was paid for twice"
