"""Bound what a candidate loses on factual questions that both models answered: non-inferiority of paired
proportions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

_NORMAL = NormalDist()


def upper_bound(questions: int, lost: int, gained: int, alpha: float = 0.05) -> float:
    """Return the one-sided upper confidence bound of the share of questions that a candidate loses.

    `lost` questions only the reference answered right, `gained` only the candidate. Tango's score interval for a
    difference of paired proportions (Tango 1998, Stat. Med. 17:891), which keeps its coverage with few or no discordant
    pairs.

    Returns:
        The bound of (lost - gained) / questions, from -1 to 1.
    """
    critical = _NORMAL.inv_cdf(1 - alpha)
    low, high = (lost - gained) / questions, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _score(questions, lost, gained, middle) < -critical:
            high = middle
        else:
            low = middle
    return high


def smallest_decidable_loss(questions: int, alpha: float = 0.05) -> float:
    """Return the smallest loss, as a share, that a set of this size can rule out: the bound if no question is lost."""
    return upper_bound(questions, 0, 0, alpha)


def spending(fractions: Sequence[float], alpha: float = 0.05) -> list[float]:
    """Split an error rate over interim looks, given the share of all questions that each look has seen.

    The Pocock-like spending function alpha * ln(1 + (e - 1) t) of Lan and DeMets (1983, Biometrika 70:659). A look uses
    what was added since the look before; by the union bound the looks together err at most with `alpha`.
    """
    spent = [alpha * math.log(1 + (math.e - 1) * fraction) for fraction in fractions]
    return [now - before for before, now in zip([0.0, *spent[:-1]], spent, strict=True)]


def _score(questions: int, lost: int, gained: int, difference: float) -> float:
    """Return Tango's statistic for a true loss of `difference`: standardised by the constrained maximum likelihood."""
    a = 2 * questions
    b = -lost - gained + (2 * questions - lost + gained) * difference
    c = -gained * difference * (1 - difference)
    nuisance = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = questions * (2 * nuisance + difference * (1 - difference))
    distance = lost - gained - questions * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)
