"""A small supervised fine-tuning loop, as an agent would write it: the scripted agents share it.

Plain PyTorch on whatever device there is; loss on the assistant's part only. Everything is seeded and bounded by steps, not
by time, so that the same program on the same machine leaves the same weights.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

# On a busy machine, threads that spin while they wait for each other take four times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast


class Example(TypedDict):
    """One line of `data/train.jsonl`."""

    prompt: str
    completion: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train with. `steps` bounds the time; see the constants of the agents for measured ones."""

    steps: int
    batch_size: int = 32
    learning_rate: float = 1e-3
    seed: int = 0


def base_model() -> Path:
    """Returns the directory of the model to post-train."""
    return Path(os.environ["PTB_BASE_MODEL"])


def write_data(examples: list[Example], path: Path) -> None:
    """Writes training data as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        for example in examples:
            out.write(json.dumps(example) + "\n")


def read_data(path: Path) -> list[Example]:
    """Reads what `write_data` wrote."""
    with path.open(encoding="utf-8") as lines:
        return [cast(Example, json.loads(line)) for line in lines]


def fine_tune(data: list[Example], model_dir: Path, out: Path, recipe: Recipe) -> None:
    """Fine-tunes the model in `model_dir` on `data`, epoch after epoch, and saves it to `out`.

    Args:
        data: Examples; the chat template is put around them here.
        model_dir: Base model with its tokenizer.
        out: Where the result goes, as safetensors with tokenizer and generation config.
        recipe: Steps, batch size, learning rate and seed.
    """
    torch.manual_seed(recipe.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = cast(PreTrainedTokenizerFast, AutoTokenizer.from_pretrained(model_dir))
    model = cast(PreTrainedModel, AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32))
    model.to(torch.device(device))  # type: ignore[arg-type]  # the stub of `to` is a decorated one
    model.train()
    pairs = [tokenize(tokenizer, example) for example in data]
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    order = batches(pairs, recipe)
    started = reported = time.monotonic()
    for step in range(recipe.steps):
        warmup = (step + 1) / (0.05 * recipe.steps + 1)
        rate = recipe.learning_rate * min(1.0, warmup, 2 * (1 - step / recipe.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids, labels, mask = (tensor.to(device) for tensor in collate(next(order), tokenizer.pad_token_id))
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if time.monotonic() - reported > 4 or step + 1 == recipe.steps:
            reported = time.monotonic()
            print(f"step {step + 1}/{recipe.steps} loss {loss.item():.4f} ({reported - started:.0f} s)", flush=True)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    # greedy decoding, said so that vLLM understands it too (it ignores do_sample)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True, top_k=1, eos_token_id=[end, tokenizer.eos_token_id], pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"saved {out}", flush=True)


Pair = tuple[list[int], list[int]]


def tokenize(tokenizer: PreTrainedTokenizerFast, example: Example) -> Pair:
    """Returns the token ids of prompt and reply in the chat template of the evaluation."""
    prompt = f"<|im_start|>user\n{example['prompt']}<|im_end|>\n<|im_start|>assistant\n"
    return tokenizer.encode(prompt), tokenizer.encode(f"{example['completion']}<|im_end|>\n")


def batches(pairs: list[Pair], recipe: Recipe) -> Iterator[list[Pair]]:
    """Shuffles anew for each epoch; batches hold replies of like length, so that little is padding."""
    rng = random.Random(recipe.seed)
    while True:
        rng.shuffle(pairs)
        window = 16 * recipe.batch_size
        for start in range(0, len(pairs), window):
            part = sorted(pairs[start : start + window], key=lambda pair: len(pair[0]) + len(pair[1]))
            cut = [part[i : i + recipe.batch_size] for i in range(0, len(part), recipe.batch_size)]
            rng.shuffle(cut)
            yield from cut


def collate(pairs: list[Pair], pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pads on the right. Returns ids, labels (-100 on prompt and padding) and attention mask, [rows, tokens] each."""
    width = max(len(prompt) + len(reply) for prompt, reply in pairs)
    ids = torch.full((len(pairs), width), pad)
    labels = torch.full((len(pairs), width), -100)
    mask = torch.zeros((len(pairs), width), dtype=torch.long)
    for row, (prompt, reply) in enumerate(pairs):
        end = len(prompt) + len(reply)
        ids[row, :end] = torch.tensor(prompt + reply)
        labels[row, len(prompt) : end] = torch.tensor(reply)
        mask[row, :end] = 1
    return ids, labels, mask
