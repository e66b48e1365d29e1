"""The interval of a share, such as a model's thumbs up among its votes."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson_interval(successes: int, trials: int, alpha: float = 0.05) -> tuple[float, float]:
    """Return the confidence interval of a share, within 0 and 1.

    This is Wilson's score interval (Wilson 1927, J. Am. Stat. Assoc. 22:209), which holds its level even with few
    trials. Trials count as independent: if a few raters cast most votes, the true interval is wider.

    Args:
        successes: Trials that succeeded.
        trials: All trials; there must be at least one.
        alpha: The share of intervals that miss the true value, on both sides together.
    """
    score = NormalDist().inv_cdf(1 - alpha / 2) ** 2 / trials
    share = successes / trials
    centre = (share + score / 2) / (1 + score)
    reach = math.sqrt(score * (share * (1 - share) + score / 4)) / (1 + score)
    return max(0.0, centre - reach), min(1.0, centre + reach)
