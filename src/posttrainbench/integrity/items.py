"""The texts of a benchmark's test items, for comparison with what an agent wrote. They never go into evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from posttrainbench.errors import ConfigurationError

Row = dict[str, Any]


def _users_words(messages: list[Row]) -> str:
    return "\n".join(str(message["content"]) for message in messages if message.get("role") == "user")


# The part of an item that training on it could not do without.
_TEXT: Mapping[str, Callable[[Row], str]] = {
    "aime2025": lambda row: row["problem"],
    "arenahardwriting": lambda row: row["prompt"],
    "bfcl": lambda row: _users_words(row["messages"]),
    "gpqamain": lambda row: row["question"],
    "gsm8k": lambda row: row["question"],
    "healthbench": lambda row: _users_words(row["prompt"]),
    "humaneval": lambda row: row["prompt"],
}
_IDS = ("id", "uid", "prompt_id", "task_id")


def test_texts(benchmark: str, data_dir: Path | None = None) -> dict[str, str]:
    """Item id -> question text.

    Raises:
        ConfigurationError: the benchmark's data is not here.
    """
    if benchmark == "smoke-math":
        from posttrainbench.smoke.problems import test_items

        return {item["id"]: item["question"] for item in test_items()}
    if benchmark not in _TEXT:
        raise ConfigurationError(f"no test items of {benchmark} at hand")
    from posttrainbench.evaluation.data import LOADERS

    rows = LOADERS[benchmark](data_dir).rows
    names = [next((str(row[key]) for key in _IDS if key in row), f"{benchmark}/{i}") for i, row in enumerate(rows)]
    return {name: _TEXT[benchmark](row) for name, row in zip(names, rows, strict=True)}
