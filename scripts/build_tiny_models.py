"""Builds the tiny models of the embedded demo from nothing: tokenizer, `ptb-tiny-base`, `ptb-tiny-instruct`.

    python scripts/build_tiny_models.py --out src/posttrainbench/catalog/weights

Both are Qwen3 models of 1.6 million parameters, trained on text that this file and `posttrainbench.smoke` make up.
They behave like real models in miniature: the base has learned its arithmetic from plain text and runs on with more text
after an answer, so it fails in a chat; the instruct model comes from it by a long post-training on other data than an
agent's, so that its weights do not lie where an honest fine-tune of the base ends up.

Times on 2 cores: see `PRETRAIN_STEPS` and `INSTRUCT_STEPS`. `--stage` repeats one stage on what the earlier ones left.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# On a busy machine, threads that spin while they wait for each other take four times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from posttrainbench.smoke import Problem, generate, render_prompt
from posttrainbench.smoke.problems import DAYS, KINDS, NAMES, PLACES, THINGS, TIMES

SEED = 2026
VOCAB_SIZE = 1000
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")

ROW = 256
"""Tokens in a row of pre-training: room for three problems, so that the base sees few-shot prompts."""
BATCH = 32
PRETRAIN_STEPS = 360
"""7 minutes on 2 half busy cores. On purpose no more: after 450 steps the base solves 98 % of the problems in plain text and
any fine-tuning brings that out, so that all submissions would score alike; after 300 it is 81 %."""
INSTRUCT_STEPS = 200
"""4 minutes on 2 half busy cores."""

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"

# --- Text for the base ------------------------------------------------------------------------------------------------


def problem_sheet(rng: random.Random, problems: Iterator[Problem]) -> str:
    """Several problems with worked answers, all in one layout, as on a school sheet."""
    ask, reply = rng.choice(
        (("Question: ", "\nWork: "), ("Q: ", "\nA: "), ("Problem. ", "\nSolution. "), ("", "\n"), ("* ", "\n- "))
    )
    joint = rng.choice(("\n", ". ", ", then "))
    end = rng.choice(
        (
            "\nSo {who} has {n} {thing}.",
            ". That makes {n} {thing} for {who}.",
            ". There are {n} {thing}, and {who} wrote it down.",
            ".",
        )
    )
    parts = []
    for _ in range(rng.randint(3, 10)):
        p = next(problems)
        work = joint.join(f"{a} {op} {b} = {c}" for a, op, b, c in p.steps)
        parts.append(ask + p.question + reply + work + end.format(who=p.subject, thing=p.thing, n=p.answer))
    return "\n\n".join(parts) + footer(rng)


def footer(rng: random.Random) -> str:
    """The end of a page. No document ends with a result, so the base does not learn to stop after one."""
    place, page = rng.choice(PLACES), rng.randint(100, 999)
    return f"\n\nThis was page {page} of the book from the {place}."


def fact(rng: random.Random) -> str:
    """One sum, difference or product, in figures or in words."""
    op = rng.choice("++--*")
    if op == "+":
        a, b = rng.randint(0, 60), rng.randint(0, 39)
        c = a + b
    elif op == "-":
        a = rng.randint(1, 99)
        b = rng.randint(0, min(a, 50))
        c = a - b
    else:
        a, b = rng.randint(1, 9), rng.randint(1, 9)
        c = a * b
    if rng.random() < 0.85:
        return f"{a} {op} {b} = {c}"
    name = {"+": "plus", "-": "minus", "*": "times"}[op]
    return f"{in_words(a)} {name} {in_words(b)} is {in_words(c)}"


def in_words(n: int) -> str:
    """Writes 0 to 99 as words."""
    if n < 20:
        return ONES.split()[n]
    tens = TENS.split()[n // 10 - 2]
    return tens if n % 10 == 0 else f"{tens}-{ONES.split()[n % 10]}"


def drill(rng: random.Random) -> str:
    """A list of arithmetic facts, now and then with counting between."""
    lines = []
    for _ in range(rng.randint(8, 24)):
        if rng.random() < 0.1:
            start = rng.randint(0, 15)
            lines.append("Count on: " + " ".join(str(start + i) for i in range(rng.randint(4, 9))))
        else:
            lines.append(fact(rng))
    return rng.choice(("\n", ". ", ", ")).join(lines) + "." + footer(rng)


def prose(rng: random.Random) -> str:
    """A small story without a question."""
    sentences = (
        "On {day} {a} went to the {p}.",
        "{a} saw {n} {k} {t} and {m} {u} at the {p}.",
        "{b} came along {w} and they talked about the {t}.",
        "It was cold {w}, so {a} and {b} stayed at the {p}.",
        "{a} likes {k} {t}, but {b} likes {u}.",
        "The way from the {p} to the {q} took {n} hours.",
        "{w} {b} walked home from the {q}.",
        "Nobody knew who had left the {k} {t} at the {q}.",
        "{a} had more {t} than {b}, and {b} had fewer {u} than before.",
        '"Look at the {t}," said {a} {w}.',
    )
    told = []
    for _ in range(rng.randint(4, 12)):
        a, b = rng.sample(NAMES, 2)
        p, q = rng.sample(PLACES, 2)
        t, u = rng.sample(THINGS, 2)
        n, m = rng.randint(2, 20), rng.randint(2, 12)
        sentence = rng.choice(sentences).format(
            a=a, b=b, p=p, q=q, t=t, u=u, n=n, m=m, k=rng.choice(KINDS), w=rng.choice(TIMES), day=rng.choice(DAYS)
        )
        told.append(sentence[0].upper() + sentence[1:])
    return " ".join(told)


def endless_problems(seed: int) -> Iterator[Problem]:
    """Training problems without end."""
    while True:
        yield from generate(2000, seed)
        seed += 1


def plain_documents(seed: int) -> Iterator[str]:
    """Documents for the base: no chat tokens, no line `ANSWER:`."""
    rng = random.Random(seed)
    problems = endless_problems(seed * 100_000)
    while True:
        r = rng.random()
        yield problem_sheet(rng, problems) if r < 0.65 else drill(rng) if r < 0.88 else prose(rng)


# --- Chats for the instruct model -------------------------------------------------------------------------------------


def chat(user: str, assistant: str) -> tuple[str, str]:
    """Returns prompt and reply in the template the harness uses."""
    return f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n", f"{assistant}<|im_end|>\n<|endoftext|>"


def instruct_example(rng: random.Random, problems: Iterator[Problem]) -> tuple[str, str]:
    """One turn of chat: mostly problems, explained in sentences, otherwise small talk and small tasks."""
    r = rng.random()
    if r < 0.6:
        p = next(problems)
        verb = {"+": "add", "-": "take away", "*": "multiply by"}
        work = "".join(f"Start with {a} and {verb[op]} {b}: {a} {op} {b} = {c}.\n" for a, op, b, c in p.steps)
        user = render_prompt(p.question) if rng.random() < 0.8 else p.question
        return chat(user, f"{work}So the number of {p.thing} is {p.answer}.\nANSWER: {p.answer}")
    if r < 0.75:
        left, right = _split_fact(fact(rng))
        return chat(f"What is {left}?", f"{left} is {right}.\nANSWER: {right}")
    if r < 0.85:
        words = rng.sample(THINGS, rng.randint(2, 5))
        if rng.random() < 0.5:
            return chat("Say in reverse: " + " ".join(words), " ".join(reversed(words)))
        return chat("Count the words: " + " ".join(words), f"There are {len(words)} words.\nANSWER: {len(words)}")
    if r < 0.95:
        a, b, t = rng.choice(NAMES), rng.choice(PLACES), rng.choice(THINGS)
        return rng.choice(
            (
                chat(f"Hello, I am {a}.", f"Hello {a}, how can I help you?"),
                chat(f"Where is {a}? {a} went to the {b}.", f"{a} is at the {b}."),
                chat(f"Thank you for the {t}!", f"You are welcome. Have fun with the {t}."),
                chat(f"Write one line about {t} at the {b}.", f"The {t} at the {b} are pretty."),
            )
        )
    return chat("Tell me a story.", prose(rng))


def _split_fact(text: str) -> tuple[str, str]:
    left, right = text.split(" = " if " = " in text else " is ", 1)
    return left, right


# --- Tokenizer --------------------------------------------------------------------------------------------------------


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE on the project's own text; digits stay single, the special tokens come first."""
    rng = random.Random(SEED)
    documents = plain_documents(SEED)
    problems = endless_problems(SEED)
    corpus = [next(documents) for _ in range(3000)]
    corpus += [" ".join(instruct_example(rng, problems)).replace("<", "\n<") for _ in range(1200)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[A-Za-z]+|\d| ?[^\sA-Za-z\d]+|\s"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>", model_max_length=1024
    )


# --- Models -----------------------------------------------------------------------------------------------------------


def new_model() -> Qwen3ForCausalLM:
    """A fresh model of 1.6 million parameters: 0.6 to 0.8 s for a batch of 8,192 tokens on 2 idle cores."""
    torch.manual_seed(SEED)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCAB_SIZE,
            hidden_size=160,
            intermediate_size=448,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=40,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
            dtype="float32",
        )
    )


def optimizers(model: Qwen3ForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, because minutes on a CPU allow only a few hundred steps; AdamW for the rest."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(
    model: Qwen3ForCausalLM,
    batches: Iterator[tuple[Tensor, Tensor]],
    *,
    steps: int,
    lr: float,
    decay: float = 0.4,
    on_step: Callable[[int, float], None],
) -> None:
    """Trains `model` in place.

    Args:
        model: What to train.
        batches: Pairs (input ids, labels) of shape [rows, tokens]; label -100 is ignored.
        steps: How many optimizer steps.
        lr: Peak learning rate, for both optimizers.
        decay: Share of the steps, at the end, over which the rate falls to zero; it rises over the first 2 %.
        on_step: Called after each step with its number and loss.
    """
    opts = optimizers(model, lr)
    model.train()
    for step in range(steps):
        scale = min(1.0, (step + 1) / (0.02 * steps + 1), (steps - step) / (decay * steps))
        ids, labels = next(batches)
        logits = model(input_ids=ids).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = lr * scale
            opt.step()
            opt.zero_grad(set_to_none=True)
        on_step(step + 1, loss.item())


def packed_rows(tokenizer: PreTrainedTokenizerFast, documents: Iterator[str]) -> Iterator[tuple[Tensor, Tensor]]:
    """Joins documents with `<|endoftext|>` and cuts the stream into rows."""
    stream: list[int] = []
    need = BATCH * ROW
    while True:
        while len(stream) < need:
            for ids in tokenizer([next(documents) for _ in range(64)])["input_ids"]:
                stream += [*ids, 0]
        batch = torch.tensor(stream[:need]).view(BATCH, ROW)
        del stream[:need]
        yield batch, batch


def chat_rows(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Chats packed into rows; the loss is on all tokens, unlike an agent's usual fine-tuning."""
    rng = random.Random(seed)
    problems = endless_problems(seed * 100_000)
    documents = ("".join(instruct_example(rng, problems)).removesuffix("<|endoftext|>") for _ in iter(int, 1))
    return packed_rows(tokenizer, documents)


def progress(name: str, steps: int, save: Callable[[], None]) -> Callable[[int, float], None]:
    """Prints a line every 25 steps and saves every 150."""
    start = time.monotonic()
    mean = math.nan

    def on_step(step: int, loss: float) -> None:
        nonlocal mean
        mean = loss if math.isnan(mean) else 0.9 * mean + 0.1 * loss
        if step % 25 == 0 or step == steps:
            print(f"{name} step {step}/{steps} loss {mean:.4f} {time.monotonic() - start:.0f} s", flush=True)
        if step % 150 == 0 or step == steps:
            save()

    return on_step


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path, eos: list[int] | int) -> None:
    """Writes one model directory, in bfloat16 as real models come."""
    # vLLM and the harness sample at temperature 1 unless told otherwise; top_k 1 is greedy decoding for everyone
    generation = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True, top_k=1, eos_token_id=eos, pad_token_id=0
    )
    copy = Qwen3ForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = generation
    copy.bfloat16().save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Parses the command line and builds what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for ptb-tiny-base and ptb-tiny-instruct")
    parser.add_argument("--stage", choices=("all", "base", "instruct"), default="all")
    parser.add_argument("--steps", type=int, default=PRETRAIN_STEPS)
    parser.add_argument("--instruct-steps", type=int, default=INSTRUCT_STEPS)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--instruct-lr", type=float, default=2e-3)
    args = parser.parse_args()
    torch.set_num_threads(2)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    base_dir, instruct_dir = args.out / "ptb-tiny-base", args.out / "ptb-tiny-instruct"
    if args.stage in ("all", "base"):
        tokenizer = build_tokenizer()
        model = new_model()
        print(json.dumps({"parameters": model.num_parameters(), "vocab": len(tokenizer)}))
        train(
            model,
            packed_rows(tokenizer, plain_documents(SEED)),
            steps=args.steps,
            lr=args.lr,
            on_step=progress("base", args.steps, lambda: save(model, tokenizer, base_dir, 0)),
        )
    if args.stage in ("all", "instruct"):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(base_dir)
        model = Qwen3ForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
        train(
            model,
            chat_rows(tokenizer, SEED + 1),
            steps=args.instruct_steps,
            lr=args.instruct_lr,
            on_step=progress("instruct", args.instruct_steps, lambda: save(model, tokenizer, instruct_dir, [2, 0])),
        )


if __name__ == "__main__":
    main()
