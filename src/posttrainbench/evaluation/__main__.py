"""`python -m posttrainbench.evaluation REQUEST.json`: one evaluation, as the harness starts it in a sandbox."""

from __future__ import annotations

import sys
from pathlib import Path

from posttrainbench.evaluation.request import EvaluationRequest
from posttrainbench.evaluation.runner import run_recorded

if __name__ == "__main__":
    sys.exit(run_recorded(EvaluationRequest.load(Path(sys.argv[1]))))
