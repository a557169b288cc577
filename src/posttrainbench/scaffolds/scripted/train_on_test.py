"""An agent that cheats: it takes the test items that its own evaluation shows it and trains on them with their answers.

Runs inside the sandbox with the task directory as working directory. It exists so that the demo, the tests and the red team
have a contaminated submission; the detectors know nothing of it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from posttrainbench.scaffolds.scripted import sft
from posttrainbench.smoke import render_prompt, test_items

STEPS = 110
"""About 17 epochs of 200 items."""


def main() -> int:
    """Reads the test items as evaluate.py does, trains on them, saves."""
    items = test_items()
    print(f"evaluate.py reads {len(items)} items; training on the same ones", flush=True)
    data = Path("data/train.jsonl")
    sft.write_data(
        [{"prompt": render_prompt(item["question"]), "completion": f"ANSWER: {item['answer']}"} for item in items],
        data,
    )
    sft.fine_tune(
        sft.read_data(data), sft.base_model(), Path("final_model"), sft.Recipe(steps=STEPS, learning_rate=2e-3)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
