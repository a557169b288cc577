"""Settings of the hub door, made on the host before a run starts."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from posttrainbench.errors import ConfigurationError
from posttrainbench.gateway.hub_policy import SHAPE, HubPolicy, load_hub_policy
from posttrainbench.gateway.providers import check_url
from posttrainbench.gateway.settings import known_settings

UPSTREAM = "https://huggingface.co"
TOKEN = "hub"
"""Name of the hub's token in `Secrets.keys`."""
# what a copy of a benchmark's data may be, and how large such files are at most; GPQA's is 2.3 MB
DATA = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".gz", ".zip", ".arrow", ".txt")
_LARGEST, _SMALLEST = 256 * 2**20, 512
_MOST_FILES = 2000


@dataclass(frozen=True, kw_only=True)
class HubConfig:
    """Settings of the hub door, as they stand in `GatewayConfig.hub`. Holds no secret.

    Attributes:
        policy: a name in `policies/hub`, or a TOML file.
        upstream: the hub, or a mirror of it.
        cache: the host's cache of the hub's client; files in it are served from there.
        benchmark: the run's.
        base: hub id (or directory) of the run's base model; `revision` its commit, which is what `main` of it means.
        instruct: hub id of its counterpart, empty if unknown.
        shape: the base model's sizes (`SHAPE`), from its config.json.
        hashes: SHA-256 and git's SHA-1 of the benchmark's data files on the host.
        connections: files under way at a time.
        idle_s: longest silence of the hub.
        tries: attempts that bring nothing until a file is given up.
        keep_bytes: room in `RUN/gateway/hub-files` for copies of the data files handed out, for the audit's scanner;
            none larger than `keep_file_bytes`.
    """

    policy: str = "guarded"
    upstream: str = UPSTREAM
    cache: str = ""
    benchmark: str = ""
    base: str = ""
    revision: str = ""
    instruct: str = ""
    shape: Mapping[str, int] = field(default_factory=dict)
    hashes: tuple[str, ...] = ()
    connections: int = 64
    idle_s: float = 60.0
    tries: int = 5
    keep_bytes: int = 512 * 2**20
    keep_file_bytes: int = 64 * 2**20

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> HubConfig:
        """The inverse of `to_json`.

        Raises:
            ConfigurationError: an unknown setting.
        """
        return cls(**known_settings(cls, value, of="the hub door", lists=("hashes",)))

    def rules(self) -> HubPolicy:
        """The policy in force for the run.

        Raises:
            ConfigurationError: there is no such policy.
        """
        policy = load_hub_policy(self.policy)
        return policy.of_run(
            benchmark=self.benchmark, base=self.base, instruct=self.instruct or None, hashes=self.hashes
        )


def hub_settings(
    policy: str,
    *,
    benchmark: str,
    base: str,
    instruct: str | None,
    base_directory: Path | None = None,
    revision: str | None = None,
    data: Iterable[Path] = (),
    environ: Mapping[str, str] = os.environ,
) -> tuple[HubConfig, str | None]:
    """The door's settings for a run, and the host's token for gated repositories.

    Args:
        policy: name or path of a hub policy.
        base, instruct: hub ids as the catalogue has them.
        base_directory: the base model's files, for its shape.
        data: files and directories with the benchmark's data; what has `train` in its name is left out.
        environ: `PTB_UPSTREAM_HUB` or `HF_ENDPOINT` (a mirror), `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HOME`, `HF_HUB_CACHE`.

    Raises:
        ConfigurationError: no such policy, or an address that is none.
    """
    upstream = (environ.get("PTB_UPSTREAM_HUB") or environ.get("HF_ENDPOINT") or UPSTREAM).rstrip("/")
    check_url(upstream, "PTB_UPSTREAM_HUB" if environ.get("PTB_UPSTREAM_HUB") else "HF_ENDPOINT")
    home = Path(environ.get("HF_HOME") or Path(environ.get("HOME") or Path.home()) / ".cache" / "huggingface")
    config = HubConfig(
        policy=policy,
        upstream=upstream,
        cache=str(Path(environ.get("HF_HUB_CACHE") or home / "hub").absolute()),
        benchmark=benchmark,
        base=base,
        revision=revision or "",
        instruct=instruct or "",
        shape={} if base_directory is None else read_shape(base_directory / "config.json"),
        hashes=tuple(sorted(content_hashes(data))),
    )
    config.rules()
    return config, _token(environ, home)


def _token(environ: Mapping[str, str], home: Path) -> str | None:
    found = environ.get("HF_TOKEN") or environ.get("HUGGING_FACE_HUB_TOKEN") or ""
    if not found:
        try:
            found = Path(environ.get("HF_TOKEN_PATH") or home / "token").read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            return None
    found = found.strip()
    if found and (not found.isascii() or not found.isprintable() or " " in found):
        raise ConfigurationError(
            "HF_TOKEN does not look like a token: it has spaces or characters that no header may have"
        )
    return found or None


def shape_of(config: Any) -> dict[str, int]:
    """The sizes of a model from its configuration; of the language model where there are others beside it."""
    if not isinstance(config, Mapping):
        return {}
    inner = config.get("text_config")
    values = inner if isinstance(inner, Mapping) else config
    return {name: values[name] for name in SHAPE if isinstance(values.get(name), int)}


def read_shape(path: Path) -> dict[str, int]:
    """`shape_of` a file; empty where it cannot be read."""
    try:
        return shape_of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return {}


def content_hashes(places: Iterable[Path]) -> set[str]:
    """SHA-256 and git's SHA-1 of data files, those with `train` in their name left out."""
    found: set[str] = set()
    for place in places:
        files = sorted(each for each in place.rglob("*") if each.is_file())[:_MOST_FILES] if place.is_dir() else [place]
        for path in files:
            named = path.name.lower()
            if not named.endswith(DATA) or "train" in named or not path.is_file():
                continue
            if _SMALLEST <= path.stat().st_size <= _LARGEST:
                found.update(_hashes(path))
    return found


def _hashes(path: Path) -> tuple[str, str]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
        file.seek(0)
        git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        while piece := file.read(2**20):
            git.update(piece)
    return sha256, git.hexdigest()
