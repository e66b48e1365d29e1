"""Blue/green swaps while users chat, with failures and kills at every stage."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from inference.messages import (
    EngineUnavailable,
    InferenceError,
)
from inference.serving.supervisor import State
from tests.support.children import alive, notes, until
from tests.support.deployments import Deploy, a_model, ask, deployed, open_gate, under_way


@pytest.fixture
def deploy(tmp_path: Path) -> Deploy:
    """Return a function that deploys the model "a" in this test's folder."""
    return partial(deployed, tmp_path)


async def test_swap_while_people_chat(deploy: Deploy, tmp_path: Path) -> None:
    """Four users chat through several swaps without errors or restarts, and no answer mixes two models.

    The old processes end.
    """
    async with deploy() as deployment:
        done = False
        models: list[str] = []

        async def chat(name: str) -> None:
            while not done:
                heard = await ask(deployment, "words:6 slow:0.01", name)
                assert heard.restarts == 0
                assert heard.pid
                models.append(heard.answer.model)

        chats = [asyncio.create_task(chat(f"person {number}")) for number in range(4)]
        for target in "bca":
            old = deployment.status().pid
            assert old is not None
            await deployment.swap(target, a_model(tmp_path, target))
            assert deployment.status().model == target
            assert not alive(old)
            assert deployment.status().pids == (deployment.status().pid,)
            seen = len(models)
            await until(lambda seen=seen: len(models) >= seen + 8)  # type: ignore[misc]
            assert set(models[seen + 4 :]) == {target}
        done = True
        await asyncio.gather(*chats)
        assert deployment.status().counters.swaps == 3


@pytest.mark.parametrize(
    ("cue", "more", "said"),
    [
        ({"start": "exit"}, {}, "exit code 3.*these weights are no good"),
        ({"start": "deaf"}, {"start_timeout": 1.5}, "not ready"),
        ({"start": "refuse"}, {}, "refused"),
        (None, {}, "no directory"),
    ],
)
async def test_swap_failed(
    deploy: Deploy, tmp_path: Path, cue: dict[str, Any] | None, more: dict[str, Any], said: str
) -> None:
    """If a new model does not start, the live model keeps its process and finishes its answer in progress."""
    async with deploy(**more) as deployment:
        old = deployment.status().pid
        asking, _ = await under_way(deployment, "gate:2", "meanwhile")
        target = tmp_path / "b" if cue is None else a_model(tmp_path, "b", **cue)
        with pytest.raises(EngineUnavailable, match=f"(?s){said}"):
            await deployment.swap("b", target)
        assert (deployment.status().model, deployment.status().pid, deployment.status().pids) == ("a", old, (old,))
        open_gate(tmp_path / "a")
        assert (await asking).pid == old
        assert (await asking).restarts == 0
        assert deployment.status().counters.failed_swaps == 1
        await deployment.swap("c", a_model(tmp_path, "c"))
        assert deployment.status().model == "c"


async def test_swap_old_engine_finishes_its_answers(deploy: Deploy, tmp_path: Path) -> None:
    """Once the new model is live, it takes new questions while the old one finishes its answers."""
    async with deploy() as deployment:
        old = deployment.status().pid
        asking, heard = await under_way(deployment, "gate:2", "long")
        swapping = asyncio.create_task(deployment.swap("b", a_model(tmp_path, "b")))
        await until(lambda: deployment.status().model == "b")
        assert not asking.done(), "the long answer is still under way"
        assert len(deployment.status().pids) == 2
        assert (await ask(deployment, "hi", "new")).answer.model == "b"
        open_gate(tmp_path / "a")
        assert (await asking).pid == old
        assert (await asking).restarts == 0
        await swapping
        assert heard[-1].answer is not None


async def test_swap_forgets_no_crash(deploy: Deploy, tmp_path: Path) -> None:
    """An old engine's crashes remain in the count, exactly once, both while it drains and after it ends."""
    async with deploy(warm_chats=0) as deployment:
        assert (await ask(deployment, "die:3!")).restarts == 1
        asking, _ = await under_way(deployment, "gate:2", "long")
        swapping = asyncio.create_task(deployment.swap("b", a_model(tmp_path, "b")))
        await until(lambda: deployment.status().model == "b")
        assert not asking.done(), "the old engine is still draining"
        assert deployment.status().counters.crashes == 1
        open_gate(tmp_path / "a")
        await swapping
        assert (await asking).restarts == 0
        assert deployment.status().counters.crashes == 1


async def test_swap_limits_the_drain(deploy: Deploy, tmp_path: Path) -> None:
    """An answer that outlasts the drain is discarded and restarted on the new model."""
    async with deploy(drain_timeout=0.2, stop_timeout=0.2) as deployment:
        asking, _ = await under_way(deployment, "gate:2", "endless")
        open_gate(a_model(tmp_path, "b"))
        await deployment.swap("b", tmp_path / "b")
        heard = await asking
        assert heard.restarts == 1
        assert heard.pid == deployment.status().pid
        assert heard.answer.model == "b"


async def test_swaps_are_serialized(deploy: Deploy, tmp_path: Path) -> None:
    """Swaps requested concurrently run one at a time, never with more than two processes.

    The last model requested ends up live.
    """
    async with deploy() as deployment:
        swaps = [
            asyncio.create_task(deployment.swap(name, a_model(tmp_path, name, late=0.1))) for name in ("b", "c", "d")
        ]
        most = 0

        def all_done() -> bool:
            nonlocal most
            most = max(most, len(deployment.status().pids))
            return all(swap.done() for swap in swaps)

        await until(all_done)
        await asyncio.gather(*swaps)
        assert most == 2
        assert deployment.status().model == "d"
        assert deployment.status().counters.swaps == 3


async def test_swap_crash_of_the_old_engine_during_a_swap(deploy: Deploy, tmp_path: Path) -> None:
    """A crash of the live engine while the new one warms up harms neither the chats nor the swap."""
    async with deploy() as deployment:
        old = deployment.status().pid
        assert old is not None
        asking, _ = await under_way(deployment, "gate:2", "chat")
        swapping = asyncio.create_task(deployment.swap("b", a_model(tmp_path, "b", late=2)))
        await until(lambda: notes(tmp_path / "b", "start"))
        assert deployment.status().swapping_to == "b"
        os.kill(old, signal.SIGKILL)
        open_gate(tmp_path / "a")
        heard = await asking
        assert heard.restarts == 1
        assert heard.pid != old
        await swapping
        assert (await ask(deployment, "hi")).answer.model == "b"


async def test_swap_crash_of_the_draining_engine(deploy: Deploy, tmp_path: Path) -> None:
    """An old engine that dies while draining is not restarted; the new model restarts the unfinished answers."""
    async with deploy() as deployment:
        old = deployment.status().pid
        assert old is not None
        asking, _ = await under_way(deployment, "gate:2", "chat")
        open_gate(a_model(tmp_path, "b"))
        swapping = asyncio.create_task(deployment.swap("b", tmp_path / "b"))
        await until(lambda: deployment.status().model == "b")
        os.kill(old, signal.SIGKILL)
        await swapping
        assert deployment.status().pids == (deployment.status().pid,)
        heard = await asking
        assert heard.restarts == 1
        assert heard.answer.model == "b"
        assert heard.pid == deployment.status().pid
        assert len(notes(tmp_path / "a", "start")) == 1


async def test_swap_killed_while_warming_up(deploy: Deploy, tmp_path: Path) -> None:
    """A swap fails at once if the new engine is killed before it is ready; no answer is interrupted."""
    async with deploy() as deployment:
        old = deployment.status().pid
        swapping = asyncio.create_task(deployment.swap("b", a_model(tmp_path, "b", late=10)))
        await until(lambda: notes(tmp_path / "b", "start"))
        os.kill(notes(tmp_path / "b", "start")[0]["pid"], signal.SIGKILL)
        with pytest.raises(EngineUnavailable, match="SIGKILL"):
            await swapping
        assert (await ask(deployment, "hi")).pid == old


async def test_swap_rescues_a_failing_model(deploy: Deploy, tmp_path: Path) -> None:
    """A rollback works even if the live model no longer starts."""
    async with deploy(restart_limit=1, restart_delay=5) as deployment:
        a_model(tmp_path, "a", start="exit")
        pid = deployment.status().pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: deployment.status().state is State.FAILING)
        await deployment.swap("b", a_model(tmp_path, "b"))
        assert (await ask(deployment, "hi")).answer.model == "b"


async def test_swap_to_the_live_model(deploy: Deploy, tmp_path: Path) -> None:
    """Swapping to the model that is already live and ready does nothing, so a swap can be repeated safely."""
    async with deploy() as deployment:
        old = deployment.status().pid
        await deployment.swap("a", tmp_path / "a")
        assert deployment.status().pid == old
        assert deployment.status().counters.swaps == 0


@pytest.mark.parametrize("moment", ["warming", "draining"])
async def test_swap_cancelled(deploy: Deploy, tmp_path: Path, moment: str) -> None:
    """A cancelled swap leaves only the old process or, if the new model is already live, only the new one.

    The next swap works in both cases.
    """
    async with deploy() as deployment:
        asking, _ = await under_way(deployment, "gate:2", "long")
        late = 10 if moment == "warming" else 0
        swapping = asyncio.create_task(deployment.swap("b", a_model(tmp_path, "b", late=late)))
        if moment == "warming":
            await until(lambda: notes(tmp_path / "b", "start"))
        else:
            await until(lambda: deployment.status().model == "b")
        swapping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await swapping
        assert deployment.status().model == ("a" if moment == "warming" else "b")
        open_gate(tmp_path / "a")
        await deployment.swap("c", a_model(tmp_path, "c"))
        assert (await asking).restarts == 0
        assert deployment.status().pids == (deployment.status().pid,)


async def test_swap_stubborn_engine_is_killed(deploy: Deploy, tmp_path: Path) -> None:
    """An old engine that ignores SIGTERM is gone, child processes included, when the swap returns."""
    async with deploy(cue={"stubborn": True, "crowd": True}, stop_timeout=0.2) as deployment:
        await deployment.swap("b", a_model(tmp_path, "b"))
        old = [notes(tmp_path / "a", "start")[0]["pid"], notes(tmp_path / "a", "crowd")[0]["crowd"]]
        await until(lambda: not any(alive(pid) for pid in old))


@pytest.mark.parametrize("moment", ["at once", "warming", "draining"])
async def test_swap_stopped_in_the_middle(deploy: Deploy, tmp_path: Path, moment: str) -> None:
    """Stopping the deployment at any stage of a swap soon ends both engine processes."""
    async with deploy() as deployment:
        asking, _ = await under_way(deployment, "gate:2", "long")
        late = 10 if moment == "warming" else 0
        swapping = asyncio.create_task(deployment.swap("b", a_model(tmp_path, "b", late=late)))
        if moment == "at once":
            await until(lambda: deployment.status().swapping_to)
        elif moment == "warming":
            await until(lambda: notes(tmp_path / "b", "start"))
        else:
            await until(lambda: deployment.status().model == "b")
        async with asyncio.timeout(8):
            await deployment.stop()
        assert deployment.status().pids == ()
        with pytest.raises(InferenceError):
            await asking
        if moment == "draining":
            await swapping
        else:
            with pytest.raises(EngineUnavailable, match="stopped"):
                await swapping


async def test_swap_logs_both_slots(deploy: Deploy, tmp_path: Path) -> None:
    """Each of the two slots has its own log file with the engine's command line and process ID."""
    async with deploy() as deployment:
        await deployment.swap("b", a_model(tmp_path, "b"))
        blue, green = ((tmp_path / "logs" / f"engine-{slot}.log").read_text() for slot in ("blue", "green"))
        assert "serving a" in blue
        assert "serving b" in green
        assert str(deployment.status().pid) in green
