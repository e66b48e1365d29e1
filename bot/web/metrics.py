"""The bot's numbers in Prometheus' text format.

Builds a registry anew for every scrape from one snapshot, so nothing has to be kept in step. Knows the metric
names; the snapshot's owner is `bot.vitals`.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Gauge, generate_latest

PREFIX = "thumbtune"


def render(numbers: Mapping[str, float], labels: Mapping[str, str], nodes: Mapping[str, Mapping[str, float]]) -> bytes:
    """The exposition text: one gauge a number (named `thumbtune_<name>`) and an info gauge with the labels.

    A node's numbers are gauges too (`thumbtune_node_<name>`), labelled with the node's name.
    """
    registry = CollectorRegistry()
    for name, value in numbers.items():
        Gauge(f"{PREFIX}_{name}", name.replace("_", " "), registry=registry).set(value)
    gauges: dict[str, Gauge] = {}
    for node, counted in nodes.items():
        for name, value in counted.items():
            if name not in gauges:
                gauges[name] = Gauge(f"{PREFIX}_node_{name}", f"node {name}", ["node"], registry=registry)
            gauges[name].labels(node).set(value)
    info = Gauge(f"{PREFIX}_info", "what is running", list(labels), registry=registry)
    info.labels(**labels).set(1)
    return generate_latest(registry)
