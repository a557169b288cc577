"""Fetching and pinning what evaluations need: base and instruct models, benchmark data.

Files go into the model hub's own cache (`HF_HUB_CACHE`), where everything else looks for them, or into ours (`PTB_CACHE`)
for data that is no hub repository. Every file is compared with the hash that the hub's metadata names (SHA-256 of large
files, git's SHA-1 of small ones); the revision and the SHA-256 of every file are written to `pins.json`, and a pinned
revision is what a later prefetch fetches.
"""

from __future__ import annotations

import fnmatch
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from posttrainbench import catalog
from posttrainbench.errors import ConfigurationError, InfrastructureError, PTBError
from posttrainbench.evaluation import data
from posttrainbench.files import read_json, sha256_file, write_json

MODEL_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
_HUB = "https://huggingface.co"
_TRIES = 3
_PIECE = 1 << 18  # bytes between two looks at the progress; what is lost of a broken connection


class Display(Protocol):
    """Where progress goes."""

    def begin(self, name: str, total: int | None) -> None:
        """A repository or file of `total` bytes begins."""

    def advance(self, size: int) -> None:
        """So many more bytes of it are here."""

    def end(self, note: str) -> None:
        """It is done."""


class Silent:
    """No progress."""

    def begin(self, name: str, total: int | None) -> None:
        """Nothing."""

    def advance(self, size: int) -> None:
        """Nothing."""

    def end(self, note: str) -> None:
        """Nothing."""


@dataclass(frozen=True, kw_only=True)
class Repository:
    """What is wanted of one hub repository.

    Attributes:
        kind: `model` or `dataset`.
        revision: commit; `None` for the newest, which is then pinned.
        patterns: globs of the files.
    """

    kind: str
    repo: str
    revision: str | None
    patterns: tuple[str, ...]

    @property
    def key(self) -> str:
        """Name in `pins.json`."""
        return f"{self.kind}:{self.repo}"

    @property
    def page(self) -> str:
        """Its page, where a licence is accepted; on the hub itself, for mirrors have no such page."""
        return f"{_HUB}/{'datasets/' if self.kind == 'dataset' else ''}{self.repo}"


@dataclass(frozen=True, kw_only=True)
class Files:
    """Files of one benchmark that are fetched by URL, and the repository to turn to where that fails."""

    benchmark: str
    downloads: tuple[data.Download, ...]
    otherwise: Repository | None = None

    @property
    def key(self) -> str:
        """Name in `pins.json`."""
        return f"files:{self.benchmark}"


Wanted = Repository | Files


@dataclass
class Report:
    """What a prefetch did.

    Attributes:
        done: key -> short note.
        problems: key -> one line.
    """

    done: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def raise_if_incomplete(self) -> None:
        """Raise one error for all problems.

        Raises:
            InfrastructureError: something could not be fetched.
        """
        if self.problems:
            raise InfrastructureError("; ".join(self.problems.values()))


def cache_directory() -> Path:
    """Our cache: `PTB_CACHE`, else `~/.cache/posttrainbench`."""
    return data.cache_directory().parent


def pins_file() -> Path:
    """Where revisions and hashes are written."""
    return cache_directory() / "pins.json"


def endpoint() -> str:
    """The hub, or the mirror that `HF_ENDPOINT` names."""
    return (os.environ.get("HF_ENDPOINT") or _HUB).rstrip("/")


def plan(names: Iterable[str], *, everything: bool = False) -> list[Wanted]:
    """What the names stand for, each once.

    Args:
        names: base models (both the base and the instruct repository are wanted) and benchmarks, of the catalogue, or
            hub ids of models.
        everything: the paper's suite, beside the names.

    Raises:
        ConfigurationError: a name is neither, or nothing is named.
    """
    wanted: dict[str, Wanted] = {}
    chosen = list(names)
    if everything:
        chosen += [model.name for model in catalog.base_models() if model.suite == "paper"]
        chosen += [benchmark.id for benchmark in catalog.benchmarks() if benchmark.suite == "paper"]
    if not chosen:
        raise ConfigurationError("name models or benchmarks (see `ptb list`), or give --all")
    known = {entry.id for entry in catalog.benchmarks()}
    for name in chosen:
        found = _of_benchmark(name.lower()) if name.lower() in known else _of_model(name)
        wanted |= {one.key: one for one in found}
    return list(wanted.values())


def _of_model(name: str) -> list[Wanted]:
    entry = catalog.find_base_model(name)
    if entry is None:
        if name.count("/") != 1:
            names = [model.name for model in catalog.base_models()] + [one.id for one in catalog.benchmarks()]
            raise catalog.unknown("model or benchmark", name, names)
        return [Repository(kind="model", repo=name, revision=None, patterns=MODEL_PATTERNS)]
    return [
        Repository(kind="model", repo=location, revision=None, patterns=MODEL_PATTERNS)
        for location in (entry.base, entry.instruct)
        # what comes with the package, or is a directory, needs no fetching
        if location is not None and catalog.builtin_directory(location) is None and not Path(location).is_absolute()
    ]


def _of_benchmark(name: str) -> list[Wanted]:
    sources = data.SOURCES.get(name, ())
    downloads = tuple(source for source in sources if isinstance(source, data.Download))
    repositories = [
        Repository(kind="dataset", repo=source.repo, revision=source.revision, patterns=source.patterns)
        for source in sources
        if isinstance(source, data.Hub)
    ]
    if downloads:
        other = repositories[0] if repositories else None
        return [Files(benchmark=name, downloads=downloads, otherwise=other)]
    return [*repositories]


def read_pins() -> dict[str, Any]:
    """`pins.json`; empty where there is none.

    Raises:
        ConfigurationError: the file is damaged.
    """
    path = pins_file()
    if not path.is_file():
        return {}
    try:
        value: dict[str, Any] = read_json(path)
    except (OSError, ValueError):
        raise ConfigurationError(f"{path} cannot be read; remove it to pin the newest revisions") from None
    return value


def prefetch(wanted: Sequence[Wanted], *, display: Display | None = None) -> Report:
    """Fetch and verify; goes on with the rest when one fails. An interrupted download is resumed by the next call."""
    # the client reports its own retries; what comes of them is reported here
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    shown = display or Silent()
    report = Report()
    for one in wanted:
        try:
            pin = _files(one, shown) if isinstance(one, Files) else _repository(one, shown)
        except PTBError as error:
            report.problems[one.key] = str(error)
            shown.end("failed")
            continue
        pins = {**read_pins(), one.key: pin}
        pins_file().parent.mkdir(parents=True, exist_ok=True)
        write_json(pins_file(), pins)
        report.done[one.key] = f"{len(pin['files'])} files verified"
    return report


def describe(wanted: Sequence[Wanted]) -> list[tuple[str, str, int | None]]:
    """For a dry run: key, revision and bytes of each, asked of the hub; `None` for a size that is not known before.

    Raises:
        InfrastructureError: the hub does not answer.
        ConfigurationError: a repository is gated or does not exist.
    """
    found: list[tuple[str, str, int | None]] = []
    for one in wanted:
        if isinstance(one, Files):
            found.append((one.key, "by hash", None))
        else:
            revision, listed = _listing(one)
            found.append((one.key, revision, sum(entry.size for entry in listed)))
    return found


def _listing(one: Repository) -> tuple[str, list[Any]]:
    """Commit and files (with size and hashes) of a repository."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(endpoint=endpoint())
    pinned = read_pins().get(one.key, {}).get("revision")
    revision = one.revision or pinned

    def ask() -> tuple[str, list[Any]]:
        # asked even for a known commit: unlike the listing, it fails at once where there is no hub
        commit = str(api.repo_info(one.repo, repo_type=one.kind, revision=revision, timeout=20).sha)
        tree = api.list_repo_tree(one.repo, recursive=True, revision=commit, repo_type=one.kind)
        return commit, [entry for entry in tree if isinstance(entry, RepoFile) and _matches(entry.path, one.patterns)]

    commit, files = _translated(one, ask)
    if not files:
        raise ConfigurationError(f"{one.repo} at {commit[:12]} has no file that matches {', '.join(one.patterns)}")
    return commit, files


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(path, pattern) for pattern in patterns)


def _translated(one: Repository, action: Callable[[], Any]) -> Any:
    """Run `action`; what the hub's client raises becomes one of our errors, with what to do about it."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return action()
    except GatedRepoError:
        token = "the owner of your token" if _has_token() else "a user of the hub, then set HF_TOKEN or `hf auth login`"
        raise ConfigurationError(f"{one.repo} is gated: accept its licence at {one.page} as {token}") from None
    except RevisionNotFoundError:
        raise ConfigurationError(f"{one.repo} has no revision {one.revision or 'main'} at {endpoint()}") from None
    except RepositoryNotFoundError:
        hint = "" if _has_token() else " (a private or gated repository needs HF_TOKEN)"
        raise ConfigurationError(f"{endpoint()} has no {one.kind} {one.repo}{hint}") from None
    except OfflineModeIsEnabled:
        raise InfrastructureError(f"{one.repo} cannot be fetched: HF_HUB_OFFLINE is set") from None
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "?")
        raise InfrastructureError(f"{one.repo} cannot be fetched from {endpoint()}: HTTP {status}") from None
    except (_network_error(), LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
        raise InfrastructureError(
            f"{one.repo} cannot be fetched: {endpoint()} does not answer ({type(error).__name__}); check the network, or "
            "set HF_ENDPOINT to a mirror. What is already here is kept"
        ) from None


def _network_error() -> Any:
    """What the hub's client raises when a connection fails: httpx's error or, since its version 2, httpx2's."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__mro__[1]


def _has_token() -> bool:
    from huggingface_hub import get_token

    return bool(get_token())


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE)


def _repository(one: Repository, display: Display) -> dict[str, Any]:
    commit, listed = _listing(one)
    display.begin(one.repo, sum(entry.size for entry in listed))
    hashes = {}
    for entry in sorted(listed, key=lambda entry: entry.size):
        hashes[entry.path] = _hub_file(one, commit, entry, display)
    _write_reference(one, commit)
    display.end(f"{len(hashes)} files, {commit[:12]}")
    return {"revision": commit, "endpoint": endpoint(), "files": dict(sorted(hashes.items()))}


def _write_reference(one: Repository, commit: str) -> None:
    """Let `main` in the cache mean this commit, so that what asks for no revision finds the pinned one."""
    if one.revision is not None:
        return
    path = _repository_folder(one) / "refs" / "main"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(commit)


def _hub_file(one: Repository, commit: str, entry: Any, display: Display) -> str:
    """Fetch one file, verify it, return its SHA-256.

    The hub's client (2.x) throws a partial download away; so the content is fetched here, into the client's cache under
    the name that it gives it there (its hash), and the client then finds it and links it.
    """
    from huggingface_hub import hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    where: dict[str, Any] = {"repo_type": one.kind, "revision": commit}
    try:
        path = Path(hf_hub_download(one.repo, entry.path, **where, cache_dir=_hub_cache(), local_files_only=True))
        found, right = _verify(path, entry)
        if right:
            display.advance(entry.size)
            return found
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    except LocalEntryNotFoundError:
        pass
    blob = _repository_folder(one) / "blobs" / (entry.lfs.sha256 if entry.lfs is not None else entry.blob_id)
    url = hf_hub_url(one.repo, entry.path, **where, endpoint=endpoint())
    _translated(
        one,
        lambda: _fetch(
            url, blob, headers=build_hf_headers(), display=display, right=lambda part: _verify(part, entry)[1]
        ),
    )
    linked = _translated(
        one,
        lambda: hf_hub_download(one.repo, entry.path, **where, cache_dir=_hub_cache(), endpoint=endpoint()),
    )
    found, right = _verify(Path(linked), entry)
    if not right:
        raise InfrastructureError(f"{one.repo}/{entry.path} changed while it was fetched; try again")
    return found


def _repository_folder(one: Repository) -> Path:
    """The repository's folder in the cache of the hub's client."""
    return _hub_cache() / f"{one.kind}s--{one.repo.replace('/', '--')}"


class _Damaged(InfrastructureError):
    """What arrived is complete and not what was promised."""


def _fetch(url: str, target: Path, *, headers: dict[str, str], display: Display, right: Callable[[Path], bool]) -> None:
    """Fetch `url` to `target`, going on from what an earlier call left in `target.part`.

    Args:
        right: whether a complete file is the one that is wanted.

    Raises:
        _Damaged: it is not, every time.
        Exception: what the hub's client raises for the network's and the server's failures.
    """
    part = target.with_name(f"{target.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    damaged = tries = 0
    display.advance(_size(part))
    while True:
        tries += 1
        before = _size(part)
        try:
            _append(url, part, headers, display)
        except _network_error():
            # a connection that brought something is worth another one
            tries = 0 if _size(part) > before else tries
            if tries >= _TRIES:
                raise
            time.sleep(0.5 * 2**tries)
            continue
        if right(part):
            part.replace(target)
            return
        damaged += 1
        display.advance(-_size(part))
        part.unlink()
        if damaged >= _TRIES:
            name = url.rsplit("/", 1)[-1]
            raise _Damaged(
                f"{name} arrived damaged {_TRIES} times from {url}: its hash is not the expected one, so the mirror or "
                "the disk is at fault"
            )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _append(url: str, part: Path, headers: dict[str, str], display: Display) -> None:
    """One request, for what is still missing of the file."""
    from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined]

    begin = _size(part)
    # no compression on the way: a range of a compressed body is no range of the file
    asked = {**headers, "Accept-Encoding": "identity", **({"Range": f"bytes={begin}-"} if begin else {})}
    with get_session().stream("GET", url, headers=asked, follow_redirects=True, timeout=60) as response:
        if response.status_code == 416:
            return  # nothing is missing; whether it is right, the caller sees
        if response.status_code >= 400:
            response.read()
        hf_raise_for_status(response)
        resumed = response.status_code == 206
        if not resumed:  # a server without ranges begins anew
            display.advance(-begin)
        with part.open("ab" if resumed else "wb") as file:
            for piece in response.iter_bytes(_PIECE):
                file.write(piece)
                display.advance(len(piece))


def _verify(path: Path, entry: Any) -> tuple[str, bool]:
    """SHA-256 of a file, and whether it is what the hub's metadata says."""
    size = path.stat().st_size
    if entry.lfs is not None:
        found = sha256_file(path)
        return found, size == entry.size and found == entry.lfs.sha256
    raw = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % size + raw, usedforsecurity=False).hexdigest()
    return hashlib.sha256(raw).hexdigest(), size == entry.size and blob == entry.blob_id


def _files(one: Files, display: Display) -> dict[str, Any]:
    display.begin(one.benchmark, None)
    try:
        hashes = {source.name: _download(one.benchmark, source, display) for source in one.downloads}
    except InfrastructureError:
        if one.otherwise is None:
            raise
        return _repository(one.otherwise, display)
    display.end(f"{len(hashes)} files")
    return {"revision": None, "files": hashes}


def _download(benchmark: str, source: data.Download, display: Display) -> str:
    """Fetch one file by URL to where `data` looks for it."""
    from huggingface_hub.errors import HfHubHTTPError

    def right(path: Path) -> bool:
        return sha256_file(path) == source.sha256

    target = data.cache_directory() / benchmark / source.name
    if target.is_file() and right(target):
        display.advance(target.stat().st_size)
        return source.sha256
    try:
        _fetch(source.url, target, headers={}, display=display, right=right)
    except HfHubHTTPError as error:
        problem = f"HTTP {getattr(error.response, 'status_code', '?')}"
        raise InfrastructureError(f"the data of {benchmark} cannot be fetched from {source.url}: {problem}") from None
    except _network_error() as error:
        problem = f"it does not answer ({type(error).__name__}); check the network"
        raise InfrastructureError(f"the data of {benchmark} cannot be fetched from {source.url}: {problem}") from None
    return source.sha256
