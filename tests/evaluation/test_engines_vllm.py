"""The vllm engine against a stand-in of the program: start, health, requests, failures, reuse, end."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrainbench.errors import ConfigurationError, SubmissionError
from posttrainbench.evaluation import runner
from posttrainbench.evaluation.engines import server as server_module
from posttrainbench.evaluation.retry import EngineError, Failure
from tests.evaluation.engines_support import make_request, variant

GENERATION = {
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.9,
    "min_p": 0.02,
    "repetition_penalty": 1.1,
    "eos_token_id": 5,
}


class Fake:
    """The stand-in on PATH, and what it noted."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.notes = directory / "notes.jsonl"
        script = directory / "vllm"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).parent / "engines_fake_vllm.py"} "$@"\n')
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("FAKE_VLLM_LOG", str(self.notes))
        monkeypatch.setattr(server_module, "_POLL_S", 0.05)

    def _all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.notes.read_text().splitlines()]

    @property
    def starts(self) -> list[dict[str, Any]]:
        return [note for note in self._all() if "start" in note]

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [note["body"] for note in self._all() if "body" in note]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    directory = tmp_path / "bin"
    directory.mkdir()
    yield Fake(directory, monkeypatch)
    server_module.stop_server()


def _group_is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_one_server_serves_benchmarks_and_seeds_of_a_model(fake: Fake, base_model: Path, tmp_path: Path) -> None:
    model = variant(base_model, tmp_path / "model", generation=GENERATION)
    first = runner.run(make_request(model, tmp_path / "a", engine="vllm", epochs=2))
    second = runner.run(make_request(model, tmp_path / "b", engine="vllm", seed=5))
    (tmp_path / "link").symlink_to(model)
    runner.run(make_request(tmp_path / "link", tmp_path / "c", engine="vllm"))
    assert first["n"] == second["n"] == 6
    assert first["parameters"]["batch_size"] == 256
    [start] = fake.starts
    arguments = start["start"]
    assert arguments[:2] == ["serve", str(model.resolve())]
    assert arguments[arguments.index("--host") + 1] == "127.0.0.1"
    assert arguments[arguments.index("--generation-config") + 1] == "vllm"
    assert "--trust-remote-code" not in arguments
    assert start["key_in_arguments"] is False
    assert start["group"] == start["pid"]
    # two epochs, another base seed, and the first again
    assert len(fake.bodies) == 6 * 4
    assert len({body["seed"] for body in fake.bodies}) == 6 * 3
    runner.shutdown()
    assert _group_is_gone(start["group"])


def test_other_files_get_another_server(fake: Fake, base_model: Path, tmp_path: Path) -> None:
    one, two = variant(base_model, tmp_path / "one"), variant(base_model, tmp_path / "two")
    for number, model in enumerate((one, two)):
        runner.run(make_request(model, tmp_path / f"out{number}", engine="vllm", limit=1))
    assert len(fake.starts) == 2
    # the same path and size, other content, modification time set back
    status = (two / "model.safetensors").stat()
    raw = bytearray((two / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (two / "model.safetensors").write_bytes(raw)
    os.utime(two / "model.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns))
    runner.run(make_request(two, tmp_path / "out2", engine="vllm", limit=1))
    starts = fake.starts
    assert len(starts) == 3
    assert all(_group_is_gone(start["group"]) for start in starts[:2])


def test_both_engines_see_the_same_prompts_and_parameters(
    fake: Fake, base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posttrainbench.evaluation.engines import transformers

    jobs = []
    real = transformers.TransformersAPI.complete

    async def complete(self: Any, job: Any) -> Any:
        jobs.append(job)
        return await real(self, job)

    monkeypatch.setattr(transformers.TransformersAPI, "complete", complete)
    model = variant(base_model, tmp_path / "model", generation={**GENERATION, "max_new_tokens": 3, "num_beams": 4})
    ours = runner.run(make_request(model, tmp_path / "a"))
    theirs = runner.run(make_request(model, tmp_path / "b", engine="vllm"))
    assert ours["decoding"] == theirs["decoding"]
    assert ours["decoding"]["eos_token_ids"] == [0, 5]
    assert len(ours["decoding"]["ignored"]) == 2
    seen = sorted((job.tokens, dataclasses.asdict(job.sampling)) for job in jobs)
    sent = sorted(
        (
            body["prompt"],
            {
                key: tuple(body[key]) if key == "stop_token_ids" else body[key]
                for key in dataclasses.asdict(jobs[0].sampling)
            },
        )
        for body in fake.bodies
    )
    assert seen == sent


def test_answers_end_before_the_stop_token(fake: Fake, base_model: Path, tmp_path: Path) -> None:
    from inspect_ai.log import read_eval_log

    metrics = runner.run(make_request(base_model, tmp_path, engine="vllm", limit=20))
    assert set(metrics["finish_reasons"]) == {"stop", "max_tokens"}
    [log] = tmp_path.glob("*.eval")
    for sample in read_eval_log(str(log)).samples or []:
        assert sample.output.usage is not None
        assert sample.output.usage.output_tokens == (12 if sample.output.stop_reason == "max_tokens" else 5)
        assert "<|endoftext|>" not in sample.output.completion


def test_out_of_memory_at_the_start_lowers_the_concurrency(
    fake: Fake, base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM_START", "memory")
    metrics = runner.run(make_request(base_model, tmp_path, engine="vllm"))
    assert [attempt["parameters"]["batch_size"] for attempt in metrics["attempts"]] == [256, 128, 64]
    assert [attempt["failure"] for attempt in metrics["attempts"]] == ["out_of_memory", "out_of_memory", None]
    assert "CUDA out of memory" in metrics["attempts"][0]["message"]
    assert metrics["parameters"]["max_tokens"] == 12


def test_a_server_that_dies_is_replaced_and_finished_answers_are_kept(
    fake: Fake, base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM_DIE_AFTER", "4")
    metrics = runner.run(make_request(base_model, tmp_path, engine="vllm", batch_size=1))
    assert [attempt["failure"] for attempt in metrics["attempts"]] == ["server_lost", None]
    assert metrics["n"] == 6
    # three answers before it died, the one it died in, and the three that were left
    assert len(fake.bodies) == 3 + 1 + 3


def test_a_server_that_never_answers_is_given_up(
    fake: Fake, base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM_START", "hang")
    with pytest.raises(EngineError, match="did not answer within 1 s") as caught:
        runner.run(make_request(base_model, tmp_path, engine="vllm", start_limit_s=1.0))
    assert caught.value.failure is Failure.START_TIMEOUT
    assert caught.value.attempts is not None
    assert len(caught.value.attempts) == 2
    assert all(_group_is_gone(start["group"]) for start in fake.starts)


@pytest.mark.parametrize(("how", "kind"), [("broken", SubmissionError), ("crash", EngineError)])
def test_the_submissions_fault_is_not_the_machines(
    fake: Fake, base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, kind: type[Exception]
) -> None:
    monkeypatch.setenv("FAKE_VLLM_START", how)
    with pytest.raises(kind):
        runner.run(make_request(base_model, tmp_path, engine="vllm"))
    assert len(fake.starts) == 1


def test_without_vllm_one_line_says_so(base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'posttrainbench\[vllm\]'"):
        runner.run(make_request(base_model, tmp_path, engine="vllm"))
