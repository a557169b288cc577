"""Lay out what the agent finds when it starts, and remember the hash of every file that it must not change."""

from __future__ import annotations

import shutil
import string
from dataclasses import dataclass
from pathlib import Path

from posttrainbench.catalog import BaseModel, Benchmark
from posttrainbench.evaluation.templating import template_file
from posttrainbench.files import remove_tree, sha256_file

_FILES = Path(__file__).parent / "files"


@dataclass(frozen=True, kw_only=True)
class Job:
    """The live directories of a run while the agent works, on the host.

    Attributes:
        home: becomes the agent's home; its `task/` is the working directory.
        temporary: becomes `/tmp`.
        control: becomes `/run/ptb`, read-only.
    """

    root: Path

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def task(self) -> Path:
        return self.home / "task"

    @property
    def temporary(self) -> Path:
        return self.root / "tmp"

    @property
    def control(self) -> Path:
        return self.root / "control"


def template_for(model: BaseModel, benchmark: Benchmark) -> str:
    """Name of the chat template: decided by the declared base model, and whether the benchmark passes tools."""
    return model.tool_template if benchmark.tools and model.tool_template else model.template


def build(job: Job, *, model: BaseModel, benchmark: Benchmark, prompt: str) -> dict[str, str]:
    """Create the job directories afresh.

    Returns:
        the manifest: path below the working directory -> SHA-256 of every file that must stay as it is.
    """
    remove_tree(job.root)
    for directory in (job.task / "templates", job.temporary, job.control):
        directory.mkdir(parents=True)
    template = template_for(model, benchmark)
    source = template_file(template)
    shutil.copyfile(source, job.task / "templates" / source.name)
    shutil.copyfile(_FILES / "timer.sh", job.task / "timer.sh")
    evaluate = string.Template((_FILES / "evaluate.py.template").read_text(encoding="utf-8")).substitute(
        title=benchmark.title, benchmark=repr(benchmark.id), base_model=repr(model.name), template=repr(template)
    )
    (job.task / "evaluate.py").write_text(evaluate, encoding="utf-8")
    protected = ["evaluate.py", "timer.sh", f"templates/{source.name}"]
    manifest = {name: sha256_file(job.task / name) for name in protected}
    (job.task / "prompt.md").write_text(prompt, encoding="utf-8")
    return manifest
