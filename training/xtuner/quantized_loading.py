"""Quantize weights to 4 bits on the device that they are loaded to.

transformers 4.57.6 reads each weight into the GPU's memory, copies it back into main memory, and copies it
to the GPU again, where it is quantized. The two copies account for half of the time it takes to load a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bitsandbytes.nn import Params4bit
from torch import Tensor
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name


@contextmanager
def quantized_in_place() -> Iterator[None]:
    """Make transformers quantize weights without copies for the duration of the context.

    Checkpoints that are already quantized cannot be loaded in the context.
    """
    stock = Bnb4BitHfQuantizer.create_quantized_param
    Bnb4BitHfQuantizer.create_quantized_param = _create
    try:
        yield
    finally:
        Bnb4BitHfQuantizer.create_quantized_param = stock


def _create(quantizer: Any, model: Any, weight: Tensor, name: str, device: Any, **_: Any) -> None:
    """Quantize `weight` with the options of the empty parameter `name` of `model`, which it replaces."""
    module, leaf = get_module_from_name(model, quantizer.get_param_name(name))
    options = {key: value for key, value in vars(module._parameters[leaf]).items() if key != "_is_hf_initialized"}
    module._parameters[leaf] = Params4bit(weight, requires_grad=False, **options).to(device)
