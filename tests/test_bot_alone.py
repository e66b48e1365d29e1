"""One bot on a data folder, and commands that know whether there is one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from bot.alone import at_work
from storage.states import RunState
from tests.bot_process import command
from tests.community import Community
from tests.fleets import Servers

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def community(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Community]:
    folder = tmp_path_factory.mktemp("alone")
    servers = Servers(folder, 1)
    (endpoint,) = servers.endpoints
    try:
        await servers.start(endpoint)
        async with Community(folder, inference={"endpoints": [endpoint]}) as community:
            await community.bot.start()
            yield community
    finally:
        await servers.end()


async def test_a_second_bot_is_refused(community: Community) -> None:
    """It is told of the first one before it touches anything, and the first one is well."""
    code, said = await command(community.config, "run")
    assert code == 1
    assert f"Another bot is at work on {community.data}" in said
    assert "Traceback" not in said
    await community.bot.healthy()


async def test_a_port_that_is_taken_is_named_with_the_cure(community: Community, tmp_path: Path) -> None:
    """A bot with a folder of its own cannot have the same port, nor the demo that of another demo."""
    taken = int(community.web.rpartition(":")[2])
    config = tmp_path / "other.toml"
    config.write_text(community.config.read_text().replace(str(community.data), str(tmp_path / "data")))
    code, said = await command(config, "run")
    assert code == 1
    assert f"Nothing can listen on 127.0.0.1:{taken}" in said
    assert "web.port" in said
    code, said = await command(config, "demo", "--port", str(taken))
    assert code == 1
    assert "--port 0" in said
    assert "Traceback" not in said


async def test_who_asks_for_a_run_hears_whether_a_bot_takes_it_up(community: Community) -> None:
    """Beside a bot it is taken up; once that was killed the next one's start is said to do it."""
    _, said = await command(community.config, "retrain")
    assert "the running bot takes it up" in said
    async with community.ledger() as ledger:
        while (await ledger.runs(1))[0].state is not RunState.FAILED:  # there is nothing to learn from
            await asyncio.sleep(0.05)
    await community.bot.kill()
    assert not at_work(community.data)
    code, said = await command(community.config, "retrain")
    assert code == 0, said
    assert "no bot is running" in said
