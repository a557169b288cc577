"""What is laid out for the agent, and that the prompt tells the truth."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from posttrainbench import catalog
from posttrainbench.files import sha256_file
from posttrainbench.gateway.sealed_config import SealedConfig
from posttrainbench.hardware import GPU, Hardware
from posttrainbench.integrity import tokens
from posttrainbench.workspace import build, prompt
from posttrainbench.workspace.build import Job, template_for
from posttrainbench.workspace.prompt import format_hours


@pytest.mark.parametrize(
    ("hours", "text"),
    [
        (10, "10 hours"),
        (1, "1 hour"),
        (0.5, "30 minutes"),
        (1 / 60, "1 minute"),
        (0.01, "36 seconds"),
        (2.5, "150 minutes"),
        (0.03, "108 seconds"),
        (3.3333, "3.33 hours"),
    ],
)
def test_hours_in_words(hours: float, text: str) -> None:
    assert format_hours(hours) == text


def test_prompt_names_what_matters() -> None:
    text = prompt(
        model="ptb-tiny-base",
        model_path="/models/ptb-tiny-base",
        benchmark=catalog.benchmark("smoke-math"),
        hours=0.5,
        hardware="no GPU; 2 CPU cores",
        network="closed.",
    )
    for needle in (
        "ptb-tiny-base",
        "smoke-math",
        "30 minutes",
        "/home/agent/task/final_model",
        "no GPU; 2 CPU cores",
        "closed.",
        "timer.sh",
        "evaluate.py",
        "safetensors",
    ):
        assert needle in text
    assert "H100" not in text and not re.search(r"[{}\\]", text), (
        "no hard-coded hardware, no unfilled field, no stray backslash"
    )


def test_hardware_is_described_as_it_is() -> None:
    machine = Hardware(
        cpu="X",
        cores=16,
        memory_bytes=128 << 30,
        gpus=(GPU(index=0, name="NVIDIA H200", memory_mib=143360), GPU(index=1, name="NVIDIA H200", memory_mib=143360)),
    )
    assert machine.describe() == "2 x NVIDIA H200 with 140 GiB; 16 CPU cores (X), 128 GiB of memory"
    assert machine.describe(gpus=(1,)).startswith("1 x NVIDIA H200")
    assert machine.describe(gpus=()).startswith("no GPU; 16 CPU cores")


@pytest.mark.parametrize("model", [entry.name for entry in catalog.base_models()])
@pytest.mark.parametrize("benchmark", [entry.id for entry in catalog.benchmarks()])
def test_every_cell_can_be_laid_out(model: str, benchmark: str, tmp_path: Path) -> None:
    entry = catalog.find_base_model(model)
    assert entry is not None
    job = Job(root=tmp_path / "job")
    manifest = build(job, model=entry, benchmark=catalog.benchmark(benchmark), prompt="p")
    assert set(manifest) == {
        "evaluate.py",
        "timer.sh",
        f"templates/{template_for(entry, catalog.benchmark(benchmark))}.jinja",
    }
    for name, digest in manifest.items():
        assert sha256_file(job.task / name) == digest
    compile((job.task / "evaluate.py").read_text(), "evaluate.py", "exec")


def test_building_again_starts_afresh(tmp_path: Path) -> None:
    entry = catalog.find_base_model("ptb-tiny")
    assert entry is not None
    job = Job(root=tmp_path / "job")
    first = build(job, model=entry, benchmark=catalog.benchmark("smoke-math"), prompt="p")
    (job.task / "leftover").write_text("x")
    (job.task / "evaluate.py").write_text("tampered")
    assert build(job, model=entry, benchmark=catalog.benchmark("smoke-math"), prompt="p") == first
    assert not (job.task / "leftover").exists()


def test_prompt_tells_of_sealed_test_data_what_is_so() -> None:
    settings = SealedConfig(benchmark="gsm8k", base_model="b", calls=100, seconds=18_000.0)
    common = {"model": "m", "model_path": "/models/m", "hours": 10.0, "hardware": "h", "network": "closed."}
    gsm8k, smoke = catalog.benchmark("gsm8k"), catalog.benchmark("smoke-math")
    visible = prompt(benchmark=gsm8k, **common)
    sealed = " ".join(prompt(benchmark=gsm8k, sealed=settings, **common).split())
    assert "sealed" not in visible and "You may look at them" in visible
    assert "You may look at them" not in sealed and "no item of the benchmark is in this environment" in sealed
    for needle in ("at most 100 in this run", "together 5 hours at most", "multiple of 132", "GPU memory", "--job"):
        assert needle in sealed
    assert "smoke-math-train.jsonl" not in sealed
    assert "smoke-math-train.jsonl" in prompt(
        benchmark=smoke, sealed=SealedConfig(benchmark="smoke-math", base_model="b", calls=1), **common
    )


def test_prompt_tells_which_tokens_may_be_added() -> None:
    text = prompt(
        benchmark=catalog.benchmark("gsm8k"), model="m", model_path="/m", hours=1, hardware="h", network="closed."
    )
    assert f"Up to {tokens.MOST} tokens may be added" in text and "`<|name|>`" in text


@pytest.mark.parametrize("benchmark", [entry.id for entry in catalog.benchmarks()])
def test_every_benchmark_can_be_sealed(benchmark: str, tmp_path: Path) -> None:
    entry = catalog.find_base_model("ptb-tiny")
    assert entry is not None
    job = Job(root=tmp_path / "job")
    manifest = build(job, model=entry, benchmark=catalog.benchmark(benchmark), prompt="p", sealed=True)
    assert sha256_file(job.task / "evaluate.py") == manifest["evaluate.py"]
    text = (job.task / "evaluate.py").read_text()
    compile(text, "evaluate.py", "exec")
    assert "posttrainbench" not in text and "$" not in text
