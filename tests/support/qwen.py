"""A small InternVL checkpoint with random weights whose language model is Qwen2 or Qwen3, in the official layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers  # type: ignore[import-untyped]
from transformers import Qwen2Tokenizer

from inference.internvl2.checkpoint import write_checkpoint
from inference.internvl2.configuration_internvl2 import InternVLChatConfig
from inference.internvl2.families import INTERNVL2_5, ModelFamily
from inference.internvl2.modeling_internvl2 import InternVLChatModel
from inference.internvl2.tokenizer import load_tokenizer

ADDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>")
"""The tokens that the official tokenizers of InternVL with Qwen add to the vocabulary, as far as they matter here."""

_TEXT = ("What is in the picture? A red cat on a blue table.", "这是什么？一只红色的猫。", "system user assistant") * 20


def write_tokenizer(directory: Path) -> None:
    """Write a Qwen2 tokenizer as the official checkpoints have it: vocab.json, merges.txt and the added tokens."""
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    pieces.train_from_iterator(_TEXT, trainer)
    directory.mkdir(parents=True, exist_ok=True)
    pieces.model.save(str(directory))
    tokenizer = Qwen2Tokenizer(str(directory / "vocab.json"), str(directory / "merges.txt"))
    tokenizer.add_special_tokens({"additional_special_tokens": list(ADDED[1:])})
    tokenizer.save_pretrained(directory)


def write_qwen(directory: Path, family: ModelFamily = INTERNVL2_5, **language_model: Any) -> Path:
    """Write a checkpoint of `family` with random float32 weights, and return its directory.

    `language_model` has fields that replace those of the language model's configuration.
    """
    write_tokenizer(directory)
    tokenizer = load_tokenizer(directory)
    config = InternVLChatConfig(
        vision_config={
            "architectures": ["InternVisionModel"],
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "intermediate_size": 64,
            "image_size": 56,
            "norm_type": "layer_norm",
            "qk_normalization": False,
            "qkv_bias": True,
        },
        llm_config={
            "architectures": ["Qwen2ForCausalLM"],
            "attn_implementation": "flash_attention_2",
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_theta": 1000000.0,
            **language_model,
        },
        force_image_size=56,
        ps_version="v2",
        template=family.template,
        dynamic_image_size=True,
        use_thumbnail=True,
        max_dynamic_patch=4,
    )
    torch.manual_seed(0)
    write_checkpoint(InternVLChatModel(config), tokenizer, directory)
    (directory / "tokenizer.json").unlink()  # the official checkpoints have none
    return directory
