"""Submits the base model and starts a long evaluation shortly before its time is up."""

import os
import shutil
import subprocess
import sys

shutil.copytree(os.environ["PTB_BASE_MODEL"], "final_model", copy_function=shutil.copyfile)
while True:
    done = subprocess.run([sys.executable, "evaluate.py"], capture_output=True, text=True)
    print(done.stderr[-1000:], f"status {done.returncode}", flush=True)
