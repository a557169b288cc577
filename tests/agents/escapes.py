"""Prints what would steer a terminal, and hides its work behind closed directories."""

from pathlib import Path

print("\x1b[2J\x1b]0;owned\x07 all good \u202e", flush=True)
Path("closed/inner").mkdir(parents=True)
Path("closed/inner/data.txt").write_text("hidden")
Path("closed/inner").chmod(0)
Path("closed").chmod(0)
