"""The command line of the agent's `evaluate.py`: the same evaluation as the final one, on a model of the agent's choice."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrainbench import catalog
from posttrainbench.errors import PTBError
from posttrainbench.evaluation.report import score_text
from posttrainbench.evaluation.request import EvaluationRequest
from posttrainbench.files import write_json


def _parser(benchmark: str) -> argparse.ArgumentParser:
    entry = catalog.benchmark(benchmark)
    parser = argparse.ArgumentParser(
        prog="evaluate.py", description=f"Score a model on {entry.title} ({entry.items} items)."
    )
    parser.add_argument("--model-path", default="final_model", help="model directory (default: final_model)")
    parser.add_argument("--limit", type=int, help="score the first N items only (-1 or absent: all)")
    parser.add_argument("--max-tokens", type=int, help=f"generated tokens per item (protocol: {entry.max_tokens})")
    parser.add_argument("--batch-size", type=int, help="sequences per forward pass; lower it when memory runs out")
    parser.add_argument("--templates-dir", default="templates", help="directory of the chat template")
    parser.add_argument("--json-output-file", help="write the scores there as JSON")
    parser.add_argument("--outputs-file", help="write item ids, completions and scores there as JSON lines")
    return parser


def _write_outputs(log_dir: Path, target: Path) -> None:
    """Completions and scores by item id; without the questions, so that the file is no copy of the test set."""
    from inspect_ai.log import read_eval_log

    with target.open("w", encoding="utf-8") as file:
        for path in sorted(log_dir.glob("*.eval")):
            for sample in read_eval_log(str(path)).samples or []:
                row: dict[str, Any] = {"id": sample.id, "completion": sample.output.completion}
                row |= {name: score.value for name, score in (sample.scores or {}).items()}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main(*, benchmark: str, base_model: str, template: str, argv: Sequence[str] | None = None) -> None:
    """Evaluate and print the scores; exits with 2 and one line for a mistake of the caller's."""
    arguments = _parser(benchmark).parse_args(argv)
    # nothing here may reach for the network: it is closed, and a timeout would cost the agent minutes
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    model = Path(arguments.model_path)
    if not model.is_dir():
        sys.exit(_complain(f"there is no model directory {arguments.model_path!r}"))
    limit = arguments.limit if arguments.limit is not None and arguments.limit > 0 else None
    from posttrainbench.evaluation.runner import run

    # the item-level log holds the test items; it stays out of the working directory
    with tempfile.TemporaryDirectory(prefix="evaluate-") as directory:
        request = EvaluationRequest(
            benchmark=benchmark,
            model=str(model),
            base_model=base_model,
            template=template,
            output=directory,
            limit=limit,
            max_tokens=arguments.max_tokens,
            batch_size=arguments.batch_size,
            templates_dir=arguments.templates_dir,
            data_dir=os.environ.get("PTB_DATA_DIR"),
        )
        try:
            metrics = run(request)
        except PTBError as error:
            sys.exit(_complain(str(error)))
        if arguments.outputs_file:
            _write_outputs(Path(directory), Path(arguments.outputs_file))
    if arguments.json_output_file:
        write_json(Path(arguments.json_output_file), metrics)
    for name in ("strict", "paper"):
        print(f"{name}: {score_text(metrics, name)}")


def _complain(message: str) -> int:
    print(f"evaluate.py: {message}", file=sys.stderr)
    return 2
