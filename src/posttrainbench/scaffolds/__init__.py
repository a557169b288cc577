"""How each agent program is started and how its output is read."""

from posttrainbench.scaffolds.agents import Agent, Launch, launch, parse_agent

__all__ = ["Agent", "Launch", "launch", "parse_agent"]
