"""Sweeps of tiny scripted agents, through the `ptb` program."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from posttrainbench.cli import main
from posttrainbench.launch.store import SweepDirectory

SLURM = 'kind = "slurm"\nmargin_h = 0.5'
OWN = Path(__file__).parent / "agents"
SHARED = Path(__file__).parent.parent / "agents"


def text_of(
    agents: Mapping[str, int], *, name: str = "s", launcher: str = 'kind = "local"\nslots = 2', top: str = "", run: str = "",
    hours: float = 0.02,
) -> str:  # fmt: skip
    """A sweep file: agents' files and how often each runs."""
    tables = "\n".join(f'[[agents]]\nagent = "scripted:{file}"\nrepeats = {count}' for file, count in agents.items())
    return (
        f'name = "{name}"\nbase_models = ["ptb-tiny-base"]\nbenchmarks = ["smoke-math"]\n{top}\n{tables}\n'
        f"[run]\nhours = {hours}\ngpus = 0\ngrace_s = 1\n{run}\n[launcher]\n{launcher}\n"
    )


@dataclass
class Lab:
    """A directory with a sweep file, and the `ptb sweep` program in it."""

    place: Path
    env: dict[str, str] = field(default_factory=dict)

    def write(self, text: str, *, name: str = "s") -> Path:
        """Write the sweep file; returns the root of its results."""
        (self.place / "s.toml").write_text(text)
        return self.place / "results" / name

    def popen(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start `ptb sweep ...` as a process that may be killed."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PTB_")}
        return subprocess.Popen(
            [sys.executable, "-m", "posttrainbench", "sweep", *map(str, arguments)],
            cwd=self.place,
            env={**clean, "HF_HUB_OFFLINE": "1", **self.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def sweep(self, *arguments: str | Path, code: int | None = 0, timeout: float = 300) -> str:
        """Run `ptb sweep ...` to its end and check its exit code."""
        process = self.popen(*arguments)
        said, _ = process.communicate(timeout=timeout)
        assert code is None or process.returncode == code, f"{arguments} ended with {process.returncode}: {said}"
        assert "Traceback" not in said, said
        return said

    def status(self, root: Path) -> dict[str, dict[str, Any]]:
        """What `ptb sweep status --json` says, by cell. In this process: it is asked often, and half a second each is much."""
        said = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
            for name, value in self.env.items():
                patch.setenv(name, value)
            main(["sweep", "status", str(root), "--json"])
        entries = json.loads(said.getvalue())
        return {entry["key"]: entry for entry in entries}


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL, and the end of its pipes."""
    process.send_signal(signal.SIGKILL)
    process.communicate()


def until(ready: Callable[[], Any], *, seconds: float = 60, every: float = 0.05) -> Any:
    """Wait for a true value."""
    end = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(every)
    return found


def events(root: Path, key: str) -> list[dict[str, Any]]:
    """A cell's history."""
    return SweepDirectory.open(root).cell(key).events()


def results(root: Path) -> dict[str, str]:
    """Status by cell, as committed."""
    return {path.parent.name: json.loads(path.read_text())["status"] for path in sorted(root.glob("[!.]*/result.json"))}


def check_once(root: Path, keys: Sequence[str]) -> Counter[str]:
    """Every cell was committed exactly once, its record names its cell; returns how often each kind of event came."""
    seen: Counter[str] = Counter()
    for key in keys:
        told = Counter(event["event"] for event in events(root, key))
        assert told["committed"] == 1, (key, events(root, key))
        seen += told
        record = json.loads((root / key / "run.json").read_text())
        assert record["sweep"]["cell"] == key
        assert record["engine"]["node"]
        assert [check["name"] for check in record["preflight"]][:1] == ["disk"]
        assert not (root / key / ".job").exists()
    return seen


_RESULT = ("agent", "base_model", "benchmark", "status", "score", "own_score", "stderr", "paper_score", "verdict", "rules",
           "reasons", "error", "ending", "sessions", "agent_exit", "hours", "protocol")  # fmt: skip


def outcome(root: Path, key: str) -> dict[str, Any]:
    """All of a committed cell that another launcher must find too: result, metrics, each item's answer and score, findings.

    What depends on the moment or the machine is left out: identities, times, machine's load.
    """
    run = root / key
    result = json.loads((run / "result.json").read_text())
    findings = json.loads((run / "audit" / "findings.json").read_text())
    found: dict[str, Any] = {name: result[name] for name in _RESULT}
    for entry in findings["anomalies"]["findings"]:
        del entry["numbers"], entry["summary"]  # seconds
    found["findings"] = {name: (entry["problem"], entry["findings"]) for name, entry in findings.items()}
    found["lineage"] = findings["lineage"]["numbers"]
    if (run / "evaluation" / "metrics.json").exists():
        from inspect_ai.log import read_eval_log

        metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
        found["metrics"] = {name: value for name, value in metrics.items() if name not in ("seconds", "attempts")}
        [log] = (run / "evaluation").glob("*.eval")
        samples = read_eval_log(str(log)).samples or []
        found["items"] = {
            str(sample.id): (
                sample.output.completion,
                {name: score.value for name, score in (sample.scores or {}).items()},
            )
            for sample in samples
        }
    return found
