"""Last build step, inside the image: is it what its lock says, and does it keep the contract with the back ends?

Runs by path with the image's Python; `posttrainbench` is not there. A failure here fails the build.
"""

import importlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

HOME = Path("/opt/posttrainbench")
IMPORTS = ("torch", "transformers", "datasets", "accelerate", "peft", "trl", "inspect_ai", "inspect_evals")
# where the lock has vLLM; none of these needs a GPU
VLLM_IMPORTS = ("bitsandbytes", "flashinfer", "vllm.entrypoints.openai.api_server")
TOOLS = ("bash", "cat", "git", "curl", "cc", "c++", "make", "node", "npm")


def problems() -> list[str]:
    """What is wrong, one line each."""
    found = []
    lock = (HOME / "share" / "requirements.lock").read_text(encoding="utf-8")
    wanted = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", lock, flags=re.MULTILINE))
    for name, version in wanted.items():
        try:
            there = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            there = "nothing"
        if there != version:
            found.append(f"{name}: {there} is installed, the lock says {version}")
    if not wanted:
        found.append("the lock is empty")
    if str(HOME / "src") not in sys.path:
        found.append(f"{HOME}/src is not on the path of Python")
    for name in IMPORTS + (VLLM_IMPORTS if "vllm" in wanted else ()):
        try:
            importlib.import_module(name)
        except Exception as error:
            found.append(f"import {name}: {type(error).__name__}: {error}")
    found += [f"{tool} is missing" for tool in TOOLS if shutil.which(tool) is None]
    for tool in ("node", "npm"):
        done = subprocess.run([f"/usr/local/bin/{tool}", "--version"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            found.append(f"{tool} does not start: {done.stderr.strip()[:200]}")
    if not Path("/etc/ssl/certs/ca-certificates.crt").is_file():
        found.append("no CA certificates")
    return found


if __name__ == "__main__":
    said = problems()
    for line in said:
        print(f"check: {line}", file=sys.stderr)
    if said:
        sys.exit(1)
    print(f"check: Python {sys.version.split()[0]}, all packages of the lock, all tools")
