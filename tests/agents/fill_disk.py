"""Writes until the disk is full, if it can; then prints much."""

import os
from pathlib import Path

try:
    with Path("big.bin").open("wb") as file:
        for _ in range(400):
            file.write(os.urandom(1 << 20))
except OSError as error:
    print("no more:", error.strerror, flush=True)
for number in range(2000):
    print(f"line {number} " + "x" * 200)
