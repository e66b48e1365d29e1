"""Batches without padding, in which samples about the same pictures share their first tokens.

Pictures take most of a sample's tokens, and in a causal model, tokens do not depend on later ones. Samples that
have the same tokens up to their last picture therefore share all tokens that they have in common before their
answers: they are computed once, with the same losses and gradients as for separate samples. (With dropout,
shared tokens have one mask.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

from inference.internvl2.layers_internvl2 import attend
from training.xtuner.encoding import IGNORE_INDEX

_MULTIPLE: Final = 128
"""Sequence lengths are rounded up to a multiple of this. For every new length, cuDNN takes 0.13 s on an H200."""

_MOST_RESTS: Final = 2048
"""The maximum number of tokens that the samples of a group do not share. The mask grows with the square of it."""

_FOR_MASKS: Final = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
"""The implementations of attention with a mask. cuDNN would compile a kernel for every new shape, for 2 s."""


class SharedPrefix(NamedTuple):
    """The length of the tokens that samples share, and of the remaining tokens of each; a single sample has no rest."""

    length: int
    rests: tuple[int, ...] = ()


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the packed samples in the form that mmengine expects."""
    return {"data": pack(samples), "data_samples": None}


def pack(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Pack samples of a `LessonDataset` into one sequence of N tokens.

    Returns:
        `input_ids`, `labels`, `position_ids`, `long` (whether a token's sample is computed as a long one) and
        `sample_ids` (the position of each token's sample in `samples`), all [1, N]; `prefixes`, the `SharedPrefix`
        of each group of samples; and `pixel_values`, each group's tiles or features.
    """
    sequences = defaultdict[str, list[Any]](list)
    prefixes = []

    def add(number: int, first: int, last: int | None = None) -> int:
        sample = samples[number]
        added = sample["input_ids"][first:last]
        sequences["input_ids"] += added
        # The first token of a part is predicted by none of the part's own tokens.
        sequences["labels"] += [IGNORE_INDEX, *sample["labels"][first:last][1:]]
        sequences["position_ids"] += range(first, first + len(added))
        sequences["long"] += [sample["long"]] * len(added)
        sequences["sample_ids"] += [number] * len(added)
        return len(added)

    groups = list(_groups(samples))
    for members, shared in groups:
        if len(members) == 1:
            prefixes.append(SharedPrefix(add(members[0], 0)))
        else:
            add(members[0], 0, shared)
            prefixes.append(SharedPrefix(shared, tuple(add(each, shared) for each in members)))
    return {
        **{name: torch.tensor([each]) for name, each in sequences.items()},
        "prefixes": prefixes,
        "pixel_values": [samples[members[0]]["pixel_values"] for members, _ in groups],
    }


def _groups(samples: Sequence[dict[str, Any]]) -> Iterator[tuple[list[int], int]]:
    """Yield the numbers of samples to compute together, and how many tokens they share."""
    candidates = defaultdict[Any, list[int]](list)
    for number, each in enumerate(samples):
        end = each["pictures_end"]
        # Answers that are learned before the last picture are not shared, so neither is the picture.
        alone = not end or any(label != IGNORE_INDEX for label in each["labels"][: end + 1])
        key = each["pictures"], each["long"], tuple(each["input_ids"][:end]), number if alone else None
        candidates[key].append(number)
    for numbers in candidates.values():
        shared = shared_length([samples[each] for each in numbers])
        members, rest = list[int](), 0
        for number in numbers:
            own = len(samples[number]["input_ids"]) - shared
            if members and rest + own > _MOST_RESTS:
                yield members, shared
                members, rest = [], 0
            members.append(number)
            rest += own
        yield members, shared


def shared_length(samples: Sequence[dict[str, Any]]) -> int:
    """Return the number of leading tokens that samples have in common and that are not needed to predict an answer."""
    same = takewhile(lambda each: len(set(each)) == 1, zip(*(each["input_ids"] for each in samples), strict=False))
    first_answers = (
        next((place for place, label in enumerate(each["labels"]) if label != IGNORE_INDEX), len(each["labels"]))
        for each in samples
    )
    return min(sum(1 for _ in same), min(first_answers) - 1)


class PackedAttention:
    """Causal attention within each sample of a packed batch."""

    def __init__(self, prefixes: Sequence[SharedPrefix], groups: int, like: Tensor) -> None:
        """Prepare the masks for a batch, in the type and on the device of the tensor `like`.

        `groups` is the number of query heads for each key/value head.
        """
        self._prefixes = prefixes
        self._groups = groups
        self._lengths = [each.length + sum(each.rests) for each in prefixes]
        self._masks = [_mask(each, like).repeat(groups, 1) if each.rests else None for each in prefixes]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the attention of queries [1, heads, N, size] to grouped keys and values [1, KV heads, N, size]."""
        parts = []
        samples = zip(*(torch.split(each, self._lengths, dim=2) for each in (q, k, v)), strict=True)
        for (length, rests), mask, (own_q, own_k, own_v) in zip(self._prefixes, self._masks, samples, strict=True):
            if mask is None:
                parts.append(_attend_causally(own_q, own_k, own_v))
                continue
            first, rest = torch.split(own_q, [length, sum(rests)], dim=2)
            parts.append(_attend_causally(first, own_k[:, :, :length], own_v[:, :, :length]))
            # The queries of a group follow one another, so that keys and values need not be copied for each.
            grouped = rest.reshape(1, k.shape[1], self._groups * sum(rests), k.shape[3])
            with sdpa_kernel(_FOR_MASKS):
                parts.append(scaled_dot_product_attention(grouped, own_k, own_v, attn_mask=mask).reshape(rest.shape))
        return torch.cat(parts, dim=2)


def _mask(prefix: SharedPrefix, like: Tensor) -> Tensor:
    """Return the mask of the remaining tokens of all samples, [rest, prefix + rest]: 0 allows attention, −inf not."""
    samples = torch.repeat_interleave(torch.tensor(prefix.rests)).to(like.device)
    own = (samples[:, None] == samples).tril()
    return torch.cat([own.new_ones(len(own), prefix.length), own], dim=1).to(like.dtype).log()


def _attend_causally(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute causal attention, rounding the length up: no token attends to the padding at the end."""
    length = q.shape[2]
    q, k, v = (pad(each, (0, 0, 0, -length % _MULTIPLE)) for each in (q, k, v))
    return attend(q, k, v, None, causal=True)[:, :, :length]


def _given_attention(
    module: Any, q: Tensor, k: Tensor, v: Tensor, attention_mask: None, *, attention: PackedAttention, **_unused: Any
) -> tuple[Tensor, None]:
    """Call the `attention` that the model's `forward` was given."""
    return attention(q, k, v).transpose(1, 2), None


GIVEN_ATTENTION = "given"
"""The name of the attention implementation for transformers' models that calls the `attention` given to `forward`."""

AttentionInterface.register(GIVEN_ATTENTION, _given_attention)
