"""What the CPU engine counts, in Prometheus' text format.

Knows names and units only. Base units, as Prometheus asks for: seconds and bytes.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from inference.messages import Usage

_PREFIX = "thumbtune_engine"
_FIRST_TOKEN_BUCKETS = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 30, 60, 120, 300)


class EngineMetrics:
    """The counters of one engine process, in a registry of their own."""

    def __init__(self, model: str) -> None:
        registry = self._registry = CollectorRegistry()
        Info(f"{_PREFIX}_model", "The model that is served", registry=registry).info({"name": model})
        self.requests = Counter(
            f"{_PREFIX}_requests",
            "Chat completions by outcome: stop, length, abort, rejected (HTTP 4xx), error",
            ["outcome"],
            registry=registry,
        )
        self.first_token = Histogram(
            f"{_PREFIX}_first_token_seconds",
            "From a request's arrival to its first text, waiting included",
            buckets=_FIRST_TOKEN_BUCKETS,
            registry=registry,
        )
        self.running = Gauge(f"{_PREFIX}_running", "Answers being computed", registry=registry)
        self.waiting = Gauge(f"{_PREFIX}_waiting", "Requests waiting for a slot", registry=registry)
        self.cache_bytes = Gauge(f"{_PREFIX}_cache_bytes", "Keys, values and features kept", registry=registry)
        self._prompt_tokens = Counter(f"{_PREFIX}_prompt_tokens", "Tokens of all prompts", registry=registry)
        self._completion_tokens = Counter(f"{_PREFIX}_completion_tokens", "Tokens of all answers", registry=registry)
        self._cached_tokens = Counter(
            f"{_PREFIX}_cached_tokens", "Prompt tokens that were computed before", registry=registry
        )
        self._encoded_tiles = Counter(
            f"{_PREFIX}_encoded_tiles", "Picture tiles that went through the vision tower", registry=registry
        )

    def count(self, usage: Usage) -> None:
        """Add what one finished answer cost."""
        self._prompt_tokens.inc(usage.prompt_tokens)
        self._completion_tokens.inc(usage.completion_tokens)
        self._cached_tokens.inc(usage.cached_tokens)
        self._encoded_tiles.inc(usage.encoded_tiles)

    def text(self) -> bytes:
        """All of it, as /metrics answers."""
        return generate_latest(self._registry)
