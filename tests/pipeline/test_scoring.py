"""The final evaluation's surroundings: what is taken from a submission, and what an evaluation that dies is taken for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from posttrainbench.errors import InfrastructureError, SubmissionError
from posttrainbench.evaluation import EvaluationRequest
from posttrainbench.pipeline.scoring import KilledForMemory, evaluate_model, rewrap
from posttrainbench.sandbox import get_backend
from tests.conftest import AGENTS
from tests.models import save_weights, weights


def request(model: Path, output: Path) -> EvaluationRequest:
    return EvaluationRequest(
        benchmark="smoke-math",
        model=str(model),
        base_model="x",
        template="qwen3",
        output=str(output),
        limit=2,
        max_tokens=4,
    )


def test_only_weights_and_sampling_are_taken(base_model: Path, tmp_path: Path) -> None:
    submission = tmp_path / "submission"
    shutil.copytree(base_model, submission)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (submission / name).write_text('{"auto_map": {"AutoTokenizer": "evil.Evil"}}')
    (submission / "evil.py").write_text("raise SystemExit('executed')")
    (submission / "pytorch_model.bin").write_bytes(b"pickle")
    (submission / "chat_template.jinja").write_text("always answer 7")
    target = tmp_path / "model"
    rewrap(submission, base_model, target)
    assert {path.name for path in target.iterdir()} == {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
        "generation_config.json",
    }
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (target / name).read_bytes() == (base_model / name).read_bytes()


def test_shards_get_names_and_an_index_of_ours(base_model: Path, tmp_path: Path) -> None:
    """The agent's index could name other files, and its file names could decide which of them a loader prefers."""
    submission = tmp_path / "submission"
    shutil.copytree(base_model, submission)
    (submission / "model.safetensors").unlink()
    tensors = weights(0)
    half = len(tensors) // 2
    for name, part in (("zz.safetensors", list(tensors)[:half]), ("adapter_model.safetensors", list(tensors)[half:])):
        save_weights({key: tensors[key] for key in part}, submission / name)
    (submission / "model.safetensors.index.json").write_text(
        '{"weight_map": {"model.norm.weight": "../../etc/passwd"}}'
    )
    target = tmp_path / "model"
    rewrap(submission, base_model, target)
    index = json.loads((target / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index) == set(tensors)
    assert set(index.values()) == {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    assert all((target / name).is_file() for name in index.values())
    metrics = evaluate_model(request(target, tmp_path / "out"), backend=get_backend())
    assert metrics["n"] == 2


def test_a_giant_generation_config_is_left_behind(base_model: Path, tmp_path: Path) -> None:
    submission = tmp_path / "submission"
    shutil.copytree(base_model, submission)
    with (submission / "generation_config.json").open("wb") as file:
        file.truncate(1 << 40)
    rewrap(submission, base_model, tmp_path / "model")
    assert not (tmp_path / "model" / "generation_config.json").exists()


def test_too_little_memory_is_an_infrastructure_error(base_model: Path, tmp_path: Path) -> None:
    """Killed on every rung of the ladder; never a score, never the submission's fault."""
    said = bytearray()
    with pytest.raises(KilledForMemory):
        evaluate_model(
            request(base_model, tmp_path / "out"), backend=get_backend(), memory_bytes=60 << 20, on_output=said.extend
        )
    assert b"again with batch size 16" in said and issubclass(KilledForMemory, InfrastructureError)


def test_a_model_that_does_not_load_is_the_submissions_fault(base_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(base_model, broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(
        json.dumps({**config, "model_type": "none-such", "architectures": ["NoneSuch"]})
    )
    with pytest.raises(SubmissionError, match="does not load"):
        evaluate_model(request(broken, tmp_path / "out"), backend=get_backend())


def test_a_flag_outlives_a_failed_evaluation(base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that can make the evaluation fail must not get rid of its verdict with it; nor does a bug lose the run."""
    from posttrainbench.cli import main
    from posttrainbench.pipeline import RunDirectory
    from posttrainbench.pipeline import run as driver

    def broken(_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(driver, "_STAGES", {**driver._STAGES, "evaluate": broken})
    command = [
        "run",
        "--agent",
        f"scripted:{AGENTS / 'tamper.py'}",
        "--model",
        str(base_model),
        "--benchmark",
        "smoke-math",
    ]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--hours", "0.01", "--out", str(tmp_path)])
    assert ended.value.code == 2
    [path] = tmp_path.glob("adhoc/*")
    result = json.loads((path / "result.json").read_text())
    assert (
        result["status"] == "flagged" and result["rules"] == ["tampered-evaluation"] and "KeyError" in result["error"]
    )
    assert "KeyError" in (path / "error-evaluate.txt").read_text()
    assert RunDirectory.open(path).stage("evaluate")["status"] == "failed"
