"""The taste test: a run has learned what users like if its gains follow their votes.

The models trained for a run's blocks score each rated answer by how much likelier they find it than the
live model does. They score other answers, which the live model draws for the same prompt, in the same
way. The test succeeds if liked answers gain more than the other answers, and disliked answers gain less
(`training.evidence.taste_tests`). The other answers are drawn in this process, from the live model's weights
with the sampling settings of the rated answer, so that they pass the same filters, and neither put load on the
engine nor displace conversations from its cache.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Final

from inference.messages import Sampling
from storage.translatable_reason import Reason
from training.data.llava import Lesson
from training.data.prequential_blocks import FEWEST
from training.evaluation_jobs import Rated, TasteJob
from training.evidence.combining import bonferroni, further_samples, spent_alpha, stouffer
from training.evidence.taste_tests import Labelled, Ranked, likes_everything, permutation_p_value, rank_p_value
from training.gate.report import Decision, Taste
from training.run_folder import ADAPTER, BLOCKS
from training.worker import StageProgress

if TYPE_CHECKING:
    from training.gate.local_model import LocalModel, LogProbability, ModelSlot

COMPARISONS: Final = 4
"""The number of other answers that are drawn for each prompt."""

_ROUNDS: Final = 3
"""The maximum number of rounds of drawing answers. An answer that did not end on its own does not count."""

_HOPELESS: Final = 0.1
"""The share of the drawn answers that must end on their own for further ones to be drawn."""

CLIP: Final = 2.0
"""The largest gain that counts, in nats per token, so that no single answer decides."""

SLIGHT: Final = 0.6
"""If the agreement with the votes is below this value, collecting further votes is not worthwhile."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A rated answer, with other answers of the live model to the same prompt.

    Attributes:
        rated: The vote on the answer.
        lesson: The answer's prompt and text.
        others: The texts of the other answers.
    """

    rated: Rated
    lesson: Lesson
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Gain:
    """The gains of a rated answer and of the other answers to its prompt.

    A gain is how much likelier a model finds an answer than the live model does, in nats per token.
    """

    rated: Rated
    own: float
    others: tuple[float, ...]


class TasteTest:
    """The taste test of one evaluation.

    Unless `answers` is empty, call `open` and then `judge`.

    Attributes:
        answers: The rated answers used to evaluate the run.
    """

    def __init__(self, job: TasteJob, lessons: Iterable[Lesson], steps: StageProgress) -> None:
        """Select the job's rated answers whose rows have not been erased since the job was written.

        `steps` counts the answers that are drawn and scored.
        """
        rated = {each.row: each for each in job.rated}
        self._job = job
        self._images = Path(job.images)
        self.answers = [Judged(rated[each.name], each) for each in lessons if each.name in rated]
        self._before: list[list[LogProbability]] = []
        self._gains: list[Gain] = []
        self._steps = steps
        drawn = sum(COMPARISONS for each in self.answers if _sampling(each.rated))
        steps.more(2 * len(self.answers) + drawn)

    def open(self, live: LocalModel) -> None:
        """Draw other answers from the live model, and have it score all answers."""
        import torch

        torch.manual_seed(int(self._job.run))
        self.answers = self._with_others(live)
        self._before = self._score(live, self.answers)

    def judge(self, base: Path, slot: ModelSlot) -> None:
        """Judge the model of each block by the answers in the block, and the candidate by the held-out answers.

        Each of these is the model in `base` with an adapter merged into it.
        """
        for block in sorted({each.rated.block for each in self.answers}):
            folder = Path(self._job.work) / BLOCKS / str(block) / ADAPTER if block else Path(self._job.adapter)
            self._judge(slot.load_with(base, folder), block)

    def result(self) -> Taste:
        """Return the evidence on whether the gains follow the votes."""
        taste = weigh(self._gains, attempt=self._job.attempt, seed=int(self._job.run))
        return replace(taste, shown=self._job.shown, liked_of_shown=self._job.liked_of_shown)

    def _judge(self, model: LocalModel, block: int) -> None:
        numbers = [number for number, each in enumerate(self.answers) if each.rated.block == block]
        judged = [self.answers[number] for number in numbers]
        for number, answer, scores in zip(numbers, judged, self._score(model, judged), strict=True):
            gains = [_gain(new, old) for new, old in zip(scores, self._before[number], strict=True)]
            self._gains.append(Gain(answer.rated, gains[0], tuple(gains[1:])))

    def _with_others(self, live: LocalModel) -> list[Judged]:
        """Return the rated answers, each with other answers that the live model draws for the same prompt.

        A rated answer whose sampling settings are unknown gets no other answers.
        """
        answers = self.answers
        found: list[list[str]] = [[] for _ in answers]
        alike: dict[Sampling | None, list[int]] = defaultdict(list)
        for index, each in enumerate(answers):
            alike[_sampling(each.rated)].append(index)
        alike.pop(None, None)
        for sampling, group in alike.items():
            assert sampling is not None
            for repeat in range(_ROUNDS):
                wanted = [index for index in group for _ in range(COMPARISONS - len(found[index]))]
                prompts = [answers[index].lesson for index in wanted]

                def report(texts: Sequence[str], *, again: bool = repeat > 0) -> None:
                    self._steps.add(0 if again else len(texts))  # a repeated answer was counted when first drawn

                drawn = live.generate(prompts, self._images, sampling, on_batch=report)
                finished = [text if ended else "" for text, ended in drawn]
                for index, text in zip(wanted, finished, strict=True):
                    if text:
                        found[index].append(text)
                if len(drawn) - finished.count("") < _HOPELESS * len(drawn):
                    break
        return [replace(each, others=tuple(others)) for each, others in zip(answers, found, strict=True)]

    def _score(self, model: LocalModel, answers: Sequence[Judged]) -> list[list[LogProbability]]:
        """Return the scores of each rated answer, followed by those of the other answers to its prompt."""
        texts = [(each.lesson.turns[-1].text, *each.others) for each in answers]
        # Equal answers are scored once: in different rows of a batch, rounding would break the tie between them.
        rows = [(number, text) for number, own in enumerate(texts) for text in dict.fromkeys(own)]
        lessons = [answers[number].lesson.answered(text) for number, text in rows]
        scores = dict(zip(rows, model.log_probabilities(lessons, self._images), strict=True))
        self._steps.add(len(answers))
        return [[scores[number, text] for text in own] for number, own in enumerate(texts)]


def _gain(new: LogProbability, old: LogProbability) -> float:
    return max(-CLIP, min(CLIP, (new.nats - old.nats) / old.tokens))


def _sampling(rated: Rated) -> Sampling | None:
    if rated.top_k is None:
        return None
    return Sampling(rated.temperature, rated.top_p, rated.max_new_tokens, top_k=rated.top_k)


def weigh(gains: Sequence[Gain], *, attempt: int = 1, seed: int = 0) -> Taste:
    """Test whether gains follow the votes, and return the evidence.

    If votes express no taste, ranks among other answers to the same prompt are uniform and independent,
    whatever was learned from earlier blocks, so the ranks of all blocks form one test. Permuting votes is
    valid within a block, given the blocks before it, so Stouffer's method combines the permutation tests of
    the blocks. The rank test and the permutation test share the error rate.
    """
    if not gains:
        return Taste(alpha=spent_alpha(attempt))
    rng = random.Random(seed)
    ranked = [Ranked(each.own, each.others, each.rated.liked) for each in gains]
    tests = [rank_p_value(ranked, rng)] if any(each.others for each in gains) else []
    if permuted := _permuted(gains, rng):
        tests.append(stouffer(*zip(*permuted, strict=True)))
    p_value, alpha = bonferroni(*tests) if tests else 1.0, spent_alpha(attempt)
    agreement, low, high = _agreement(gains)
    return Taste(
        answers=len(gains),
        liked=sum(each.rated.liked for each in gains),
        raters=len({each.rated.rater for each in gains}),
        agreement=agreement,
        low=low,
        high=high,
        p_value=p_value,
        alpha=alpha,
        further=further_samples(p_value, len(gains), alpha),
        likes=[each.rated.liked for each in gains],
        gains=[round(each.own, 4) for each in gains],
        contrasts=[round(mean(each.others), 4) if each.others else 0.0 for each in gains],
    )


def _permuted(gains: Iterable[Gain], rng: random.Random) -> list[tuple[float, float]]:
    """Return the p-value and the weight of each block in which some rater cast both kinds of votes."""
    blocks: dict[int, list[Labelled]] = defaultdict(list)
    for each in gains:
        blocks[each.rated.block].append(Labelled(each.own, each.rated.liked, str(each.rated.rater)))
    found = []
    for block in blocks.values():
        p_value = permutation_p_value(block, rng)
        if p_value is not None:
            found.append((p_value, sqrt(len(block))))
    return found


def _agreement(gains: Iterable[Gain]) -> tuple[float, float, float]:
    """Return the mean share of comparisons that agree with the votes, and its 95 % interval.

    Each rated answer's gain is compared with the gains of the other answers to its prompt; a tie counts as
    one half.
    """
    shares = []
    for each in gains:
        sign = 1 if each.rated.liked else -1
        wins = [sign * (each.own - other) for other in each.others]
        if wins:
            shares.append(sum((win > 0) + (win == 0) / 2 for win in wins) / len(wins))
    if len(shares) < 2:
        return 0.5, 0.0, 1.0
    centre, half = mean(shares), 1.96 * max(stdev(shares), 0.1) / sqrt(len(shares))
    return centre, max(0.0, centre - half), min(1.0, centre + half)


def judge(taste: Taste) -> tuple[Decision, Reason | None]:
    """Return the decision that the evidence supports, with the reason unless the candidate is accepted."""
    if not taste.answers:
        return Decision.UNDECIDED, Reason(
            "the live model has too few rated answers to judge the new model by; at least {number} are needed",
            number=FEWEST,
        )
    if likes_everything(taste.liked_of_shown, taste.shown):
        finding = Reason(
            "nearly all answers are liked ({liked} of {shown}), which says nothing about what people prefer",
            liked=taste.liked_of_shown,
            shown=taste.shown,
        )
        return Decision.REJECTED, Reason("{finding}; give 👎 to answers that you like less", finding=finding)
    if taste.p_value <= taste.alpha:
        return Decision.ACCEPTED, None
    if taste.high < SLIGHT:
        finding = Reason(
            "no difference was found between the answers that people liked and the others, in {answers} rated answers",
            answers=taste.answers,
        )
        return Decision.REJECTED, _unclear(finding)
    if taste.further is None:
        finding = Reason(
            "no difference was found yet between liked answers and the others, in {answers} rated answers",
            answers=taste.answers,
        )
        return Decision.UNDECIDED, _unclear(finding)
    few = Reason("{answers} rated answers are too few to tell", answers=taste.answers)
    return Decision.UNDECIDED, Reason("{few}; about {number} more are needed", few=few, number=max(1, taste.further))


def _unclear(finding: Reason) -> Reason:
    return Reason("{finding} (more votes help if they all follow the same preference)", finding=finding)
