"""A test for broken answers: empty, looping or endless ones, or the same answer for different pictures.

Each measure is compared between the candidate's and the live model's answers to the same questions by an
exact paired test (the sign test over the questions on which the models differ; for yes-or-no measures,
it is McNemar's test). Longer or less varied answers count only if they also violate an absolute bound.
The bounds leave room for every correct style of answering, since the answers that users like may be
short, long, playful or uniform:

- Answers are never rejected for being short. Empty ones count as broken, and wrong ones fail the factual
  questions.
- An answer of three playful sentences is four times as long as one plain sentence. An answer that does not
  end has about 250 bytes after 64 tokens, nine times the length of a sentence.
- A model that uses one wording for each kind of question, or a single word, still gives as many
  different answers as there are facts. Fewer than half as many cannot be a matter of style.

`tests/training/test_broken_answers.py` answers 300 questions in each style and tests the answers against those
in every other style.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from scipy.stats import binomtest

from storage.translatable_reason import Reason
from training.gate.evaluated_models import AnsweredQuestions
from training.gate.report import Drift

CHANCE: Final = 0.01
"""The error rate of each test."""

MOST_BROKEN: Final = 0.01
"""The largest share of broken answers that a model may give if the live model gives fewer."""

LONGEST: Final = 5.0
"""The largest mean length of a model's answers, as a multiple of the live model's."""

SENTENCE: Final = 24
"""The length of a short sentence in bytes, used in place of the live answers' mean length if that is shorter."""

LEAST_VARIETY: Final = 0.5
"""The minimum number of distinct answers per distinct fact."""

_REPEATED: Final = re.compile(r"(.{4,60}?)\1{3,}|(.{2,3}?)\2{6,}", re.DOTALL)


def broken(answer: str) -> bool:
    """Return whether an answer is empty or loops.

    A looping answer repeats a phrase four times in a row, or a very short phrase seven times.
    """
    if not re.search(r"\w", answer):
        return True
    # Laughter repeats single characters, and table rules repeat punctuation; loops repeat words.
    return any(re.search(r"\w", found[0]) for found in _REPEATED.finditer(answer))


def measure(live: AnsweredQuestions, candidate: AnsweredQuestions) -> Drift:
    """Compare the candidate's answers with the live model's answers to the same questions."""
    of_live, of_candidate = _lengths(live.answers), _lengths(candidate.answers)
    return Drift(
        answers=len(candidate.answers),
        facts=len({each.fact for each in candidate.questions}),
        broken=sum(map(broken, candidate.answers)),
        live_broken=sum(map(broken, live.answers)),
        broken_chance=_chance([broken(each) for each in live.answers], [broken(each) for each in candidate.answers]),
        length=sum(of_candidate) / len(of_candidate),
        live_length=sum(of_live) / len(of_live),
        length_chance=_chance(of_live, of_candidate),
        distinct=len(set(candidate.answers)),
        live_distinct=len(set(live.answers)),
        distinct_chance=_chance(_repeats(live.answers), _repeats(candidate.answers)),
    )


def reasons(drift: Drift) -> list[Reason]:
    """Return the reasons why the candidate's answers count as broken."""
    found = []
    too_many = drift.live_broken < drift.broken > MOST_BROKEN * drift.answers
    if too_many or drift.broken_chance < CHANCE:
        found.append(Reason("{number} of its answers are empty or repeat themselves", number=drift.broken))
    times = drift.length / max(drift.live_length, SENTENCE)
    if times > LONGEST and drift.length_chance < CHANCE:
        found.append(
            Reason("its answers are {times} times as long as the live model's", times=f"{drift.times_longer:.1f}")
        )
    if drift.distinct < LEAST_VARIETY * drift.facts and drift.distinct_chance < CHANCE:
        found.append(
            Reason(
                "it gives {number} different answers to {questions} questions, the live model {live}",
                number=drift.distinct,
                questions=drift.answers,
                live=drift.live_distinct,
            )
        )
    return found


def _chance(live: Sequence[float], candidate: Sequence[float]) -> float:
    """Return the p-value of a one-sided sign test of whether the candidate's numbers are larger."""
    larger = sum(new > old for old, new in zip(live, candidate, strict=True))
    smaller = sum(new < old for old, new in zip(live, candidate, strict=True))
    return float(binomtest(larger, larger + smaller, alternative="greater").pvalue) if larger else 1.0


def _lengths(answers: Sequence[str]) -> list[int]:
    """Return the lengths of the answers in bytes; a token has about as many bytes in English as in Chinese."""
    return [len(each.encode()) for each in answers]


def _repeats(answers: Sequence[str]) -> list[bool]:
    """Return, for each answer, whether an earlier answer is identical."""
    first = {each: index for index, each in reversed(list(enumerate(answers)))}
    return [first[each] < index for index, each in enumerate(answers)]
