"""Prometheus metrics of the CPU engine, in base units (seconds and bytes)."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from inference.messages import Usage

_PREFIX = "thumbtune_engine"
_FIRST_TOKEN_BUCKETS = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 30, 60, 120, 300)


class EngineMetrics:
    """The metrics of one engine process, in their own registry."""

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
            "Time from a request's arrival to its first text, including the wait for a slot",
            buckets=_FIRST_TOKEN_BUCKETS,
            registry=registry,
        )
        self.running = Gauge(f"{_PREFIX}_running", "Answers being generated", registry=registry)
        self.waiting = Gauge(f"{_PREFIX}_waiting", "Requests waiting for a slot", registry=registry)
        self.cache_bytes = Gauge(f"{_PREFIX}_cache_bytes", "Cached keys, values and features", registry=registry)
        self._usage = {
            field: Counter(f"{_PREFIX}_{field}", text, registry=registry)
            for field, text in (
                ("prompt_tokens", "Tokens of all prompts"),
                ("completion_tokens", "Tokens of all answers"),
                ("cached_tokens", "Prompt tokens found in the prefix cache"),
                ("encoded_tiles", "Picture tiles that went through the vision tower"),
            )
        }

    def count(self, usage: Usage) -> None:
        """Add the usage of a finished answer to the counters."""
        for field, counter in self._usage.items():
            counter.inc(getattr(usage, field))

    def text(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        return generate_latest(self._registry)
