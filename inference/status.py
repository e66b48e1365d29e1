"""What the deployment tells about itself: for the operator's page, /health and the metrics. Plain values only."""

from __future__ import annotations

from dataclasses import dataclass, replace

from inference.engines import Kind
from inference.messages import Answer
from inference.supervisor import State


@dataclass(frozen=True, slots=True)
class Counters:
    """Since the deployment was made. Each question ends as exactly one of answered, failed and cancelled.

    `begun_anew` counts answers that were voided and begun again, `hangs` is a part of `crashes`. Tokens and tiles
    are those of finished answers.
    """

    answered: int = 0
    failed: int = 0
    cancelled: int = 0
    begun_anew: int = 0
    crashes: int = 0
    hangs: int = 0
    swaps: int = 0
    failed_swaps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    encoded_tiles: int = 0

    def plus(self, **more: int) -> Counters:
        """These counters with some of them increased."""
        return replace(self, **{name: getattr(self, name) + number for name, number in more.items()})

    def plus_answer(self, answer: Answer) -> Counters:
        """These counters after one more finished answer."""
        usage = answer.usage
        return self.plus(
            answered=1,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            encoded_tiles=usage.encoded_tiles,
        )


@dataclass(frozen=True, slots=True)
class Status:
    """One moment of a deployment.

    `pid` is the live engine's process (None: an external server, or none runs now), `pids` all children, a
    starting or draining one included; `uptime` is seconds since the live engine became ready, `restarts` those of
    the live model. `in_flight` and `waiting` count questions, `swapping_to` is the model that is warmed up now.
    """

    engine: Kind
    model: str
    state: State
    paused: bool
    pid: int | None
    pids: tuple[int, ...]
    uptime: float
    restarts: int
    in_flight: int
    waiting: int
    swapping_to: str | None
    last_error: str
    counters: Counters
