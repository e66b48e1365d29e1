"""The bot's metrics in the Prometheus text format, rendered from a new snapshot on each scrape.

The file docs/metrics.md lists the metrics for use in dashboards and alerts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

PREFIX: Final = "thumbtune"

Sources = Mapping[tuple[str, ...], Mapping[str, float]]
"""The values of metrics by name, for each tuple of label values."""

GAUGES: Final = {
    "users": "Users in the ledger",
    "chats": "Chats in the ledger",
    "sessions": "Conversations in the ledger",
    "exchanges": "Questions with their answers in the ledger",
    "pictures": "Pictures in the ledger",
    "votes": "Votes in the ledger, including superseded ones",
    "ups": "Latest votes that are 👍, one per rater and answer",
    "downs": "Latest votes that are 👎, one per rater and answer",
    "runs": "Training runs in any state",
    "runs_failed": "Training runs that failed",
    "models": "Models, including removed ones",
    "updates_pending": "Updates stored but not finished yet",
    "updates_set_aside": "Updates abandoned after repeated failures (dead letters)",
    "replies_doubtful": "Stored replies that may have been sent twice or not at all",
    "telegram_calls_per_second_allowed": "Calls to Telegram per second that the rate limiter currently allows",
    "canary_share": "Share of the conversations in which the canary answers; 0 without a canary, as are the next four",
    "canary_votes": "Votes on the canary's answers since its trial began",
    "canary_live_votes": "Votes on the live model's answers in that time",
    "canary_evidence_worse": "Evidence that the canary is worse; it is rolled back at 20",
    "canary_evidence_no_worse": "Evidence that the canary is no worse; it is promoted at 20",
    "disk_free_bytes": "Free bytes on the disk that holds the data folder",
    "engine_ready": "1 while any engine answers, else 0",
    "engine_paused": "1 while training has the GPU to itself and questions wait, else 0",
    "engine_in_flight": "Answers being generated",
    "engine_waiting": "Questions in the queue",
    "engine_restarts": "Restarts of the engines now in use; falls when a model is replaced",
    "engine_uptime_seconds": "Seconds since the engine became ready",
}

COUNTERS: Final = {
    "telegram_calls": "Requests to Telegram, including repeated ones",
    "telegram_floods": "Requests that Telegram refused for flooding (HTTP 429)",
    "telegram_repeats": "Requests repeated after an error",
    "telegram_doubtful": "Requests whose outcome is unknown",
    "telegram_unreachable": "Requests to users who have blocked the bot or to chats that no longer exist",
    "telegram_dropped": "Edits and typing actions left out to stay within the rate limits",
    "engine_answered": "Questions answered",
    "engine_failed": "Questions that failed",
    "engine_cancelled": "Questions cancelled before their answer was complete",
    "engine_answers_restarted": "Answers discarded and generated again",
    "engine_crashes": "Engine processes that ended unexpectedly, including hangs",
    "engine_hangs": "Engine processes ended because they made no progress",
    "engine_swaps": "Completed changes of the live model",
    "engine_failed_swaps": "Failed changes of the live model",
    "engine_warmed": "Prompts computed in advance for chats that moved to another engine",
    "engine_prompt_tokens": "Tokens in the prompts of finished answers",
    "engine_cached_tokens": "Prompt tokens taken from a cache",
    "engine_completion_tokens": "Tokens generated in finished answers",
    "engine_encoded_tiles": "Picture tiles that went through the vision tower",
}

NODE_GAUGES: Final = {
    "ready": "1 while the engine answers, else 0",
    "away": "1 while the engine is out of service on purpose, else 0",
    "in_flight": "Answers being generated",
    "waiting": "Questions in the queue for this engine",
    "chats": "Recently active chats that this engine answers",
    "engine_waiting": "Requests waiting inside the engine",
    "engine_running": "Requests running inside the engine",
    "cache_bytes": "Bytes of keys, values and features in the engine's cache",
    "cache_used_ratio": "Used share of the engine's key-value cache, 0 to 1",
    "tile_cache_bytes": "Bytes in the cache of picture features",
    "prefill_waiting": "Prompts with new pictures waiting to be prefilled",
}

NODE_COUNTERS: Final = {
    "answered": "Questions answered",
    "prompt_tokens": "Tokens in the prompts of finished answers",
    "cached_tokens": "Prompt tokens taken from a cache",
    "completion_tokens": "Tokens generated in finished answers",
    "encoded_tiles": "Picture tiles that went through the vision tower",
    "tile_cache_hits": "Picture tiles found in the cache of picture features",
    "tile_cache_misses": "Picture tiles not found in the cache of picture features",
}


# The classic text format has no place for creation times, so they would become gauges.
disable_created_metrics()  # type: ignore[no-untyped-call]


def render(
    numbers: Mapping[str, float],
    labels: Mapping[str, str],
    nodes: Mapping[str, Mapping[str, float]],
    histograms: Iterable[Collector],
) -> bytes:
    """Return the metrics in the Prometheus text format.

    Args:
        numbers: The bot's own values, keyed by the names in `GAUGES` and `COUNTERS`. Other names are
            ignored.
        labels: The model and the engine in use, for `thumbtune_info`.
        nodes: Each engine's values, keyed by the engine's name and then by the names in `NODE_GAUGES` and
            `NODE_COUNTERS`.
        histograms: Further metrics, which their owners keep up to date.
    """
    registry = CollectorRegistry()
    for collector in (_Snapshot(numbers, labels, nodes), *histograms):
        registry.register(collector)
    return generate_latest(registry)


@dataclass(eq=False)
class _Snapshot(Collector):
    numbers: Mapping[str, float]
    labels: Mapping[str, str]
    nodes: Mapping[str, Mapping[str, float]]

    def collect(self) -> Iterable[Metric]:
        own: Sources = {(): self.numbers}
        yield from _families(GaugeMetricFamily, PREFIX, GAUGES, (), own)
        yield from _families(CounterMetricFamily, PREFIX, COUNTERS, (), own)
        engines: Sources = {(node,): numbers for node, numbers in self.nodes.items()}
        yield from _families(GaugeMetricFamily, f"{PREFIX}_node", NODE_GAUGES, ("node",), engines)
        yield from _families(CounterMetricFamily, f"{PREFIX}_node", NODE_COUNTERS, ("node",), engines)
        info = GaugeMetricFamily(f"{PREFIX}_info", "The model and the engine in use; always 1", labels=[*self.labels])
        info.add_metric([*self.labels.values()], 1)
        yield info


def _families(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
    prefix: str,
    described: Mapping[str, str],
    labels: tuple[str, ...],
    sources: Sources,
) -> Iterable[Metric]:
    for name, description in described.items():
        family = kind(f"{prefix}_{name}", description, labels=labels)
        for values, numbers in sources.items():
            if name in numbers:
                family.add_metric(values, numbers[name])
        if family.samples:
            yield family
