"""Rubric grading (HealthBench): the grader's prompt, its reply, and how criteria become a score."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from inspect_evals.healthbench.scorer import GRADER_TEMPLATE  # simple-evals' text; its hash is tested

from posttrainbench.evaluation.scorers.judging import fill
from posttrainbench.evaluation.scorers.repetition import limit_repetitions
from posttrainbench.evaluation.scorers.text import visible_text

CONVERSATION, ITEM = "<<conversation>>", "<<rubric_item>>"
# Headings of the grader's prompt. A response that writes its own could pass for the end of the conversation.
_HEADING = re.compile(
    r"^(\s*)#(?=[\s#]*(?:Conversation|Rubric item|Instructions|Example \d|Final instruction)\b)", re.M | re.I
)


def strict_answer(completion: str) -> str:
    """What is graded: the answer without its thinking."""
    return visible_text(completion).strip()


def paper_answer(completion: str) -> str:
    """What the published evaluation grades: a leading think block cut off, repetitions limited."""
    text = completion
    if text.startswith("<think>") and "</think>" in text:
        text = text.partition("</think>")[2]
    return limit_repetitions(text).strip()


def _conversation(messages: Sequence[Mapping[str, str]], answer: str) -> str:
    turns = [*messages, {"role": "assistant", "content": answer}]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def _item(rubric: Mapping[str, Any]) -> str:
    return f"[{rubric['points']}] {rubric['criterion']}"


def strict_prompt(messages: Sequence[Mapping[str, str]], answer: str, rubric: Mapping[str, Any]) -> str:
    """The grader's prompt; substituted in one pass, and the prompt's own headings inside the answer are quoted."""
    quoted = _HEADING.sub(r"\1> #", answer)
    return fill(GRADER_TEMPLATE, {CONVERSATION: _conversation(messages, quoted), ITEM: _item(rubric)})


def paper_prompt(messages: Sequence[Mapping[str, str]], answer: str, rubric: Mapping[str, Any]) -> str:
    """The published prompt: two replacements in a row, so that a marker in the answer is replaced as well."""
    return GRADER_TEMPLATE.replace(CONVERSATION, _conversation(messages, answer)).replace(ITEM, _item(rubric))


def parse(reply: str) -> bool | None:
    """`criteria_met` of the JSON object in the reply, with or without a fence around it; `None` if it cannot be read."""
    text = re.sub(r"^```(?:json)?\s*|\s*```$", "", reply.strip())
    try:
        met = json.loads(text)["criteria_met"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return met if isinstance(met, bool) else None


def score(rubrics: Sequence[Mapping[str, Any]], met: Sequence[bool]) -> float:
    """Points of met criteria over all positive points; below 0 where negative criteria weigh more."""
    possible = sum(rubric["points"] for rubric in rubrics if rubric["points"] > 0)
    achieved = sum(rubric["points"] for rubric, yes in zip(rubrics, met, strict=True) if yes)
    return float(achieved) / float(possible) if possible else 0.0
