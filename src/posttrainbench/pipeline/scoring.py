"""Run an evaluation where it belongs: in a fresh sandbox, from the harness's own code, on nothing but weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrainbench import catalog, hardware
from posttrainbench.errors import ConfigurationError, InfrastructureError, SubmissionError
from posttrainbench.evaluation import EvaluationRequest
from posttrainbench.files import read_json, write_json
from posttrainbench.integrity import tokens
from posttrainbench.integrity.naming import canonical
from posttrainbench.integrity.safetensors import BadSafetensors, read_file, read_model, write_file
from posttrainbench.integrity.validity import Fit, fit
from posttrainbench.pipeline.benchmark_data import data_mounts
from posttrainbench.pipeline.mounts import readable_binds
from posttrainbench.pipeline.solve import Interrupted
from posttrainbench.sandbox import Backend, Limits, Spec
from posttrainbench.scratch import Scratch
from posttrainbench.workspace import paths

# The reference gives one attempt 8 hours (reference.md part 3).
_LONGEST_S = 8 * 3600.0
# What the retry ladder counts down from when the engine chose its batch itself (its choice on a CPU).
_FIRST_BATCH = 32
# A real one has under 1 kB.
_LARGEST_CONFIG = 2**20
_FROM_BASE = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
)

_PICTURES = ("preprocessor_config", "processor_config")


class KilledForMemory(InfrastructureError):
    """The kernel killed the evaluation because it took more memory than it may; a smaller batch may fit."""


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def rewrap(submission: Path, base: Path, target: Path) -> None:
    """Build the model directory that is scored: the submission's weights in the base model's wrapping.

    Of the submission only tensors, declared added tokens (strings, see `integrity.tokens`) and generation_config.json (read
    within bounds, see `evaluation.decoding`) are used; configuration and tokenizer are the base model's. What is not taken
    cannot cheat.

    Raises:
        SubmissionError: its weights cannot be read.
    """
    try:
        found = fit(submission, base)
    except BadSafetensors as error:
        raise SubmissionError(f"weights: {error}") from None
    target.mkdir(parents=True)
    for name in _FROM_BASE:
        if (base / name).is_file() and not (found.text_only and name.startswith(_PICTURES)):
            shutil.copyfile(base / name, target / name)
    if found.text_only or found.rows is not None:
        write_json(target / "config.json", _config(read_json(base / "config.json"), found))
    if found.added_tokens:
        tokens.extend(base, target, found.added_tokens)
    _take_weights(submission, base, target, found)
    sampling = submission / "generation_config.json"
    if sampling.is_file() and sampling.stat().st_size <= _LARGEST_CONFIG:
        shutil.copyfile(sampling, target / sampling.name)
    for file in target.iterdir():
        # whatever the umask: what the sandbox's user cannot read would be copied for it
        if file.stat().st_nlink == 1:
            file.chmod(0o644)


def _config(base: dict[str, Any], found: Fit) -> dict[str, Any]:
    """The base model's configuration for a submission without vision tower, or with another number of embedding rows."""
    inner = base.get("text_config")
    if found.text_only and isinstance(inner, dict):
        shared = ("eos_token_id", "bos_token_id", "pad_token_id", "dtype", "torch_dtype", "tie_word_embeddings")
        inner = {name: base[name] for name in shared if name in base} | inner
        alone = [name.replace("ForConditionalGeneration", "ForCausalLM") for name in base.get("architectures") or []]
        base = {**inner, "architectures": alone}
        inner = None
    if found.rows is not None:
        if isinstance(inner, dict):
            base = {**base, "text_config": {**inner, "vocab_size": found.rows}}
        else:
            base = {**base, "vocab_size": found.rows}
    return base


def _take_weights(submission: Path, base: Path, target: Path, found: Fit) -> None:
    """Link the weight files under names of ours; write them anew where tensors must be renamed or left behind."""
    # Names and index are ours too: an index of the agent's could point anywhere, and loaders prefer some file names.
    names = {canonical(name): name for name in read_model(base)}
    weight_map: dict[str, str] = {}
    files = sorted(file for file in submission.glob("*.safetensors") if file.is_file())
    for number, file in enumerate(files, start=1):
        name = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        stored = read_file(file)
        wanted = {}
        for known, own in found.stored.items():
            if own in stored:
                wanted[own] = known if found.text_only else names[known]
        # a copy of tied weights does no harm where it is; a vision tower without its model would
        if all(own == new for own, new in wanted.items()) and not (found.text_only and len(wanted) < len(stored)):
            _link(file, target / name)
            weight_map |= dict.fromkeys(stored, name)
        else:
            write_file(target / name, {new: stored[own] for own, new in wanted.items()})
            weight_map |= dict.fromkeys(wanted.values(), name)
    if len(files) > 1:
        write_json(target / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def evaluate_sandboxed(
    request: EvaluationRequest,
    *,
    backend: Backend,
    gpus: tuple[int, ...] = (),
    memory_bytes: int | None = None,
    cancelled: Callable[[], bool] | None = None,
    on_output: Callable[[bytes], None] | None = None,
) -> dict[str, Any]:
    """Evaluate in a sandbox without network; the request's paths are on the host.

    Args:
        request: `output` is filled with `metrics.json`, `outcome.json` and the log, which replace older ones.
        backend: the sandbox.
        gpus: GPUs for the engine.
        memory_bytes: limit for the whole evaluation.
        cancelled: polled; true ends it.
        on_output: gets what the evaluation prints.

    Returns:
        The metrics.

    Raises:
        SubmissionError: the model does not load or cannot be run; nobody else's fault.
        ConfigurationError: the request cannot be met (benchmark, data, template).
        InfrastructureError: anything else. Never a score.
        Interrupted: `cancelled` said so.
    """
    output = Path(request.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    # beside the output: on the disk of the submission, so that its weights are linked and not copied
    with Scratch("evaluate", parent=output.parent) as draft:
        (draft / "out").mkdir()
        (draft / "in").mkdir()
        runtime = backend.runtime()
        ro: dict[str, Path] = {**runtime.ro, "/in": draft / "in"}
        inside = replace(request, output="/out")
        if request.model is not None:
            ro |= readable_binds("/model", Path(request.model), spare=draft / "model")
            inside = replace(inside, model="/model")
        data = data_mounts(catalog.benchmark(request.benchmark), request.data_dir, spare=draft / "data")
        ro |= data.ro
        inside = replace(inside, data_dir=data.env.get("PTB_DATA_DIR"))
        inside.save(draft / "in" / "request.json")
        spec = Spec(
            argv=(runtime.executable, "-m", "posttrainbench.evaluation", "/in/request.json"),
            cwd="/out",
            env={
                "PATH": runtime.path,
                "HOME": paths.HOME,
                "LANG": "C.UTF-8",
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
                "PYTHONUNBUFFERED": "1",
                "PYTHONDONTWRITEBYTECODE": "1",
                "PTB_CONFINED": "1",
                "HF_HOME": paths.HUB_HOME,
                **data.env,
            },
            ro=ro,
            rw={"/out": draft / "out"},
            hide=[runtime.inside(catalog.WEIGHTS)],
            gpus=gpus,
            limits=Limits(wall_s=_LONGEST_S, grace_s=5.0, memory_bytes=memory_bytes),
        )
        said = bytearray()

        def listen(data: bytes) -> None:
            said.extend(data)
            del said[:-20_000]
            if on_output is not None:
                on_output(data)

        result = backend.run(spec, on_output=listen, cancelled=cancelled)
        if result.reason == "cancelled":
            raise Interrupted
        _keep(draft / "out", output)
        _raise_for(output, result.returncode, result.reason, said.decode(errors="replace"))
    metrics: dict[str, Any] = read_json(output / "metrics.json")
    return metrics


def _keep(source: Path, target: Path) -> None:
    """Move the outcome over, as files of the harness; older logs go, so that no log can be taken for another run's."""
    if target.exists():
        shutil.rmtree(target)
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    for file in sorted(source.iterdir()):
        if file.is_file() and not file.is_symlink():
            shutil.copyfile(file, fresh / file.name)
    fresh.rename(target)


def _raise_for(output: Path, returncode: int, reason: str, said: str) -> None:
    try:
        outcome = read_json(output / "outcome.json")
    except (OSError, ValueError):
        if reason == "memory":
            raise KilledForMemory("the evaluation needs more memory than it may take") from None
        last = next((line for line in reversed(said.splitlines()) if line.strip()), "no output")
        raise InfrastructureError(
            f"the evaluation ended without an outcome ({reason}, status {returncode}): {last[:200]}"
        ) from None
    if outcome.get("ok"):
        return
    message = str(outcome.get("message", "no message"))
    if outcome.get("kind") == "submission":
        raise SubmissionError(message)
    if outcome.get("kind") == "configuration":
        raise ConfigurationError(message)
    raise InfrastructureError(f"the evaluation failed: {message}")


def evaluate_model(
    request: EvaluationRequest,
    *,
    backend: Backend,
    gpus: tuple[int, ...] | None = None,
    memory_bytes: int | None = None,
    cancelled: Callable[[], bool] | None = None,
    on_output: Callable[[bytes], None] | None = None,
) -> dict[str, Any]:
    """Evaluate any benchmark with any engine, each part where it belongs.

    The model runs in a sandbox. What the model's sandbox must not have, a grader's key or a sandbox of its own for
    programs, is used afterwards here, on the stored answers. Answers that an interrupted evaluation left in
    `request.output` are not made again, nor are its gradings paid twice. Without `gpus` it gets the first one of this
    machine, if there is any. Other arguments, result and errors as `evaluate_sandboxed`.
    """
    if request.engine == "replay":
        from posttrainbench.evaluation import runner

        return runner.run(request)
    if gpus is None:
        gpus = tuple(gpu.index for gpu in hardware.detect().gpus[:1])
    outside = catalog.benchmark(request.benchmark).scoring == "outside"
    if outside:
        from posttrainbench.evaluation import runner

        runner.check_grader(request)
        if _generated(Path(request.output)):
            return runner.score_log(request)
    asked, kills = replace(request, score=False) if outside else request, 0
    while True:
        try:
            metrics = evaluate_sandboxed(
                asked,
                backend=backend,
                gpus=gpus,
                memory_bytes=memory_bytes,
                cancelled=cancelled,
                on_output=on_output,
            )
            break
        except KilledForMemory as error:
            from posttrainbench.evaluation.retry import after_kill

            kills += 1
            smaller = after_kill(asked, batch_size=request.batch_size or _FIRST_BATCH, kills=kills)
            if smaller is None:
                raise
            asked = smaller
            if on_output is not None:
                on_output(f"{error}; again with batch size {asked.batch_size}\n".encode())
    return runner.score_log(request) if outside else metrics


def _generated(output: Path) -> bool:
    """Whether an earlier, interrupted evaluation left all answers, and only their scoring is missing."""
    try:
        metrics = read_json(output / "metrics.json")
        unscored = metrics["strict"]["accuracy"] is None and metrics["strict"]["scored"] == 0
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return unscored and len(list(output.glob("*.eval"))) == 1
