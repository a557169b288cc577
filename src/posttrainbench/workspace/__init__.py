"""What the agent gets: prompt, timer, evaluation script, templates."""

from posttrainbench.workspace.build import build
from posttrainbench.workspace.prompt import prompt

__all__ = ["build", "prompt"]
