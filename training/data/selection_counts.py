"""The counts of a selection: how many exchanges were selected or left out, and whether they are enough for a run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from storage.learning_records import Newcomers
from storage.translatable_reason import Reason, join, listed, sentences
from training.settings import TrainingSettings


@dataclass(frozen=True, slots=True)
class SelectionCounts:
    """Counts of the rated exchanges that were selected, and of those left out for each reason.

    Attributes:
        rated: All rated exchanges.
        disliked: Rated exchanges without enough thumbs up.
        unfinished: Liked exchanges whose answer is empty or incomplete.
        too_long: Liked, finished exchanges with more tokens than the trainer accepts.
        duplicates: Exchanges that repeat another pair.
        over_share: Exchanges left out because they exceed one rater's share (`training.rater_share`).
        selected: The remaining exchanges.
        raters: Users who liked the selected exchanges; in a `Selection`, users who liked the pairs to train
            on.
        cut: Unfinished exchanges whose answer reached `chat.max_new_tokens`.
        newcomers: The users whose votes do not count yet because of `training.rater_age`, if any.
    """

    rated: int = 0
    disliked: int = 0
    unfinished: int = 0
    too_long: int = 0
    duplicates: int = 0
    over_share: int = 0
    selected: int = 0
    raters: int = 0
    cut: int = 0
    newcomers: Newcomers | None = None

    def __str__(self) -> str:
        shown = {name: value for name, value in asdict(self).items() if name not in ("cut", "newcomers")}
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())

    @property
    def limit(self) -> Reason | None:
        """A warning that says what to do if many liked answers reached the length limit, otherwise None."""
        return cut_off(self.cut, self.rated - self.disliked)

    @property
    def waiting(self) -> Reason | None:
        """A sentence about new users' votes and when they count, or None if there are no new users."""
        if not self.newcomers:
            return None
        return Reason(
            "New people whose votes don't count yet: {people}. The first of these votes count from {time} UTC "
            "(training.rater_age = {hours} hours; 0 counts them at once).",
            people=self.newcomers.people,
            time=f"{datetime.fromtimestamp(math.ceil(self.newcomers.first / 60) * 60, UTC):%Y-%m-%d %H:%M}",
            hours=f"{self.newcomers.wait / 3600:g}",
        )

    @property
    def left_out(self) -> list[Reason]:
        """The reasons why liked answers were not selected, each with the number of answers."""
        return [
            *([Reason("{number} cut off", number=self.unfinished)] if self.unfinished else []),
            *([Reason("{number} too long", number=self.too_long)] if self.too_long else []),
            *([Reason("{number} repeated", number=self.duplicates)] if self.duplicates else []),
            *([beyond_share(self.over_share)] if self.over_share else []),
        ]


def cut_off(cut: int, liked: int) -> Reason | None:
    """Return a warning if more than a third of the liked answers reached the length limit, otherwise None."""
    if 3 * cut <= liked:
        return None
    return Reason(
        "{cut} of {liked} liked answers were cut off by the length limit and can't be used: raise chat.max_new_tokens",
        cut=cut,
        liked=liked,
    )


def beyond_share(number: int) -> Reason:
    """Return a message saying how many liked answers were left out because of `training.rater_share`."""
    return Reason("{number} over the limit per person", number=number)


def enough(counts: SelectionCounts, settings: TrainingSettings) -> bool:
    """Return whether there are enough liked answers, and enough users who liked them."""
    return counts.selected >= settings.min_rated and counts.raters >= settings.min_raters


def too_little(counts: SelectionCounts, later: SelectionCounts, settings: TrainingSettings) -> Reason:
    """Return why there are too few liked answers, or too few users who liked them, and what to do.

    `later` holds the counts that are expected once the votes of newcomers count as well; the text asks only for what
    will still be missing then.
    """
    chosen, min_rated = counts.selected, settings.min_rated
    waiting = [counts.waiting] if counts.waiting else []
    if chosen < min_rated:
        if chosen == 1:
            few = Reason("Not enough yet: {chosen} liked answer, {wanted} needed.", chosen=chosen, wanted=min_rated)
        else:
            few = Reason("Not enough yet: {chosen} liked answers, {wanted} needed.", chosen=chosen, wanted=min_rated)
        missing = min_rated - later.selected
        more = [Reason("Collect {missing} more 👍.", missing=missing)] if missing > 0 else []
        left_out = [Reason("Left out: {reasons}.", reasons=listed(counts.left_out))] if counts.left_out else []
        refusal = sentences([few, *more, *left_out, *waiting])
        return join([counts.limit, refusal]) if counts.limit else refusal
    alone = Reason(
        "Too few people: liked answers have 👍 from {raters} of the {wanted} people needed.",
        raters=counts.raters,
        wanted=settings.min_raters,
    )
    own = Reason("Let others vote too, or set training.min_raters = 1 for a personal bot.")
    return sentences([alone, *([own] if later.raters < settings.min_raters else []), *waiting])
