"""Loading the original data, and the one clear line where it cannot be loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

from posttrainbench.errors import ConfigurationError
from posttrainbench.evaluation import data
from tests.evaluation.helpers import SHARED, needs_data

ITEMS = {
    "aime2025": 30,
    "arenahardwriting": 250,
    "bfcl": 100,
    "gpqamain": 448,
    "gsm8k": 1319,
    "healthbench": 245,
    "humaneval": 164,
}


@pytest.fixture
def empty_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PTB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


@needs_data
@pytest.mark.parametrize("benchmark", ITEMS)
def test_all_rows_with_a_recorded_source(benchmark: str) -> None:
    loaded = data.LOADERS[benchmark](SHARED)
    assert len(loaded) == ITEMS[benchmark]
    assert "@sha256:" in loaded.source


@needs_data
def test_the_benchmarks_own_folder_will_do() -> None:
    assert data.humaneval(SHARED / "humaneval").rows == data.humaneval(SHARED).rows


@needs_data
def test_compressed_file(tmp_path: Path) -> None:
    shutil.copy(SHARED / "humaneval" / "HumanEval.jsonl.gz", tmp_path)
    assert data.humaneval(tmp_path).rows == data.humaneval(SHARED).rows


@needs_data
def test_aime_wording_variants_agree_on_the_answers() -> None:
    plain = SHARED / "aime2025" / "math-evaluation-harness"
    rows = data._read(plain / "aime25_test.jsonl")
    assert [row["answer"] for row in data.aime2025(SHARED).rows] == [str(row["answer"]) for row in rows]


@pytest.mark.parametrize("benchmark", ITEMS)
def test_offline_without_data_names_both_ways_out(
    benchmark: str, empty_caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigurationError) as caught:
        data.LOADERS[benchmark](None)
    text = str(caught.value)
    assert f"ptb prefetch {benchmark}" in text
    assert "--data-dir" in text
    assert "\n" not in text


@pytest.mark.parametrize("benchmark", ITEMS)
def test_empty_and_absent_directory(benchmark: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        data.LOADERS[benchmark](tmp_path)
    with pytest.raises(ConfigurationError, match="no such directory"):
        data.LOADERS[benchmark](tmp_path / "absent")


def test_gated_data_without_a_token_names_the_licence_page(empty_caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, local_files_only: bool = False, **__: Any) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        raise GatedRepoError.__new__(GatedRepoError)  # its constructor wants a whole HTTP response

    def no_download(*_: Any, **__: Any) -> Path:
        raise ConfigurationError("no archive")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(data, "_downloaded", no_download)
    with pytest.raises(
        ConfigurationError, match=r"accept its licence at https://huggingface.co/datasets/Idavidrein/gpqa"
    ):
        data.gpqa_main(None)


def test_missing_train_split_says_what_it_is_for(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"question": "q", "answer": "a #### 1"}\n')
    with pytest.raises(ConfigurationError, match=r"worked examples.*train.jsonl"):
        data.gsm8k(tmp_path, split="train")


@pytest.mark.parametrize("content", ["", "{", '{"question": "q"}\n', "\x00\xff"])
def test_broken_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "test.jsonl").write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigurationError):
        data.gsm8k(tmp_path)


def test_broken_archive(tmp_path: Path) -> None:
    (tmp_path / "dataset.zip").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(ConfigurationError, match="cannot open"):
        data.gpqa_main(tmp_path)


@needs_data
def test_gpqa_is_read_from_the_encrypted_archive_and_leaves_nothing(tmp_path: Path) -> None:
    shutil.copy(SHARED / "gpqa" / "dataset.zip", tmp_path)
    loaded = data.gpqa_main(tmp_path)
    assert loaded.source.startswith("dataset.zip@")
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.zip"]
    assert all(len(row["incorrect"]) == 3 and row["correct"] and row["question"] for row in loaded.rows)


@needs_data
def test_healthbench_selection_rule() -> None:
    row = data.healthbench_easy(SHARED).rows[0]
    assert data.is_easy(row)
    assert not data.is_easy({**row, "prompt": row["prompt"][:4]})
    harsh = [{"criterion": "c", "points": -1, "tags": ["axis:completeness"]}] * 3
    assert not data.is_easy({**row, "rubrics": harsh})
    assert not data.is_easy({**row, "rubrics": [{"criterion": "c", "points": 1, "tags": ["axis:accuracy"]}]})
