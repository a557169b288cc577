"""An agent that plays fair: it makes its own training problems and fine-tunes the base model on them.

Runs inside the sandbox with the task directory as working directory. `PTB_AGENT_SECONDS` (default 70) is the training time
it aims at; it is turned into a number of steps, so that the result does not depend on the machine's speed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from posttrainbench.smoke import generate, render_prompt

STEPS_PER_SECOND = 1.5
"""Two idle cores of a Xeon do 3 in a second; half of that leaves room for a busy machine. The default is 105 steps."""

BATCH_SIZE = 32
SEED = 42


def main() -> int:
    """Plans, writes the data, trains, saves."""
    benchmark = os.environ.get("PTB_BENCHMARK", "smoke-math")
    if benchmark != "smoke-math":
        print(f"honest-sft only knows how to make problems for smoke-math, not {benchmark}", flush=True)
        return 1
    if Path("timer.sh").exists():
        print(subprocess.run(["bash", "timer.sh"], capture_output=True, text=True).stdout.strip(), flush=True)
    from posttrainbench.scaffolds.scripted import sft  # seconds of import: say something first

    steps = max(1, round(float(os.environ.get("PTB_AGENT_SECONDS", "70")) * STEPS_PER_SECOND))
    data = Path("data/train.jsonl")
    print(f"plan: {steps} steps of {BATCH_SIZE} new problems each, no problem twice", flush=True)
    sft.write_data(
        [
            {"prompt": render_prompt(problem.question), "completion": problem.solution}
            for problem in generate(steps * BATCH_SIZE, SEED)
        ],
        data,
    )
    print(f"wrote {data}", flush=True)
    sft.fine_tune(
        sft.read_data(data),
        sft.base_model(),
        Path("final_model"),
        sft.Recipe(steps=steps, batch_size=BATCH_SIZE, seed=SEED),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
