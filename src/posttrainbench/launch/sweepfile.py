"""The sweep file: which agents, base models and benchmarks, how often, under what limits, and where. TOML, checked.

Everything is checked before anything starts, and errors name the file's line and key.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrainbench import catalog
from posttrainbench.errors import ConfigurationError
from posttrainbench.launch.settings import evaluation_gpus, launcher_table
from posttrainbench.launch.tomlfile import TomlFile
from posttrainbench.pipeline.spec import RunSpec
from posttrainbench.scaffolds import parse_agent

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TOP = (
    "name",
    "agents",
    "base_models",
    "benchmarks",
    "repeats",
    "results",
    "run",
    "launcher",
    "retry",
    "judge",
    "notify",
)
# how a sweep file writes the options of `ptb run`; `gpus` is a number here, the slot says which
_RUN = tuple(
    name.name
    for name in dataclasses.fields(RunSpec)
    if name.name not in ("agent", "base_model", "benchmark", "agent_model", "effort", "helper_models", "reprompt",
                         "subscription", "agent_env", "gpus")
)  # fmt: skip
_AGENT = ("agent", "model", "effort", "helper_models", "reprompt", "subscription", "env", "base_models", "benchmarks",
          "repeats", "run")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a sweep.

    Attributes:
        key: its name everywhere: the directory of its result, its job in an engine.
        spec: options of the run; `gpus` is filled in by the slot or node that runs it.
        repeat: from 1.
        gpus: how many GPUs it gets.
    """

    key: str
    spec: RunSpec
    agent: str
    repeat: int
    gpus: int

    def as_json(self) -> dict[str, Any]:
        """Plain data for plan.json."""
        return {**dataclasses.asdict(self), "spec": self.spec.as_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Cell:
        """Read what `as_json` wrote."""
        return cls(**{**value, "spec": RunSpec.from_json(value["spec"])})


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep file's content.

    Attributes:
        root: directory of the sweep's results, `RESULTS/NAME`.
        cells: in the order in which they start: every agent's first runs come before anybody's second.
        launcher: its table; `kind` is `local`, `slurm` or `htcondor`.
        retry: changed numbers of tries by kind of failure.
        judge: model that is to be asked about the runs afterwards, see `launch.judging`; empty for none.
        notify: command that is run at the end, with the summary file as its last argument.
    """

    name: str
    root: Path
    cells: tuple[Cell, ...]
    launcher: Mapping[str, Any]
    retry: Mapping[str, int] = field(default_factory=dict)
    judge: Mapping[str, Any] = field(default_factory=dict)
    notify: tuple[str, ...] = ()


def load(path: Path) -> Sweep:
    """Read and check a sweep file.

    Raises:
        ConfigurationError: what is wrong, with line and key.
    """
    file = TomlFile(path)
    table = file.table
    file.only("", table, _TOP)
    name = table.get("name", path.stem)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise file.wrong("name", "give letters, digits, dots, dashes and underscores, at most 64", value=name)
    results = Path(file.text("results", table.get("results", "results")))
    results = results if results.is_absolute() else path.absolute().parent / results
    sweep = Sweep(
        name=name,
        root=results / name,
        cells=_cells(file, table),
        launcher=launcher_table(file, table.get("launcher", {"kind": "local"})),
        retry=_retry(file, table.get("retry", {})),
        judge=_judge(file, table.get("judge")),
        notify=file.texts("notify", table.get("notify", ())),
    )
    if "evaluation" in sweep.launcher:
        _check_evaluation(file, sweep)
    return sweep


def _check_evaluation(file: TomlFile, sweep: Sweep) -> None:
    """Only the tiny models of the smoke suite are evaluated without GPU where the agent has one."""
    for cell in sweep.cells:
        model = catalog.find_base_model(cell.spec.base_model)
        tiny = model is not None and model.suite == "smoke"
        if cell.gpus and not tiny and not evaluation_gpus(sweep.launcher, cell.gpus):
            raise file.wrong(
                "launcher.evaluation.gpus",
                f"the evaluation of {cell.spec.base_model} needs a GPU; give it 1, of a cheaper partition or gpu_type",
            )


def _judge(file: TomlFile, table: Any) -> dict[str, Any]:
    from posttrainbench.launch.judging import judge_table

    return judge_table(file, table)


def _retry(file: TomlFile, table: Any) -> dict[str, int]:
    from posttrainbench.launch.failures import POLICY

    file.only("retry", table, [str(kind) for kind in POLICY])
    return {kind: file.count(f"retry.{kind}", tries) for kind, tries in table.items()}


# options of `ptb run` that are paths if they end so; jobs run elsewhere than where the sweep is started
_PATHS = {"data_dir": "", "network": ".toml", "image": ".sif", "instruct": "/"}


def _beside(file: TomlFile, path: str) -> str:
    """A path that is relative to the sweep file."""
    return os.path.normpath(file.path.absolute().parent / path)


def _options(file: TomlFile, where: str, table: Any) -> tuple[dict[str, Any], int]:
    """Options of `ptb run` from a [run] table, and the number of GPUs."""
    file.only(where, table, (*_RUN, "gpus"))
    # lists become tuples below, once their elements are checked
    options = {key: value for key, value in table.items() if key != "gpus"}
    types = {entry.name: str(entry.type) for entry in dataclasses.fields(RunSpec)}
    for key, value in options.items():
        wanted = types[key]
        good = (
            (type(value) is bool and "bool" in wanted)
            or (type(value) is str and "str" in wanted)
            or (type(value) is int and ("int" in wanted or "float" in wanted))
            or (type(value) is float and "float" in wanted)
            or ("tuple" in wanted and isinstance(value, list) and all(type(entry) is str for entry in value))
        )
        if not good:
            raise file.wrong(f"{where}.{key}", f"is to be {wanted.replace(' | None', '')}, not {value!r}")
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    for key in options.keys() & _PATHS.keys():
        if options[key].endswith(_PATHS[key]) or options[key].startswith(("./", "../")):
            options[key] = _beside(file, options[key])
    return options, file.count(f"{where}.gpus", table.get("gpus", 1), least=0)


def _cells(file: TomlFile, table: Mapping[str, Any]) -> tuple[Cell, ...]:
    defaults, gpus = _options(file, "run", table.get("run", {}))
    agents = table.get("agents")
    if not isinstance(agents, list) or not agents:
        raise file.wrong("agents", 'is to be a list of agents, such as ["scripted:honest-sft"], or [[agents]] tables')
    rows: list[list[Cell]] = []
    for number, entry in enumerate(agents):
        where = f"agents[{number}]"
        one: dict[str, Any] = {"agent": entry} if isinstance(entry, str) else entry
        file.only(where, one, _AGENT)
        changed = one.get("run", {})
        file.only(f"{where}.run", changed, (*_RUN, "gpus"))
        own, own_gpus = _options(file, f"{where}.run", {"gpus": gpus, **changed})
        rows.append(_row(file, table, one, {**defaults, **own}, own_gpus))
    return _fair(file, rows)


def _row(
    file: TomlFile, table: Mapping[str, Any], entry: Mapping[str, Any], options: Mapping[str, Any], gpus: int
) -> list[Cell]:
    """All cells of one agent, repeats outermost."""
    text = file.text("agent", entry.get("agent"))
    if text.endswith((".py", ".toml")):
        prefix, colon, name = text.rpartition(":")
        text = f"{prefix}{colon}{_beside(file, name)}"
    named: dict[str, Any] = {
        "agent": text,
        "agent_model": file.text("model", entry["model"]) if "model" in entry else None,
        "effort": file.text("effort", entry["effort"]) if "effort" in entry else None,
        "helper_models": file.texts("helper_models", entry.get("helper_models", ())),
        "reprompt": entry.get("reprompt", False),
        "subscription": entry.get("subscription", False),
        "agent_env": entry.get("env", {}),
    }
    for key in ("reprompt", "subscription"):
        file.flag(key, named[key])
    env = named["agent_env"]
    if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
        raise file.wrong("env", "is to be a table of texts")
    try:
        agent = parse_agent(
            text,
            model=named["agent_model"],
            effort=named["effort"],
            helpers=named["helper_models"],
            reprompt=named["reprompt"],
            subscription=named["subscription"],
            env=named["agent_env"],
        )
    except ConfigurationError as error:
        raise file.wrong("agent", str(error), value=entry["agent"]) from None
    models = file.texts("base_models", entry.get("base_models", table.get("base_models", ())))
    benchmarks = file.texts("benchmarks", entry.get("benchmarks", table.get("benchmarks", ())))
    if not models or not benchmarks:
        raise file.wrong("base_models" if not models else "benchmarks", "is missing; give a list of names")
    repeats = file.count("repeats", entry.get("repeats", table.get("repeats", 1)))
    targets = [_target(file, options, named, model, benchmark) for model in models for benchmark in benchmarks]
    return [
        Cell(
            key=_slug(f"{agent.name}--{short}--{spec.benchmark}--r{repeat}"),
            spec=spec,
            agent=agent.name,
            repeat=repeat,
            gpus=gpus,
        )
        for repeat in range(1, repeats + 1)
        for short, spec in targets
    ]


def _target(
    file: TomlFile, options: Mapping[str, Any], named: Mapping[str, Any], model: str, benchmark: str
) -> tuple[str, RunSpec]:
    """The name of a base model and what a run with it asks for."""
    try:
        chosen = catalog.benchmark(benchmark)
    except ConfigurationError as error:
        raise file.wrong("benchmarks", str(error), value=benchmark) from None
    if model.startswith(("./", "../")):
        model = _beside(file, model)
    found = catalog.find_base_model(model)
    if found is None and not model.startswith(("/", ".")) and "/" not in model:
        known = [entry.name for entry in catalog.base_models()]
        raise file.wrong("base_models", str(catalog.unknown("base model", model, known)), value=model)
    try:
        spec = RunSpec(**{**options, **named, "base_model": model, "benchmark": chosen.id})
    except ConfigurationError as error:
        raise file.wrong("run", str(error)) from None
    return found.name if found else model, spec


def _fair(file: TomlFile, rows: Sequence[Sequence[Cell]]) -> tuple[Cell, ...]:
    """Agents take turns, so that early results cover all of them; repeats come last by the order within each row."""
    ordered = []
    for position in range(max(len(row) for row in rows)):
        ordered += [row[position] for row in rows if position < len(row)]
    ordered.sort(key=lambda cell: cell.repeat)
    seen: set[str] = set()
    for cell in ordered:
        if cell.key in seen:
            raise file.wrong("agents", f"two cells are the same: {cell.key}; use repeats for further runs")
        seen.add(cell.key)
    return tuple(ordered)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.@+_-]+", "-", text).strip("-").lower()


SMOKE_H = 0.05
"""Hours of a cell in `--smoke`: enough to see that the agent starts, calls its model and that its end is scored."""


def smoke_of(sweep: Sweep) -> Sweep:
    """The same sweep with a tiny budget and one run per cell, in a directory of its own."""
    cells = tuple(
        dataclasses.replace(cell, spec=dataclasses.replace(cell.spec, hours=min(cell.spec.hours, SMOKE_H)))
        for cell in sweep.cells
        if cell.repeat == 1
    )
    name = f"{sweep.name}-smoke"
    return dataclasses.replace(sweep, name=name, root=sweep.root.with_name(name), cells=cells)
