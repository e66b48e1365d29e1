"""The evidence and the verdict on whether a model's gains follow the votes.

A gain is how much likelier the model finds an answer than the live model does.
"""

from __future__ import annotations

import random

import pytest

from training.evaluation_jobs import Rated
from training.evidence.combining import spent_alpha
from training.gate.report import Decision, Taste
from training.gate.taste import Gain, judge, weigh


def gain(rng: random.Random, *, liked: bool, taste: float = 0.0, block: int = 6, rater: int = 0) -> Gain:
    """Draw random gains of a rated answer and of four other answers to its prompt.

    `taste` is added to the gain of the rated answer if it is `liked` and subtracted otherwise.
    """
    own = rng.gauss(1.0 + (taste if liked else -taste), 0.5)
    rated = Rated("exchange-1", liked, rater, block, 0.8, 0.8, 64, 0)
    return Gain(rated, own, tuple(rng.gauss(1.0, 0.5) for _ in range(4)))


def draw(seed: int, answers: int = 45, *, taste: float = 0.0, liked: float = 0.5) -> list[Gain]:
    """Draw random gains of answers in three blocks from five raters, who like a fraction `liked` of them."""
    rng = random.Random(seed)
    return [
        gain(rng, liked=rng.random() < liked, taste=taste, block=1 + number % 3, rater=number % 5)
        for number in range(answers)
    ]


def test_a_taste_is_shown() -> None:
    """If the gains agree with the votes, the model is accepted and no further votes are needed."""
    taste = weigh(draw(1, taste=0.5))
    assert judge(taste) == (Decision.ACCEPTED, None)
    assert taste.p_value < 0.001
    assert taste.agreement > 0.7 and taste.low > 0.6 and taste.high < 0.95
    assert (taste.answers, taste.raters, taste.further) == (45, 5, 0)


def test_random_votes_are_accepted_at_the_error_rate() -> None:
    """If votes are random, a model is accepted no more often than the error rate allows.

    Most gains are positive, as after training on any answers; positive gains alone do not show a taste.
    """
    accepted = sum(weigh(draw(seed)).p_value <= 0.05 for seed in range(150))
    assert accepted <= 15, "8 are expected at most; 16 in one of two hundred sequences"


def test_a_taste_is_found_in_small_blocks() -> None:
    """A taste is found even if every block has only two answers.

    A block of so few answers gives only a coarse result and does not outvote the other blocks.
    """
    rng = random.Random(3)
    one_each = [gain(rng, liked=number % 2 > 0, taste=0.5, block=number // 2, rater=0) for number in range(60)]
    assert weigh(one_each).p_value < 1e-4


def test_each_further_run_needs_more_evidence() -> None:
    """Each further run is judged at a lower error rate, so that the rates of all runs add up to a fixed total."""
    assert weigh(draw(1), attempt=3).alpha == spent_alpha(3) < weigh(draw(1)).alpha
    assert weigh([], attempt=2).alpha == spent_alpha(2)


def test_answers_without_others_are_compared_by_their_votes() -> None:
    """Rated answers without other answers to the same prompt are compared with each other by their votes.

    Other answers are missing if the sampling settings of the rated answer are not known.
    """
    with_taste = [Gain(each.rated, each.own, ()) for each in draw(5, taste=0.6)]
    assert weigh(with_taste).p_value < 0.001
    only_liked = [Gain(each.rated, each.own, ()) for each in draw(5, taste=0.6, liked=1.0)]
    assert weigh(only_liked).p_value == 1.0, "with one kind of vote there is nothing to compare"


@pytest.mark.parametrize(
    ("taste", "decision", "reason"),
    [
        (
            Taste(),
            Decision.UNDECIDED,
            "the live model has too few rated answers to judge the new model by; at least 12 are needed",
        ),
        (
            Taste(answers=18, p_value=0.1, alpha=0.03, further=31),
            Decision.UNDECIDED,
            "18 rated answers are too few to tell; about 31 more are needed",
        ),
        (
            Taste(answers=18, p_value=0.45, alpha=0.03),
            Decision.UNDECIDED,
            "no difference was found yet between liked answers and the others, in 18 rated answers (more votes help if "
            "they all follow the same preference)",
        ),
        (
            Taste(answers=90, p_value=0.4, high=0.58),
            Decision.REJECTED,
            "no difference was found between the answers that people liked and the others, in 90 rated answers (more "
            "votes help if they all follow the same preference)",
        ),
        (
            Taste(answers=45, p_value=0.001, shown=60, liked_of_shown=58),
            Decision.REJECTED,
            "nearly all answers are liked (58 of 60), which says nothing about what people prefer; give 👎 to answers "
            "that you like less",
        ),
        (Taste(answers=45, p_value=0.001, shown=200, liked_of_shown=60), Decision.ACCEPTED, None),
    ],
)
def test_every_verdict_has_its_reason(taste: Taste, decision: Decision, reason: str | None) -> None:
    """Every verdict except acceptance has a reason.

    An undecided verdict says how many more votes would decide, if the number can be estimated.
    """
    assert judge(taste) == (decision, reason)
