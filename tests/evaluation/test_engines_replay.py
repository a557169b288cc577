"""The replay engine: stored outputs scored again, and mistakes in them said in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrainbench.errors import ConfigurationError
from posttrainbench.evaluation import runner
from posttrainbench.evaluation.engines.replay import _call, check_ids
from posttrainbench.smoke.problems import test_items as smoke_items
from tests.evaluation.engines_support import make_request


def _lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _gold(count: int) -> list[dict[str, Any]]:
    return [{"id": item["id"], "completion": f"So:\u2028\nANSWER: {item['answer']}"} for item in smoke_items()[:count]]


def test_right_and_wrong_answers(tmp_path: Path) -> None:
    rows = _gold(200)
    metrics = runner.run(
        make_request(None, tmp_path / "a", engine="replay", limit=None, completions=_lines(tmp_path / "g.jsonl", rows))
    )
    assert (metrics["n"], metrics["strict"]["accuracy"], metrics["paper"]["accuracy"]) == (200, 1.0, 1.0)
    wrong = [{**row, "completion": "ANSWER: -1"} for row in rows]
    metrics = runner.run(
        make_request(None, tmp_path / "b", engine="replay", limit=None, completions=_lines(tmp_path / "w.jsonl", wrong))
    )
    assert (metrics["strict"]["accuracy"], metrics["strict"]["missing"]) == (0.0, 0)


def test_epochs_are_averaged_by_item(tmp_path: Path) -> None:
    rows = _gold(6)
    both = [{**row, "epoch": 1} for row in rows] + [{**row, "epoch": 2, "completion": "?"} for row in rows]
    metrics = runner.run(
        make_request(None, tmp_path / "a", engine="replay", epochs=2, completions=_lines(tmp_path / "g.jsonl", both))
    )
    assert metrics["n"] == 6
    assert metrics["strict"] == {"accuracy": 0.5, "stderr": 0.0, "scored": 6, "missing": 0}


def test_a_log_is_scored_as_its_evaluation_was(base_model: Path, tmp_path: Path) -> None:
    before = runner.run(make_request(base_model, tmp_path / "a"))
    [log] = (tmp_path / "a").glob("*.eval")
    after = runner.run(make_request(None, tmp_path / "b", engine="replay", completions=str(log)))
    assert after["strict"] == before["strict"]
    assert after["finish_reasons"] == before["finish_reasons"]
    assert after["generated_tokens"] == before["generated_tokens"]


def test_generating_and_scoring_apart(base_model: Path, tmp_path: Path) -> None:
    request = make_request(base_model, tmp_path, score=False)
    metrics = runner.run(request)
    assert metrics["strict"]["accuracy"] is None
    [unscored] = tmp_path.glob("*.eval")
    scored = runner.score_log(request)
    assert scored["strict"]["scored"] == 6
    assert scored["engine"] == "transformers"
    assert scored["decoding"] == metrics["decoding"]
    assert scored["attempts"] == metrics["attempts"]
    [log] = tmp_path.glob("*.eval")
    assert log != unscored


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": "x"', r"line 1: not JSON"),
        ('{"id": "x"}', r"line 1: expected"),
        ('{"id": "x", "completion": 3}', r"line 1: expected"),
        ('{"id": "x", "completion": "", "tool_calls": 3}', r"tool_calls"),
        ('{"id": "x", "completion": "", "epoch": 0}', r"epoch 0"),
        ('{"id": "x", "completion": ""}\n{"id": "x", "completion": ""}', r"'x' is there twice"),
        ("", r"holds no completions"),
    ],
)
def test_unusable_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "completions.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        runner.run(make_request(None, tmp_path / "out", engine="replay", completions=str(path)))


def test_no_file_and_no_log(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no file of completions"):
        runner.run(make_request(None, tmp_path / "out", engine="replay", completions=str(tmp_path / "none.jsonl")))
    (tmp_path / "x.eval").write_text("no log")
    with pytest.raises(ConfigurationError, match="no readable Inspect log"):
        runner.run(make_request(None, tmp_path / "out", engine="replay", completions=str(tmp_path / "x.eval")))
    with pytest.raises(ConfigurationError, match="--completions"):
        runner.run(make_request(None, tmp_path / "out", engine="replay"))


def test_wrong_and_missing_ids_are_named(tmp_path: Path) -> None:
    rows = [{**row, "id": f"gsm8k/{number}"} for number, row in enumerate(_gold(6))]
    with pytest.raises(ConfigurationError) as caught:
        runner.run(make_request(None, tmp_path / "out", engine="replay", completions=_lines(tmp_path / "g", rows)))
    message = str(caught.value)
    assert "6 ids are not of this benchmark (gsm8k/0, gsm8k/1, gsm8k/2 and 3 more)" in message
    assert "6 of its 6 items are missing" in message
    assert "\n" not in message
    # more than a limit asks for is no mistake; fewer is
    stored: Any = {("a", 1): {}, ("b", 1): {}}
    check_ids(stored, ids=["a", "b", "c"], wanted=["a"], epochs=1)
    with pytest.raises(ConfigurationError, match=r"1 of its 3 items are missing \(c\)"):
        check_ids(stored, ids=["a", "b", "c"], wanted=["a", "b", "c"], epochs=1)
    with pytest.raises(ConfigurationError, match=r"a \(epoch 2\)"):
        check_ids(stored, ids=["a", "b"], wanted=["a", "b"], epochs=2)


def test_calls_in_both_spellings() -> None:
    for value in (
        {"name": "f", "arguments": {"a": 1}},
        {"name": "f", "arguments": '{"a": 1}'},
        {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
        {"function": "f", "arguments": {"a": 1}},
    ):
        call = _call(value, 0)
        assert (call.function, call.arguments, call.parse_error) == ("f", {"a": 1}, None)
    assert _call({"name": "f", "arguments": "[1]"}, 0).parse_error is not None
