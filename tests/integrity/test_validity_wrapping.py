"""What of a submission reaches the score: tensors under any name they are saved by, and marker tokens; nothing else."""

from __future__ import annotations

import json
import shutil
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from posttrainbench.errors import SubmissionError
from posttrainbench.integrity import tokens
from posttrainbench.integrity.safetensors import read_model
from posttrainbench.integrity.validity import problems_of
from posttrainbench.pipeline.scoring import rewrap
from tests.models import VOCABULARY, make_model, save_weights, weights

# --- declared added tokens ----------------------------------------------------------------------------------------


@pytest.fixture
def submission(base_model: Path, tmp_path: Path) -> Path:
    target = tmp_path / "final_model"
    shutil.copytree(base_model, target)
    return target


def declare(submission: Path, *contents: str, start: int | None = None, **changes: Any) -> int:
    """Add tokens to the submission's tokenizer; returns the first id after them."""
    path = submission / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    first = tokens.size(submission) if start is None else start
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"] += [
        {"id": first + number, "content": content, **plain, **changes} for number, content in enumerate(contents)
    ]
    path.write_text(json.dumps(tokenizer))
    return first + len(contents)


def resize(submission: Path, rows: int) -> None:
    found = weights(0)
    table = found["model.embed_tokens.weight"]
    grown = np.concatenate([table, np.full((max(0, rows - len(table)), table.shape[1]), 0.01, np.float32)])[:rows]
    save_weights({**found, "model.embed_tokens.weight": grown}, submission / "model.safetensors")
    config = json.loads((submission / "config.json").read_text())
    (submission / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))


def test_a_list_without_end_is_not_gone_through(submission: Path, base_model: Path) -> None:
    """22 million entries fit into the largest tokenizer.json: the harness must not write a sentence on each."""
    path = submission / "tokenizer.json"
    text = json.dumps({**json.loads(path.read_text()), "added_tokens": "@"})
    path.write_text(text.replace('"@"', "[" + ",".join(["{}"] * 2_000_000) + "]"))
    tracemalloc.start()
    assert tokens.added(submission, base_model) == ((), [])
    assert tracemalloc.get_traced_memory()[1] < 2_000_000 * 100
    tracemalloc.stop()


def tokenizer_of(model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def test_marker_tokens_are_taken_over(submission: Path, base_model: Path, tmp_path: Path) -> None:
    rows = VOCABULARY + 40
    end = declare(
        submission, "<|plan|>", "[/answer]", *(f"<extra_{n}>" for n in range(rows - tokens.size(base_model) - 2))
    )
    assert end == rows > VOCABULARY
    resize(submission, rows)
    assert problems_of(submission, base_model) == []
    rewrap(submission, base_model, tmp_path / "model")
    wrapped, own = tokenizer_of(tmp_path / "model"), tokenizer_of(base_model)
    assert len(wrapped) == rows and wrapped("a<|plan|>b")["input_ids"] != own("a<|plan|>b")["input_ids"]
    assert wrapped.convert_tokens_to_ids("<|plan|>") == tokens.size(base_model)
    assert wrapped("how many apples")["input_ids"] == own("how many apples")["input_ids"]
    assert json.loads((tmp_path / "model" / "config.json").read_text())["vocab_size"] == rows
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.get_input_embeddings().weight.shape[0] == rows


def test_only_the_strings_of_a_tokenizer_are_taken(submission: Path, base_model: Path, tmp_path: Path) -> None:
    """A normaliser that writes answers into questions stays behind, and so do options that swallow blanks."""
    declare(submission, "<|plan|>", lstrip=True, rstrip=True, normalized=True, single_word=True)
    tokenizer = json.loads((submission / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": "2+2"}, "content": "2+2 hint: four"}
    (submission / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert problems_of(submission, base_model) == []
    rewrap(submission, base_model, tmp_path / "model")
    wrapped = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    assert wrapped["normalizer"] is None
    [entry] = [entry for entry in wrapped["added_tokens"] if entry["content"] == "<|plan|>"]
    assert not any(entry[option] for option in ("lstrip", "rstrip", "normalized", "single_word"))
    assert "hint" not in tokenizer_of(tmp_path / "model").decode(
        tokenizer_of(tmp_path / "model")("what is 2+2")["input_ids"]
    )


def test_as_added_tokens_json(submission: Path, base_model: Path) -> None:
    (submission / "added_tokens.json").write_text(json.dumps({"<|plan|>": tokens.size(base_model)}))
    assert problems_of(submission, base_model) == []
    found, _ = tokens.added(submission, base_model)
    assert [token.content for token in found] == ["<|plan|>"]


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a question": (lambda model: declare(model, "Janet has 16 eggs. How many are left?"), "only markers"),
    "a word": (lambda model: declare(model, "answer"), "only markers"),
    "a long marker": (lambda model: declare(model, f"<|{'x' * 80}|>"), "only markers"),
    "a gap": (lambda model: declare(model, "<|a|>", start=310), "ids that follow"),
    "an id of the base's": (lambda model: declare(model, "<|a|>", start=5), "ids that follow"),
    "a token moved": (lambda model: declare(model, "<|im_end|>", start=300), "the base model's has"),
    "too many": (lambda model: declare(model, *(f"<{n}>" for n in range(300))), "at most"),
    "an id that is no number": (lambda model: declare(model, "<|a|>", id="7"), "no string with a number"),
    "more ids than rows": (lambda model: declare(model, *(f"<x{n}>" for n in range(100))), "only 320 rows"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_other_tokens_are_refused(
    change: Callable[[Path], object], message: str, submission: Path, base_model: Path
) -> None:
    change(submission)
    problems = problems_of(submission, base_model)
    assert any(message in problem for problem in problems), problems


@pytest.mark.parametrize(("rows", "good"), [(283, True), (310, True), (282, False), (321, False), (1000, False)])
def test_rows_without_added_tokens(rows: int, good: bool, submission: Path, base_model: Path) -> None:
    """Cut down to the tokenizer, as `resize_token_embeddings(len(tokenizer))` does, it loads; rows that no token needs do not."""
    assert tokens.size(base_model) == 283
    resize(submission, rows)
    assert (problems_of(submission, base_model) == []) is good


@pytest.mark.parametrize("text", ["[" * 100_000, "{", '{"added_tokens": 7}', '{"added_tokens": [7]}', "\xff"])
def test_a_broken_tokenizer_is_no_loss(text: str, submission: Path, base_model: Path, tmp_path: Path) -> None:
    (submission / "tokenizer.json").write_text(text, encoding="latin-1")
    assert problems_of(submission, base_model) == []
    rewrap(submission, base_model, tmp_path / "model")
    assert (tmp_path / "model" / "tokenizer.json").read_bytes() == (base_model / "tokenizer.json").read_bytes()


def test_a_giant_tokenizer_is_not_read(submission: Path, base_model: Path) -> None:
    with (submission / "tokenizer.json").open("r+b") as file:
        file.truncate(100 << 30)
    assert problems_of(submission, base_model) == []


# --- families with a vision tower -------------------------------------------------------------------------------------

TEXT = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "model_type": "gemma3_text",
    "sliding_window": 32,
    "max_position_embeddings": 512,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "model_type": "siglip_vision_model",
}


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads that share a layer of microseconds wait for each other, on a busy machine for minutes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def gemma(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 3 with vision tower, saved by transformers itself."""
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    torch.manual_seed(0)
    config = Gemma3Config(text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4, eos_token_id=[1, 106])
    path = tmp_path_factory.mktemp("gemma") / "base"
    Gemma3ForConditionalGeneration(config).save_pretrained(path)
    plain = make_model(path.parent / "plain", seed=0)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(plain / name, path / name)
    return path


def logits(model: Path) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        found: np.ndarray = loaded(input_ids=torch.arange(5, 60)[None]).logits.numpy()
    return found


def save_text_only(gemma: Path, target: Path) -> Path:
    """What `Gemma3ForCausalLM.save_pretrained` leaves, changed a little as training does."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    model = Gemma3ForCausalLM(Gemma3TextConfig(**TEXT))
    found = load_file(gemma / "model.safetensors")
    prefix = "language_model.model."
    state = {
        f"model.{name.removeprefix(prefix)}": torch.from_numpy(value) * 1.5
        for name, value in found.items()
        if name.startswith(prefix)
    }
    model.load_state_dict({**state, "lm_head.weight": state["model.embed_tokens.weight"]})
    model.save_pretrained(target)
    return target


def renamed(source: Path, target: Path, rename: Callable[[str], str | None]) -> Path:
    shutil.copytree(source, target)
    found = load_file(source / "model.safetensors")
    save_weights(
        {new: value for name, value in found.items() if (new := rename(name)) is not None},
        target / "model.safetensors",
    )
    return target


def test_text_only_save_is_accepted(gemma: Path, tmp_path: Path) -> None:
    submission = save_text_only(gemma, tmp_path / "final_model")
    assert problems_of(submission, gemma) == []
    rewrap(submission, gemma, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architectures"] == ["Gemma3ForCausalLM"] and config["model_type"] == "gemma3_text"
    assert config["eos_token_id"] == 1 and config["vocab_size"] == TEXT["vocab_size"]
    assert np.allclose(logits(tmp_path / "model"), logits(submission), atol=1e-4)


def test_full_save_is_scored_as_it_is(gemma: Path, tmp_path: Path) -> None:
    assert problems_of(gemma, gemma) == []
    rewrap(gemma, gemma, tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").samefile(gemma / "model.safetensors")
    assert np.allclose(logits(tmp_path / "model"), logits(gemma), atol=1e-5)


def test_other_nestings_are_the_same_model(gemma: Path, tmp_path: Path) -> None:
    def nested(name: str) -> str:
        start = "language_model.model."
        return f"model.language_model.{name.removeprefix(start)}" if name.startswith(start) else f"model.{name}"

    submission = renamed(gemma, tmp_path / "final_model", nested)
    assert problems_of(submission, gemma) == []
    rewrap(submission, gemma, tmp_path / "model")
    assert read_model(tmp_path / "model").keys() == read_model(gemma).keys()
    assert np.allclose(logits(tmp_path / "model"), logits(gemma), atol=1e-5)


def test_half_a_vision_tower_is_left_behind(gemma: Path, tmp_path: Path) -> None:
    submission = renamed(gemma, tmp_path / "final_model", lambda name: None if "vision_tower.head" in name else name)
    assert problems_of(submission, gemma) == []
    rewrap(submission, gemma, tmp_path / "model")
    assert not [name for name in read_model(tmp_path / "model") if "vision" in name]
    assert np.allclose(logits(tmp_path / "model"), logits(gemma), atol=1e-4)


def test_a_text_tower_with_a_hole_is_refused(gemma: Path, tmp_path: Path) -> None:
    submission = save_text_only(gemma, tmp_path / "final_model")
    found = load_file(submission / "model.safetensors")
    del found["model.layers.1.mlp.up_proj.weight"]
    save_weights(found, submission / "model.safetensors")
    assert any("missing" in problem for problem in problems_of(submission, gemma))


def test_one_tensor_under_two_names_is_refused(gemma: Path, tmp_path: Path) -> None:
    submission = tmp_path / "final_model"
    shutil.copytree(gemma, submission)
    found = load_file(gemma / "model.safetensors")
    found["model.language_model.norm.weight"] = found["language_model.model.norm.weight"]
    save_weights(found, submission / "model.safetensors")
    assert any("two names" in problem for problem in problems_of(submission, gemma))


# --- files that are no models ---------------------------------------------------------------------------------------


def test_weights_that_cannot_be_read_are_the_submissions_fault(
    submission: Path, base_model: Path, tmp_path: Path
) -> None:
    (submission / "model.safetensors").write_bytes(b"x" * 64)
    with pytest.raises(SubmissionError, match="weights"):
        rewrap(submission, base_model, tmp_path / "model")


def sparse(submission: Path) -> None:
    """100 GB of nothing."""
    with (submission / "model.safetensors").open("wb") as file:
        file.truncate(100 << 30)


def sparse_tensor(submission: Path) -> None:
    """100 GB of nothing with a header that calls them a tensor."""
    size = 100 << 30
    header = json.dumps(
        {"model.embed_tokens.weight": {"dtype": "F32", "shape": [size // 256, 64], "data_offsets": [0, size]}}
    ).encode()
    with (submission / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)


def sparse_head(submission: Path) -> None:
    """The same as a tied output embedding, which is compared with the other one."""
    path, size = submission / "extra.safetensors", 100 << 30
    header = json.dumps(
        {"lm_head.weight": {"dtype": "F32", "shape": [size // 256, 64], "data_offsets": [0, size]}}
    ).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)


def header_bomb(submission: Path) -> None:
    raw = b'{"a":' * 700_000
    (submission / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw)


def many_entries(submission: Path) -> None:
    entries = ",".join(f'"{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(60_000))
    raw = f"{{{entries}}}".encode()
    (submission / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw)


def loop(submission: Path) -> None:
    (submission / "model.safetensors").unlink()
    (submission / "model.safetensors").symlink_to(submission / "model.safetensors")
    (submission / "again").symlink_to(submission)


def pipe(submission: Path) -> None:
    import os

    (submission / "model.safetensors").unlink()
    os.mkfifo(submission / "model.safetensors")


def many_files(submission: Path) -> None:
    for number in range(1001):
        (submission / f"x{number}.safetensors").touch()


def same_name_twice(submission: Path) -> None:
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
    raw = f'{{"x":{entry % (0, 4)},"x":{entry % (0, 4)}}}'.encode()
    (submission / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + b"abcd")


def directory(submission: Path) -> None:
    (submission / "model.safetensors").unlink()
    (submission / "model.safetensors").mkdir()


HOSTILE = (
    sparse,
    sparse_tensor,
    sparse_head,
    header_bomb,
    many_entries,
    loop,
    pipe,
    many_files,
    same_name_twice,
    directory,
)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_hostile_files_are_reported_in_time(make: Callable[[Path], None], submission: Path, base_model: Path) -> None:
    make(submission)
    assert problems_of(submission, base_model)
