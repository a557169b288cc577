"""Scripted agents: a Python program in the place of an LLM, for the demo, tests and red team."""

from __future__ import annotations

from pathlib import Path

from posttrainbench import catalog
from posttrainbench.errors import ConfigurationError
from posttrainbench.scaffolds.base import Agent, Launch

PROGRAMS = Path(__file__).parent / "scripted"
_INSIDE = "/opt/ptb/agent.py"
INSTRUCT_INSIDE = "/opt/ptb/brought/instruct"
"""Where an agent finds the instruct model when its catalogue entry says that it brings it along."""


def scripted_agent(model: str, *, separator: bool) -> Agent:
    """The agent `scripted:MODEL`.

    Raises:
        ConfigurationError: there is no such program.
    """
    if not separator or not model:
        raise ConfigurationError("agent 'scripted' lacks its program; write for example scripted:honest-sft")
    if model.endswith(".py"):
        program = Path(model).absolute()
        if not program.is_file():
            raise ConfigurationError(f"agent 'scripted:{model}': there is no file {program}")
        return Agent(name=f"scripted:{program.stem}", scaffold="scripted", model=model, program=program, own_file=True)
    scripted = {entry.name: entry for entry in catalog.scripted_agents()}
    if model not in scripted:
        raise catalog.unknown("scripted agent", model, scripted)
    program = PROGRAMS / f"{model.replace('-', '_')}.py"
    return Agent(
        name=f"scripted:{model}", scaffold="scripted", model=model, program=program, brings=scripted[model].brings
    )


def launch_program(agent: Agent, *, instruct: Path | None) -> Launch:
    """The command and the mounts of a scripted agent.

    Raises:
        ConfigurationError: the agent needs the instruct model and none is known.
    """
    assert agent.program is not None
    ro = {_INSIDE: agent.program}
    if "instruct" in agent.brings:
        if instruct is None:
            raise ConfigurationError(
                f"agent {agent.name} needs the instruct model, and none is known for this base model"
            )
        ro[INSTRUCT_INSIDE] = instruct
    return Launch(argv=("python", "-u", _INSIDE), ro=ro)  # the first on the PATH is the sandbox's runtime
