"""Reference rows: what the base and the instruct model score as they are, with and without worked examples.

The published rows (reference.md part 6): base and instruct models zero-shot, on the protocol and the models' own
generation configs; base models few-shot, with the examples in one system message, sampled at 0.6 / 0.95 / 20, ten answers
per item (one where an LLM grades). The Qwen base models get no chat format there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from posttrainbench import catalog
from posttrainbench.catalog import BaseModel
from posttrainbench.errors import ConfigurationError
from posttrainbench.evaluation.request import EvaluationRequest

Kind = Literal["zero-shot", "few-shot", "instruct"]
KINDS: tuple[Kind, ...] = ("zero-shot", "few-shot", "instruct")

FOLDERS: Mapping[Kind, str] = {"zero-shot": "base", "few-shot": "base-fewshot", "instruct": "instruct"}
"""Where a kind's metrics lie: `<out>/references/<base model>/<benchmark>/<folder>/metrics.json`."""

_PLAIN = Path(__file__).parent / "engines" / "templates"
_SMOKE_SHOTS, _SMOKE_SEED = 3, 99
_EPOCHS = 10


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """What a few-shot evaluation changes.

    Attributes:
        system_message: the worked examples; `None` where the benchmark's own prompt has them.
        decoding: sampling, in the place of the model's generation config. Greedy base models repeat themselves.
        epochs: answers per item.
        template: name and directory of the chat template; `None` for the base model's.
    """

    system_message: str | None
    decoding: Mapping[str, float]
    epochs: int
    template: tuple[str, Path] | None


def few_shot(entry: BaseModel, benchmark: str, shots: Path | None = None) -> FewShot:
    """How the base model is evaluated with worked examples.

    Args:
        entry: the base model.
        benchmark: catalogue id.
        shots: JSON list of `{"question", "answer"}`, where the package has no examples of its own.

    Raises:
        ConfigurationError: there are no examples for this benchmark, or the file has another form.
    """
    graded = benchmark in ("arenahardwriting", "healthbench")
    decoding = {"temperature": 0.6, "top_p": 0.95, **({} if graded else {"top_k": 20})}
    message = _message(_read_shots(shots)) if shots is not None else _own_shots(benchmark)
    qwen = entry.template.startswith("qwen")
    return FewShot(
        system_message=message,
        decoding=decoding,
        epochs=1 if graded else _EPOCHS,
        # the published code keeps a Qwen base model's own format where an LLM grades
        template=("plain", _PLAIN) if qwen and not graded else None,
    )


def _own_shots(benchmark: str) -> str | None:
    if benchmark == "gsm8k":
        return None  # the protocol's prompt has ten
    if benchmark == "smoke-math":
        from posttrainbench.smoke.problems import generate, render_prompt

        problems = generate(_SMOKE_SHOTS, _SMOKE_SEED)
        return _message([(render_prompt(problem.question), problem.solution) for problem in problems])
    if benchmark in ("humaneval", "bfcl"):
        raise ConfigurationError(
            f"there is no few-shot baseline for {benchmark}: the published one has no worked examples for it"
        )
    raise ConfigurationError(
        f"the worked examples for {benchmark} (three, picked by hand by the benchmark's authors) do not come with this "
        'package; give some with --shots FILE, a JSON list of {"question", "answer"}'
    )


def _read_shots(path: Path) -> list[tuple[str, str]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [(str(row["question"]), str(row["answer"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigurationError(f'{path} is no JSON list of {{"question", "answer"}}') from None


def _message(shots: list[tuple[str, str]]) -> str:
    examples = "\n\n".join(f"{question}\n\n{answer}" for question, answer in shots)
    return f"Here are {len(shots)} examples of the task, each with a good answer.\n\n{examples}"


def output_directory(out: Path, entry: BaseModel, benchmark: str, kind: Kind) -> Path:
    """Where the metrics of a reference row go."""
    return out / "references" / entry.name / benchmark / FOLDERS[kind]


def make_request(
    entry: BaseModel, *, kind: Kind, benchmark: str, model: Path, out: Path, shots: Path | None = None, **options: Any
) -> EvaluationRequest:
    """The evaluation that a reference row is made of.

    Args:
        entry: the base model that the row belongs to (for `instruct` too: it decides the template).
        kind: which row.
        benchmark: catalogue id.
        model: directory of the base model, or of its instruct counterpart.
        out: results directory.
        shots: see `few_shot`.
        options: further fields of `EvaluationRequest`; they win.

    Raises:
        ConfigurationError: unknown benchmark, no few-shot baseline for it.
    """
    measured = catalog.benchmark(benchmark)
    with_tools = measured.tools and entry.tool_template is not None
    fields: dict[str, Any] = {
        "benchmark": measured.id,
        "model": str(model),
        "base_model": entry.name,
        "template": entry.tool_template if with_tools else entry.template,
        "output": str(output_directory(out, entry, measured.id, kind)),
    }
    if kind == "few-shot":
        chosen = few_shot(entry, measured.id, shots)
        fields |= {
            "system_message": chosen.system_message,
            "decoding": dict(chosen.decoding),
            "epochs": chosen.epochs,
        }
        if chosen.template is not None:
            name, directory = chosen.template
            fields |= {"template": name, "templates_dir": str(directory)}
    elif shots is not None:
        raise ConfigurationError("--shots goes with --kind few-shot only")
    return EvaluationRequest(**{**fields, **options})


def compute(
    entry: BaseModel,
    *,
    kind: Kind,
    benchmark: str,
    model: Path,
    out: Path,
    evaluate: Callable[[EvaluationRequest], dict[str, Any]] | None = None,
    shots: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Evaluate a reference model and write its metrics where the leaderboard looks for them.

    Args:
        evaluate: runs the request; `runner.run` in this process by default. The harness passes the sandboxed one.

    The other arguments, and the errors, are those of `make_request` and of the evaluation.

    Returns:
        The metrics.
    """
    request = make_request(
        entry, kind=kind, benchmark=benchmark, model=model, out=out.absolute(), shots=shots, **options
    )
    if evaluate is None:
        from posttrainbench.evaluation.runner import run

        evaluate = run
    Path(request.output).parent.mkdir(parents=True, exist_ok=True)
    return evaluate(request)
