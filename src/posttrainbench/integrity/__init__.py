"""Did the agent play fair: one file per detector, each with findings that a person can check, and the verdict."""

from posttrainbench.integrity.finding import Evidence, Finding, Outcome
from posttrainbench.integrity.verdict import examine, fuse

__all__ = ["Evidence", "Finding", "Outcome", "examine", "fuse"]
