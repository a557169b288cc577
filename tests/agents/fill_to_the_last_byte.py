"""Writes into home and /tmp until nothing more is taken, in many ways, and says how much that was; then submits half a model."""

import os
import time
from pathlib import Path

total = 0
for place in (Path("big"), Path("/tmp/big"), Path.home() / "deleted"):
    file = place.open("wb", buffering=0)
    if place.name == "deleted":
        place.unlink()
    size = 1 << 20
    while size >= 4096:
        try:
            total += file.write(bytes(size))
        except OSError:
            size //= 2
print("wrote", total, flush=True)
print("tmp", os.statvfs("/tmp").f_bavail, flush=True)
os.truncate("big", 1 << 20)
os.truncate("/tmp/big", 0)
Path("final_model").mkdir()
Path("final_model/config.json").write_text("{}")
Path("final_model/large.bin").write_bytes(bytes(3 << 20))
Path("ready").touch()
time.sleep(float(os.environ.get("WAIT", "0")))
