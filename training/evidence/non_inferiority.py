"""Bound a candidate's loss against a reference model on factual questions that both answered.

A candidate loses a question that only the reference model answers correctly, and gains one that only the
candidate answers correctly; its loss is the difference, as a share of all questions. The method is a
non-inferiority test of paired proportions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

_NORMAL = NormalDist()

ERROR = 0.05
"""The maximum probability of accepting a candidate that loses as much as the margin."""


def upper_bound(questions: int, lost: int, gained: int, alpha: float = 0.05) -> float:
    """Return a one-sided upper confidence bound on the loss of a candidate.

    `lost` is the number of questions that only the reference model answered correctly, and `gained` the
    number that only the candidate answered correctly. The bound comes from Tango's score interval for a
    difference of paired proportions (Tango 1998, Stat. Med. 17:891), which keeps its coverage even with few
    or no discordant pairs.

    Returns:
        The bound on (lost - gained) / questions, from -1 to 1.
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
    """Return the smallest loss, as a share, that a set of `questions` questions can rule out.

    The result is the upper bound for a candidate that loses and gains no questions.
    """
    return upper_bound(questions, 0, 0, alpha)


def least_margin(looks: Sequence[int]) -> float:
    """Return the smallest loss, as a share, that a candidate can be shown to stay below.

    `looks` lists the numbers of questions after which the answers are compared, in ascending order.
    """
    return smallest_decidable_loss(looks[-1], ERROR / len(looks))


def questions_needed(margin: float) -> int:
    """Return how many questions are needed to show a loss below `margin` if no question is lost.

    The answers are compared only once, after the last question.
    """
    critical = _NORMAL.inv_cdf(1 - ERROR)
    needed = math.ceil(critical**2 * (1 - margin) / margin)
    while smallest_decidable_loss(needed, ERROR) >= margin:
        needed += 1
    return needed


def decided(looks: Sequence[int], look: int, lost: int, gained: int, margin: float) -> bool | None:
    """Decide after an interim look whether a candidate loses less than `margin` of the questions.

    Each look may use an equal part of the error rate of 5 %, so that all looks together err in at most 5 %
    of cases (the union bound; looks at one sample are dependent, so the true rate is lower).

    Args:
        looks: The numbers of questions after which the answers are compared, in ascending order.
        look: The number of questions answered so far, one of `looks`.
        lost: The number of questions that only the reference model answered correctly.
        gained: The number of questions that only the candidate answered correctly.
        margin: The share of questions that may be lost, from 0 to 1.

    Returns:
        True if the loss is shown to be smaller than `margin`, False if it is shown to be larger or the last
        look is inconclusive, and None if more questions are needed.
    """
    alpha = ERROR / len(looks)
    if upper_bound(look, lost, gained, alpha) < margin:
        return True
    larger = -upper_bound(look, gained, lost, alpha) > margin
    return False if larger or look == looks[-1] else None


def _score(questions: int, lost: int, gained: int, difference: float) -> float:
    """Return Tango's statistic for a true loss of `difference`, given as a share.

    The statistic is standardized with the constrained maximum-likelihood estimate.
    """
    a = 2 * questions
    b = -lost - gained + (2 * questions - lost + gained) * difference
    c = -gained * difference * (1 - difference)
    nuisance = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = questions * (2 * nuisance + difference * (1 - difference))
    distance = lost - gained - questions * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)
