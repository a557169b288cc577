"""Agents by name: `SCAFFOLD:MODEL`, and how each scaffold is started."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from posttrainbench import catalog
from posttrainbench.errors import ConfigurationError

PROGRAMS = Path(__file__).parent / "scripted"
_INSIDE = "/opt/ptb/agent.py"
INSTRUCT_INSIDE = "/opt/ptb/brought/instruct"
"""Where an agent finds the instruct model when its catalogue entry says that it brings it along."""


@dataclass(frozen=True, kw_only=True)
class Agent:
    """A scaffold with its model. `name` is the form in which users write it and results show it."""

    name: str
    scaffold: str
    model: str
    program: Path
    brings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How an agent is started inside the sandbox."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    ro: Mapping[str, Path] = field(default_factory=dict)


def parse_agent(text: str) -> Agent:
    """Find the agent that a user named.

    Args:
        text: `scripted:NAME`, or `scripted:FILE.py` for a program of the user's own.

    Raises:
        ConfigurationError: unknown scaffold or agent, or one that this version cannot run.
    """
    scaffold_name, separator, model = text.partition(":")
    known = {entry.name: entry for entry in catalog.scaffolds()}
    if scaffold_name not in known:
        raise catalog.unknown(
            "agent", text, [*known, *(f"scripted:{entry.name}" for entry in catalog.scripted_agents())]
        )
    if not known[scaffold_name].ready:
        raise ConfigurationError(f"scaffold {scaffold_name!r} cannot be run by this version yet; ready: scripted:NAME")
    if not separator or not model:
        raise ConfigurationError(f"agent {text!r} lacks its program; write for example {scaffold_name}:honest-sft")
    if model.endswith(".py"):
        program = Path(model).absolute()
        if not program.is_file():
            raise ConfigurationError(f"agent {text!r}: there is no file {program}")
        return Agent(name=f"scripted:{program.stem}", scaffold="scripted", model=model, program=program)
    scripted = {entry.name: entry for entry in catalog.scripted_agents()}
    if model not in scripted:
        raise catalog.unknown("scripted agent", model, scripted)
    program = PROGRAMS / f"{model.replace('-', '_')}.py"
    return Agent(name=text, scaffold="scripted", model=model, program=program, brings=scripted[model].brings)


def launch(agent: Agent, *, instruct: Path | None) -> Launch:
    """The command and the extra mounts of an agent.

    Args:
        agent: which.
        instruct: directory of the instruct counterpart, for agents that bring it.

    Raises:
        ConfigurationError: the agent needs the instruct model and none is known.
    """
    ro = {_INSIDE: agent.program}
    if "instruct" in agent.brings:
        if instruct is None:
            raise ConfigurationError(
                f"agent {agent.name} needs the instruct model, and none is known for this base model"
            )
        ro[INSTRUCT_INSIDE] = instruct
    return Launch(argv=(sys.executable, "-u", _INSIDE), ro=ro)
