"""Cold swaps, for a GPU too small for two models.

The old engine stops before the new one starts, and waiting chats are notified.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from inference.messages import Delta, EngineUnavailable
from inference.serving.supervisor import State
from tests.support.children import alive, notes, until
from tests.support.deployments import Deploy, a_model, ask, deployed, open_gate, under_way


@pytest.fixture
def deploy(tmp_path: Path) -> Deploy:
    """Return a function that deploys the model "a" in this test's folder with cold swaps."""
    return partial(deployed, tmp_path, swap="cold")


async def test_cold_swap(deploy: Deploy, tmp_path: Path) -> None:
    """Answers in flight finish in a cold swap; chats that ask later are notified and wait for the new model.

    The two engines never run at the same time.
    """
    async with deploy() as deployment:
        old = deployment.status().pid
        assert old is not None
        asking, _ = await under_way(deployment, "gate:2", "before")
        swapping = asyncio.create_task(deployment.swap("b", a_model(tmp_path, "b", late=0.3)))
        await until(lambda: deployment.status().paused)
        heard: list[Delta] = []
        waiting = asyncio.create_task(ask(deployment, "hi", "meanwhile", heard))
        await until(lambda: heard)
        assert heard == [Delta(waiting=0, paused=True)]
        open_gate(tmp_path / "a")
        assert (await asking).pid == old
        most = 0

        def done() -> bool:
            nonlocal most
            most = max(most, len(deployment.status().pids))
            return swapping.done()

        await until(done)
        await swapping
        assert most == 1
        assert not alive(old)
        assert (await waiting).answer.model == "b"
        assert (await waiting).restarts == (await asking).restarts == 0
        assert not deployment.status().paused


async def test_cold_swap_restarts_answers_that_outlast_the_drain(deploy: Deploy, tmp_path: Path) -> None:
    """In a cold swap, an answer that outlasts the drain restarts on the new model, and its chat is notified."""
    async with deploy(drain_timeout=0.2, stop_timeout=0.2) as deployment:
        asking, heard = await under_way(deployment, "gate:2", "endless")
        open_gate(a_model(tmp_path, "b", late=0.3))
        await deployment.swap("b", tmp_path / "b")
        assert ((await asking).answer.model, (await asking).restarts) == ("b", 1)
        assert Delta(waiting=0, paused=True) in heard


async def test_cold_swap_failed(deploy: Deploy, tmp_path: Path) -> None:
    """If a cold swap fails, the old model is started again and answers, and the error names the reason."""
    async with deploy() as deployment:
        old = deployment.status().pid
        swapping = asyncio.create_task(deployment.swap("b", a_model(tmp_path, "b", start="exit")))
        waiting = asyncio.create_task(ask(deployment, "hi"))
        with pytest.raises(EngineUnavailable, match=r"(?s)these weights are no good.*a answers again"):
            await swapping
        assert (await waiting).answer.model == "a"
        status = deployment.status()
        assert (status.model, status.state, len(status.pids)) == ("a", State.READY, 1)
        assert status.pid != old
        assert status.counters.failed_swaps == 1
        await deployment.swap("c", a_model(tmp_path, "c"))
        assert (await ask(deployment, "hi")).answer.model == "c"


async def test_cold_swap_failed_and_so_did_the_old_engine(deploy: Deploy, tmp_path: Path) -> None:
    """If the old model also fails to start again after a failed swap, its start is retried until it succeeds."""
    async with deploy() as deployment:
        a_model(tmp_path, "a", start="exit_once")
        with pytest.raises(EngineUnavailable, match="did not restart either"):
            await deployment.swap("b", a_model(tmp_path, "b", start="exit"))
        assert (await ask(deployment, "hi")).answer.model == "a"


@pytest.mark.parametrize("how", ["cancelled", "stopped"])
async def test_cold_swap_cancelled_or_stopped(deploy: Deploy, tmp_path: Path, how: str) -> None:
    """A cold swap continues if its caller is cancelled; stopping the deployment ends the swap and all engines."""
    async with deploy() as deployment:
        swapping = asyncio.create_task(deployment.swap("b", a_model(tmp_path, "b", late=1)))
        await until(lambda: notes(tmp_path / "b", "start"))
        if how == "cancelled":
            swapping.cancel()
            with pytest.raises(asyncio.CancelledError):
                await swapping
            assert (await ask(deployment, "hi")).answer.model == "b"
        else:
            async with asyncio.timeout(8):
                await deployment.stop()
                with pytest.raises(EngineUnavailable):
                    await swapping
            assert deployment.status().pids == ()


async def test_cold_swap_stopped_while_the_old_engine_drains(deploy: Deploy, tmp_path: Path) -> None:
    """If the deployment is stopped while a cold swap drains the old engine, the new engine is never started."""
    async with deploy() as deployment:
        asking, _ = await under_way(deployment, "gate:2", "long")
        swapping = asyncio.create_task(deployment.swap("b", a_model(tmp_path, "b")))
        await until(lambda: deployment.status().state is State.STOPPED)
        assert deployment.status().pids, "the old engine is still answering"
        await deployment.stop()
        with pytest.raises(EngineUnavailable):
            await asking
        with pytest.raises(EngineUnavailable, match="stopped"):
            await swapping
        assert not (tmp_path / "logs" / "engine-green.log").exists(), "no process was ever started there"


async def test_cold_swap_of_one_node_of_two(deploy: Deploy, tmp_path: Path) -> None:
    """With two managed engines, no chat waits during a cold swap, because the other engine answers."""
    async with deploy(gpus=[0, 1]) as deployment:
        swapping = asyncio.create_task(deployment.swap("b", a_model(tmp_path, "b", late=0.5)))
        numbers = 0
        while not swapping.done():
            heard: list[Delta] = []
            await ask(deployment, "hi", f"chat {numbers % 7}", heard)
            assert not any(delta.paused or delta.restarted for delta in heard)
            numbers += 1
        await swapping
        assert numbers > 7
        assert {node.model for node in deployment.status().nodes} == {"b"}
