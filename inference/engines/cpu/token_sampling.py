"""Sampling of the next token from a language model's logits."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from inference.messages import Sampling

_LOWEST_TEMPERATURE: Final = 1e-4
"""The lowest temperature at which tokens are sampled. Below it, logits divided by the temperature could overflow, and
sampling would almost always return the most likely token."""


def sample_token(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Sample a token ID from float32 logits [vocabulary] by the same rules as TurboMind.

    At temperature 0, sampling is greedy. Otherwise, the `top_k` most likely tokens are kept and
    renormalized; of these, the smallest set of most likely tokens whose probabilities add up to more than
    `top_p` is kept (lmdeploy, src/turbomind/generation/sampling.cc: invokeTopKSortFilter, then
    invokeTopPMinPFilter).
    """
    if sampling.temperature < _LOWEST_TEMPERATURE:
        return int(logits.argmax())
    kept, tokens = logits.topk(min(sampling.top_k or len(logits), len(logits)))
    probabilities = torch.softmax(kept / sampling.temperature, dim=-1)
    before = probabilities.cumsum(-1) - probabilities
    # The most likely token is always kept, even if top_p is 0.
    probabilities[1:][before[1:] > sampling.top_p] = 0
    return int(tokens[torch.multinomial(probabilities, 1, generator=generator)])


def random_generator(seed: int | None) -> torch.Generator:
    """Return a random number generator with the given seed, or with a random one if `seed` is None."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator
