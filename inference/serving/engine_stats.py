"""Statistics of finished answers: time to first token, share of cached prompt tokens, and broken answers.

A broken answer is empty or has reached the length limit.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Final

from inference.messages import Answer

SECONDS_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 20, 30, 60, 120, 300, 600)
"""The upper bounds of the histograms' buckets: from a cached prompt on a GPU to a long queue on a CPU."""

_RECENT: Final = 256
"""The number of newest answers over which the time to first token is computed."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Totals over finished answers, and the median and 99th percentile of the time to first token.

    The times are in seconds; they are computed from the newest answers only, and are 0 if there are none.
    """

    answered: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    encoded_tiles: int = 0
    first_token_seconds_median: float = 0
    first_token_seconds_p99: float = 0

    @property
    def totals(self) -> dict[str, int]:
        """The totals by field name, without the times."""
        return {name: value for name, value in asdict(self).items() if not name.startswith("first_token")}

    @property
    def cached_share(self) -> float:
        """Share of the prompt tokens, 0 to 1, that came from the cache."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of one model's finished answers since the deployment was created.

    `broken` is the number of answers that were empty or reached the length limit.
    """

    answers: int = 0
    broken: int = 0

    def plus(self, answer: Answer) -> Tally:
        """Return a tally that also counts `answer`."""
        broken = not answer.text.strip() or answer.finish == "length"
        return Tally(self.answers + 1, self.broken + broken)


class EngineStatsCollector:
    """Collector of one replica's statistics: totals for the fields of `EngineStats`, and recent first-token times."""

    def __init__(self) -> None:
        self.sums = Counter[str]()
        self.first_tokens: deque[float] = deque(maxlen=_RECENT)

    def note(self, answer: Answer) -> None:
        """Add a finished answer to the statistics."""
        self.sums.update(answered=1, **asdict(answer.usage))
        self.first_tokens.append(answer.first_token_seconds)


def combined(collectors: Sequence[EngineStatsCollector]) -> EngineStats:
    """Combine the statistics of several replicas."""
    times = sorted(time for collector in collectors for time in collector.first_tokens)
    sums = sum((collector.sums for collector in collectors), Counter[str]())
    return EngineStats(
        **sums, first_token_seconds_median=_quantile(times, 0.5), first_token_seconds_p99=_quantile(times, 0.99)
    )


def _quantile(ordered: list[float], share: float) -> float:
    """Return the nearest-rank quantile (`share` from 0 to 1) of sorted values, or 0 if there are no values."""
    return ordered[max(ceil(share * len(ordered)) - 1, 0)] if ordered else 0.0
