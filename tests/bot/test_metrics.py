"""Every number exported by /metrics has the right type, a help text and a line in docs/metrics.md."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from bot.web.metrics import COUNTERS, GAUGES, NODE_COUNTERS, NODE_GAUGES, render
from inference.engines.reported_metrics import SAMPLES as ENGINE_NUMBERS
from inference.serving.engine_stats import SECONDS_BUCKETS
from tests.support.person import button
from tests.support.whole_bot import picture, whole_bot, words

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
HISTOGRAMS = {"first_word_seconds": {}, "answer_seconds": {}, "node_first_token_seconds": {"node": "cpu"}}


async def scraped(address: str) -> dict[str, Metric]:
    """Read /metrics over HTTP, and return its families by name."""
    async with aiohttp.ClientSession(address) as session, session.get("/metrics") as answer:
        assert answer.status == 200
        return {each.name: each for each in text_string_to_metric_families(await answer.text())}


async def test_a_running_bot_exports_all_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/metrics exports every gauge and every counter, and the names of counters end in `_total`."""
    async with whole_bot(tmp_path, monkeypatch) as bot, bot.running() as application:
        families = await scraped(application.address)
    assert not [name for name in families if name.endswith("_created")]
    for name in GAUGES:
        assert families[f"thumbtune_{name}"].type == "gauge"
    for name in COUNTERS:
        family = families[f"thumbtune_{name}"]
        assert family.type == "counter"
        assert [sample.name for sample in family.samples] == [f"thumbtune_{name}_total"]
    for name, kind in (("ready", "gauge"), ("answered", "counter")):
        assert families[f"thumbtune_node_{name}"].type == kind
        assert families[f"thumbtune_node_{name}"].samples[0].labels == {"node": "cpu"}


async def test_waiting_times_are_histograms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First words and whole answers are timed as a person sees them.

    A stopped answer has first words only, and an apology counts as neither.
    """
    async with whole_bot(tmp_path, monkeypatch) as bot, bot.running() as application:
        ada = await bot.person(100, "Ada", "en")
        families = await until_counted(application.address, 0, 0, 0)
        texts = [(f"thumbtune_{each}", "histogram", families[f"thumbtune_{each}"].documentation) for each in HISTOGRAMS]
        assert [each for each in documented() if each[1] == "histogram"] == texts
        await ada.asks(photo=picture(1), caption="words:6 slow:0.05")
        families = await until_counted(application.address, 1, 1, 1)
        first_token, first_word, answer = (
            value(families, f"thumbtune_{name}_seconds_sum", labels)
            for name, labels in (("node_first_token", {"node": "cpu"}), ("first_word", {}), ("answer", {}))
        )
        assert 0 < first_token < first_word < answer
        await ada.sends("words:3 gate:2")
        await ada.first_words()
        (unfinished,) = [each for each in await ada.bot_messages() if button(each, "⏹")]
        await ada.toast(await ada.taps("⏹", unfinished))
        await ada.answer(rated=True)
        await ada.sends("http:500")
        await bot.says(100, lambda message: words(message).startswith("Something went wrong"))
        await ada.asks("words:1")
        await until_counted(application.address, 3, 2, 2)


async def until_counted(address: str, *expected: int) -> dict[str, Metric]:
    """Read /metrics until each histogram has its expected number of observations: they follow the last edit."""
    async with asyncio.timeout(30):
        while True:
            families = await scraped(address)
            if tuple(counted(families, name, labels) for name, labels in HISTOGRAMS.items()) == expected:
                return families
            await asyncio.sleep(0.01)


def documented() -> list[tuple[str, str, str]]:
    """Return the name, the type and the help text of each metric in docs/metrics.md."""
    text = DOCUMENT.read_text(encoding="utf-8")
    return re.findall(r"^\| `(\w+)(?:{[\w,]+})?` \| (\w+) \| (.+) \|$", text, re.MULTILINE)


def value(families: Mapping[str, Metric], sample: str, labels: Mapping[str, str]) -> float:
    """Return the value of the sample that has exactly these labels."""
    everything: Iterable[Metric] = families.values()
    (found,) = [
        each.value for family in everything for each in family.samples if (each.name, each.labels) == (sample, labels)
    ]
    return found


def counted(families: Mapping[str, Metric], name: str, labels: Mapping[str, str]) -> float:
    """Return the number of observations in a histogram, whose buckets must add up to it."""
    assert families[f"thumbtune_{name}"].type == "histogram"
    bounds = [f"{bound:.1f}" if bound >= 1 else f"{bound:g}" for bound in SECONDS_BUCKETS]
    buckets = [value(families, f"thumbtune_{name}_bucket", {**labels, "le": bound}) for bound in (*bounds, "+Inf")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == value(families, f"thumbtune_{name}_count", labels)
    return buckets[-1]


async def test_no_number_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number in a metrics snapshot has a description in `bot.web.metrics`."""
    seen: list[tuple[set[str], set[str]]] = []

    def noted(
        numbers: dict[str, float],
        labels: dict[str, str],
        nodes: dict[str, dict[str, float]],
        histograms: Iterable[Collector],
    ) -> bytes:
        seen.append((set(numbers), {name for node in nodes.values() for name in node}))
        return render(numbers, labels, nodes, histograms)

    monkeypatch.setattr("bot.web.server.render", noted)
    async with whole_bot(tmp_path, monkeypatch) as bot, bot.running() as application:
        await scraped(application.address)
    ((numbers, node_numbers),) = seen
    assert numbers == {*GAUGES, *COUNTERS}
    assert node_numbers | set(ENGINE_NUMBERS.values()) == {*NODE_GAUGES, *NODE_COUNTERS}


def test_every_metric_is_documented() -> None:
    """docs/metrics.md lists every metric with its type and its help text."""
    expected = [
        *((f"thumbtune_{name}", "gauge", text) for name, text in GAUGES.items()),
        *((f"thumbtune_{name}_total", "counter", text) for name, text in COUNTERS.items()),
        *((f"thumbtune_node_{name}", "gauge", text) for name, text in NODE_GAUGES.items()),
        *((f"thumbtune_node_{name}_total", "counter", text) for name, text in NODE_COUNTERS.items()),
        ("thumbtune_info", "gauge", "The model and the engine in use; always 1"),
    ]
    assert [each for each in documented() if each[1] != "histogram"] == expected
