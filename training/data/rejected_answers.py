"""The rejected answers that DPO learns from alongside the chosen ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from storage.learning_records import Preference
from training.data.llava import Rejected, row_name
from training.data.pairs import Pair


def with_rejected(pairs: Iterable[Pair], preferences: Iterable[Preference]) -> list[Pair]:
    """Return the pairs with their rejected answers. If a pair has several, it gets the newest."""
    rejected = {each.chosen.exchange.id: each for each in preferences}
    return [_with_rejected(pair, rejected[pair.id]) if pair.id in rejected else pair for pair in pairs]


def _with_rejected(pair: Pair, preference: Preference) -> Pair:
    number = preference.rejected_exchange
    rejected = Rejected(row_name(number), preference.rejected)
    return replace(pair, lesson=replace(pair.lesson, rejected=rejected), rejected=number)
