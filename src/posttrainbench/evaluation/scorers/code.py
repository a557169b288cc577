"""From a completion to a program (HumanEval): the paper's extraction with its quirks, and ours, as plain functions."""

from __future__ import annotations

import ast
import re
import warnings

from posttrainbench.evaluation.scorers.text import paper_text, visible_text

_LABELLED = re.compile(r"```python\n(.*?)```", re.DOTALL)
_UNLABELLED = re.compile(r"```\n(.*?)```", re.DOTALL)


def paper_body(completion: str) -> str:
    """The published extraction (reference.md 1.4): first fenced block, and of it what follows the first `:` + indent.

    Quirks kept: helpers before the function, tab indents, bare bodies in a fence and ```` ```py ```` fences go wrong.
    """
    text = paper_text(completion)
    blocks = _LABELLED.findall(text) + _UNLABELLED.findall(text)
    if not blocks:
        return text
    block = str(blocks[0])
    return block[block.find(":\n    ") + 2 :]


def paper_program(completion: str, *, prompt: str, test: str, entry_point: str) -> str:
    """The whole program that the published scoring ran: right if it exits with status 0."""
    return f"{prompt}{paper_body(completion)}\n{test}\ncheck({entry_point})"


_FENCE = re.compile(
    r"^[ \t]*(?:```+|~~~+)[ \t]*([\w+#.-]*)[^\n`]*\n(.*?)(?:^[ \t]*(?:```+|~~~+)[ \t]*$|\Z|(?<=\S)```+[ \t]*$)",
    re.DOTALL | re.MULTILINE,
)
_PYTHON = ("python", "python3", "py", "py3", "ipython", "")
_CODE_START = re.compile(r"^(?:def|async def|class|from|import|@)\b|^@", re.MULTILINE)
_LONGEST = 100_000  # characters; generation ends at 4000 tokens
_MOST_CUTS = 200


def _defines(source: str, name: str) -> bool:
    """Whether the source parses and defines the name at its top level."""
    if len(source) > _LONGEST:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in answers
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return True
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return True
    return False


def _spaces(source: str) -> str:
    """Leading tabs as four spaces each, so that they go with the stub's indent."""
    return re.sub(r"^[ \t]+", lambda match: match.group().expandtabs(4), source, flags=re.MULTILINE)


def _indented(source: str) -> str:
    return "".join("    " + line if line.strip() else line for line in source.splitlines(keepends=True))


def _without_tail(source: str, name: str) -> str | None:
    """The longest beginning (by whole lines) that is a program defining `name`: prose after unfenced code goes."""
    lines = source.splitlines(keepends=True)
    for end in range(len(lines), max(len(lines) - _MOST_CUTS, 0), -1):
        part = "".join(lines[:end])
        if _defines(part, name):
            return part
    return None


def _preamble(prompt: str, entry_point: str) -> str:
    """What stands in the stub before the function itself: imports and helper functions."""
    position = prompt.rfind(f"def {entry_point}(")
    return prompt[: max(position, 0)]


def strict_program(completion: str, *, prompt: str, entry_point: str) -> str:
    """The program that the strict scorer runs: it defines `entry_point`, or it is wrong.

    Thinking is taken off. Then, in this order, the first that is a Python program defining the function:

    1. the last fenced block (```` ```python ````, ```` ```py ````, no label, `~~~`; closed or not) that defines it, with
       its other functions and imports, behind the stub's own imports and helpers;
    2. the last fenced block as the function's body, indented by spaces, by tabs or not at all;
    3. the whole text without fences: as a definition, prose before and after it cut off, or as the function's body.
    """
    text = visible_text(completion).replace("\r\n", "\n")
    before = _preamble(prompt, entry_point)
    stub = prompt if prompt.endswith("\n") else prompt + "\n"
    blocks = [body for label, body in _FENCE.findall(text) if label.lower() in _PYTHON and body.strip()]
    for block in reversed(blocks):
        if _defines(block, entry_point):
            return f"{before}\n{block}"
    loose = [re.sub(r"^[ \t]*(?:```+|~~~+).*$", "", text, flags=re.MULTILINE)] if not blocks else []
    for source in loose:
        started = _CODE_START.search(source)
        if started:
            program = _without_tail(source[started.start() :], entry_point)
            if program is not None:
                return f"{before}\n{program}"
    for source in [*reversed(blocks), *loose]:
        body = _spaces(source.strip("\n"))
        variants = [body] if body[:1] in (" ", "\t") else [_indented(body), body]
        for variant in variants:
            program = _without_tail(stub + variant + "\n", entry_point)
            # the stub alone is a program too: a docstring and no body
            if program is not None and len(program) > len(stub):
                return program
    return stub + text
