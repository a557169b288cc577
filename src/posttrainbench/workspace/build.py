"""Lay out what the agent finds when it starts, and remember the hash of every file that it must not change."""

from __future__ import annotations

import json
import shutil
import string
from dataclasses import dataclass
from pathlib import Path

from posttrainbench.catalog import BaseModel, Benchmark
from posttrainbench.evaluation.templating import template_file
from posttrainbench.files import remove_tree, sha256_file

_FILES = Path(__file__).parent / "files"

TRAINING_FILE = "smoke-math-train.jsonl"
"""With sealed test data the generator of smoke-math's problems is out of sight, as it makes the test items too. Other
benchmarks have training data elsewhere; this one's is in this file of the working directory."""
_PROBLEMS, _SEED = 5000, 43


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


def build(job: Job, *, model: BaseModel, benchmark: Benchmark, prompt: str, sealed: bool = False) -> dict[str, str]:
    """Create the job directories afresh.

    Args:
        job: where.
        model: the declared base model.
        benchmark: the target.
        prompt: for `prompt.md`.
        sealed: `evaluate.py` is the one that asks the harness, and the built-in benchmark's training problems are a file.

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
    name = "evaluate_sealed.py.template" if sealed else "evaluate.py.template"
    evaluate = string.Template((_FILES / name).read_text(encoding="utf-8")).substitute(
        title=benchmark.title,
        benchmark=repr(benchmark.id),
        base_model=repr(model.name),
        template=repr(template),
        items=benchmark.items,
        max_tokens=benchmark.max_tokens,
    )
    (job.task / "evaluate.py").write_text(evaluate, encoding="utf-8")
    protected = ["evaluate.py", "timer.sh", f"templates/{source.name}"]
    manifest = {name: sha256_file(job.task / name) for name in protected}
    (job.task / "prompt.md").write_text(prompt, encoding="utf-8")
    if sealed and benchmark.suite == "smoke":
        _training_problems(job.task / TRAINING_FILE)
    return manifest


def _training_problems(path: Path) -> None:
    """Write problems with worked solutions, none of them near a test item."""
    from posttrainbench.smoke import generate, render_prompt

    rows = (
        {"prompt": render_prompt(each.question), "completion": each.solution} for each in generate(_PROBLEMS, _SEED)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
