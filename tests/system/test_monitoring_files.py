"""The files in deploy/ for Prometheus and Grafana use only metrics and labels that /metrics exposes."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from inference.engines.reported_metrics import SAMPLES as ENGINE_NUMBERS
from tests.support.whole_bot import whole_bot

DEPLOY = Path(__file__).parents[2] / "deploy"
TARGET_LABELS = {"job", "instance"}
"""The labels that Prometheus adds to every sample of a target."""


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads((DEPLOY / "grafana-dashboard.json").read_text(encoding="utf-8"))
    return board


def expressions() -> Iterator[str]:
    """Yield every PromQL expression of the rules and the dashboard."""
    yield from (rule["expr"] for rule in rules())
    board = dashboard()
    yield from (target["expr"] for panel in board["panels"] for target in panel.get("targets", []))
    yield from (each["expr"] for each in board["annotations"]["list"])
    yield from (each["definition"] for each in board["templating"]["list"] if each["type"] == "query")


async def exposed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Return the names of the samples on /metrics of a running bot, each with its labels."""
    async with (
        whole_bot(folder, monkeypatch) as bot,
        bot.running() as application,
        aiohttp.ClientSession(application.address) as session,
        session.get("/metrics") as answer,
    ):
        families = list(text_string_to_metric_families(await answer.text()))
    found = defaultdict[str, set[str]](set)
    for family in families:
        for sample in family.samples:
            found[sample.name] |= {*sample.labels}
    # What real engines report about themselves; the fake engine does not.
    for name in ENGINE_NUMBERS.values():
        found[f"thumbtune_node_{name}"] |= {"node"}
    return dict(found)


async def test_every_expression_uses_what_is_exposed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each metric in a rule or a panel is exposed, and has the labels by which it is selected or grouped."""
    found = await exposed(tmp_path, monkeypatch)
    for expression in expressions():
        names = set(re.findall(r"\bthumbtune_\w+", expression))
        assert names <= set(found), expression
        assert names or expression.startswith("up{"), expression
        for name, selector in re.findall(r"\b(\w+){(.*?)}", expression):
            selected = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
            assert selected <= TARGET_LABELS | found.get(name, set()), expression
        known = TARGET_LABELS.union(*(found[name] for name in names))
        for labels in re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", expression):
            assert {each.strip() for each in labels.split(",")} - {""} <= known, expression


def test_counters_are_read_as_counters() -> None:
    """`rate` and `increase` are applied to counters and buckets only, `delta` to gauges only."""
    used = [each for text in expressions() for each in re.findall(r"\b(rate|increase|delta)\((\w+)", text)]
    assert used
    for function, name in used:
        assert name.endswith(("_total", "_bucket")) is (function != "delta"), name


def test_every_rule_says_what_is_wrong() -> None:
    """Each alert has a name of its own, a severity and a summary, and is about the job of prometheus.yml."""
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))
    assert all(rule["labels"]["severity"] in ("critical", "warning", "info") for rule in rules())
    assert all(rule["annotations"]["summary"] for rule in rules())
    configuration = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    (scraped,) = configuration["scrape_configs"]
    assert f'up{{job="{scraped["job_name"]}"}} == 0' in [rule["expr"] for rule in rules()]
    assert configuration["rule_files"] == ["alerts.yaml"]


def test_the_panels_are_sound() -> None:
    """Panels have unique IDs, do not overlap, and take the data source that the dashboard lets one choose."""
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert all(0 <= x < 24 for x, _ in cells)
    targets = [target for panel in panels for target in panel.get("targets", [])]
    assert {target["datasource"]["uid"] for target in targets} == {"${datasource}"}
