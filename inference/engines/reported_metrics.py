"""Parsing of an engine's /metrics page for the metrics that the bot shows."""

from __future__ import annotations

from typing import Final

from prometheus_client.parser import text_string_to_metric_families

SAMPLES: Final = {
    "thumbtune_tile_cache_hits_total": "tile_cache_hits",
    "thumbtune_tile_cache_misses_total": "tile_cache_misses",
    "thumbtune_tile_cache_bytes": "tile_cache_bytes",
    "thumbtune_prefill_waiting": "prefill_waiting",
    "thumbtune_engine_waiting": "engine_waiting",
    "thumbtune_engine_running": "engine_running",
    "thumbtune_engine_cache_bytes": "cache_bytes",
    "lmdeploy:num_requests_waiting": "engine_waiting",
    "lmdeploy:num_requests_running": "engine_running",
    "lmdeploy:gpu_cache_usage_perc": "cache_used_ratio",
}
"""The samples of the CPU engine, of the lmdeploy patches and of lmdeploy itself, with the names that the bot uses."""


def read_metrics(page: str) -> dict[str, float]:
    """Return the values of `SAMPLES` in a page in the Prometheus text format, summed over labels.

    Raises:
        ValueError: The page is not in the Prometheus text format.
    """
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if (name := SAMPLES.get(sample.name)) is not None:
                values[name] = values.get(name, 0) + sample.value
    return values
