"""Reading an engine's /metrics page."""

from __future__ import annotations

import pytest

from inference.engines.reported_metrics import read_metrics


def test_selected_samples_are_summed_over_labels() -> None:
    """Known metrics are summed over their labels and given the bot's names; others are ignored."""
    page = (
        "# TYPE thumbtune_tile_cache_hits_total counter\n"
        "thumbtune_tile_cache_hits_total 12.0\n"
        'lmdeploy:num_requests_waiting{engine="0",model_name="a"} 2.0\n'
        'lmdeploy:num_requests_waiting{engine="1",model_name="a"} 1.0\n'
        "python_info 1.0\n"
    )
    assert read_metrics(page) == {"tile_cache_hits": 12, "engine_waiting": 3}
    with pytest.raises(ValueError):
        read_metrics("<html>")
