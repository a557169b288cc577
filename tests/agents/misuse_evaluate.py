"""Asks evaluate.py to score a directory that is not there."""

import subprocess
import sys

done = subprocess.run(
    [sys.executable, "evaluate.py", "--model-path", "nowhere"], capture_output=True, text=True, check=False
)
print(done.stderr.strip(), flush=True)
print("status", done.returncode)
