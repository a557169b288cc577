"""GPU devices for the sandbox. The agent gets exactly the device nodes of its GPUs, not a variable it could change."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from posttrainbench.errors import ConfigurationError

# nvidia-uvm-tools: driver 570 opens it. All are bound with --dev-bind; a plain bind gives "Insufficient Permissions".
_SHARED = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")


def gpu_indices(dev: Path = Path("/dev")) -> list[int]:
    """Indices of the NVIDIA device nodes on this machine."""
    return sorted(int(p.name[6:]) for p in dev.glob("nvidia[0-9]*") if p.name[6:].isdigit())


def device_minors(proc: Path = Path("/proc/driver/nvidia/gpus")) -> dict[int, int]:
    """Number of the device node of each GPU that nvidia-smi lists, by its index there.

    They differ where a batch system hides GPUs from a job: nvidia-smi then counts the job's own from 0, and the only device
    that opens may be `/dev/nvidia3`. Empty where neither nvidia-smi nor the driver says anything.
    """
    try:
        query = ["nvidia-smi", "--query-gpu=index,pci.bus_id", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    found = {}
    for line in done.stdout.splitlines():
        index, _, bus = line.partition(",")
        # nvidia-smi writes the PCI domain with eight digits, the driver with four
        file = proc / bus.strip().lower()[-12:] / "information"
        try:
            minor = re.search(r"^Device Minor:\s*(\d+)", file.read_text(), re.MULTILINE)
        except OSError:
            continue
        if minor and index.strip().isdigit():
            found[int(index)] = int(minor[1])
    return found


def gpu_nodes(gpus: Sequence[int], dev: Path = Path("/dev")) -> list[int]:
    """Numbers of the device nodes of the given GPUs (indices of nvidia-smi).

    Raises:
        ConfigurationError: a GPU that this machine does not have.
    """
    if not gpus:
        return []
    there = gpu_indices(dev)
    minors = device_minors()
    nodes = [minors.get(index, index) for index in gpus]
    for index in nodes:
        if index not in there:
            known = ", ".join(map(str, there)) or "none"
            raise ConfigurationError(
                f"GPU {index} is not on this machine (device nodes found: {known}); see nvidia-smi -L"
            )
    return nodes


def gpu_arguments(gpus: Sequence[int], dev: Path = Path("/dev")) -> list[str]:
    """bwrap arguments for the given GPUs (indices of nvidia-smi); they must come after `--dev /dev`.

    Raises:
        ConfigurationError: a GPU that this machine does not have.
    """
    nodes = gpu_nodes(gpus, dev)
    if not nodes:
        return []
    names = [*(f"nvidia{index}" for index in nodes), *_SHARED]
    names += sorted(f"nvidia-caps/{p.name}" for p in dev.glob("nvidia-caps/*"))
    arguments: list[str] = []
    for name in names:
        if (dev / name).exists():
            arguments += ["--dev-bind", str(dev / name), f"/dev/{name}"]
    # Without /sys, cuInit fails with error 304: the driver reads the PCI topology there.
    return [*arguments, "--ro-bind", "/sys", "/sys"]
