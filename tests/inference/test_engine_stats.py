"""Usage statistics: per replica, in total and from the engines' own metrics."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.messages import Answer, Usage
from inference.serving.engine_stats import EngineStats, EngineStatsCollector, combined
from tests.support.deployments import ask, deployed


def answer(first_token: float, *usage: int) -> Answer:
    return Answer("Yes.", "model", "stop", Usage(*usage), first_token, first_token + 1)


def test_all_answers_are_counted_and_the_newest_are_timed() -> None:
    """Token totals cover all answers; median and 99th-percentile first-token times cover only the newest."""
    collector = EngineStatsCollector()
    assert combined([collector]) == EngineStats()
    assert EngineStats().cached_share == 0
    collector.note(answer(1000, 100, 5, 0, 13))
    for number in range(1, 257):
        collector.note(answer(number / 100, 100, 5, 75, 0))
    assert combined([collector]) == EngineStats(257, 25_700, 19_200, 1285, 13, 1.28, 2.54)
    assert combined([collector]).cached_share == pytest.approx(0.747, abs=0.001)


def test_statistics_of_nodes_are_combined() -> None:
    """The statistics of several nodes are combined as if one node had given all the answers."""
    one, other = EngineStatsCollector(), EngineStatsCollector()
    one.note(answer(1, 10, 1, 4, 1))
    other.note(answer(3, 30, 1, 20, 0))
    other.note(answer(2, 10, 1, 6, 0))
    assert combined([one, other]) == EngineStats(3, 50, 30, 3, 1, 2, 3)


async def test_each_node_reports_its_answers(tmp_path: Path) -> None:
    """The status shows how often and how fast each node answered; engines without metrics report no numbers."""
    async with deployed(tmp_path, gpus=[0, 1]) as deployment:
        for chat in ("a", "b", "c", "d", "e"):
            await ask(deployment, "words:2", chat)
        status = deployment.status()
        assert sum(node.stats.answered for node in status.nodes) == status.stats.answered == 5
        assert all(node.stats.answered == node.chats for node in status.nodes)
        assert 0 < status.stats.first_token_seconds_median <= status.stats.first_token_seconds_p99
        assert status.stats.prompt_tokens == 500
        assert [node.waiting for node in status.nodes] == [0, 0]
        assert await deployment.engine_numbers() == {"gpu0": {}, "gpu1": {}}
