"""Combine the p-values of several tests, and divide one error rate among many runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

_NORMAL = NormalDist()
_LEAST = 1e-15
"""The margin that keeps the normal quantile finite at p-values of 0 and 1."""


def stouffer(p_values: Sequence[float], weights: Sequence[float]) -> float:
    """Combine one-sided p-values by the weighted sum of their normal scores.

    The method is valid for a sequence in which each p-value is uniform, or stochastically larger, given
    those before it: the scores are then independent under the null hypothesis (Stouffer et al. 1949, The
    American Soldier; weights by Liptak 1958). The usual weight of a test is the square root of its sample
    size.

    Raises:
        ValueError: There is no p-value with a positive weight.
    """
    norm = math.sqrt(sum(weight * weight for weight in weights))
    if norm == 0:
        raise ValueError("at least one p-value needs a positive weight")
    total = sum(weight * z_score(p) for p, weight in zip(p_values, weights, strict=True))
    return upper_tail(total / norm)


def bonferroni(*p_values: float) -> float:
    """Return the smallest of several dependent p-values multiplied by their number, but at most 1."""
    return min(1.0, len(p_values) * min(p_values))


def spent_alpha(run: int, alpha: float = 0.05) -> float:
    """Return the error rate that run number `run`, counted from 1, may use.

    The rates of all runs sum to `alpha`, because the inverse squares of 1, 2, 3 … sum to pi squared over 6.
    A recipe that learns nothing is therefore accepted in at most one in `1 / alpha` sequences of runs,
    however long they are (alpha spending as in Foster and Stine 2008, J. R. Stat. Soc. B 70:429).
    """
    return alpha * 6 / (math.pi * run) ** 2


def further_samples(p_value: float, samples: int, alpha: float) -> int | None:
    """Estimate how many more samples would lower the p-value to `alpha` if the effect stayed as observed.

    The normal score of a one-sided test grows with the square root of the number of samples. The result is
    None if the observed effect points the wrong way or is too small to extrapolate (a score below 1, which
    chance alone exceeds one time in six).
    """
    observed = z_score(p_value)
    if observed < 1:
        return None
    return max(0, math.ceil(samples * ((z_score(alpha) / observed) ** 2 - 1)))


def z_score(p_value: float) -> float:
    """Return the normal score of a one-sided p-value; small p-values have large scores."""
    return -_NORMAL.inv_cdf(min(1 - _LEAST, max(_LEAST, p_value)))


def upper_tail(score: float) -> float:
    """Return the probability that a standard normal variable exceeds a score."""
    return math.erfc(score / math.sqrt(2)) / 2
