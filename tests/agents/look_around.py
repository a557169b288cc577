"""Writes down what it can see."""

import json
import os
import subprocess
import sys
from pathlib import Path

import posttrainbench

base = Path(os.environ["PTB_BASE_MODEL"])
try:
    (base / "new").write_text("x")
    writable = True
except OSError:
    writable = False
weights = Path(posttrainbench.__file__).parent / "catalog" / "weights"
seen = {
    "prompt": sys.stdin.read(),
    "prompt_file": Path("prompt.md").read_text(),
    "environment": dict(os.environ),
    "files": sorted(path.name for path in Path().iterdir()),
    "timer": subprocess.run(["bash", "timer.sh"], capture_output=True, text=True, check=True).stdout,
    "uid": os.getuid(),
    "processes": sum(name.isdigit() for name in os.listdir("/proc")),  # noqa: PTH208
    "all_environments": [
        p.read_text(errors="replace") for p in Path("/proc").glob("[0-9]*/environ") if os.access(p, os.R_OK)
    ],
    "base_model": sorted(path.name for path in base.iterdir()),
    "base_model_writable": writable,
    "builtin_weights": sorted(path.name for path in weights.iterdir()) if weights.is_dir() else [],
}
Path("seen.json").write_text(json.dumps(seen))
