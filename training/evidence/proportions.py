"""A confidence interval for a share, such as the share of thumbs up among a model's votes."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson_interval(successes: int, trials: int, alpha: float = 0.05) -> tuple[float, float]:
    """Return a confidence interval for a share, within 0 and 1.

    The interval is Wilson's score interval (Wilson 1927, J. Am. Stat. Assoc. 22:209), which keeps its
    coverage even with few trials. Trials are assumed to be independent: if a few raters cast most of the votes, the
    true interval is wider.

    Args:
        successes: The number of trials that succeeded.
        trials: The total number of trials, at least one.
        alpha: The share of intervals that miss the true value, counting both sides.
    """
    score = NormalDist().inv_cdf(1 - alpha / 2) ** 2 / trials
    share = successes / trials
    centre = (share + score / 2) / (1 + score)
    reach = math.sqrt(score * (share * (1 - share) + score / 4)) / (1 + score)
    return max(0.0, centre - reach), min(1.0, centre + reach)
