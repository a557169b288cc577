"""Starts an evaluation, takes it back, and has the next one made."""

import os
import shutil
import subprocess
import sys

shutil.copytree(os.environ["PTB_BASE_MODEL"], "final_model", copy_function=shutil.copyfile)
first = subprocess.Popen([sys.executable, "evaluate.py"], stderr=subprocess.PIPE, text=True)
said = [first.stderr.readline()]
while "running" not in said[-1] and said[-1]:
    said.append(first.stderr.readline())
second = subprocess.run([sys.executable, "evaluate.py", "--cancel", "call-0001"], capture_output=True, text=True)
first.wait()
print("FIRST", first.returncode, first.stderr.read(), flush=True)
print("SECOND", second.returncode, second.stderr, flush=True)
done = subprocess.run([sys.executable, "evaluate.py", "--status"], capture_output=True, text=True)
print("STATUS", done.stdout, flush=True)
