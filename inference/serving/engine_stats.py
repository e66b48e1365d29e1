"""Statistics of one replica, computed from finished answers: time to first token and share of cached prompt tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from typing import Final

from inference.messages import Answer, Usage

_RECENT: Final = 256
"""The number of newest answers over which the time to first token is computed."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Sums over finished answers, and times to first token in seconds for the newest ones, or 0 if there are none."""

    answered: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    encoded_tiles: int = 0
    first_token_median: float = 0
    first_token_p99: float = 0

    @property
    def cached_share(self) -> float:
        """Share of the prompt tokens that came from the cache, 0 to 1."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


class Sight:
    """Collects the statistics of one replica."""

    def __init__(self) -> None:
        self.answered = 0
        self.usage = Usage()
        self.first_tokens: deque[float] = deque(maxlen=_RECENT)

    def note(self, answer: Answer) -> None:
        """Add a finished answer."""
        self.answered += 1
        self.usage = _sum((self.usage, answer.usage))
        self.first_tokens.append(answer.first_token_seconds)


def seen(sights: Iterable[Sight]) -> Seen:
    """Combine the statistics of several replicas."""
    sights = list(sights)
    usage = _sum(sight.usage for sight in sights)
    times = sorted(time for sight in sights for time in sight.first_tokens)
    return Seen(
        answered=sum(sight.answered for sight in sights),
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        encoded_tiles=usage.encoded_tiles,
        first_token_median=_quantile(times, 0.5),
        first_token_p99=_quantile(times, 0.99),
    )


def _sum(usages: Iterable[Usage]) -> Usage:
    columns = zip(
        *((each.prompt_tokens, each.completion_tokens, each.cached_tokens, each.encoded_tiles) for each in usages),
        strict=True,
    )
    return Usage(*(sum(column) for column in columns))


def _quantile(ordered: list[float], share: float) -> float:
    """Return the nearest-rank quantile, or 0 if there are no values."""
    return ordered[max(ceil(share * len(ordered)) - 1, 0)] if ordered else 0.0
