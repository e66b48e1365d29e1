"""Fused LoRA layers, compared with PEFT's layers."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn

from training.xtuner.fused_lora import use_fused_layers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # PEFT's imports, not ours
    from peft import LoraConfig, get_peft_model

IN, HIDDEN, OUT = 64, 96, 32


class Net(nn.Module):
    """Two linear layers, the first optionally with 4-bit weights."""

    def __init__(self, four_bits: bool) -> None:
        super().__init__()
        if four_bits:
            self.first: nn.Module = Linear4bit(IN, HIDDEN, bias=False, compute_dtype=torch.float32, quant_type="nf4")
        else:
            self.first = nn.Linear(IN, HIDDEN, bias=False)
        self.second = nn.Linear(HIDDEN, OUT)

    def forward(self, x: Tensor) -> Any:
        """Map a tensor of shape [..., IN] to one of shape [..., OUT]."""
        return self.second(torch.tanh(self.first(x)))


def learned(config: LoraConfig, *, four_bits: bool) -> list[Tensor]:
    """Return the output of one pass, followed by the gradients of the input and every adapter weight."""
    torch.manual_seed(0)
    net = get_peft_model(Net(four_bits).to("cpu"), config)
    for name, weight in net.named_parameters():
        if "lora_B" in name:  # zero at first, which would hide half of the gradients
            nn.init.normal_(weight)
    x = torch.randn(2, 5, IN, requires_grad=True)
    y = net(x)
    (y**2).sum().backward()
    gradients = [weight.grad for weight in net.parameters() if weight.requires_grad]
    assert x.grad is not None and len(gradients) == 4
    return [y.detach(), x.grad, *gradients]


@pytest.mark.parametrize("four_bits", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_fused_layer_equals_pefts(four_bits: bool, dropout: float) -> None:
    """A fused layer has the same output and gradients as PEFT's layer, given the same dropout mask."""

    def config() -> LoraConfig:
        return LoraConfig(r=8, lora_alpha=24, lora_dropout=dropout, target_modules=["first", "second"])

    for ours, theirs in zip(
        learned(use_fused_layers(config()), four_bits=four_bits), learned(config(), four_bits=four_bits), strict=True
    ):
        assert (ours - theirs).norm() / theirs.norm() < 1e-5


def test_evaluation_has_no_dropout() -> None:
    """In evaluation mode, a layer applies no dropout, so repeated calls give the same output."""
    torch.manual_seed(0)
    net = get_peft_model(
        Net(four_bits=False), use_fused_layers(LoraConfig(r=8, lora_dropout=0.9, target_modules=["first", "second"]))
    )
    for name, weight in net.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    x = torch.randn(3, IN)
    assert not torch.equal(net.train()(x), net(x))
    assert torch.equal(net.eval()(x), net(x))
