"""Summarise models' scores on test questions, compared with the first model's, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Final

from training.command_jobs import ScoringMethod
from training.evidence.non_inferiority import upper_bound
from training.evidence.proportions import wilson_interval

_TAIL: Final = 0.025
"""The error rate on each side of a 95 % interval."""


def summarize_right(scores: Mapping[str, Sequence[bool]]) -> list[tuple[str, str, str]]:
    """Return the name, the share of correct answers, and the gain over the first model, for each model.

    `scores` lists for each model whether each of its answers is correct. The interval of a share is Wilson's.
    """
    first, *_ = scores.values()
    return [
        (name, f"{_share(right)} right", "" if right is first else _gain(first, right))
        for name, right in scores.items()
    ]


def summarize_losses(losses: Mapping[str, Sequence[float]]) -> list[tuple[str, str, str]]:
    """Return the name, the mean loss, and how often the loss is below the first model's, for each model.

    `losses` lists for each model its loss on the given answer to each question. The share of questions with a
    lower loss has Wilson's interval, which makes no assumption about the sizes of the differences. A model that
    learned nothing is expected to have a lower loss on half of the questions.
    """
    first, *_ = losses.values()
    found = []
    for name, each in losses.items():
        lower = _share([new < old for old, new in zip(first, each, strict=True)])
        found.append((name, f"loss {fmean(each):.3f}", "" if each is first else f"lower for {lower}"))
    return found


def summarize(score: str, scores: Mapping[str, Sequence[float]]) -> list[tuple[str, str, str]]:
    """Return `summarize_losses` of the scores if they are losses, and `summarize_right` otherwise."""
    if score == ScoringMethod.LOSS:
        return summarize_losses(scores)
    return summarize_right({name: [bool(right) for right in each] for name, each in scores.items()})


def _share(counted: Sequence[bool]) -> str:
    """Format the number and the share of true values, with the share's interval."""
    low, high = wilson_interval(sum(counted), len(counted))
    return f"{sum(counted)} of {len(counted)}: {sum(counted) / len(counted):.0%} ({low:.0%} to {high:.0%})"


def _gain(before: Sequence[bool], after: Sequence[bool]) -> str:
    """Format the gain in percentage points, with Tango's interval for paired proportions."""
    number = len(before)
    lost = sum(old and not new for old, new in zip(before, after, strict=True))
    gained = sum(new and not old for old, new in zip(before, after, strict=True))
    low, high = -upper_bound(number, lost, gained, _TAIL), upper_bound(number, gained, lost, _TAIL)
    return f"{100 * (gained - lost) / number:+.0f} points ({100 * low:+.0f} to {100 * high:+.0f})"
