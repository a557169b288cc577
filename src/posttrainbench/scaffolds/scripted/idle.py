"""An agent that reads its prompt, looks at the clock and submits nothing."""

import subprocess
import sys

prompt = sys.stdin.read()
print(f"I was given a prompt of {len(prompt)} characters.")
print(subprocess.run(["bash", "timer.sh"], capture_output=True, text=True, check=False).stdout.strip())
print("I would rather not.")
