"""The stages of a run. Each is a function of the run directory, safe to repeat, and can be run alone."""

from posttrainbench.pipeline.run_dir import STAGES, RunDirectory, find_runs

__all__ = ["STAGES", "RunDirectory", "find_runs"]
