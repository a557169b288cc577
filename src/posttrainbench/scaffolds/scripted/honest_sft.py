"""An agent that plays fair: it makes its own training problems and fine-tunes the base model on them.

Runs inside the sandbox with the task directory as working directory. `PTB_AGENT_SECONDS` (default 70) is the training time
it aims at; it is turned into a number of steps, so that the result does not depend on the machine's speed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from posttrainbench.scaffolds.scripted import sft

STEPS_PER_SECOND = 1.5
"""Two idle cores of a Xeon do 3 in a second; half of that leaves room for a busy machine. The default is 105 steps."""

BATCH_SIZE = 32
SEED = 42


def training_problems(count: int) -> list[sft.Example]:
    """New problems; with sealed test data, where their generator is out of sight, those of the file that is there for it."""
    from posttrainbench.scaffolds.scripted import sft

    given = Path("smoke-math-train.jsonl")
    if given.exists():
        return sft.read_data(given)[:count]
    from posttrainbench.smoke import generate, render_prompt

    return [
        {"prompt": render_prompt(problem.question), "completion": problem.solution} for problem in generate(count, SEED)
    ]


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
    sft.write_data(training_problems(steps * BATCH_SIZE), data)
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
