"""A pause: the engine ends, people wait and are told; afterwards they are answered."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from inference.messages import Delta
from tests.support.children import until
from tests.support.deployments import Deploy, a_model, ask, deployed, open_gate, under_way


@pytest.fixture
def deploy(tmp_path: Path) -> Deploy:
    """Deploy the model "a" of this test's folder."""
    return partial(deployed, tmp_path)


async def test_pause_frees_the_engine(deploy: Deploy, tmp_path: Path) -> None:
    """Pausing lets answers end, ends the process and tells who asks; resuming answers them on a new process."""
    async with deploy() as deployment:
        old = deployment.status().pid
        asking, _ = await under_way(deployment, "gate:2", "before")
        pausing = asyncio.create_task(deployment.pause())
        await until(lambda: deployment.status().paused)
        open_gate(tmp_path / "a")
        await pausing
        assert (await asking).pid == old
        assert deployment.status().pids == ()
        assert deployment.status().paused
        heard: list[Delta] = []
        waiting = [asyncio.create_task(ask(deployment, "hi", name, heard)) for name in ("one", "two")]
        await until(lambda: len(heard) == 2)
        assert heard == [Delta(waiting=0, paused=True), Delta(waiting=1, paused=True)]
        await deployment.resume()
        await asyncio.gather(*waiting)
        assert deployment.status().pid not in (None, old)
        assert not deployment.status().paused
        await deployment.resume()


async def test_pause_voids_what_does_not_end(deploy: Deploy, tmp_path: Path) -> None:
    """An answer that outlasts the drain is begun anew after the pause, and its chat is told of the pause."""
    async with deploy(drain_timeout=0.1, stop_timeout=0.2) as deployment:
        asking, heard = await under_way(deployment, "gate:2", "long")
        await deployment.pause()
        await until(lambda: Delta(waiting=0, paused=True) in heard)
        open_gate(tmp_path / "a")
        await deployment.resume()
        assert (await asking).restarts == 1
        assert (await asking).pid == deployment.status().pid


async def test_pause_with_a_swap_in_it(deploy: Deploy, tmp_path: Path) -> None:
    """A model promoted during a pause is the one that answers after it."""
    async with deploy() as deployment:
        await deployment.pause()
        await deployment.swap("b", a_model(tmp_path, "b"))
        waiting = asyncio.create_task(ask(deployment, "hi"))
        await until(lambda: deployment.status().waiting == 1)
        await deployment.resume()
        assert (await waiting).answer.model == "b"
