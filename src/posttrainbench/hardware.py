"""What machine this is, told truthfully: for the agent's prompt, the record of a run and the checks before it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class GPU:
    """One GPU as its driver names it. `memory_mib` in MiB."""

    index: int
    name: str
    memory_mib: int


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The machine a run happens on. `memory_bytes` is the smaller of the machine's memory and our control group's."""

    cpu: str
    cores: int
    memory_bytes: int
    gpus: tuple[GPU, ...]
    driver: str | None = None

    def describe(self, *, gpus: tuple[int, ...] | None = None) -> str:
        """One line for a prompt, with the GPUs of the given indices only."""
        chosen = [gpu for gpu in self.gpus if gpus is None or gpu.index in gpus]
        cpu = f"{self.cores} CPU cores ({self.cpu}), {self.memory_bytes / 2**30:.0f} GiB of memory"
        if not chosen:
            return f"no GPU; {cpu}"
        names: dict[tuple[str, int], int] = {}
        for gpu in chosen:
            names[(gpu.name, gpu.memory_mib)] = names.get((gpu.name, gpu.memory_mib), 0) + 1
        listed = ", ".join(f"{count} x {name} with {mib / 1024:.0f} GiB" for (name, mib), count in names.items())
        return f"{listed}; {cpu}"

    def as_json(self) -> dict[str, Any]:
        """Plain data for run.json."""
        return asdict(self)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def _memory_bytes() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(file).read_text()))
        except (OSError, ValueError):
            continue
    return total


def _gpus() -> tuple[tuple[GPU, ...], str | None]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return (), None
    query = [program, "--query-gpu=index,name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return (), None
    found, driver = [], None
    for line in done.stdout.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 4 and fields[0].isdigit() and fields[2].isdigit():
            found.append(GPU(index=int(fields[0]), name=fields[1], memory_mib=int(fields[2])))
            driver = fields[3]
    return tuple(found), driver


def detect() -> Hardware:
    """Look at this machine; asks `nvidia-smi` for GPUs where it exists."""
    gpus, driver = _gpus()
    return Hardware(
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=_memory_bytes(),
        gpus=gpus,
        driver=driver,
    )
