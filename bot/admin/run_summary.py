"""Numbers of a run as sentences, the same on every page and in every message."""

from __future__ import annotations

from bot.i18n import Say
from storage.learning_records import TrainedOn


def taught_by(taught: TrainedOn, say: Say) -> str:
    """Liked answers, and the votes and people behind them."""
    return say(
        "{answers} ({votes} from {people})",
        answers=say.count("{number} liked answer", "{number} liked answers", taught.answers),
        votes=say.count("{number} vote", "{number} votes", taught.votes),
        people=say.count("{number} person", "{number} people", taught.people),
    )
