"""What an engine has booked for jobs that ended, in the records of their runs."""

from __future__ import annotations

from collections.abc import Mapping

from posttrainbench.files import read_json, write_json
from posttrainbench.launch.launcher import Job
from posttrainbench.launch.store import SweepDirectory
from posttrainbench.pipeline.run_dir import RunDirectory


def book(sweep: SweepDirectory, jobs: Mapping[str, Job]) -> int:
    """Write what the engine has booked for finished cells into the records of their runs. Returns how many.

    A job's end can be known only to somebody who looks afterwards; each cell is written once.
    """
    file = sweep.state / "booked.json"
    try:
        done: dict[str, str] = read_json(file)
    except (OSError, ValueError):
        done = {}
    fresh: dict[str, str] = {}
    for key, job in jobs.items():
        ended = {one.id: one for one in (*job.others, job) if one.state == "ended" and one.booked}
        known = " ".join(sorted(ended))
        if job.state != "ended" or not ended or done.get(key) == known or not sweep.cell(key).committed:
            continue
        run = RunDirectory(sweep.cell(key).result)
        record = run.record()
        engine, *before = (
            {**entry, "booked": {"node": one.node, **one.booked}} if (one := ended.get(entry.get("job"))) else entry
            for entry in (record.get("engine", {}), *record.get("engines_before", ()))
        )
        if [engine, *before] != [record.get("engine", {}), *record.get("engines_before", ())]:
            run.update(engine=engine, engines_before=before)
        fresh[key] = known
    done |= fresh
    if fresh:
        write_json(file, done)
    return len(fresh)
