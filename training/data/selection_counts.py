"""The counts of a selection: how many exchanges were selected or left out, and whether they are enough for a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from storage.translatable_reason import Reason, join, listed
from training.job import TrainingError
from training.settings import TrainingSettings


@dataclass(frozen=True, slots=True)
class SelectionCounts:
    """Counts of the rated exchanges that were selected, and of those left out for each reason.

    Attributes:
        rated: All rated exchanges.
        disliked: Rated exchanges without enough thumbs up.
        unfinished: Liked exchanges whose answer is empty or did not end by itself.
        too_long: Liked, finished exchanges with more tokens than the trainer accepts.
        duplicates: Exchanges that repeat another pair.
        over_share: Exchanges left out because they exceed one rater's share (`training.rater_share`).
        selected: The remaining exchanges.
        raters: Users who liked the selected exchanges; in a `Selection`, users who liked the pairs to train
            on.
        cut: Unfinished exchanges whose answer reached `chat.max_new_tokens`.
        newcomers: Users whose votes do not count yet because of `training.rater_age`.
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
    newcomers: int = 0

    def __str__(self) -> str:
        shown = {name: value for name, value in asdict(self).items() if name not in ("cut", "newcomers")}
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())

    @property
    def limit(self) -> Reason | None:
        """A warning that says what to do if many liked answers reached the length limit, otherwise None."""
        return cut_off(self.cut, self.rated - self.disliked)

    @property
    def waiting(self) -> Reason | None:
        """The reason why new users' votes do not count yet, or None if there are no new users."""
        if not self.newcomers:
            return None
        return Reason(
            "Votes from new people don't count until training.rater_age has passed; people waiting: {people}",
            people=self.newcomers,
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
        "{cut} of {liked} liked answers were cut off by the length limit and can't be learned: raise "
        "chat.max_new_tokens",
        cut=cut,
        liked=liked,
    )


def beyond_share(number: int) -> Reason:
    """Return a message saying how many lessons were left out because of `training.rater_share`."""
    return Reason("{number} over the limit per person", number=number)


def check_enough(counts: SelectionCounts, settings: TrainingSettings) -> None:
    """Raise `TrainingError` if there are too few liked answers or too few users who liked them."""
    chosen, min_rated = counts.selected, settings.min_rated
    if chosen < min_rated:
        numbers = {"chosen": chosen, "wanted": min_rated, "missing": min_rated - chosen}
        if chosen == 1:
            few = Reason(
                "Not enough yet: {chosen} liked answer, {wanted} needed. Collect {missing} more 👍.", **numbers
            )
        else:
            few = Reason(
                "Not enough yet: {chosen} liked answers, {wanted} needed. Collect {missing} more 👍.", **numbers
            )
        if counts.left_out:
            few = Reason("{few} Left out: {reasons}.", few=few, reasons=listed(counts.left_out))
        raise TrainingError(join([each for each in (counts.limit, few, counts.waiting) if each]))
    if counts.raters < settings.min_raters:
        alone = Reason(
            "Too few people: the liked answers have 👍 from {raters}, {wanted} needed. Let others vote too, or set "
            "training.min_raters = 1 for a bot of your own.",
            raters=counts.raters,
            wanted=settings.min_raters,
        )
        raise TrainingError(join([each for each in (alone, counts.waiting) if each]))
