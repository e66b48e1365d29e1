"""Every number exported by /metrics has the right type, a help text and a line in docs/metrics.md."""

from __future__ import annotations

import re
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bot.web.metrics import COUNTERS, GAUGES, NODE_COUNTERS, NODE_GAUGES, render
from inference.engines.reported_metrics import SAMPLES as ENGINE_NUMBERS
from tests.support.whole_bot import whole_bot

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"


async def test_a_running_bot_exports_all_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/metrics exports every gauge and every counter, and the names of counters end in `_total`."""
    async with (
        whole_bot(tmp_path, monkeypatch) as bot,
        bot.running() as application,
        aiohttp.ClientSession(application.address) as session,
        session.get("/metrics") as answer,
    ):
        families = {each.name: each for each in text_string_to_metric_families(await answer.text())}
    for name in GAUGES:
        assert families[f"thumbtune_{name}"].type == "gauge"
    for name in COUNTERS:
        family = families[f"thumbtune_{name}"]
        assert family.type == "counter"
        assert [sample.name for sample in family.samples] == [f"thumbtune_{name}_total"]
    for name, kind in (("ready", "gauge"), ("answered", "counter")):
        assert families[f"thumbtune_node_{name}"].type == kind
        assert families[f"thumbtune_node_{name}"].samples[0].labels == {"node": "cpu"}


async def test_no_number_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number in a metrics snapshot has a description in `bot.web.metrics`."""
    seen: list[tuple[set[str], set[str]]] = []

    def noted(numbers: dict[str, float], labels: dict[str, str], nodes: dict[str, dict[str, float]]) -> bytes:
        seen.append((set(numbers), {name for node in nodes.values() for name in node}))
        return render(numbers, labels, nodes)

    monkeypatch.setattr("bot.web.server.render", noted)
    async with (
        whole_bot(tmp_path, monkeypatch) as bot,
        bot.running() as application,
        aiohttp.ClientSession(application.address) as session,
        session.get("/metrics") as answer,
    ):
        assert answer.status == 200
    ((numbers, node_numbers),) = seen
    assert numbers == {*GAUGES, *COUNTERS}
    assert node_numbers | set(ENGINE_NUMBERS.values()) == {*NODE_GAUGES, *NODE_COUNTERS}


def test_every_metric_is_documented() -> None:
    """docs/metrics.md lists every metric with its type and its help text."""
    listed = re.findall(
        r"^\| `(\w+)(?:{[\w,]+})?` \| (\w+) \| (.+) \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE
    )
    expected = [
        *((f"thumbtune_{name}", "gauge", text) for name, text in GAUGES.items()),
        *((f"thumbtune_{name}_total", "counter", text) for name, text in COUNTERS.items()),
        *((f"thumbtune_node_{name}", "gauge", text) for name, text in NODE_GAUGES.items()),
        *((f"thumbtune_node_{name}_total", "counter", text) for name, text in NODE_COUNTERS.items()),
        ("thumbtune_info", "gauge", "The model and the engine in use; always 1"),
    ]
    assert listed == expected
