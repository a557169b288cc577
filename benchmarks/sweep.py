"""What the sweep launcher costs, with a real Slurm on this machine (`scripts/slurm_lab.py`); no run is executed.

    python benchmarks/sweep.py [--cells 1000] [--latency 8]

Plan (read and check the file, price it), start (preflight, freeze, submit arrays) and status refresh, without and with
evaluation jobs of their own (`launcher.split`), and planning for 10,000 cells as a ratio to 1,000. The cluster's nodes are
made busy first, so that the jobs only wait. Then, on idle nodes, the time from the submission of one empty cell to its
committed result, against bare `sbatch` of the same `run-cell` command.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import slurm_lab

from posttrainbench.launch.driver import submit_missing
from posttrainbench.launch.launcher import get_launcher
from posttrainbench.launch.plan import describe
from posttrainbench.launch.preflight import problems
from posttrainbench.launch.status import sweep_status
from posttrainbench.launch.store import SweepDirectory
from posttrainbench.launch.sweepfile import load


def timed(what: str, work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, printed."""
    began = time.monotonic()
    value = work()
    seconds = time.monotonic() - began
    print(f"  {what:<42} {seconds:8.3f} s", flush=True)
    return seconds, value


def write(place: Path, *, cells: int, name: str, launcher: str = 'kind = "slurm"') -> Path:
    """A sweep file of four agents and `cells` cells."""
    agents = ", ".join(f'"scripted:agent{number}.py"' for number in range(4))
    for number in range(4):
        (place / f"agent{number}.py").write_text("print('hello')\n")
    path = place / f"{name}.toml"
    path.write_text(
        f'name = "{name}"\nagents = [{agents}]\nbase_models = ["ptb-tiny-base"]\nbenchmarks = ["smoke-math"]\n'
        f"repeats = {max(1, cells // 4)}\n[run]\nhours = 0.01\ngpus = 0\n[launcher]\n{launcher}\n"
    )
    return path


@contextmanager
def cluster() -> Iterator[slurm_lab.Lab]:
    """Three nodes below /var/tmp."""
    root = Path(tempfile.mkdtemp(prefix="ptb-slurm-", dir="/var/tmp"))
    lab = slurm_lab.Lab(root)
    try:
        lab.up()
        os.environ["SLURM_CONF"] = str(lab.conf)
        yield lab
    finally:
        lab.down()
        shutil.rmtree(root, ignore_errors=True)


def submission(place: Path, cells: int, *, split: bool) -> None:
    """Plan, start, status."""
    print(f"{cells} cells on Slurm" + (", evaluation in jobs of their own" if split else ""))
    launcher = f'kind = "slurm"\nsplit = {str(split).lower()}'
    file = write(place, cells=cells, name="split" if split else "many", launcher=launcher)
    plan_s, sweep = timed("read and check the sweep file", lambda: load(file))
    price_s, _ = timed("price it (ptb sweep plan)", lambda: describe(sweep))
    check_s, found = timed("preflight of the starting machine", lambda: problems(sweep))
    assert not found, found
    freeze_s, directory = timed("freeze the plan", lambda: SweepDirectory.create(sweep))
    submit_s, done = timed("submit", lambda: submit_missing(directory))
    assert done.submitted == cells
    print(f"  plan and submit: {plan_s + price_s + check_s + freeze_s + submit_s:.2f} s (target 5 s)")

    def refresh() -> object:
        opened = SweepDirectory.open(directory.root)
        return sweep_status(opened, get_launcher(opened).jobs())

    seconds = [timed("status refresh", refresh)[0] for _ in range(3)]
    print(f"  status refresh: {statistics.median(seconds):.3f} s (target 0.5 s)")
    subprocess.run(["scancel", "--me", "--state=PENDING"], check=True)


def growth(place: Path) -> None:
    """10,000 planned cells against 1,000."""
    print("planning")
    seconds = {}
    for cells in (1000, 10_000):
        file = write(place, cells=cells, name=f"plan{cells}", launcher='kind = "local"')

        def work(file: Path = file) -> None:
            sweep = load(file)
            describe(sweep)
            SweepDirectory.create(sweep)

        seconds[cells], _ = timed(f"{cells} cells: read, price, freeze", work)
    print(f"  10,000 cells cost {seconds[10_000] / seconds[1000]:.1f} times 1,000 (linear: 10)")


def latency(place: Path, runs: int) -> None:
    """From submission to committed result, one cell at a time."""
    print("one empty cell on an idle node, submission to result")
    ours, bare = [], []
    for number in range(runs):
        directory = SweepDirectory.create(load(write(place, cells=4, name=f"one{number}")))
        key, other, *_ = directory.cells
        launcher = get_launcher(directory)
        began = time.monotonic()
        launcher.submit([key])
        _until(lambda directory=directory, key=key: directory.cell(key).committed)
        ours.append(time.monotonic() - began)
        command = f"exec {sys.executable} -m posttrainbench sweep run-cell {directory.root} {other} --gpus count:0"
        began = time.monotonic()
        subprocess.run(["sbatch", "-o", "/dev/null", "--wrap", command], check=True, capture_output=True)
        _until(lambda directory=directory, other=other: directory.cell(other).committed)
        bare.append(time.monotonic() - began)
        print(f"  launcher {ours[-1]:.2f} s, bare sbatch {bare[-1]:.2f} s", flush=True)
    added = statistics.median(ours) - statistics.median(bare)
    print(f"  median {statistics.median(ours):.2f} s against {statistics.median(bare):.2f} s: {added:+.2f} s a run")


def _until(ready: Callable[[], bool]) -> None:
    while not ready():
        time.sleep(0.01)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--latency", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ptb-sweep-", dir="/var/tmp") as folder, cluster() as lab:
        place = Path(folder)
        growth(place)
        busy = ["sbatch", "-o", "/dev/null", f"--array=0-{len(lab.nodes) - 1}", "--wrap", "exec sleep 600"]
        subprocess.run(busy, check=True, capture_output=True)
        for split in (False, True):
            submission(place, options.cells, split=split)
        subprocess.run(["scancel", "--me"], check=True)
        while lab.idle() < len(lab.nodes):
            time.sleep(0.1)
        latency(place, options.latency)


if __name__ == "__main__":
    main()
