"""The [launcher] table of a sweep file: which keys there are for which engine, and what they may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrainbench.launch.tomlfile import TomlFile

_PLACE = ("partition", "account", "qos", "cpus", "memory_gib", "gpu_type", "options", "setup")
_KEYS: Mapping[str, tuple[str, ...]] = {
    "local": ("kind", "slots"),
    "slurm": ("kind", *_PLACE, "margin_h", "split", "evaluation"),
    "htcondor": ("kind", "cpus", "memory_gib", "disk_gib", "margin_h", "requirements", "options", "setup"),
}
_EVALUATION = (*_PLACE, "gpus", "hours")
_EVALUATION_H = 4.0
"""Outer fence of a job that audits and evaluates. With the reference's vLLM settings one evaluation took up to 4 h."""


def launcher_table(file: TomlFile, table: Any) -> dict[str, Any]:
    """Check the [launcher] table and what is below it.

    Raises:
        ConfigurationError: what is wrong, with line and key.
    """
    kind = table.get("kind") if isinstance(table, dict) else None
    if not isinstance(kind, str) or kind not in _KEYS:
        raise file.wrong("launcher.kind", f"is to be one of {', '.join(_KEYS)}", value=kind)
    if kind != "slurm":
        for key in ("split", "evaluation"):
            if key in table:
                raise file.wrong(
                    f"launcher.{key}", f'only kind = "slurm" gives evaluation jobs of their own; remove it for {kind}'
                )
    file.only("launcher", table, _KEYS[kind])
    checked = _place(file, "launcher", table)
    if "slots" in table:
        file.count("launcher.slots", table["slots"])
    if "requirements" in table:
        file.text("launcher.requirements", table["requirements"])
    for key in ("margin_h", "disk_gib"):
        if key in table:
            file.number(f"launcher.{key}", table[key])
    split = file.flag("launcher.split", table.get("split", False))
    if "evaluation" in table and not split:
        raise file.wrong("launcher.evaluation", "says how evaluation jobs are to be; it needs launcher.split = true")
    if split:
        checked["evaluation"] = _evaluation(file, table.get("evaluation", {}))
    return checked


def _place(file: TomlFile, where: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """Where a job runs and how large it is."""
    checked = dict(table)
    if "cpus" in table:
        file.count(f"{where}.cpus", table["cpus"])
    if "options" in table:
        checked["options"] = file.texts(f"{where}.options", table["options"])
    for key in ("partition", "account", "qos", "gpu_type", "setup"):
        if key in table:
            file.text(f"{where}.{key}", table[key])
    if "memory_gib" in table:
        file.number(f"{where}.memory_gib", table["memory_gib"])
    return checked


def _evaluation(file: TomlFile, table: Any) -> dict[str, Any]:
    file.only("launcher.evaluation", table, _EVALUATION)
    checked = _place(file, "launcher.evaluation", table)
    if "gpus" in table:
        file.count("launcher.evaluation.gpus", table["gpus"], least=0)
    if "hours" in table:
        file.number("launcher.evaluation.hours", table["hours"])
    return checked


def evaluation_gpus(launcher: Mapping[str, Any], gpus: int) -> int:
    """GPUs of the evaluation job of a cell whose agent gets so many: one if nothing is said, never more than the agent's."""
    asked: int = launcher["evaluation"].get("gpus", 1)
    return min(asked, gpus)


def evaluation_place(launcher: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of evaluation jobs: what their table does not say is as for the agents' jobs, but for `options`.

    The GPU type is not taken over into another partition, which may have none of it.
    """
    own = launcher["evaluation"]
    taken = [key for key in _PLACE if key not in ("options", "gpu_type")]
    if "partition" not in own:
        taken.append("gpu_type")
    return {"hours": _EVALUATION_H, **{key: launcher[key] for key in taken if key in launcher}, **own}
