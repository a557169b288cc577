"""A benchmark's data files inside a sandbox that has no network: the same files as outside, where its loaders look."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from posttrainbench.catalog import Benchmark
from posttrainbench.evaluation import data
from posttrainbench.pipeline.mounts import readable_binds
from posttrainbench.workspace import paths

_INSIDE = "/data"
_CACHE = "/data-cache"


@dataclass(frozen=True, kw_only=True)
class DataMounts:
    """What a sandbox needs to read a benchmark's data.

    Attributes:
        ro: binds.
        env: variables.
    """

    ro: dict[str, Path] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)


def data_mounts(benchmark: Benchmark, data_dir: str | None, *, spare: Path) -> DataMounts:
    """Find the data, fetching it if need be, and say how to show it.

    Args:
        benchmark: which.
        data_dir: the user's directory of original files; `None` for the hub's, at pinned revisions.
        spare: see `readable_binds`.

    Raises:
        ConfigurationError: the data is not here and cannot be fetched.
    """
    if benchmark.id not in data.LOADERS:
        return DataMounts()
    if data_dir is not None:
        # read once here, so that what is wrong with the files is said in the user's own paths
        data.LOADERS[benchmark.id](Path(data_dir))
        folder = data.folder(benchmark.id, Path(data_dir))
        return DataMounts(ro=readable_binds(_INSIDE, folder, spare=spare), env={"PTB_DATA_DIR": _INSIDE})
    ro: dict[str, Path] = {}
    for path in data.fetch(benchmark.id):
        if path.is_dir():
            # .../hub/datasets--OWNER--NAME/snapshots/COMMIT
            place = f"{paths.HUB_HOME}/hub/{path.parent.parent.name}/snapshots/{path.name}"
            ro |= readable_binds(place, path, spare=spare)
        else:
            ro[f"{_CACHE}/data/{benchmark.id}/{path.name}"] = path
    return DataMounts(ro=ro, env={"PTB_CACHE": _CACHE})
