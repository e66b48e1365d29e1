"""Combine p-values of several tests, and spend one error rate over many runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

_NORMAL = NormalDist()
_LEAST = 1e-15
"""The margin that keeps the normal quantile finite at p-values of 0 and 1."""


def stouffer(p_values: Sequence[float], weights: Sequence[float]) -> float:
    """Combine one-sided p-values by the weighted sum of their normal scores.

    This is valid for a sequence in which each p-value is uniform, or larger, given those before it: the scores are then
    independent under the null hypothesis (Stouffer et al. 1949, The American Soldier; weights by Liptak 1958). The
    square root of a block's sample size is the usual weight.

    Raises:
        ValueError: There is no p-value with a positive weight.
    """
    norm = math.sqrt(sum(weight * weight for weight in weights))
    if norm == 0:
        raise ValueError("at least one p-value needs a positive weight")
    total = sum(weight * z_score(p) for p, weight in zip(p_values, weights, strict=True))
    return upper_tail(total / norm)


def bonferroni(*p_values: float) -> float:
    """Combine p-values of dependent tests: the smallest one times their number, but at most 1."""
    return min(1.0, len(p_values) * min(p_values))


def spent_alpha(run: int, alpha: float = 0.05) -> float:
    """Return the error rate that the run with this number, counted from 1, may use.

    The rates of all runs sum to `alpha`, since the squares' inverses sum to pi squared over 6. So a recipe that has
    learned nothing is accepted in at most one of `1 / alpha` sequences, however many runs it gets (alpha spending as in
    Foster and Stine 2008, J. R. Stat. Soc. B 70:429).
    """
    return alpha * 6 / (math.pi * run) ** 2


def further_samples(p_value: float, samples: int, alpha: float) -> int | None:
    """Estimate how many more samples would bring the p-value down to `alpha`, if the effect stays as observed.

    A one-sided normal score grows with the square root of the number of samples. Returns None if the observed effect
    points the wrong way or is too small to extrapolate (a score below 1: one sample in six shows as much by chance).
    """
    observed = z_score(p_value)
    if observed < 1:
        return None
    return max(0, math.ceil(samples * ((z_score(alpha) / observed) ** 2 - 1)))


def z_score(p_value: float) -> float:
    """Return the normal score of a one-sided p-value: large for a small p-value."""
    return -_NORMAL.inv_cdf(min(1 - _LEAST, max(_LEAST, p_value)))


def upper_tail(score: float) -> float:
    """Return the probability that a standard normal variable exceeds a score."""
    return math.erfc(score / math.sqrt(2)) / 2
