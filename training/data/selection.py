"""Select the exchanges that a run is trained on and those used to evaluate it.

All functions are pure and work on rows of the ledger.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from storage.learning_records import Newcomers, RatedExchange
from storage.translatable_reason import Reason
from training.data.llava import lesson
from training.data.prequential_blocks import FEWEST, NO_MODEL, Block, Live, forward_blocks, judging_answers
from training.data.rated_lessons import NearDuplicates, Pair, connected, normalized_text, without_duplicates
from training.data.rater_limits import allowance, beyond_allowance, limit_thumbs_down, owners
from training.data.selection_counts import SelectionCounts, enough, too_little
from training.evidence.taste_tests import likes_everything
from training.job import TrainingError
from training.settings import TrainingSettings
from training.xtuner.recipes import Objective

TRAIN = "train"
WORSE = "worse"
"""The splits of a selection that a run is trained on. Disliked and rejected answers are in `WORSE`."""
HELD_OUT = "held_out"
"""The split of answers that are used only for the evaluation."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The pairs selected for a run.

    Attributes:
        train: The pairs to train on, in the order of the blocks. With KTO, disliked pairs are included.
        blocks: The answers used for the evaluation, in blocks. Each block gives the number of training pairs of
            the model that is evaluated on it.
        counts: Counts of the exchanges that were selected or left out.
        judging: The number of answers that can be used for the evaluation, even if they are too few to be divided into
            blocks.
        shown: The number of answers that the live model gave to the raters of `judged`.
        liked_of_shown: How many of the answers in `shown` are liked.
    """

    train: tuple[Pair, ...]
    blocks: tuple[Block, ...]
    counts: SelectionCounts
    judging: int = 0
    shown: int = 0
    liked_of_shown: int = 0

    @property
    def judged(self) -> tuple[Pair, ...]:
        """The judging answers, in the order of their blocks."""
        return tuple(pair for block in self.blocks for pair in block.judged)

    @property
    def judging_raters(self) -> set[int]:
        """The users who rated the judging answers."""
        return {rater for each in self.judged for rater in each.rated.raters}

    @property
    def futile(self) -> Reason | None:
        """The reason why a run on this selection could not lead to a new model, or None."""
        if self.likes_everything:
            return Reason(
                "A run started now would end without a new model, because nearly all answers of the live model are "
                "liked ({liked} of {shown}), which says nothing about what people prefer. Give 👎 to answers that you "
                "like less.",
                liked=self.liked_of_shown,
                shown=self.shown,
            )
        if self.blocks:
            return None
        return Reason(
            "A run started now would end undecided: judging the new model takes at least {number} rated answers of the "
            "live model that it hasn't learned from. So far: {found}.",
            number=FEWEST,
            found=self.judging,
        )

    @property
    def likes_everything(self) -> bool:
        """Whether the votes say nothing about what people prefer, because nearly all answers are liked."""
        return likes_everything(self.liked_of_shown, self.shown)

    @property
    def liked(self) -> int:
        """The number of liked pairs among the pairs to train on."""
        return sum(each.lesson.liked for each in self.train)

    @property
    def corrections(self) -> int:
        """The number of corrections by users among the pairs to train on."""
        return sum(each.rated.corrected for each in self.train)

    @property
    def largest_share(self) -> float:
        """The largest share of the training pairs that is attributed to a single rater, from 0 to 1."""
        return max(Counter(each.rater for each in self.train).values()) / len(self.train)

    def rows(self) -> list[tuple[int, str]]:
        """Return the ID of each exchange and the name of its split, as stored in the ledger."""
        splits = {each.id: HELD_OUT for each in self.judged}
        splits |= {each.id: TRAIN if each.lesson.liked else WORSE for each in self.train}
        rejected = {each.rejected: WORSE for each in self.train if each.rejected is not None}
        return list((rejected | splits).items())


def liked_exchanges(rated: Iterable[RatedExchange], threshold: int) -> list[RatedExchange]:
    """Return the corrected exchanges and those whose thumbs up minus thumbs down exceed `threshold`."""
    return [each for each in rated if each.corrected or each.ups - each.downs > threshold]


def finished(rated: Iterable[RatedExchange]) -> list[RatedExchange]:
    """Drop exchanges with empty or truncated answers, which would teach the model to stop mid-sentence."""
    return [each for each in rated if each.exchange.finish == "stop" and each.exchange.answer.strip()]


def short_enough(rated: Iterable[RatedExchange], max_length: int | None) -> list[RatedExchange]:
    """Drop exchanges with more than `max_length` tokens by the engine's count; None keeps all exchanges."""
    limit = math.inf if max_length is None else max_length
    return [each for each in rated if each.exchange.prompt_tokens + each.exchange.completion_tokens <= limit]


def within_share(pairs: Sequence[Pair], owner: Mapping[int, int], near: NearDuplicates, most: float) -> list[Pair]:
    """Drop each rater's pairs beyond the allowance `most`, and set `rater` in the remaining pairs.

    Each rater keeps the pairs whose pictures and questions are least like those of the rater's newer pairs
    and, among equals, the newest (`training.data.rater_limits`). `owner` maps each pair's ID to the rater
    that it counts for.
    """
    pictures = {each.id: number for number, group in enumerate(connected(pairs, near)) for each in group}
    features = {each.id: (pictures[each.id], normalized_text(each.rated.exchange.question)) for each in pairs}
    beyond = beyond_allowance(owner, most, features)
    return [replace(each, rater=owner.get(each.id)) for each in pairs if each.id not in beyond]


def choose_pairs(
    rated: Sequence[RatedExchange], phashes: Mapping[str, str], settings: TrainingSettings, max_length: int | None
) -> tuple[list[Pair], SelectionCounts]:
    """Return the liked pairs to train on, ordered by ID, and the counts of selected and dropped exchanges.

    `max_length` is the maximum number of tokens that a pair may have; None for no limit.
    """
    good = liked_exchanges(limit_thumbs_down(rated, settings.threshold, settings.rater_share), settings.threshold)
    whole = finished(good)
    short = short_enough(whole, max_length)
    near = NearDuplicates(phashes, settings.near_duplicate)
    different = without_duplicates([Pair(each, lesson(each)) for each in short], near)
    owner = owners({each.id: each.rated.liked_by for each in different})
    chosen = within_share(different, owner, near, allowance(Counter(owner.values()), settings.rater_share))
    return chosen, SelectionCounts(
        rated=len(rated),
        disliked=len(rated) - len(good),
        unfinished=len(good) - len(whole),
        cut=sum(each.exchange.finish == "length" for each in good),
        too_long=len(whole) - len(short),
        duplicates=len(short) - len(different),
        over_share=len(different) - len(chosen),
        selected=len(chosen),
        raters=_raters(chosen),
    )


def disliked_pairs(
    rated: Iterable[RatedExchange],
    near: NearDuplicates,
    settings: TrainingSettings,
    max_length: int | None,
    most: float,
) -> list[Pair]:
    """Return the pairs whose thumbs down minus thumbs up exceed `training.threshold`, ordered by ID.

    Disliked answers pass the same filters as liked ones. Each counts for one of the users who dislike it,
    and at most `most` are kept per rater.
    """
    rated = limit_thumbs_down(rated, settings.threshold, settings.rater_share)
    found = [each for each in rated if not each.corrected and each.downs - each.ups > settings.threshold]
    pairs = [Pair(each, replace(lesson(each), liked=False)) for each in short_enough(finished(found), max_length)]
    different = without_duplicates(pairs, near)
    owner = owners({each.id: set(each.rated.raters).difference(each.rated.liked_by) for each in different})
    return within_share(different, owner, near, most)


class TooLittle(TrainingError):
    """There are too few liked answers for a run, or too few users who liked them."""


def select_pairs(  # noqa: PLR0913 each input of a selection has a name at the call
    rated: Sequence[RatedExchange],
    phashes: Mapping[str, str],
    settings: TrainingSettings,
    *,
    live: Live = NO_MODEL,
    objective: Objective = "sft",
    max_length: int | None = None,
    newcomers: Newcomers | None = None,
    rated_later: Sequence[RatedExchange] = (),
    only: Collection[int] | None = None,
) -> Selection:
    """Select the pairs that a run is trained on and the answers used to evaluate its model.

    Args:
        rated: The rated exchanges.
        phashes: The perceptual hash of each picture in hex, by the picture's name.
        settings: The training settings.
        live: The live model.
        objective: The training objective; with "kto", the run learns from disliked answers too.
        max_length: The maximum number of tokens that a pair may have; None for no limit.
        newcomers: The users whose votes do not count yet and are not in `rated`, if any.
        rated_later: The rated exchanges including newcomers' votes, for the message of a `TooLittle` error.
        only: The IDs of the exchanges that the run may learn from; None for no limit. The others
            may still be used to evaluate it.

    Raises:
        TooLittle: There are too few pairs, or they come from too few users.
    """
    chosen = [each for each in rated if only is None or each.exchange.id in only]
    others = [each for each in rated if only is not None and each.exchange.id not in only]
    liked, counts = choose_pairs(chosen, phashes, settings, max_length)
    counts = replace(counts, newcomers=newcomers)
    if not enough(counts, settings):
        allowed = [each for each in rated_later if only is None or each.exchange.id in only]
        later = choose_pairs(allowed, phashes, settings, max_length)[1] if newcomers else counts
        raise TooLittle(too_little(counts, later, settings))
    near = NearDuplicates(phashes, settings.near_duplicate)
    # Computed from likes, because an account that casts most of the dislikes would otherwise set its own limit.
    most = allowance(Counter(each.rater for each in liked if each.rater is not None), settings.rater_share)
    disliked = disliked_pairs(rated, near, settings, max_length, most)
    other_pairs, _ = choose_pairs(others, phashes, settings, max_length)
    pairs = sorted((*liked, *other_pairs, *disliked), key=lambda pair: pair.id)
    lessons = {each.exchange.id for each in chosen}
    lessons &= {each.id for each in pairs if each.lesson.liked or objective == "kto"}
    judging = {each.id for each in judging_answers(pairs, live)}
    train, blocks = forward_blocks(connected(pairs, near), lessons, judging, settings.held_out, only)
    return Selection(tuple(train), tuple(blocks), replace(counts, raters=_raters(train)), len(judging))


def _raters(pairs: Iterable[Pair]) -> int:
    return len({rater for each in pairs for rater in each.rated.liked_by})
