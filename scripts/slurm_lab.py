"""A real Slurm cluster of several nodes on this one machine, for tests and for trying sweeps: up in about a second.

    apt-get install -y --no-install-recommends slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge
    python scripts/slurm_lab.py up /var/tmp/lab          # then: export SLURM_CONF=/var/tmp/lab/slurm.conf
    python scripts/slurm_lab.py kill /var/tmp/lab n2     # pull the plug of a node; `start` brings it back
    python scripts/slurm_lab.py down /var/tmp/lab

Everything listens on loopback, all state is below the directory, nothing of the system's configuration is touched. Each
node has one GPU that is none; the last one is also in a partition `cheap`. Where root can make control groups (version 1),
jobs are held to their memory by them, as on real clusters: OUT_OF_MEMORY is the kernel's word. There is no accounting
(slurmdbd); jobs that ended stay in the controller's memory for an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
_PATIENCE_S = 30.0
_NODE_MIB = 16000
_MEMORY = Path("/sys/fs/cgroup/memory")
"""Where the memory controller of control groups version 1 is mounted."""


class Lab:
    """A cluster below a directory.

    Args:
        root: the directory; must not be under /tmp if jobs are to see it from a sandbox.
        nodes: how many.
        cpus: of each node; as many jobs of one CPU run on it at a time.
        prefix: of the nodes' names. Control groups are named after nodes: clusters that run side by side need their own.
    """

    def __init__(self, root: Path, *, nodes: int = 3, cpus: int = 1, prefix: str = "n") -> None:
        self.root, self.cpus, self.prefix = root.absolute(), cpus, prefix
        self.nodes = [f"{prefix}{number}" for number in range(1, nodes + 1)]
        self.limits_memory = _can_limit_memory()

    @property
    def conf(self) -> Path:
        return self.root / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """For everybody who talks with this cluster."""
        return {**os.environ, "SLURM_CONF": str(self.conf)}

    def up(self) -> None:
        """Start everything and wait until all nodes are idle."""
        if missing():
            sys.exit(f"slurm_lab: {missing()} is not installed; see the head of this file")
        for name in ("log", "state", "munge", "pids"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / "munge").chmod(0o700)
        self.root.chmod(0o755)
        key = self.root / "munge" / "key"
        if not key.exists():
            key.write_bytes(secrets.token_bytes(128))
            key.chmod(0o600)
        self._start("munged", ["munged", "--foreground", "--force", f"--socket={self.root}/munge.sock", f"--key-file={key}",
                               f"--pid-file={self.root}/munge/pid", f"--seed-file={self.root}/munge/seed",
                               f"--log-file={self.root}/log/munged.log", "--num-threads=2"])  # fmt: skip
        self._wait("munged", lambda: self._runs("munge", "-n", f"--socket={self.root}/munge.sock"))
        self._configure()
        self.start_controller()
        for name in self.nodes:
            self.start_node(name)
        self._wait("the nodes", lambda: self.idle() == len(self.nodes))

    def down(self) -> None:
        """Stop everything that was started, by its process id, and the jobs, which would outlive their cluster."""
        for file in (self.root / "pids").glob("*.json"):
            self._kill(file.stem, signal.SIGTERM)
        self._kill_jobs(lambda text, env: "slurmstepd" in text or "SLURMD_NODENAME=" in env)
        for name in self.nodes:
            for group in sorted((_MEMORY / f"slurm_{name}").glob("**/"), reverse=True):
                with contextlib.suppress(OSError):  # a job that was left may still be in it
                    group.rmdir()

    def start_controller(self) -> None:
        """Start slurmctld and wait until it answers."""
        self._start("slurmctld", ["slurmctld", "-D"])
        self._wait("slurmctld", lambda: self._runs("scontrol", "ping"))

    def kill_controller(self) -> None:
        """SIGKILL slurmctld."""
        self._kill("slurmctld", signal.SIGKILL)

    def start_node(self, name: str) -> None:
        """Start a node's slurmd."""
        (self.root / f"spool-{name}").mkdir(exist_ok=True)
        self._start(name, ["slurmd", "-D", "-N", name])

    def kill_node(self, name: str) -> None:
        """Pull the plug: SIGKILL slurmd, its job managers and their jobs."""
        self._kill(name, signal.SIGKILL)
        of_node = f"SLURMD_NODENAME={name}\n"
        parents = {_parent(pid) for pid in self._mine(lambda text, env: of_node in env)}
        self._kill_jobs(lambda text, env: of_node in env, also=parents)

    def _mine(self, wanted: Callable[[str, str], bool]) -> list[int]:
        conf = f"SLURM_CONF={self.conf}\n"
        return _processes(lambda text, env: conf in env and wanted(text, env))

    def _kill_jobs(self, wanted: Callable[[str, str], bool], *, also: Collection[int] = ()) -> None:
        """SIGKILL jobs, and of their parents those that are job managers, whose environment does not name their node."""
        managers = set(also) & set(self._mine(lambda text, env: "slurmstepd" in text))
        for pid in (*managers, *self._mine(wanted)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def idle(self) -> int:
        """How many nodes are idle."""
        answer = subprocess.run(
            ["sinfo", "-h", "-N", "-t", "idle", "-o", "%N"],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return len(set(answer.stdout.split()))

    def _configure(self) -> None:
        host, first = socket.gethostname().split(".")[0], _free_ports(len(self.nodes) + 2)
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        lines = [
            "ClusterName=lab",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmctldPort={first}",
            f"SlurmUser={user}",
            f"SlurmdUser={user}",
            "AuthType=auth/munge",
            f"AuthInfo=socket={self.root}/munge.sock,cred_expire=5",
            "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny",
            f"StateSaveLocation={self.root}/state",
            f"SlurmdSpoolDir={self.root}/spool-%n",
            f"SlurmctldPidFile={self.root}/slurmctld.pid",
            f"SlurmdPidFile={self.root}/slurmd-%n.pid",
            f"SlurmctldLogFile={self.root}/log/slurmctld.log",
            f"SlurmdLogFile={self.root}/log/slurmd-%n.log",
            "ProctrackType=proctrack/linuxproc",
            f"TaskPlugin=task/{'cgroup' if self.limits_memory else 'none'}",
            "MpiDefault=none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core_Memory",
            f"DefMemPerCPU={_NODE_MIB // self.cpus}",
            "SlurmdParameters=config_overrides",
            "ReturnToService=2",
            "JobRequeue=1",
            "SlurmdTimeout=10",
            "SlurmctldTimeout=30",
            "KillWait=5",
            "MinJobAge=3600",
            "MaxArraySize=10001",
            "MaxJobCount=20000",
            "SchedulerType=sched/backfill",
            "SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1",
            "GresTypes=gpu",
            "AccountingStorageType=accounting_storage/none",
            f"NodeName=DEFAULT CPUs={self.cpus} RealMemory={_NODE_MIB} Gres=gpu:1 State=UNKNOWN",
            f"NodeName={self.prefix}[1-{len(self.nodes)}] NodeHostname={host} NodeAddr=127.0.0.1 "
            f"Port=[{first + 1}-{first + len(self.nodes)}]",
            "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP",
            f"PartitionName=cheap Nodes={self.nodes[-1]} MaxTime=INFINITE State=UP",
        ]
        self.conf.write_text("\n".join(lines) + "\n")
        (self.root / "gres.conf").write_text("".join(self._fake_gpu(name) for name in self.nodes))
        version = subprocess.run(["slurmd", "-V"], capture_output=True, text=True, check=True, env=_path()).stdout
        if self.limits_memory:
            text = f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={_MEMORY.parent}\nConstrainRAMSpace=yes\n"
            (self.root / "cgroup.conf").write_text(text)
        elif int(version.split()[1].split(".")[0]) >= 23:
            (self.root / "cgroup.conf").write_text("CgroupPlugin=disabled\n")

    def _fake_gpu(self, name: str) -> str:
        """A line of gres.conf: Slurm takes a link to a device for a GPU, and jobs get its number."""
        device = self.root / "dev" / f"{name}-gpu0"
        device.parent.mkdir(exist_ok=True)
        if not device.is_symlink():
            device.symlink_to("/dev/null")
        return f"NodeName={name} Name=gpu File={device}\n"

    def _start(self, name: str, command: Sequence[str]) -> None:
        with (self.root / "log" / f"{name}.out").open("ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                env={**self.environment, **_path()}, cwd="/",
            )  # fmt: skip
        (self.root / "pids" / f"{name}.json").write_text(json.dumps({"pid": process.pid, "command": command[0]}))

    def _kill(self, name: str, number: signal.Signals) -> None:
        file = self.root / "pids" / f"{name}.json"
        if not file.exists():
            return
        told = json.loads(file.read_text())
        file.unlink()
        try:
            # the number may belong to somebody else by now
            if told["command"] in Path(f"/proc/{told['pid']}/cmdline").read_text():
                os.kill(told["pid"], number)
                _until(lambda: _gone(told["pid"]), 10)
        except (OSError, ChildProcessError):
            return

    def _runs(self, *command: str) -> bool:
        try:
            return (
                subprocess.run(command, env=self.environment, capture_output=True, timeout=10, check=False).returncode
                == 0
            )
        except subprocess.TimeoutExpired:
            return False

    def _wait(self, what: str, ready: Callable[[], bool]) -> None:
        if not _until(ready, _PATIENCE_S):
            for log in sorted((self.root / "log").iterdir()):
                print(f"== {log}\n{log.read_text(errors='replace')[-800:]}", file=sys.stderr)
            self.down()
            sys.exit(f"slurm_lab: {what} did not come up within {_PATIENCE_S:.0f} s")


def _path() -> dict[str, str]:
    return {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


def missing() -> str | None:
    """A program that is not installed."""
    return next((program for program in PROGRAMS if shutil.which(program, path=_path()["PATH"]) is None), None)


def _can_limit_memory() -> bool:
    """Whether control groups of version 1 can be made here. Slurm's plugin for version 2 wants systemd."""
    trial = _MEMORY / f"ptb-lab-{os.getpid()}"
    try:
        trial.mkdir()
        trial.rmdir()
    except OSError:
        return False
    return (_MEMORY / "memory.limit_in_bytes").exists()


def _free_ports(count: int) -> int:
    """The first of `count` free ports in a row, from a random place: several clusters may be starting."""
    for first in random.sample(range(17000, 30000, 50), 200):
        taken = []
        try:
            for port in range(first, first + count):
                taken.append(socket.create_server(("127.0.0.1", port)))
            return first
        except OSError:
            continue
        finally:
            for listener in taken:
                listener.close()
    sys.exit("slurm_lab: no free ports")


def _gone(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _until(ready: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if ready():
            return True
        time.sleep(0.05)
    return False


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _processes(wanted: Callable[[str, str], bool]) -> list[int]:
    """Processes by command line and environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                env = (entry / "environ").read_bytes().replace(b"\0", b"\n").decode(errors="replace")
            except OSError:
                continue
            if wanted(text, env):
                found.append(int(entry.name))
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("up", "down", "kill", "start"))
    parser.add_argument("root", type=Path)
    parser.add_argument("node", nargs="?")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--cpus", type=int, default=1)
    options = parser.parse_args()
    lab = Lab(options.root, nodes=options.nodes, cpus=options.cpus)
    if options.action in ("kill", "start") and not options.node:
        parser.error(f"{options.action} needs a node")
    if options.action == "up":
        began = time.monotonic()
        lab.up()
        print(f"{options.nodes} nodes idle after {time.monotonic() - began:.1f} s; export SLURM_CONF={lab.conf}")
    elif options.action == "down":
        lab.down()
    elif options.action == "kill":
        lab.kill_node(options.node)
    else:
        lab.start_node(options.node)


if __name__ == "__main__":
    main()
