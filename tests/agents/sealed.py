"""Submits the base model and has it scored on sealed test data twice; looks for the generator of the test items."""

import os
import shutil
import subprocess
import sys

shutil.copytree(os.environ["PTB_BASE_MODEL"], "final_model", copy_function=shutil.copyfile)
for more in (["--json-output-file", "all.json"], ["--limit", "30", "--json-output-file", "some.json"]):
    done = subprocess.run([sys.executable, "evaluate.py", *more], capture_output=True, text=True)
    print(done.stdout, done.stderr[-2000:], f"status {done.returncode}", flush=True)
look = "from posttrainbench.smoke import test_items; print(len(test_items()))"
done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
print("test items:", done.returncode, done.stdout, done.stderr[-300:], flush=True)
