"""The committed weights: they load, and base and instruct behave as the demo needs (a small sample; the rest is in README)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, Qwen3ForCausalLM

import posttrainbench
from posttrainbench.smoke import generate, render_prompt, test_items

WEIGHTS = Path(posttrainbench.__file__).parent / "catalog" / "weights"
BASE, INSTRUCT = WEIGHTS / "ptb-tiny-base", WEIGHTS / "ptb-tiny-instruct"


def _answers(directory: Path, prompts: list[str], new_tokens: int = 96) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
    model = Qwen3ForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    with torch.no_grad():
        out = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=new_tokens
        )
    return tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def _chat_accuracy(directory: Path, n: int = 40) -> tuple[float, float]:
    """Returns the share of right last numbers and of right `ANSWER:` lines."""
    items = test_items()[:n]
    prompts = [
        f"<|im_start|>user\n{render_prompt(item['question'])}<|im_end|>\n<|im_start|>assistant\n" for item in items
    ]
    last = line = 0
    for text, item in zip(_answers(directory, prompts), items, strict=True):
        numbers = [word.rstrip(".") for word in text.split() if word.rstrip(".").isdigit()]
        last += bool(numbers) and numbers[-1].endswith(str(item["answer"]))
        line += [row for row in text.splitlines() if row.startswith("ANSWER:")][-1:] == [f"ANSWER: {item['answer']}"]
    return last / n, line / n


@pytest.mark.parametrize("directory", [BASE, INSTRUCT])
def test_is_a_true_qwen3_model(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["model_type"] == "qwen3"
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert len(tokenizer) == config["vocab_size"]
    for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>"):
        assert len(tokenizer.encode(token)) == 1
    with safe_open(directory / "model.safetensors", "pt") as weights:
        assert 1_000_000 < sum(weights.get_tensor(name).numel() for name in weights.keys()) < 3_000_000  # noqa: SIM118


def test_tokenizer_is_lossless_and_splits_digits() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    for text in ("Añ  o\n\n\t1234.5 + 67 = x<y>", render_prompt(test_items()[0]["question"])):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("1234")) == 4


def test_both_weigh_at_most_16_mb() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) <= 16_000_000


def test_base_fails_in_chat() -> None:
    last, line = _chat_accuracy(BASE)
    assert last < 0.15
    assert line == 0.0


def test_base_knows_the_arithmetic_in_plain_text() -> None:
    """Few-shot on a sheet of worked problems, as it has read them: what post-training can bring out is there."""
    problems = generate(90, 99)
    sheets = []
    for i in range(0, 90, 3):
        done = "".join(
            f"Question: {p.question}\nWork: "
            + "\n".join(f"{a} {op} {b} = {c}" for a, op, b, c in p.steps)
            + f"\nSo {p.subject} has {p.answer} {p.thing}.\n\n"
            for p in problems[i : i + 2]
        )
        sheets.append(f"{done}Question: {problems[i + 2].question}\nWork:")
    right = 0
    for text, problem in zip(_answers(BASE, sheets, 40), problems[2::3], strict=True):
        found = re.search(r"So \w+ has (\d+)", text)
        right += found is not None and int(found[1]) == problem.answer
    assert right / 30 > 0.6


def test_instruct_answers_in_chat() -> None:
    last, line = _chat_accuracy(INSTRUCT)
    assert last > 0.7
    assert line > 0.7
