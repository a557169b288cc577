"""GPU devices for the sandbox. The agent gets exactly the device nodes of its GPUs, not a variable it could change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from posttrainbench.errors import ConfigurationError

# nvidia-uvm-tools: driver 570 opens it. All are bound with --dev-bind; a plain bind gives "Insufficient Permissions".
_SHARED = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")


def gpu_indices(dev: Path = Path("/dev")) -> list[int]:
    """Indices of the NVIDIA device nodes on this machine."""
    return sorted(int(p.name[6:]) for p in dev.glob("nvidia[0-9]*") if p.name[6:].isdigit())


def gpu_arguments(gpus: Sequence[int], dev: Path = Path("/dev")) -> list[str]:
    """bwrap arguments for the given GPUs; they must come after `--dev /dev`.

    Raises:
        ConfigurationError: a GPU that this machine does not have.
    """
    if not gpus:
        return []
    there = gpu_indices(dev)
    for index in gpus:
        if index not in there:
            known = ", ".join(map(str, there)) or "none"
            raise ConfigurationError(
                f"GPU {index} is not on this machine (device nodes found: {known}); see nvidia-smi -L"
            )
    names = [*(f"nvidia{index}" for index in gpus), *_SHARED]
    names += sorted(f"nvidia-caps/{p.name}" for p in dev.glob("nvidia-caps/*"))
    arguments: list[str] = []
    for name in names:
        if (dev / name).exists():
            arguments += ["--dev-bind", str(dev / name), f"/dev/{name}"]
    # Without /sys, cuInit fails with error 304: the driver reads the PCI topology there.
    return [*arguments, "--ro-bind", "/sys", "/sys"]
