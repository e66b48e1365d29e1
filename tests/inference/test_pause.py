"""Pausing the deployment: the engine stops, and waiting questions are answered after the pause."""

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
    """Return a function that deploys the model "a" in this test's folder."""
    return partial(deployed, tmp_path)


async def test_pause_frees_the_engine(deploy: Deploy, tmp_path: Path) -> None:
    """A pause lets answers in flight finish, ends the engine process and makes new questions wait.

    After `resume`, a new process answers the waiting questions.
    """
    async with deploy() as deployment:
        old = deployment.status().pid
        answering, _ = await under_way(deployment, "gate:2", "before")
        pausing = asyncio.create_task(deployment.pause())
        await until(lambda: deployment.status().paused)
        open_gate(tmp_path / "a")
        await pausing
        assert (await answering).pid == old
        assert deployment.status().pids == ()
        assert deployment.status().paused
        deltas: list[Delta] = []
        waiting = [asyncio.create_task(ask(deployment, "hi", name, deltas)) for name in ("one", "two")]
        await until(lambda: len(deltas) == 2)
        assert deltas == [Delta(waiting=0, paused=True), Delta(waiting=1, paused=True)]
        await deployment.resume()
        await asyncio.gather(*waiting)
        assert deployment.status().pid not in (None, old)
        assert not deployment.status().paused
        await deployment.resume()


async def test_pause_restarts_answers_that_outlast_the_drain(deploy: Deploy, tmp_path: Path) -> None:
    """An answer that outlasts the drain restarts after the pause, and its chat is notified of the pause."""
    async with deploy(drain_timeout=0.1, stop_timeout=0.2) as deployment:
        answering, deltas = await under_way(deployment, "gate:2", "long")
        await deployment.pause()
        await until(lambda: Delta(waiting=0, paused=True) in deltas)
        open_gate(tmp_path / "a")
        await deployment.resume()
        assert (await answering).restarts == 1
        assert (await answering).pid == deployment.status().pid


async def test_swap_during_a_pause(deploy: Deploy, tmp_path: Path) -> None:
    """A model promoted during a pause answers the waiting questions when the pause ends."""
    async with deploy() as deployment:
        await deployment.pause()
        await deployment.swap("b", a_model(tmp_path, "b"))
        waiting = asyncio.create_task(ask(deployment, "hi"))
        await until(lambda: deployment.status().waiting == 1)
        await deployment.resume()
        assert (await waiting).answer.model == "b"
