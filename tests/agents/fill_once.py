"""Writes 200 MB, or until the disk is full; then prints much. Takes the file away again where it fitted."""

from pathlib import Path

try:
    with Path("big.bin").open("wb") as file:
        for _ in range(200):
            file.write(bytes(1 << 20))
    Path("big.bin").unlink()
except OSError as error:
    print("no more:", error.strerror, flush=True)
for number in range(2000):
    print(f"line {number} " + "x" * 200)
