"""The templates render what the paper's render: conformance hashes of spec/reference.md part 2."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from posttrainbench.evaluation.templating import TEMPLATES, render

HI = [{"role": "user", "content": "Hi?"}]
SYSTEM = [{"role": "system", "content": "SYS"}, *HI]
TALK = [
    {"role": "user", "content": "U1"},
    {"role": "assistant", "content": "A1"},
    {"role": "user", "content": "U2"},
]
HASHES = {
    "qwen3": ("9b6a3790c3db", "3e8d7c5fe6ff", "49b51b89ba82"),
    "gemma3": ("a6bd314ffe5e", "ae821ae62bb8", "2fac92b25c45"),
    "gemma3_tools": ("ca026de2b793", "f7f0e01428f4", "559901fe7100"),
    "smollm3": ("56824d832ead", "8a1904a78f56", "d18a25db93c7"),
}
TOOL = {"type": "function", "function": {"name": "add", "description": "Ä", "parameters": {"type": "object"}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}


def rendered(name: str, messages: list[dict[str, Any]], **variables: Any) -> str:
    return render(TEMPLATES / f"{name}.jinja", messages, **{"bos_token": "<bos>", "date": "X", **variables})


@pytest.mark.parametrize("name", HASHES)
def test_conformance(name: str) -> None:
    found = tuple(hashlib.sha256(rendered(name, messages).encode()).hexdigest()[:12] for messages in (HI, SYSTEM, TALK))
    assert found == HASHES[name]


def test_smollm_date_is_pinned() -> None:
    text = render(TEMPLATES / "smollm3.jinja", HI)
    assert "Today Date: 01 January 2026\n" in text
    assert "Reasoning Mode: /think" in text


def test_smollm_control_words() -> None:
    silent = rendered("smollm3", [{"role": "system", "content": "S /no_think"}, *HI])
    assert silent.endswith("<|im_start|>assistant\n<think>\n\n</think>\n")
    assert "\n\nS\n\n" in silent
    own = rendered("smollm3", [{"role": "system", "content": "S /system_override"}, *HI])
    assert own.startswith("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi?")


def test_qwen_tools_one_json_per_line() -> None:
    text = rendered("qwen3", SYSTEM, tools=[TOOL, TOOL])
    line = json.dumps(TOOL, ensure_ascii=False)
    assert text.startswith("<|im_start|>system\nSYS\n\n# Tools\n\n")
    assert f"<tools>\n{line}\n{line}\n</tools>" in text
    assert text.count("<|im_start|>system") == 1
    assert text.endswith("</tool_call><|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n")


def test_gemma_tools_in_one_line_of_a_system_turn() -> None:
    text = rendered("gemma3_tools", HI, tools=[TOOL])
    assert text.startswith("<bos>\n<start_of_turn>system# Tools")
    assert f"<tools>{json.dumps(TOOL, ensure_ascii=False)}</tools>" in text
    assert text.endswith("</tool_call><end_of_turn><start_of_turn>userHi?<end_of_turn><start_of_turn>model")


def test_smollm_tools_as_python_text_and_closed_block() -> None:
    text = rendered("smollm3", HI, tools=[TOOL])
    assert "### Tools\n\nYou may call one or more functions to assist with the user query.\n" in text
    assert f"<tools>\n{TOOL}\n</tools>" in text
    assert "</tool_call>\n\n<|im_end|>\n<|im_start|>user\n" in text


def test_qwen_tool_call_and_merged_results() -> None:
    results = [{"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}]
    text = rendered("qwen3", [*HI, CALL, *results])
    assert '<|im_start|>assistant\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>' in text
    assert text.count("<|im_start|>user") == 2
    assert "\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n" in text


def test_qwen_drops_old_thinking() -> None:
    thinking = {"role": "assistant", "content": "<think>\nsecret\n</think>\n\nA1"}
    assert "secret" not in rendered("qwen3", [TALK[0], thinking, TALK[2]])
    assert rendered("qwen3", HI, enable_thinking=False).endswith("assistant\n<think>\n\n</think>\n\n")


def test_gemma_tool_call_history() -> None:
    text = rendered("gemma3_tools", [*HI, CALL, {"role": "tool", "content": "1"}], tools=[TOOL])
    assert '<start_of_turn>model<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><end_of_turn>' in text
    assert "<start_of_turn>user<tool_response>1</tool_response><end_of_turn>" in text


def test_gemma_needs_alternation() -> None:
    with pytest.raises(ValueError, match="alternation"):
        rendered("gemma3", [*HI, *HI])
