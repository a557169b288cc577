"""Run the behavioural memory test of a submission in a sandbox (`ptb audit --memory-test`)."""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path

from posttrainbench import catalog
from posttrainbench.errors import PTBError
from posttrainbench.evaluation.templating import template_file
from posttrainbench.files import read_json, write_json
from posttrainbench.integrity import memory
from posttrainbench.integrity.finding import Outcome
from posttrainbench.integrity.safetensors import BadSafetensors
from posttrainbench.integrity.validity import fit
from posttrainbench.pipeline.context import Context
from posttrainbench.pipeline.mounts import readable_binds
from posttrainbench.pipeline.scoring import rewrap
from posttrainbench.pipeline.solve import Interrupted
from posttrainbench.sandbox import Backend, Limits, Spec
from posttrainbench.workspace import paths
from posttrainbench.workspace.build import template_for

# Two models of 4 B parameters and 2,000 short texts take about two minutes on a GPU; a CPU cannot do them at all.
LIMIT_S = 1800.0


def probe(
    submission: Path,
    base: Path,
    made: memory.Texts,
    *,
    template: str,
    backend: Backend,
    gpus: tuple[int, ...] = (),
    memory_bytes: int | None = None,
    limit_s: float = LIMIT_S,
    context: Context | None = None,
    work: Path | None = None,
) -> Outcome:
    """Compare the likelihoods of the texts under submission and base, both loaded in a sandbox without network.

    Args:
        submission: checked model directory (`integrity.validity`); its tensors are re-wrapped first.
        base: the base model's directory.
        made: the passages.
        template: chat template's name.
        backend: the sandbox.
        gpus: GPUs for the models.
        memory_bytes: limit for the whole sandbox.
        limit_s: wall-clock seconds.
        context: polled for cancellation.
        work: where the temporary directory goes.

    Raises:
        Interrupted: cancelled.
    """
    with tempfile.TemporaryDirectory(prefix=".memory-", dir=work) as temporary:
        draft = Path(temporary)
        (draft / "in").mkdir()
        (draft / "out").mkdir()
        try:
            unfit = fit(submission, base).problems
        except BadSafetensors as error:
            unfit = (str(error),)
        if unfit:
            return Outcome(problem=f"the submission is not loaded: {unfit[0]}")
        rewrap(submission, base, draft / "model")
        request = {
            "base": "/base",
            "submission": "/model",
            "template": str(template_file(template)),
            "device": "auto",
            "threads": 1,
            "seconds": limit_s,
            "output": "/out/likelihoods.json",
        }
        write_json(draft / "in" / "request.json", request)
        runtime = backend.runtime()
        spec = Spec(
            argv=(runtime.executable, "-m", "posttrainbench.integrity.memory_probe", "/in/request.json"),
            cwd="/out",
            stdin=made.as_json(),
            env={
                "PATH": runtime.path,
                "HOME": paths.HOME,
                "LANG": "C.UTF-8",
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            ro={
                **runtime.ro,
                "/in": draft / "in",
                **readable_binds("/model", draft / "model", spare=draft / "spare-model"),
                **readable_binds("/base", base, spare=draft / "spare-base"),
            },
            rw={"/out": draft / "out"},
            hide=[runtime.inside(catalog.WEIGHTS)],
            gpus=gpus,
            limits=Limits(wall_s=limit_s, grace_s=5.0, memory_bytes=memory_bytes),
        )
        said = bytearray()

        def listen(data: bytes) -> None:
            said.extend(data)
            del said[:-4000]

        result = backend.run(spec, on_output=listen, cancelled=None if context is None else context.cancelled)
        if result.reason == "cancelled":
            raise Interrupted
        answer = draft / "out" / "likelihoods.json"
        if result.returncode != 0 or answer.is_symlink() or not answer.is_file() or answer.stat().st_size > 64 << 20:
            lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
            return Outcome(
                problem=f"the memory test ended without an answer ({result.reason}): {(lines or [''])[-1][:200]}"
            )
        try:
            return memory.outcome(made, read_json(answer))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            return Outcome(problem=f"the memory test's answer cannot be read: {type(error).__name__}")


def memory_test(context: Context, *, limit_s: float = LIMIT_S) -> Outcome:
    """The test for a run; a problem, and so an undecided verdict, where it cannot be done."""
    run = context.run
    if not run.submission.is_dir():
        return Outcome()
    data_dir = None if context.spec.data_dir is None else Path(context.spec.data_dir)
    try:
        made = memory.texts(context.benchmark.id, data_dir, seed=secrets.randbits(48))
        return probe(
            run.submission,
            context.base,
            made,
            template=template_for(context.model, context.benchmark),
            backend=context.backend,
            gpus=tuple(context.record["gpus"]),
            memory_bytes=context.memory_bytes,
            limit_s=limit_s,
            context=context,
            work=run.path,
        )
    except PTBError as error:
        return Outcome(problem=str(error))
