"""Before an agent's next session: the places in which it starts are there again, whatever the one before did to them.

An agent that removes its working directory and then kills its own program would otherwise have an infrastructure error
in the place of a score.
"""

from __future__ import annotations

import os
from pathlib import PurePosixPath

from posttrainbench.pipeline.collect import Places
from posttrainbench.sandbox.places import open_directory, set_aside
from posttrainbench.workspace import paths
from posttrainbench.workspace.build import Job


def reopen(job: Job) -> None:
    """See that home, temporary and working directory can be entered. A link to another place of the agent's stays.

    Raises:
        OSError: the host's file system refuses.
    """
    for directory in (job.home, job.temporary):
        open_directory(directory)
    places = Places({PurePosixPath(paths.HOME): job.home, PurePosixPath(paths.TEMPORARY): job.temporary})
    found = places.locate(PurePosixPath(paths.TASK))
    if found is None or not found.is_dir():
        if os.path.lexists(job.task):
            set_aside(job.task)
        job.task.mkdir()
        found = job.task
    for directory in (*reversed(found.parents), found):
        if directory != job.root and directory.is_relative_to(job.root):
            open_directory(directory)
