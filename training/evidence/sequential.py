"""Anytime-valid tests: evidence that may be inspected after every vote, with no planned number of votes.

Evidence is an e-value. If the null hypothesis holds, the probability that it ever reaches 20 is at most
1/20 (Ville's inequality; Shafer 2021, J. R. Stat. Soc. A 184:407).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

ENOUGH = 20.0
"""The evidence that suffices for a verdict, which then errs in at most 5 % of all sequences."""

MARGIN = 0.05
"""The margin of non-inferiority: a canary is no worse if its share of likes is less than 5 points lower.

With a smaller margin, too few equal canaries are promoted before the horizon; with 8 points, one in five canaries that
are worse by 5 points is promoted. Canaries that remain undecided end at the horizon. benchmarks/judge.py simulates
this.
"""

RATER_PAIRS = 50
"""The maximum number of pairs per rater, a twentieth of what the horizon allows, so that no rater decides alone."""

HORIZON_VOTES = 2_000
HORIZON_DAYS = 14.0
"""The limits, in votes and in days, at which an undecided trial ends. The canary is then promoted."""

STAKES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.7, 0.9)
"""Shares of the wealth that are bet on each pair; the mean over them adapts to the size of the effect."""


@dataclass(frozen=True, slots=True)
class Vote:
    """A rater's thumbs up or thumbs down on an answer of the canary or the live model."""

    rater: str
    canary: bool
    liked: bool


class Canary(StrEnum):
    """The verdict on a canary, based on the votes."""

    UNDECIDED = "undecided"
    NO_WORSE = "no_worse"
    HARMFUL = "harmful"


@dataclass(frozen=True, slots=True)
class Evidence:
    """Evidence for harm and for non-inferiority, from pairs of votes.

    Attributes:
        pairs: The number of pairs.
        discordant: The number of pairs in which only one answer was liked.
        harm_path: The e-value for harm after each pair.
        no_worse_path: The e-value for non-inferiority after each pair.
    """

    pairs: int
    discordant: int
    harm_path: tuple[float, ...]
    no_worse_path: tuple[float, ...]

    @property
    def harm(self) -> float:
        """The current e-value for harm."""
        return newest(self.harm_path)

    @property
    def no_worse(self) -> float:
        """The current e-value for non-inferiority."""
        return newest(self.no_worse_path)

    @property
    def detectable_harm(self) -> float:
        """The harm, as a share, that the pairs would have revealed with probability about one half."""
        return detectable_harm(self.pairs, max(1, self.discordant) / max(1, self.pairs))

    @property
    def verdict(self) -> Canary:
        """The verdict; harm takes precedence if both harm and non-inferiority are shown."""
        if self.harm >= ENOUGH:
            return Canary.HARMFUL
        return Canary.NO_WORSE if self.no_worse >= ENOUGH else Canary.UNDECIDED


def paired_differences(votes: Iterable[Vote]) -> list[int]:
    """Pair each rater's votes on the two models, in the order of voting, and return the differences.

    Each rater is thus their own control. Only the first `RATER_PAIRS` pairs of a rater count.

    Returns:
        For each pair, 1 if only the canary's answer was liked, -1 if only the live model's answer was liked,
        and 0 otherwise.
    """
    waiting: dict[str, tuple[list[bool], list[bool]]] = defaultdict(lambda: ([], []))
    pairs = Counter[str]()
    differences = []
    for vote in votes:
        queues = waiting[vote.rater]
        other = queues[not vote.canary]
        if not other:
            queues[vote.canary].append(vote.liked)
            continue
        earlier = other.pop(0)
        pairs[vote.rater] += 1
        if pairs[vote.rater] > RATER_PAIRS:
            continue
        canary, live = (vote.liked, earlier) if vote.canary else (earlier, vote.liked)
        differences.append(canary - live)
    return differences


def canary_evidence(votes: Iterable[Vote], margin: float, duels: Iterable[bool] = ()) -> Evidence:
    """Compute the evidence from the votes on a canary and from its duels.

    The evidence for harm counts against the hypothesis that the canary is liked at least as often as the
    live model. The evidence for non-inferiority counts against the hypothesis that the canary is liked less
    often by at least `margin`. Both are valid for raters with different habits, because only differences
    between votes of the same rater count. Each duel counts as one pair.

    Args:
        votes: The votes on both models, in the order of voting.
        margin: The margin of non-inferiority, as a share from 0 to 1.
        duels: For each duel, whether the canary won.
    """
    differences = [*paired_differences(votes), *(1 if won else -1 for won in duels)]
    return Evidence(
        len(differences),
        sum(each != 0 for each in differences),
        tuple(betting_path([-each for each in differences], 0.0).tolist()),
        tuple(betting_path(differences, margin).tolist()),
    )


def newest(path: Sequence[float] | NDArray[np.float64]) -> float:
    """Return the evidence at the end of a path, or 1 if the path is empty."""
    return float(path[-1]) if len(path) else 1.0


def betting_path(differences: Sequence[float], margin: float) -> NDArray[np.float64]:
    """Return the evidence after each difference, as an array of shape (differences,).

    The differences lie between -1 and 1, and the evidence is against a mean difference of at most -`margin`. The
    evidence is the wealth of a gambler who bets a fixed stake on each difference, averaged over several
    stakes. Under the null hypothesis, the wealth is a nonnegative supermartingale (Waudby-Smith and Ramdas
    2024, J. R. Stat. Soc. B 86:1).
    """
    shares = np.array(STAKES)[:, None] / (1 - margin)
    gains = np.log1p(shares * (np.asarray(differences, dtype=np.float64) + margin))
    wealth: NDArray[np.float64] = np.exp(np.minimum(np.cumsum(gains, axis=1), 700.0)).mean(axis=0)
    return wealth


def detectable_harm(pairs: int, discordant: float) -> float:
    """Estimate the harm, as a share, that `pairs` pairs would have revealed with probability about one half.

    `discordant` is the share of pairs in which only one answer was liked. With each pair, the logarithm of
    the evidence grows by about the squared mean divided by twice the variance.
    """
    if pairs == 0:
        return 1.0
    return min(1.0, math.sqrt(2 * discordant * math.log(ENOUGH * len(STAKES)) / pairs))
