"""The instance lock allows one bot per data folder and lets commands detect a running bot."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from bot.instance_lock import bot_is_running
from storage.learning_records import Model
from storage.state_machines import ModelState, RunState
from tests.support.bot_process import command, ran
from tests.support.community import Community
from tests.support.fleets import external_server

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def community(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Community]:
    folder = tmp_path_factory.mktemp("alone")
    async with (
        external_server(folder) as (endpoint, _),
        Community(folder, inference={"endpoint": endpoint}) as community,
    ):
        await community.bot.start()
        yield community


async def test_a_second_bot_is_refused(community: Community) -> None:
    """A second bot process names the data folder and exits without changing anything; the first stays healthy."""
    code, said = await command(community.config, "run")
    assert code == 1
    assert f"Another bot is running on {community.data}" in said
    assert "Traceback" not in said
    await community.bot.healthy()


async def test_a_port_that_is_taken_is_named_with_the_cure(community: Community, tmp_path: Path) -> None:
    """A second bot or demo on a port already in use exits with an error naming the setting or option to change."""
    taken = int(community.web.rpartition(":")[2])
    config = tmp_path / "other.toml"
    config.write_text(community.config.read_text().replace(str(community.data), str(tmp_path / "data")))
    code, said = await command(config, "run")
    assert code == 1
    assert f"Cannot listen on 127.0.0.1:{taken}" in said
    assert "web.port" in said
    code, said = await command(config, "demo", "--port", str(taken))
    assert code == 1
    assert "--port 0" in said
    assert "Traceback" not in said


async def test_a_run_that_cannot_begin_is_refused(community: Community) -> None:
    """With too few votes, `thumbtune retrain` waits for the running bot's reply and reports the run's failure."""
    ended = await ran("retrain", "--config", str(community.config))
    assert (ended.code, ended.out) == (1, "")
    assert "Run 1: failed. Not enough yet: 0 liked answers" in ended.err
    async with community.ledger() as ledger:
        assert (await ledger.runs.latest(1))[0].state is RunState.FAILED


async def test_nothing_is_asked_of_a_bot_that_does_not_run(community: Community) -> None:
    """After the bot is killed, commands that need it fail at once, leaving no request for the next start."""
    await community.bot.kill()
    assert not bot_is_running(community.data)
    async with community.ledger() as ledger:
        await ledger.models.add(Model("run-9", "/m/run-9", ModelState.CANDIDATE, None, 1.0))
        await ledger.promotions.make("run-9")
        before = await ledger.promotions.latest(), await ledger.runs.latest()
        for words in (("retrain",), ("retrain", "--wait"), ("promote", "base"), ("rollback",)):
            ended = await ran(*words, "--config", str(community.config))
            assert (ended.code, ended.out) == (1, "")
            assert "No bot is running" in ended.err and "thumbtune run" in ended.err
        assert (await ledger.promotions.latest(), await ledger.runs.latest()) == before
