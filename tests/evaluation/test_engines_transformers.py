"""The transformers engine: a running batch must answer as each prompt alone would be answered."""

from __future__ import annotations

import random
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrainbench.errors import ConfigurationError, SubmissionError
from posttrainbench.evaluation import runner
from posttrainbench.evaluation.decoding import Sampling
from posttrainbench.evaluation.engines import transformers as engine
from posttrainbench.evaluation.engines.base import Answer, Job
from posttrainbench.evaluation.engines.sampling import choose
from tests.evaluation.engines_support import make_request, variant

PLAIN: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
# many, so that some answers end early and rows are refilled at all lengths
STOP = (0, *range(7, 320, 16))
CASES = {
    "greedy": {},
    "penalty": {"repetition_penalty": 1.3},
    "nucleus": {"temperature": 0.8, "top_p": 0.9},
    "all": {"temperature": 0.8, "top_k": 20, "min_p": 0.05, "top_p": 0.95, "repetition_penalty": 1.1},
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    # two threads on a busy machine wait for each other far longer than these tiny matrices take
    torch.set_num_threads(1)


def _jobs(count: int, **sampling: Any) -> list[Job]:
    dice = random.Random(3)
    return [
        Job(
            [dice.randrange(3, 300) for _ in range(dice.randrange(3, 60))],
            Sampling(**{**PLAIN, **sampling}, seed=seed, max_tokens=dice.choice([1, 3, 20, 45]), stop_token_ids=STOP),
        )
        for seed in range(count)
    ]


def _decode(model: Any, jobs: list[Job], batch_size: int) -> list[Answer]:
    found: dict[int, Answer] = {}
    rows: Any = [engine._Row(job, None, random.Random(job.sampling.seed)) for job in jobs]  # type: ignore[arg-type]
    engine.Decoder(model, batch_size).run(
        deque(rows), lambda row, answer: found.update({row.job.sampling.seed: answer})
    )
    return [found[job.sampling.seed] for job in jobs]


@pytest.fixture(scope="module", params=[False, True], ids=["full", "sliding"])
def model(request: pytest.FixtureRequest, base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = variant(base_model, tmp_path_factory.mktemp("engine") / "model", sliding=request.param)
    return engine.load_model(path, torch.device("cpu"))


@pytest.mark.parametrize("case", CASES)
def test_neighbours_do_not_change_an_answer(model: Any, case: str) -> None:
    jobs = _jobs(12, **CASES[case])
    together = _decode(model, jobs, 4)
    alone = [_decode(model, [job], 1)[0] for job in jobs]
    assert together == alone
    assert all(len(answer.tokens) <= job.sampling.max_tokens for answer, job in zip(together, jobs, strict=True))
    assert {answer.stopped for answer in together} == {True, False}


def test_greedy_answers_are_those_of_generate(model: Any) -> None:
    for job, answer in zip(_jobs(6), _decode(model, _jobs(6), 3), strict=True):
        with torch.inference_mode():
            output = model.generate(
                torch.tensor([job.tokens]),
                attention_mask=torch.ones(1, len(job.tokens), dtype=torch.long),
                max_new_tokens=job.sampling.max_tokens,
                do_sample=False,
                eos_token_id=list(job.sampling.stop_token_ids),
                pad_token_id=0,
            )
        expected = output[0, len(job.tokens) :].tolist()
        ends = [place for place, token in enumerate(expected) if token in job.sampling.stop_token_ids]
        assert answer.tokens == (expected[: ends[0]] if ends else expected)


def test_cache_moves_and_grows(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrainbench.evaluation.engines import cache

    jobs = _jobs(12)
    expected = _decode(model, jobs, 4)
    monkeypatch.setattr(cache, "_STEP", 4)
    assert _decode(model, jobs, 4) == expected


def _sampling(**changes: Any) -> Sampling:
    return Sampling(**{**PLAIN, "seed": 0, "max_tokens": 1, "stop_token_ids": (), **changes})


def _kept(logits: list[float], **changes: Any) -> set[int]:
    uniforms = torch.linspace(0, 1, 4001, dtype=torch.float64)[:-1]
    rows = torch.tensor([logits]).expand(len(uniforms), -1)
    return set(choose(rows, _sampling(temperature=1.0, **changes), uniforms).tolist())


def test_sampling_follows_the_distribution() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    uniforms = torch.linspace(0, 1, 10_001, dtype=torch.float64)[:-1]
    drawn = choose(logits.expand(len(uniforms), -1), _sampling(temperature=1.0), uniforms)
    assert torch.bincount(drawn, minlength=4).tolist() == pytest.approx([1000, 2000, 3000, 4000], abs=2)


def test_each_limit_cuts_what_it_should() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    assert _kept(logits) == {0, 1, 2, 3}
    assert _kept(logits, top_k=2) == {0, 1}
    assert _kept(logits, top_p=0.6) == {0, 1}
    assert _kept(logits, top_p=0.5) == {0}
    assert _kept(logits, min_p=0.25) == {0, 1, 2}
    assert _kept(logits, top_k=3, top_p=0.9) == {0, 1, 2}
    assert _kept([float("-inf"), 0.0, float("-inf"), float("-inf")]) == {1}


def test_prompt_tokens_count_for_the_penalty_and_padding_does_not() -> None:
    logits = torch.tensor([[2.0, 1.9, -1.0]])
    seen = torch.tensor([[True, False, False]])
    assert choose(logits, _sampling(repetition_penalty=1.5), torch.zeros(1), seen=seen).tolist() == [1]
    assert choose(logits, _sampling(repetition_penalty=1.5), torch.zeros(1), seen=~seen).tolist() == [0]


def test_same_request_same_answers_other_seed_other_answers(base_model: Path, tmp_path: Path) -> None:
    from inspect_ai.log import read_eval_log

    hot = variant(base_model, tmp_path / "hot", generation={"temperature": 1.0})
    texts = []
    for number, changes in enumerate(({}, {}, {"seed": 1}, {"batch_size": 2})):
        request = make_request(hot, tmp_path / str(number), epochs=2, **changes)
        metrics = runner.run(request)
        assert metrics["n"] == 6
        assert metrics["strict"]["scored"] == 6
        [log] = (tmp_path / str(number)).glob("*.eval")
        samples = read_eval_log(str(log)).samples or []
        assert len(samples) == 12
        texts.append({(sample.id, sample.epoch): sample.output.completion for sample in samples})
        assert len({sample.output.metadata["seed"] for sample in samples if sample.output.metadata}) == 12
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    assert texts[0] == texts[3]
    item = next(iter(texts[0]))[0]
    assert texts[0][item, 1] != texts[0][item, 2]


def test_out_of_memory_halves_the_batch_and_keeps_what_is_done(
    base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    real = engine.Decoder.run

    def run(self: engine.Decoder, pending: deque[Any], finished: Any) -> None:
        decoded.append(len(pending))
        if self.batch_size > 2:
            rest = [pending.pop() for _ in range(len(pending) // 2)]
            real(self, pending, finished)
            pending.extend(rest)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        real(self, pending, finished)

    monkeypatch.setattr(engine.Decoder, "run", run)
    metrics = runner.run(make_request(base_model, tmp_path / "out", batch_size=8))
    # each attempt loses half of what is left, and only that is asked for again
    assert decoded == [6, 3, 1]
    assert [attempt["failure"] for attempt in metrics["attempts"]] == ["out_of_memory", "out_of_memory", None]
    assert [attempt["parameters"]["batch_size"] for attempt in metrics["attempts"]] == [8, 4, 2]
    assert metrics["parameters"] == {"batch_size": 2, "memory_share": None, "max_tokens": 12}
    assert metrics["max_tokens"] == 12
    assert len(list((tmp_path / "out").glob("*.eval"))) == 1


def test_a_failure_that_would_happen_again_is_not_repeated(
    base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def run(self: engine.Decoder, pending: deque[Any], finished: Any) -> None:
        calls.append(1)
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(engine.Decoder, "run", run)
    status = runner.run_recorded(make_request(base_model, tmp_path))
    assert status == 4
    assert len(calls) == 1
    outcome = (tmp_path / "outcome.json").read_text()
    assert "shape mismatch" in outcome
    assert '"attempts"' in outcome


def test_prompts_longer_than_the_context_end_as_such(base_model: Path, tmp_path: Path) -> None:
    metrics = runner.run(make_request(base_model, tmp_path / "a", system_message="apples " * 900))
    assert metrics["finish_reasons"] == {"model_length": 6}
    assert metrics["empty"] == 6
    # a prompt that just fits: the answer ends with the context
    metrics = runner.run(make_request(base_model, tmp_path / "b", system_message="a" * 600, max_tokens=5000))
    assert set(metrics["finish_reasons"]) <= {"model_length", "stop"}


def test_broken_directories_are_told_apart(base_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no model directory"):
        runner.run(make_request(tmp_path / "nothing", tmp_path / "out"))
    broken = variant(base_model, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"\x10")
    with pytest.raises(SubmissionError, match="does not load"):
        runner.run(make_request(broken, tmp_path / "out"))
    (broken / "model.safetensors").unlink()
    (broken / "adapter_config.json").write_text("{}")
    with pytest.raises(SubmissionError, match="merge"):
        runner.run(make_request(broken, tmp_path / "out"))
