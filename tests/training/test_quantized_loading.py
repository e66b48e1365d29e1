"""Weights are quantized on the device that they are loaded to."""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from transformers import BitsAndBytesConfig

from inference.internvl2.modeling_internvl2 import InternVLChatModel
from inference.internvl2.tiny import CHECKPOINT
from training.xtuner.quantized_loading import quantized_in_place


def quantized() -> Any:
    """Return internvl2-tiny with its language model in NF4, as XTuner loads it."""
    options = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=["mlp1", "vision_model"],
    )
    return InternVLChatModel.from_pretrained(CHECKPOINT, dtype=torch.bfloat16, quantization_config=options)


def test_the_weights_are_those_that_transformers_quantizes() -> None:
    """Every weight is the same bit for bit, and after the context transformers' own function is back."""
    with quantized_in_place():
        ours = quantized()
    stock = quantized()
    layers = {name for name, module in stock.named_modules() if isinstance(module, Linear4bit)}
    assert layers == {name for name, module in ours.named_modules() if isinstance(module, Linear4bit)}
    assert layers
    for name, weight in stock.named_parameters():
        other = ours.get_parameter(name)
        assert torch.equal(weight, other), name
        if name.removesuffix(".weight") in layers:
            assert torch.equal(*(dequantize_4bit(each.data, each.quant_state) for each in (weight, other))), name
