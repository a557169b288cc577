"""A tiny random model for the engine tests: real files of a real architecture, made in under a second."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from posttrainbench.evaluation.request import EvaluationRequest

CONTEXT = 1024


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        ["hello world 1 2 3"] * 10,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def make_model(directory: Path, *, seed: int = 0, sliding: bool = False) -> Path:
    """Write a random two-layer model; `sliding` makes one of its layers attend to a window of 16 tokens only."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        eos_token_id=0,
        pad_token_id=0,
        # spread the logits: a nearly uniform distribution would hide mistakes of sampling
        initializer_range=0.5,
        **(
            {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1, "layer_types": [
                "full_attention", "sliding_attention"]}
            if sliding
            else {}
        ),
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)
    _tokenizer().save_pretrained(directory)
    return directory


def make_request(model: Path | None, output: Path, **changes: Any) -> EvaluationRequest:
    """A small smoke-math request."""
    fields: dict[str, Any] = {
        "benchmark": "smoke-math",
        "model": None if model is None else str(model),
        "base_model": "ptb-tiny-base",
        "template": "qwen3",
        "output": str(output),
        "limit": 6,
        "max_tokens": 12,
        "device": "cpu",
    }
    return EvaluationRequest(**{**fields, **changes})
