"""`ptb show`: what became of a run, on one page."""

from __future__ import annotations

import json
from pathlib import Path

import click

from posttrainbench.cli.audit import print_audit
from posttrainbench.cli.working import describe_result, run_argument
from posttrainbench.evaluation.report import score_text
from posttrainbench.files import printable, read_json
from posttrainbench.pipeline.run_dir import STAGES, RunDirectory


def _trace_tail(path: Path, count: int) -> list[str]:
    if not path.exists():
        return []
    with path.open("rb") as file:
        # a trace can have gigabytes
        file.seek(max(0, path.stat().st_size - 2**20))
        lines = file.read().decode("utf-8", errors="replace").split("\n")
    rows = []
    for line in lines[-count - 1 :]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # the end of the file, or the rest of a line at the cut
            continue
        if "text" in row:  # else a line of the harness's own, between sessions
            rows.append(row)
    return [f"  {row['time'][11:19]}  {printable(row['text'])[:140]}" for row in rows]


def _disk(run: Path) -> str:
    from posttrainbench.disk import parts_of_run, size_text

    parts = parts_of_run(run)
    total = parts.pop("total")
    return f"{size_text(total)}: " + ", ".join(f"{name} {size_text(size)}" for name, size in parts.items())


@click.command("show")
@run_argument
@click.option("--lines", default=8, show_default=True, help="Last lines of the trace to print.")
@click.option("--json", "as_json", is_flag=True, help="Print result.json (or, unfinished, run.json) instead.")
def command(run: Path, lines: int, as_json: bool) -> None:
    """Show RUN: request, stages, result, findings, the end of the trace and where the files are."""
    directory = RunDirectory.open(run)
    record = directory.record()
    if as_json:
        print(json.dumps(read_json(directory.result_file) if directory.result_file.exists() else record, indent=2))
        return
    print(f"run        {record['id']}")
    print(f"agent      {record['agent']['name']}")
    print(f"model      {record['base_model']['name']}")
    hours = record["spec"]["hours"]
    budget = "unknown budget" if hours is None else f"{hours:g} h"
    print(f"benchmark  {record['benchmark']}, {budget}, protocol {record['protocol']['version']}")
    stages = [f"{name} {record['stages'].get(name, {}).get('status', 'pending')}" for name in STAGES]
    print(f"stages     {', '.join(stages)}")
    solve = record["stages"].get("solve", {})
    if "wall_s" in solve:
        print(f"agent end  {solve['reason']}, status {solve['returncode']}, after {solve['wall_s']:.1f} s")
    if directory.result_file.exists():
        print(f"result     {describe_result(directory)}")
    metrics = directory.evaluation / "metrics.json"
    if metrics.exists():
        found = read_json(metrics)
        for name in ("strict", "paper"):
            print(f"{name:<10} {score_text(found, name)}")
    if (directory.audit / "verdict.json").exists():
        print_audit(directory)
    tail = _trace_tail(directory.trace, lines)
    if tail:
        print("trace:", *tail, sep="\n")
    print(f"disk       {_disk(directory.path)}")
    print(f"files      {directory.path}")
