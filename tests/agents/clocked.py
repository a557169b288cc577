"""Prints the time of its first and of its last instruction; submits the base model as it is."""

import time

print(f"first {time.time():.6f}", flush=True)
import os  # noqa: E402
import shutil  # noqa: E402

shutil.copytree(os.environ["PTB_BASE_MODEL"], "final_model", copy_function=shutil.copyfile)
print(f"last {time.time():.6f}", flush=True)
