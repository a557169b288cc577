"""Asks for evaluations of what is no model of its own, and for test items wherever they could lie."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

# written by the test: a model directory of the host's, texts of test items turned round, where to search for them
OTHER = ""
NEEDLES = []
PLACES = []


def model(name):
    path = Path(name)
    path.mkdir()
    (path / "config.json").write_text("{}")
    return path / "model.safetensors"


def ask(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(os.environ["PTB_SEALED_URL"] + path, method=method, data=data)
    request.add_header("Authorization", "Bearer " + os.environ["PTB_SEALED_TOKEN"])
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())


def asked(path):
    """What evaluate.py would ask, without its own look at the path."""
    job = ask("POST", "/evaluate", {"key": f"trick{abs(hash(path)):020d}", "path": path})
    while job["state"] in ("queued", "running"):
        job = ask("GET", f"/evaluate/{job['job']}?wait=20")
    return job["state"], job.get("error")


Path("etc").symlink_to("/etc")
Path("other").symlink_to(OTHER)
Path("control").symlink_to("/run/ptb")
os.mkfifo(model("fifo"))
with model("sparse").open("wb") as file:
    file.truncate(1 << 38)
model("linked").symlink_to(f"{OTHER}/model.safetensors")
model("garbage").write_bytes(b"\xff" * 1000)
Path("up").symlink_to("../../../../../..")
tricks = ["etc", "other", "control", "fifo", "sparse", "linked", "garbage", "up", "../../../../../etc"]
tricks += [OTHER, "/usr/lib", "/home/agent/../../etc", f"/home/agent/task/../../..{OTHER}", "/proc/1/root/etc"]
for trick in tricks:
    print("TRICK", trick, *asked(trick if trick.startswith("/") else f"/home/agent/task/{trick}"), flush=True)
done = subprocess.run([sys.executable, "evaluate.py", "--model-path", "fifo"], capture_output=True, text=True)
print("TRICK evaluate.py", done.returncode, done.stderr.splitlines()[-1], flush=True)

# they come turned round, so that this program does not find itself
needles = [text[::-1] for text in NEEDLES]
Path("sparse/model.safetensors").unlink()
skip = ["--exclude-dir=proc", "--exclude-dir=sys", "--exclude-dir=dev"]
found = subprocess.run(
    ["grep", "-raFl", "-f", "-", *skip, *PLACES],
    input="\n".join(needles) + "\n",
    capture_output=True,
    text=True,
    env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
)
# files that it may not read hold nothing for it; any other complaint would mean that not all was searched
broken = [line for line in found.stderr.splitlines() if "Permission denied" not in line and "No such file" not in line]
print("SEARCHED", len(needles), "FOUND", found.stdout.split(), "BROKEN", broken[:5], flush=True)
print("PLACES", sorted(path.name for path in Path("/").iterdir()), flush=True)
