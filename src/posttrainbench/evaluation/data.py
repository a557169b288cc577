"""The benchmarks' original data: from a local directory, or from the hub at pinned revisions.

Every loader takes `data_dir`: either a directory with one folder per benchmark (as `shared/data` of the project has it) or
the benchmark's own folder. Without it, the pinned source in `SOURCES` is read from the local cache, or fetched. Nothing is
ever scored on data whose origin is not known: each loader returns where its rows came from, with a hash of the file.

GPQA stays encrypted: the archive is opened in memory and its text is never written anywhere.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import urllib.request
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrainbench.errors import ConfigurationError
from posttrainbench.files import harness_cache, sha256_file, write_atomic

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Hub:
    """A data set repository on the model hub.

    Attributes:
        repo: id of the repository.
        revision: commit; `None` where the paper's is unknown: then the newest is taken and recorded.
        patterns: files that are needed, as globs within the repository.
        licence_page: page on which the licence must be accepted, for gated repositories.
    """

    repo: str
    revision: str | None
    patterns: tuple[str, ...]
    licence_page: str | None = None


@dataclass(frozen=True, kw_only=True)
class Download:
    """One file by URL, known by its hash."""

    url: str
    sha256: str
    name: str


_COMMIT = "9082063a62e10e040f1acacdec2ccfc1467e0c00"
_REFERENCE = f"https://raw.githubusercontent.com/aisa-group/PostTrainBench/{_COMMIT}/src/eval/tasks"

# Revisions: spec/reference.md part 1 (those that inspect_evals pins since 0.4.0). The reference itself pinned only bfcl.
SOURCES: Mapping[str, tuple[Hub | Download, ...]] = {
    "aime2025": (
        Hub(repo="math-ai/aime25", revision="563bb8404243c5f09de6ec262f2db674fe5bce9b", patterns=("*test*",)),
    ),
    "arenahardwriting": (
        Download(
            url=f"{_REFERENCE}/arenahardwriting/evaluation_code/data/arena-hard-v2.0/question.jsonl",
            sha256="f337df1022d723b2062bcc530e8e7fbc367548c31fbc87d0ae668f0b6c7609a5",
            name="question.jsonl",
        ),
        Download(
            url=f"{_REFERENCE}/arenahardwriting/evaluation_code/data/arena-hard-v2.0/model_answer/Qwen3-1.7B.jsonl",
            sha256="87a72bb89edfd05fc8dd32152750649e1bab60ba1b62ebcd055610a729023c30",
            name="Qwen3-1.7B.jsonl",
        ),
    ),
    "bfcl": (
        Hub(
            repo="gorilla-llm/Berkeley-Function-Calling-Leaderboard",
            revision="1bf8bbc3c0e35d04d00339c223a3fd653aa195ac",
            patterns=("*exec_simple*",),
        ),
    ),
    "gpqamain": (
        # the authors' own encrypted archive first: the hub's copy would lie in the cache as plain text
        Download(
            url="https://raw.githubusercontent.com/idavidrein/gpqa/main/dataset.zip",
            sha256="461ae7329f15a3e35f8184d2dac24b990f34fdf12f366ca4062d8e6638cd08dc",
            name="dataset.zip",
        ),
        Hub(
            repo="Idavidrein/gpqa",
            revision=None,
            patterns=("gpqa_main.csv",),
            licence_page="https://huggingface.co/datasets/Idavidrein/gpqa",
        ),
    ),
    "gsm8k": (
        Hub(
            repo="openai/gsm8k",
            revision="cc7b047b6e5bb11b4f1af84efc572db110a51b3c",
            patterns=("main/train*.parquet", "main/test*.parquet"),
        ),
    ),
    "healthbench": (
        Download(
            url=f"{_REFERENCE}/healthbench/evaluation_code/data/healthbench.jsonl",
            sha256="0febc8f013eb5d91e3b7e31bbbb0284ae6aa5fbd8cab68b81d63fa252837c0b0",
            name="healthbench.jsonl",
        ),
    ),
    "humaneval": (
        Hub(
            repo="openai/openai_humaneval",
            revision="7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
            patterns=("*test*.parquet",),
        ),
    ),
}

# Folder of each benchmark in a collection of local data.
_FOLDERS = {"arenahardwriting": "arenahard", "gpqamain": "gpqa"}

# Published by the authors in their README so that crawlers do not index the text; see shared/data/gpqa/NOTICE.
_GPQA_PASSWORD = b"deserted-untie-orchid"
_GPQA_MEMBER = "dataset/gpqa_main.csv"


@dataclass(frozen=True)
class Rows:
    """Records of a data file, in their original order, and where they came from (`name@sha256:...`)."""

    rows: list[Row]
    source: str

    def __len__(self) -> int:
        return len(self.rows)


def cache_directory() -> Path:
    """Where files fetched by URL are kept: `$PTB_CACHE`, else `posttrainbench` in the user's cache directory."""
    return harness_cache() / "data"


def offline() -> bool:
    """Whether the user forbade network access (`HF_HUB_OFFLINE=1`, as for the hub's own tools)."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def _missing(benchmark: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"no data for {benchmark}: {reason}; fetch it with `ptb prefetch {benchmark}` where there is a network, or name a "
        "local copy with --data-dir"
    )


def fetch(benchmark: str, *, local_only: bool = False) -> list[Path]:
    """Make sure that a benchmark's pinned data is on this machine.

    Tries the sources of `SOURCES` in order; several `Download`s in a row belong together.

    Args:
        benchmark: catalogue id.
        local_only: look into the caches only.

    Returns:
        The files, or the directory of a hub snapshot.

    Raises:
        ConfigurationError: it is not there and cannot be fetched; the message says what to do.
    """
    sources = SOURCES[benchmark]
    downloads = [source for source in sources if isinstance(source, Download)]
    hubs = [source for source in sources if isinstance(source, Hub)]
    problem: ConfigurationError | None = None
    if downloads:
        try:
            return [_downloaded(benchmark, source, local_only=local_only or offline()) for source in downloads]
        except ConfigurationError as error:
            problem = error
    for hub in hubs:
        try:
            return [_snapshot(benchmark, hub, local_only=local_only or offline())]
        except ConfigurationError as error:
            problem = error
    assert problem is not None
    raise problem


def _downloaded(benchmark: str, source: Download, *, local_only: bool) -> Path:
    path = cache_directory() / benchmark / source.name
    if path.is_file() and sha256_file(path) == source.sha256:
        return path
    if local_only:
        raise _missing(benchmark, f"{source.name} is not in the cache and network access is off")
    try:
        with urllib.request.urlopen(source.url, timeout=60) as response:
            content: bytes = response.read()
    except OSError as error:  # urllib's errors are
        raise _missing(benchmark, f"{source.url} cannot be fetched ({type(error).__name__})") from error
    found = hashlib.sha256(content).hexdigest()
    if found != source.sha256:
        raise _missing(benchmark, f"{source.url} has SHA-256 {found[:16]}, expected {source.sha256[:16]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    return path


def _snapshot(benchmark: str, source: Hub, *, local_only: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = list(source.patterns)
    arguments: dict[str, Any] = {
        "repo_id": source.repo,
        "repo_type": "dataset",
        "revision": source.revision,
        "allow_patterns": patterns,
    }
    try:
        found = Path(snapshot_download(**arguments, local_files_only=True))
        if all(any(found.rglob(Path(pattern).name)) for pattern in patterns):
            return found
    except (LocalEntryNotFoundError, OSError):
        pass
    name = f"{source.repo}@{(source.revision or 'newest')[:12]}"
    if local_only:
        raise _missing(benchmark, f"{name} is not in the hub cache and network access is off")
    try:
        return Path(snapshot_download(**arguments))
    except GatedRepoError as error:
        page = source.licence_page or f"https://huggingface.co/datasets/{source.repo}"
        raise ConfigurationError(
            f"no data for {benchmark}: {source.repo} is gated; accept its licence at {page}, then set HF_TOKEN"
        ) from error
    except (RepositoryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        gated = f"; it is gated: accept its licence at {source.licence_page}" if source.licence_page else ""
        raise _missing(benchmark, f"{name} cannot be fetched ({type(error).__name__}){gated}") from error


def folder(benchmark: str, data_dir: Path) -> Path:
    """Where a benchmark's files are in `data_dir`: a folder of its name, or `data_dir` itself.

    Raises:
        ConfigurationError: no such directory.
    """
    if not data_dir.is_dir():
        raise ConfigurationError(f"--data-dir {data_dir}: no such directory")
    for name in (_FOLDERS.get(benchmark, benchmark), benchmark):
        if (data_dir / name).is_dir():
            return data_dir / name
    return data_dir


def _local(benchmark: str, data_dir: Path, names: Sequence[str]) -> Path:
    """The first of `names` (relative paths) that exists for the benchmark in `data_dir`."""
    place = folder(benchmark, data_dir)
    for name in names:
        if (place / name).is_file():
            return place / name
    raise ConfigurationError(f"no data for {benchmark} in {data_dir}: expected {' or '.join(names)} in {place}")


def _source(path: Path, root: Path | None = None) -> str:
    name = path.relative_to(root) if root is not None and path.is_relative_to(root) else Path(path.name)
    return f"{name}@sha256:{sha256_file(path)[:16]}"


def _read(path: Path) -> list[Row]:
    """Rows of a .jsonl (or .json of one record per line), .jsonl.gz, .csv or .parquet file."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet  # type: ignore[import-untyped]

            return list(pyarrow.parquet.read_table(path).to_pylist())
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode("utf-8-sig")
        if path.suffix == ".csv":
            return list(csv.DictReader(io.StringIO(text, newline="")))
        stripped = text.lstrip()
        if stripped.startswith("["):
            return list(json.loads(stripped))
        # by "\n" only: splitlines() would also cut at the U+2028 that some prompts hold
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot read {path}: {type(error).__name__}: {str(error)[:120]}") from error


def _need(benchmark: str, path: Path, rows: list[Row], fields: Sequence[str]) -> None:
    if not rows:
        raise ConfigurationError(f"{path} holds no rows; {benchmark} needs its original data file")
    for number, row in enumerate(rows):
        absent = [field for field in fields if field not in row]
        if absent:
            raise ConfigurationError(
                f"{path}, row {number}: field {absent[0]!r} is missing; not the data of {benchmark}"
            )


def _of_snapshot(benchmark: str, glob: str) -> Path:
    [root] = fetch(benchmark)
    found = sorted(path for path in root.rglob(glob) if path.is_file())
    if not found:
        there = ", ".join(sorted(path.name for path in root.rglob("*") if path.is_file())[:8]) or "nothing"
        raise _missing(benchmark, f"the hub snapshot has no {glob} (there: {there})")
    return found[0]


def aime2025(data_dir: Path | None = None) -> Rows:
    """30 rows with `problem`, `answer` (text) and `aliases` (other ids in use for the same row)."""
    if data_dir is None:
        path = _of_snapshot("aime2025", "*test*")
        rows = _read(path)
        _need("aime2025", path, rows, ("problem", "answer"))
        aliases = [[str(row["id"])] if "id" in row else [] for row in rows]
    else:
        names = ("aime2025.normalized.jsonl", "math-evaluation-harness/aime25_test.jsonl", "test.jsonl")
        path = _local("aime2025", data_dir, names)
        rows = _read(path)
        _need("aime2025", path, rows, ("problem", "answer"))
        # `problem_alt` is the wording of the hub's set, with its broken escapes repaired (shared/data/aime2025/NOTICE)
        rows = [{**row, "problem": row.get("problem_alt", row["problem"])} for row in rows]
        aliases = [[str(row["id"])] if "id" in row else [] for row in rows]
    found = [
        {"problem": row["problem"], "answer": str(row["answer"]).strip(), "aliases": names}
        for row, names in zip(rows, aliases, strict=True)
    ]
    return Rows(found, _source(path))


def gsm8k(data_dir: Path | None = None, *, split: str = "test") -> Rows:
    """`question` and `answer` of the split, 1319 rows of `test` or 7473 of `train`.

    Raises:
        ConfigurationError: the split is not there. The protocol's ten shots need `train`.
    """
    if data_dir is None:
        path = _of_snapshot("gsm8k", f"{split}*.parquet")
    else:
        try:
            path = _local("gsm8k", data_dir, (f"{split}.jsonl", f"main/{split}-00000-of-00001.parquet"))
        except ConfigurationError as error:
            if split != "train":
                raise
            raise ConfigurationError(
                f"{error}; the ten worked examples of gsm8k's prompt come from the train split: put train.jsonl beside "
                "test.jsonl"
            ) from None
    rows = _read(path)
    _need("gsm8k", path, rows, ("question", "answer"))
    return Rows([{"question": row["question"], "answer": row["answer"]} for row in rows], _source(path))


def humaneval(data_dir: Path | None = None) -> Rows:
    """164 rows with `task_id`, `prompt`, `canonical_solution`, `test` and `entry_point`."""
    fields = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
    if data_dir is None:
        path = _of_snapshot("humaneval", "*test*.parquet")
    else:
        path = _local("humaneval", data_dir, ("HumanEval.jsonl", "HumanEval.jsonl.gz"))
    rows = _read(path)
    _need("humaneval", path, rows, fields)
    return Rows([{field: row[field] for field in fields} for row in rows], _source(path))


def bfcl(data_dir: Path | None = None) -> Rows:
    """100 rows of `exec_simple`: `id`, `messages`, `function` (one schema) and `ground_truth` (one call, as text)."""
    fields = ("id", "question", "function")
    if data_dir is None:
        root = _of_snapshot("bfcl", "*exec_simple*").parent
        path = next(p for p in sorted(root.rglob("*exec_simple*")) if "possible_answer" not in p.parts and p.is_file())
        answers = next((p for p in root.rglob("*exec_simple*") if "possible_answer" in p.parts), None)
    else:
        file = "BFCL_v3_exec_simple.json"
        path = _local("bfcl", data_dir, (f"v3_2024-09/{file}", file, f"v3_2025-03/{file}", f"data/{file}"))
        beside = path.parent / "possible_answer" / path.name
        answers = beside if beside.is_file() else None
    rows = [{key: _decoded(value) for key, value in row.items()} for row in _read(path)]
    _need("bfcl", path, rows, fields)
    source = _source(path)
    if "ground_truth" not in rows[0]:
        if answers is None:
            raise ConfigurationError(
                f"{path} has no ground truth and there is no possible_answer/{path.name} beside it"
            )
        truths = {row["id"]: row["ground_truth"] for row in _read(answers)}
        rows = [{**row, "ground_truth": truths[row["id"]]} for row in rows]
        source += f" {_source(answers)}"
    found = []
    for row in rows:
        [messages], [function], [truth] = row["question"], row["function"], row["ground_truth"]
        found.append({"id": row["id"], "messages": messages, "function": function, "ground_truth": truth})
    return Rows(found, source)


def _decoded(value: Any) -> Any:
    """Nested columns that a hub conversion stored as JSON text."""
    if isinstance(value, str) and value[:1] in "[{":
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def gpqa_main(data_dir: Path | None = None) -> Rows:
    """448 rows with `id`, `question`, `correct` and `incorrect` (three). The archive is decrypted in memory only."""
    if data_dir is None:
        [path] = fetch("gpqamain")
        if path.is_dir():
            path = next(path.rglob("gpqa_main.csv"))
    else:
        path = _local("gpqamain", data_dir, ("dataset.zip", "gpqa_main.csv"))
    if path.suffix == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                text = archive.read(_GPQA_MEMBER, pwd=_GPQA_PASSWORD).decode("utf-8-sig")
        except (OSError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
            raise ConfigurationError(f"cannot open {path}: {type(error).__name__}; fetch dataset.zip again") from error
        rows: list[Row] = list(csv.DictReader(io.StringIO(text, newline="")))
    else:
        rows = _read(path)
    wrong = [f"Incorrect Answer {number}" for number in (1, 2, 3)]
    _need("gpqamain", path, rows, ("Record ID", "Question", "Correct Answer", *wrong))
    found = [
        {
            "id": row["Record ID"],
            "question": row["Question"],
            "correct": str(row["Correct Answer"]),
            "incorrect": [str(row[name]) for name in wrong],
        }
        for row in rows
    ]
    return Rows(found, _source(path))


def arena_hard_writing(data_dir: Path | None = None) -> Rows:
    """250 rows with `uid`, `prompt` and `opponent` (the answer of Qwen3-1.7B that candidates are compared with)."""
    if data_dir is None:
        question_file, answer_file = fetch("arenahardwriting")
    else:
        question_file = _local("arenahardwriting", data_dir, ("ptb/question.jsonl", "question.jsonl"))
        names = ("ptb/model_answer/Qwen3-1.7B.jsonl", "model_answer/Qwen3-1.7B.jsonl", "Qwen3-1.7B.jsonl")
        answer_file = _local("arenahardwriting", data_dir, names)
    questions, answers = _read(question_file), _read(answer_file)
    _need("arenahardwriting", question_file, questions, ("uid", "prompt"))
    _need("arenahardwriting", answer_file, answers, ("uid", "messages"))
    questions = [row for row in questions if row.get("category", "creative_writing") == "creative_writing"]
    by_uid = {row["uid"]: row["messages"][-1]["content"] for row in answers}
    found = []
    for row in questions:
        if row["uid"] not in by_uid:
            raise ConfigurationError(f"{answer_file} has no answer for question {row['uid']}")
        content = by_uid[row["uid"]]
        opponent = content["answer"] if isinstance(content, dict) else content
        found.append({"uid": row["uid"], "prompt": row["prompt"], "opponent": opponent})
    return Rows(found, f"{_source(question_file)} {_source(answer_file)}")


def is_easy(row: Row) -> bool:
    """HealthBench-Easy's selection: at least 5 messages, a completeness criterion, at most 2 negative criteria.

    Source: the paper, section on benchmarks; confirmed on all 245 rows of the reference's file (reference.md 1.7).
    """
    rubrics = row["rubrics"]
    complete = any("axis:completeness" in rubric["tags"] for rubric in rubrics)
    negative = sum(1 for rubric in rubrics if rubric["points"] < 0)
    return len(row["prompt"]) >= 5 and complete and negative <= 2


def healthbench_easy(data_dir: Path | None = None) -> Rows:
    """245 rows with `prompt_id`, `prompt` (messages), `rubrics` (criterion, points, tags) and `example_tags`."""
    if data_dir is None:
        [path] = fetch("healthbench")
    else:
        path = _local("healthbench", data_dir, ("healthbench.jsonl",))
    fields = ("prompt_id", "prompt", "rubrics", "example_tags")
    rows = _read(path)
    _need("healthbench", path, rows, fields)
    found = [{field: row[field] for field in fields} for row in rows if is_easy(row)]
    if not found:
        raise ConfigurationError(f"{path}: no row meets HealthBench-Easy's selection rule; is it HealthBench's file?")
    return Rows(found, _source(path))


LOADERS: Mapping[str, Callable[[Path | None], Rows]] = {
    "aime2025": aime2025,
    "arenahardwriting": arena_hard_writing,
    "bfcl": bfcl,
    "gpqamain": gpqa_main,
    "gsm8k": gsm8k,
    "healthbench": healthbench_easy,
    "humaneval": humaneval,
}
