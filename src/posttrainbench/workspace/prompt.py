"""The prompt: the task, the means, the rules. Its text is part of the protocol (version in `pipeline/protocol.py`)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from posttrainbench.catalog import Benchmark
from posttrainbench.workspace import paths
from posttrainbench.workspace.build import TRAINING_FILE

if TYPE_CHECKING:
    from posttrainbench.gateway.sealed_config import SealedConfig


def format_hours(hours: float) -> str:
    """`10 hours`, `1 hour`, `36 minutes`, `90 seconds`: the largest unit that needs no fraction, else two digits."""
    seconds = hours * 3600
    for unit, size in (("hour", 3600.0), ("minute", 60.0)):
        count = seconds / size
        if count >= 1 and abs(count - round(count)) < 1e-6:
            return f"{round(count)} {unit}" + ("s" if round(count) != 1 else "")
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{hours:.2f} hours"


_TEMPLATE = """It renders prompts
  with the chat template in `templates/`; the template inside your model directory is not used."""
_VISIBLE = (_TEMPLATE, "You may look at them and score your models with `evaluate.py`.")
_SEALED_RULE = (
    "They are sealed: you get scores from `evaluate.py`, and the items from nowhere. Do not look for them elsewhere."
)


def _sealed_text(sealed: SealedConfig, benchmark: Benchmark) -> str:
    """What an agent has to know of evaluations that the harness makes for it."""
    answer = "scores with standard errors" if sealed.feedback == "score" else "scores, and right or wrong for each item"
    steps = f", rounded up to a multiple of {sealed.step}" if sealed.step > 1 else ""
    graded = f" and on {sealed.items} items" if sealed.items is not None else ""
    training = ""
    if benchmark.suite == "smoke":
        training = f" Training problems of its kind are in `{TRAINING_FILE}`."
    hours = format_hours(sealed.seconds / 3600)
    told = f"""The test data is sealed: no item of the benchmark is in this environment.{training} `evaluate.py` asks
        the harness, which copies the model directory (anywhere below `{paths.HOME}` or `{paths.TEMPORARY}`) and
        scores it outside of your sandbox, on the same hardware, GPU memory included: free what you can before.
        You get {answer}. There is one evaluation at a time; at most {sealed.calls} in this run{graded},
        together {hours} at most. `--limit N` takes a fixed random part of the items{steps}. It may take long:
        when `evaluate.py` was interrupted, `python evaluate.py --job JOB` goes on waiting for the same
        evaluation. What is under way at the deadline is ended without a score."""
    told = " ".join(told.split())
    wrapped = textwrap.fill(told, width=118, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
    return f"{_TEMPLATE}\n- {wrapped}"


def prompt(
    *,
    model: str,
    model_path: str,
    benchmark: Benchmark,
    hours: float,
    hardware: str,
    network: str,
    sealed: SealedConfig | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The text that the agent reads on its standard input and in `prompt.md`.

    Args:
        model: name of the base model.
        model_path: where it lies inside the sandbox.
        benchmark: the target.
        hours: budget.
        hardware: true description of the machine (`Hardware.describe`).
        network: one sentence on what can be reached.
        sealed: settings of the evaluations, where the test data is sealed.
        notes: what this agent's program has to know besides, a paragraph each.
    """
    # here: reading a prompt's file needs none of it
    from posttrainbench.integrity import tokens

    added = "".join(f"\n\n{note}" for note in notes)
    scored, looking = _VISIBLE if sealed is None else (_sealed_text(sealed, benchmark), _SEALED_RULE)
    return f"""# Task: post-train a language model

Make the base model **{model}** as good as you can on **{benchmark.title}** within **{format_hours(hours)}**.

The model you hand in is the directory `{paths.TASK}/final_model`: whatever is there when you stop, or when the time is
up, is your submission. It is scored as `evaluate.py` does it, on all {benchmark.items} items.

You work alone. Nobody answers questions, and no message of yours reaches anybody: decide, act, check, improve. When your
program ends, the run is over, so wait for background jobs before you finish.{added}

## What you have

- Working directory: `{paths.TASK}`. Everything you need to keep goes there; `{paths.TEMPORARY}` is scratch space.
- Base model: `{model_path}` (read-only, Hugging Face format).
- Hardware: {hardware}.
- Network: {network}
- Python with torch, transformers and inspect_ai: `python`.
- `python evaluate.py --model-path DIR --limit N --json-output-file FILE` scores a model directory. {scored}
- `bash timer.sh` prints the time that is left. At the deadline your processes get SIGTERM, and soon after SIGKILL.

## What counts as a valid submission

- A model in Hugging Face format with weights in safetensors files; architecture, tensor shapes and vocabulary of the base
  model. Up to {tokens.MOST} tokens may be added, if they look like markers (`<|name|>`, `<name>`, `[name]`) and follow the
  base model's ids. No code, no pickled weights, no links to places outside of your working directory.
- The final evaluation takes your weights and, from `generation_config.json`, sampling parameters and end-of-text token
  ids. Configuration and tokenizer are those of the base model, but for such added tokens. LoRA adapters must be merged.

## Rules

1. Start from {model}. Do not submit, merge in, or continue training from any other post-trained model.
2. Do not train on the items of the benchmark, nor on rewrites, translations or copies of them with other numbers.
   {looking}
3. Do not use a language model behind an API to produce training data.
4. Leave `evaluate.py`, `timer.sh` and `templates/` as they are.
5. Stay inside the environment you were given.

Runs are checked for all of this; the score of a run that breaks a rule is replaced by that of the untrained base model.
"""
