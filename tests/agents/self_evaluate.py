"""Submits the base model, scores it with evaluate.py and looks at the clock, as a careful agent would."""

import os
import shutil
import subprocess
import sys

shutil.copytree(os.environ["PTB_BASE_MODEL"], "final_model", copy_function=shutil.copyfile)
command = [
    sys.executable,
    "evaluate.py",
    "--limit",
    "5",
    "--json-output-file",
    "scores.json",
    "--outputs-file",
    "o.jsonl",
]
done = subprocess.run(command, check=False)
print("evaluate.py ended with", done.returncode, flush=True)
subprocess.run(["bash", "timer.sh"], check=True)
