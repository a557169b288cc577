"""Tiny random models in Hugging Face format, made without torch so that tests start fast."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FEED, VOCABULARY = 64, 2, 4, 2, 16, 128, 320


def shapes() -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of the model, as transformers saves a Qwen3 with tied embeddings."""
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        found |= {
            f"{prefix}.input_layernorm.weight": (HIDDEN,),
            f"{prefix}.post_attention_layernorm.weight": (HIDDEN,),
            f"{prefix}.self_attn.q_norm.weight": (HEAD_DIM,),
            f"{prefix}.self_attn.k_norm.weight": (HEAD_DIM,),
            f"{prefix}.self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
            f"{prefix}.mlp.gate_proj.weight": (FEED, HIDDEN),
            f"{prefix}.mlp.up_proj.weight": (FEED, HIDDEN),
            f"{prefix}.mlp.down_proj.weight": (HIDDEN, FEED),
        }
    return found


def weights(seed: int) -> dict[str, np.ndarray]:
    """Random weights of the usual scale."""
    random = np.random.default_rng(seed)
    return {
        name: np.ones(shape, np.float32) if len(shape) == 1 else random.normal(0, 0.02, shape).astype(np.float32)
        for name, shape in shapes().items()
    }


def save_weights(tensors: dict[str, np.ndarray], path: Path) -> None:
    """Write one safetensors file."""
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path, metadata={"format": "pt"})


def make_model(path: Path, *, seed: int) -> Path:
    """A whole model directory."""
    path.mkdir(parents=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["how many apples are there in total"] * 4, trainer)
    tokenizer.save(str(path / "tokenizer.json"))
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": FEED,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "dtype": "float32",
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, "pad_token_id": 0, "temperature": 0.0}))
    (path / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
        )
    )
    save_weights(weights(seed), path / "model.safetensors")
    return path
