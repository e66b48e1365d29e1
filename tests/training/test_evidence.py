"""The statistics that judge candidates agree with scipy, published values, enumeration and simulations.

The simulations have fixed seeds.
"""

from __future__ import annotations

import itertools
import math
import random
from statistics import mean

import numpy as np
import pytest
from scipy import stats

from training.evidence.combining import bonferroni, further_samples, spent_alpha, stouffer, z_score
from training.evidence.non_inferiority import decided, smallest_decidable_loss, upper_bound
from training.evidence.proportions import wilson_interval
from training.evidence.sequential import (
    ENOUGH,
    RATER_PAIRS,
    Canary,
    Vote,
    betting_path,
    canary_evidence,
    detectable_harm,
    newest,
    paired_differences,
)
from training.evidence.taste_tests import Labelled, Ranked, likes_everything, permutation_p_value, rank, rank_p_value
from training.gate.factual_set import LOOKS


def test_stouffer_is_scipys() -> None:
    """The weighted combination of p-values agrees with scipy's Stouffer method."""
    p_values, weights = [0.04, 0.3, 0.6], [2.0, 1.0, 3.0]
    expected = stats.combine_pvalues(p_values, method="stouffer", weights=weights).pvalue
    assert stouffer(p_values, weights) == pytest.approx(expected)
    with pytest.raises(ValueError, match="positive weight"):
        stouffer([0.5], [0.0])


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (3, 3), (50, 80), (1, 400)])
def test_the_interval_of_a_share_is_scipys(successes: int, trials: int) -> None:
    """The confidence interval of a share agrees with scipy's, even if no trial or every trial succeeded."""
    expected = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_extreme_p_values_combine() -> None:
    """P-values of 0 and 1 can be combined without overflow, and neither outweighs everything else."""
    assert 0 < stouffer([0.0, 1.0], [1.0, 1.0]) < 1
    assert bonferroni(0.02, 0.4) == 0.04
    assert bonferroni(0.7, 0.8) == 1.0


def test_all_runs_together_spend_alpha() -> None:
    """The error rates that successive runs may use add up to almost the overall rate and never exceed it."""
    rates = [spent_alpha(run) for run in range(1, 20_000)]
    assert 0.0499 < sum(rates) < 0.05
    assert rates == sorted(rates, reverse=True)


def test_further_samples_would_decide() -> None:
    """The estimated number of further samples brings the p-value to the requested level if the effect persists."""
    more = further_samples(0.1, 40, 0.01)
    assert more is not None
    score = z_score(0.1) * math.sqrt((40 + more) / 40)
    assert stats.norm.sf(score) == pytest.approx(0.01, abs=0.001)
    assert further_samples(0.7, 40, 0.01) is None
    assert further_samples(0.2, 40, 0.01) is None
    assert further_samples(0.001, 40, 0.01) == 0


def test_rank_p_value_is_exact() -> None:
    """The p-value of a sum of ranks, computed by convolution, agrees with an enumeration of all combinations."""
    answers = [
        Ranked(0.5, (0.1, 0.2, 0.9), liked=True),
        Ranked(0.4, (0.5, 0.6), liked=False),
        Ranked(0.3, (0.1, 0.2, 0.25, 0.6), liked=True),
    ]
    ranks = [rank(each, random.Random(0)) for each in answers]
    assert ranks == [2, 2, 3]
    every = list(itertools.product(range(4), range(3), range(5)))
    expected = sum(sum(each) >= sum(ranks) for each in every) / len(every)
    assert rank_p_value(answers, random.Random(0)) == pytest.approx(expected)
    assert rank_p_value([], random.Random(0)) == 1.0


def test_ties_break_at_random() -> None:
    """An answer with the same gain as its siblings is equally likely to get any rank."""
    rng = random.Random(1)
    counts = [0] * 5
    for _ in range(5_000):
        counts[rank(Ranked(0.0, (0.0,) * 4, liked=True), rng)] += 1
    assert stats.chisquare(counts).pvalue > 0.001


def test_permutations_agree_with_scipy() -> None:
    """With one stratum, the permutation p-value agrees with scipy's test for a difference of means."""
    rng = np.random.default_rng(3)
    liked, disliked = rng.normal(0.4, 1, 12), rng.normal(0, 1, 9)
    answers = [Labelled(float(gain), True, "a") for gain in liked]
    answers += [Labelled(float(gain), False, "a") for gain in disliked]
    expected = stats.permutation_test(
        (liked, disliked), lambda a, b: a.mean() - b.mean(), alternative="greater", n_resamples=20_000, rng=rng
    ).pvalue
    found = permutation_p_value(answers, random.Random(3))
    assert found is not None
    assert found == pytest.approx(expected, abs=0.015)


def test_a_rater_with_one_kind_of_label_cannot_be_permuted() -> None:
    """Strata with only liked or only disliked answers are ignored: a difference between raters is no taste."""
    one_sided = [Labelled(5.0, True, "a"), Labelled(4.0, True, "a"), Labelled(0.0, False, "b")]
    assert permutation_p_value(one_sided, random.Random(0)) is None
    mixed = [*one_sided, Labelled(1.0, True, "c"), Labelled(1.0, False, "c")]
    found = [permutation_p_value(mixed, random.Random(seed), 19) or 0.0 for seed in range(200)]
    assert 0.4 < mean(found) < 0.6, "equal gains say nothing: the p-value is drawn"


@pytest.mark.parametrize("seed", range(2))
def test_random_votes_are_accepted_at_the_stated_rate(seed: int) -> None:
    """With random votes, no test accepts a candidate more often than its error rate, even if all gains rise."""
    rng = random.Random(seed)
    by_rank = by_permutation = 0
    for _ in range(600):
        ranked, labelled = [], []
        for rater in range(12):
            for _ in range(3):
                sharpened = rng.gauss(1.0, 0.5)
                liked = rng.random() < 0.5
                siblings = tuple(rng.gauss(1.0, 0.5) for _ in range(4))
                ranked.append(Ranked(sharpened, siblings, liked))
                labelled.append(Labelled(sharpened, liked, str(rater)))
        by_rank += rank_p_value(ranked, rng) <= 0.05
        p_value = permutation_p_value(labelled, rng, 199)
        by_permutation += p_value is not None and p_value <= 0.05
    # 600 draws at 5 % exceed 48 with a probability of 0.0006.
    assert by_rank <= 48
    assert by_permutation <= 48
    assert by_rank > 10


def test_a_taste_is_found() -> None:
    """With 36 votes, a taste that shifts gains by 0.7 standard deviations is found in nine of ten simulations."""
    rng = random.Random(5)
    found = 0
    for _ in range(200):
        answers = [
            Ranked(rng.gauss(0.7 if liked else -0.7, 1), tuple(rng.gauss(0, 1) for _ in range(4)), liked)
            for liked in (rng.random() < 0.6 for _ in range(36))
        ]
        found += rank_p_value(answers, rng) <= spent_alpha(1)
    assert found >= 180


def test_liking_everything_is_not_a_taste() -> None:
    """Raters who like more than nine tenths of all answers shown, including unrated ones, express no taste."""
    assert likes_everything(48, 48)
    assert not likes_everything(48, 60)
    assert not likes_everything(0, 0)


def test_the_score_interval_is_the_published_one() -> None:
    """For 21 pairs, 1 discordant one way and 7 the other, the score interval is the published one.

    The interval, -0.517 to -0.026, is Tango's interval in Fagerland et al. 2014.
    """
    assert upper_bound(21, 1, 7, 0.025) == pytest.approx(-0.026, abs=0.0006)
    assert -upper_bound(21, 7, 1, 0.025) == pytest.approx(-0.517, abs=0.0006)


def test_small_sets_cannot_rule_out_small_losses() -> None:
    """If no question is lost, 135 questions can rule out a loss of 2 points, and 55 a loss of 5 points."""
    assert smallest_decidable_loss(135) == pytest.approx(0.02, abs=0.0005)
    assert smallest_decidable_loss(55) == pytest.approx(0.05, abs=0.004)
    assert upper_bound(150, 3, 0) > upper_bound(150, 3, 3) > upper_bound(150, 0, 3)


def test_the_bound_covers_the_true_loss() -> None:
    """The one-sided upper bound on the loss lies below the true loss in only about 5 % of samples."""
    rng = np.random.default_rng(7)
    below = 0
    for _ in range(1_000):
        lost, gained, _ = rng.multinomial(150, [0.035, 0.015, 0.95])
        below += upper_bound(150, int(lost), int(gained)) < 0.02
    # 1,000 draws at 5 % exceed 75 with a probability of 0.0003; the score interval is approximate.
    assert below <= 80


@pytest.mark.parametrize(("loss", "least", "most"), [(0.05, 0, 10), (0.02, 0, 15), (0.0, 180, 200)])
def test_facts_are_decided_by_looks(loss: float, least: int, most: int) -> None:
    """A candidate that loses 5 points or the exact margin is nearly always rejected; one without a loss is not.

    In addition, 1.5 % of the questions are answered correctly only by the candidate, and 1.5 % only by the
    live model.
    """
    rng = np.random.default_rng(9)
    accepted = 0
    for _ in range(200):
        kinds = rng.choice(3, size=LOOKS[-1], p=[loss + 0.015, 0.015, 1 - loss - 0.03])
        verdicts = (
            decided(LOOKS, look, int((kinds[:look] == 0).sum()), int((kinds[:look] == 1).sum()), 0.02) for look in LOOKS
        )
        accepted += bool(next(each for each in verdicts if each is not None))
    assert least <= accepted <= most


def votes(rng: random.Random, canary: float, live: float, number: int) -> list[Vote]:
    """Return `number` random votes by twenty raters, whose leniency has a standard deviation of 0.15.

    `canary` and `live` are the average probabilities of a like for each model's answers.
    """
    habits = [rng.gauss(0, 0.15) for _ in range(20)]
    drawn = []
    for _ in range(number):
        rater = rng.randrange(20)
        of_canary = rng.random() < 0.5
        chance = min(0.98, max(0.02, (canary if of_canary else live) + habits[rater]))
        drawn.append(Vote(str(rater), of_canary, rng.random() < chance))
    return drawn


def test_votes_pair_within_a_rater() -> None:
    """Each vote is paired with the same rater's oldest unpaired vote on the other model."""
    cast = [
        Vote("a", True, True),
        Vote("a", True, False),
        Vote("b", False, True),
        Vote("a", False, False),
        Vote("b", False, False),
        Vote("a", False, True),
        Vote("b", True, True),
    ]
    assert paired_differences(cast) == [1, -1, 0]


@pytest.mark.parametrize(
    ("canary", "margin_holds"), [(0.6, Canary.HARMFUL), (0.8, Canary.NO_WORSE)], ids=["10 worse", "10 better"]
)
def test_a_canary_is_decided(canary: float, margin_holds: Canary) -> None:
    """A canary ten points better or worse is recognized within 2,000 votes in at least nine of ten sequences."""
    rng = random.Random(11)
    right = sum(canary_evidence(votes(rng, canary, 0.7, 2_000), 0.05).verdict is margin_holds for _ in range(60))
    assert right >= 54


def test_an_equal_canary_is_seldom_rolled_back() -> None:
    """A canary as good as the live model is seldom rolled back, however often the evidence is checked."""
    rng = random.Random(13)
    ever = 0
    for _ in range(200):
        differences = [-each for each in paired_differences(votes(rng, 0.7, 0.7, 1_000))]
        ever += bool((betting_path(differences, 0.0) >= ENOUGH).any())
    assert ever <= 18


def test_evidence_for_and_against_swaps_with_the_models() -> None:
    """Votes that are evidence for one model are evidence against the other."""
    assert newest(betting_path([1, 1, 0], 0.0)) > 1 > newest(betting_path([-1, -1, 0], 0.0))
    assert newest(betting_path([], 0.05)) == 1.0


@pytest.mark.parametrize(("chance", "least", "most"), [(0.65, 260, 400), (0.5, 0, 32)])
def test_duels_decide_at_any_moment(chance: float, least: int, most: int) -> None:
    """120 duels usually suffice to recognize a model that wins 65 % of them.

    A model that wins half of its duels is mistaken for the better one in at most one of twenty sequences.
    """
    rng = random.Random(17)
    decided = 0
    for _ in range(400):
        won = [1 if rng.random() < chance else -1 for _ in range(120)]
        decided += bool((betting_path(won, 0.0) >= ENOUGH).any())
    assert least <= decided <= most


def test_a_duel_counts_as_a_pair_of_votes() -> None:
    """A duel counts as one pair of votes in which only one answer is liked."""
    lost = canary_evidence([], 0.05, [False] * 30)
    assert (lost.pairs, lost.discordant, lost.verdict) == (30, 30, Canary.HARMFUL)
    assert canary_evidence([], 0.05, [True] * 30).verdict is Canary.NO_WORSE


def test_no_rater_decides_alone() -> None:
    """Only the first fifty pairs of a rater's votes count, so that no rater decides alone."""
    hostile = [Vote("x", canary, not canary) for _ in range(400) for canary in (True, False)]
    assert canary_evidence(hostile, 0.05).pairs == RATER_PAIRS


def test_more_pairs_detect_smaller_harm() -> None:
    """The smallest harm that can be detected decreases with the square root of the number of pairs."""
    assert detectable_harm(0, 0.4) == 1.0
    assert detectable_harm(400, 0.4) == pytest.approx(2 * detectable_harm(1_600, 0.4))
