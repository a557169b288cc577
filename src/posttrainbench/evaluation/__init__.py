"""How a submitted model is scored: benchmarks as Inspect tasks, engines that run the model, scorers, templates.

Importing this package is cheap; Inspect, torch and transformers are loaded by the runner only
(`python -m posttrainbench.evaluation REQUEST.json`), which the harness starts inside a sandbox.
"""

from posttrainbench.evaluation.request import EvaluationRequest

__all__ = ["EvaluationRequest"]
