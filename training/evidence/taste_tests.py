"""Test whether a model's gains follow users' votes.

A gain is how much likelier the candidate finds an answer than the live model does, in nats per token.
Training a model on any of its own answers raises the gains of everything it says, so a gain is
meaningful only in comparison with other answers of the live model to the same question (`rank_p_value`),
or with answers that the same rater disliked (`permutation_p_value`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

PERMUTATIONS = 9_999


@dataclass(frozen=True, slots=True)
class Ranked:
    """The gain of a rated answer and the gains of its siblings.

    Siblings are further answers drawn from the live model for the same question.
    """

    gain: float
    siblings: tuple[float, ...]
    liked: bool


@dataclass(frozen=True, slots=True)
class Labelled:
    """The gain of an answer and the label that a rater gave it.

    Labels are exchangeable within a stratum, which contains one rater's answers in one block.
    """

    gain: float
    liked: bool
    stratum: str


def rank(answer: Ranked, rng: random.Random) -> int:
    """Return how many siblings have a lower gain or, for a disliked answer, a higher gain.

    Ties are broken at random. If votes express no taste, the rated answer and its m siblings are
    exchangeable, so the rank is uniform on 0 to m.
    """
    below = sum(each < answer.gain for each in answer.siblings)
    equal = sum(each == answer.gain for each in answer.siblings)
    place = below + rng.randint(0, equal)
    return place if answer.liked else len(answer.siblings) - place


def rank_p_value(answers: Sequence[Ranked], rng: random.Random) -> float:
    """Return the probability of a sum of ranks at least as large as observed, under the null hypothesis.

    The distribution of the sum of independent uniform ranks is computed exactly, by convolution; answers may
    have different numbers of siblings. Without answers, the result is 1.0.
    """
    ways = [1]
    total = 0
    for answer in answers:
        total += rank(answer, rng)
        ways = _convolved(ways, len(answer.siblings) + 1)
    return sum(ways[total:]) / sum(ways)


def permutation_p_value(
    answers: Sequence[Labelled], rng: random.Random, permutations: int = PERMUTATIONS
) -> float | None:
    """Return the p-value of the difference in gain between liked and disliked answers.

    The null hypothesis is that labels are exchangeable within strata. The statistic is the sum of the gains
    of liked answers; for given numbers of labels, it orders permutations in the same way as the difference
    of means. The permutations are random, and the observed labelling counts as one of them (Phipson and
    Smyth 2010, Stat. Appl. Genet. Mol. Biol. 9:39). The rank of the observed labelling among permutations
    with an equal sum is drawn at random, so that the p-value is uniform if votes express no taste, however
    few permutations there are; combining several p-values requires uniform ones. Strata with only one kind
    of label cannot be permuted and are left out.

    Returns:
        The p-value, or None if no stratum has both kinds of labels.
    """
    strata = _mixed(answers)
    if not strata:
        return None
    generator = np.random.default_rng(rng.getrandbits(64))
    excess = np.zeros(permutations)  # of each permutation's sum over the observed one
    for group in strata:
        gains, liked = np.array([each.gain for each in group]), np.array([each.liked for each in group])
        excess += generator.permuted(np.tile(liked, (permutations, 1)), axis=1) @ gains - liked @ gains
    larger = int(np.sum(excess > 1e-12))
    equal = 1 + int(np.sum(np.abs(excess) <= 1e-12))
    return (larger + equal * rng.random()) / (permutations + 1)


def likes_everything(liked: int, shown: int, share: float = 0.9) -> bool:
    """Return whether raters liked more than `share` of all answers shown to them, including unrated ones."""
    return shown > 0 and liked > share * shown


def _mixed(answers: Iterable[Labelled]) -> list[list[Labelled]]:
    """Group the answers by stratum, and return the strata with both liked and disliked answers."""
    groups: dict[str, list[Labelled]] = {}
    for answer in answers:
        groups.setdefault(answer.stratum, []).append(answer)
    return [group for group in groups.values() if len({each.liked for each in group}) == 2]


def _convolved(ways: Sequence[int], sides: int) -> list[int]:
    """Return the number of ways to reach each sum after adding a rank with `sides` equally likely values."""
    found = [0] * (len(ways) + sides - 1)
    window = 0
    for place in range(len(found)):
        window += ways[place] if place < len(ways) else 0
        window -= ways[place - sides] if place >= sides else 0
        found[place] = window
    return found
