"""Rolling swaps: the operator's command swaps the model of one external server after another."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from inference.messages import Delta, EngineUnavailable
from inference.serving.deployment import Deployment
from inference.serving.supervisor import State
from tests.support.children import notes, until
from tests.support.deployments import a_model, ask, deployed, open_gate, under_way
from tests.support.fleets import Servers, cued, fleet


def models(deployment: Deployment) -> list[str]:
    return [node.model for node in deployment.status().nodes]


async def test_rolling_swap_while_people_chat(tmp_path: Path) -> None:
    """Three servers change models one by one without interrupting answers or mixing models within them.

    Afterwards, the chats return to their servers.
    """
    async with fleet(tmp_path, 3) as (deployment, servers):
        done = False
        heard_models: list[str] = []
        most_away = 0

        async def chat(name: str) -> None:
            while not done:
                heard = await ask(deployment, "words:6 slow:0.01", name)
                assert heard.restarts == 0
                assert heard.pid
                heard_models.append(heard.answer.model)

        async def watch() -> None:
            nonlocal most_away
            while not done:
                most_away = max(most_away, sum(node.away for node in deployment.status().nodes))
                await asyncio.sleep(0.01)

        names = servers.chats(6)
        tasks = [asyncio.create_task(work) for work in (*map(chat, names), watch())]
        await until(lambda: len(heard_models) > 6)
        await deployment.swap("b", a_model(tmp_path, "b"))
        assert models(deployment) == ["b"] * 3
        seen = len(heard_models)
        await until(lambda: len(heard_models) > seen + 12)
        done = True
        await asyncio.gather(*tasks)
        assert set(heard_models[:6]) == {"a"}
        assert set(heard_models[-6:]) == {"b"}
        assert most_away == 1
        assert (deployment.status().model, deployment.status().counters.swaps) == ("b", 1)
        for name in names:
            assert (await ask(deployment, "hi", name)).pid == servers.pid(servers.home(name))


async def test_rolling_swap_warms_the_new_model(tmp_path: Path) -> None:
    """Before a chat returns to its server, the new model there has processed the chat's newest prompt."""
    async with fleet(tmp_path, 2) as (deployment, servers):
        chat = servers.chats(1)[0]
        await ask(deployment, "my words", chat)
        await deployment.swap("b", a_model(tmp_path, "b"))
        asked = [note for note in notes(tmp_path / "b", "begin") if note["chat"] == chat]
        warmed = [note["pid"] for note in asked if note["request"]["max_tokens"] == 1]
        assert warmed[0] == servers.pid(servers.home(chat))


@pytest.mark.parametrize(
    ("cue", "more", "said"),
    [
        ({"fail": True}, {}, "swap_command.*exit code 7.*b for"),
        # The rollback has the same time limit as the swap, and a busy machine may not start a process in a second.
        ({"hang": True}, {"swap_command_timeout": 5}, "did not end within 5 s"),
        ({"forget": True}, {"start_timeout": 3}, "still lists a"),
    ],
)
async def test_rolling_swap_command_fails(
    tmp_path: Path, cue: dict[str, bool], more: dict[str, Any], said: str
) -> None:
    """A swap command that fails or hangs raises an error with its output.

    Every server ends up serving the old model.
    """
    async with fleet(tmp_path, 2, **more) as (deployment, servers):
        with pytest.raises(
            EngineUnavailable, match=f"(?s){said}.*The models are now a at {servers.endpoints[0]}"
        ) as raised:
            await deployment.swap("b", cued(a_model(tmp_path, "b"), **cue))
        assert "does not answer" not in str(raised.value)
        assert models(deployment) == ["a", "a"]
        for chat in servers.chats(2):
            assert (await ask(deployment, "hi", chat)).pid == servers.pid(servers.home(chat))
        assert deployment.status().counters.failed_swaps == 1


async def test_rolling_swap_is_rolled_back(tmp_path: Path) -> None:
    """If the second server fails to start the new model, the first one is switched back to the old model."""
    async with fleet(tmp_path, 2, start_timeout=3) as (deployment, servers):
        target = a_model(tmp_path, "b", start="exit_second")
        failed = servers.endpoints[1]
        with pytest.raises(EngineUnavailable, match=f"{failed} could not be switched to b") as raised:
            await deployment.swap("b", target)
        assert f"or take it out of service (/drain {failed}), and /promote b again." in str(raised.value)
        assert f"The models are now a at {servers.endpoints[0]}, {servers.endpoints[1]}." in str(raised.value)
        assert models(deployment) == ["a", "a"]
        for chat in servers.chats(2):
            heard = await ask(deployment, "hi", chat)
            assert (heard.answer.model, heard.pid) == ("a", servers.pid(servers.home(chat)))


async def test_rolling_swap_of_one_server_notifies_waiting_chats(tmp_path: Path) -> None:
    """With a single server, questions asked during the swap are queued and answered by the new model.

    The waiting chats are notified.
    """
    async with fleet(tmp_path, 1, concurrency=1) as (deployment, _):
        asking, _ = await under_way(deployment, "words:20 slow:0.03", "before")
        swapping = asyncio.create_task(deployment.swap("b", a_model(tmp_path, "b", late=0.3)))
        await until(lambda: deployment.status().nodes[0].away)
        heard: list[list[Delta]] = [[], []]
        waiting = [asyncio.create_task(ask(deployment, "hi", f"chat {n}", deltas)) for n, deltas in enumerate(heard)]
        await until(lambda: all(heard))
        assert all(Delta(waiting=number, paused=True) in deltas for number, deltas in enumerate(heard))
        assert (await asking).answer.model == "a"
        await swapping
        assert [(await each).answer.model for each in waiting] == ["b", "b"]
        assert (await asking).restarts == 0


async def test_rolling_swap_leaves_drained_nodes_out(tmp_path: Path) -> None:
    """A drained server keeps its model during a swap and gets the live model before it returns to service.

    If it cannot be switched to the live model, it stays drained, and the error says what to do.
    """
    async with fleet(tmp_path, 3) as (deployment, servers):
        for endpoint in servers.endpoints[1:]:
            await deployment.drain(endpoint)
        await deployment.swap("b", a_model(tmp_path, "b"))
        assert (models(deployment), deployment.status().model) == (["b", "a", "a"], "b")
        cued(tmp_path / "b", fail=True)
        with pytest.raises(
            EngineUnavailable, match=rf"could not be switched to b(?s:.)*/undrain {servers.endpoints[1]} again"
        ):
            await deployment.undrain(servers.endpoints[1])
        assert models(deployment) == ["b", "a", "a"]
        assert deployment.status().nodes[1].drained
        cued(tmp_path / "b")
        await deployment.undrain(servers.endpoints[1])
        assert models(deployment) == ["b", "b", "a"]
        chat = servers.chat_at(servers.endpoints[1])
        assert (await ask(deployment, "hi", chat)).pid == servers.pid(servers.endpoints[1])


async def test_rolling_swap_goes_on_without_a_node_that_is_drained(tmp_path: Path) -> None:
    """A server that holds up a swap can be drained during it; the other servers still get the new model."""
    async with fleet(tmp_path, 3) as (deployment, servers):
        target = cued(a_model(tmp_path, "b"), gate=int(servers.endpoints[1].rpartition(":")[2]))
        swapping = asyncio.create_task(deployment.swap("b", target))
        await until(lambda: deployment.status().nodes[1].state is State.STOPPED)
        await deployment.drain(servers.endpoints[1])
        assert not swapping.done()
        open_gate(target)
        await swapping
        assert models(deployment) == ["b", "a", "b"]
        cued(target)
        await deployment.undrain(servers.endpoints[1])
        assert models(deployment) == ["b", "b", "b"]


async def test_rolling_swap_cancelled(tmp_path: Path) -> None:
    """If a swap is cancelled, the server being changed still gets the new model.

    The next swap waits until that change is complete.
    """
    async with fleet(tmp_path, 2) as (deployment, _):
        swapping = asyncio.create_task(deployment.swap("b", a_model(tmp_path, "b", late=0.5)))
        await until(lambda: any(node.away for node in deployment.status().nodes))
        swapping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await swapping
        await until(lambda: models(deployment) == ["b", "a"])
        await deployment.swap("c", a_model(tmp_path, "c"))
        assert models(deployment) == ["c", "c"]


async def test_rolling_swap_stopped(tmp_path: Path) -> None:
    """Stopping the deployment in the middle of a swap ends the swap command and returns promptly."""
    async with fleet(tmp_path, 2) as (deployment, _):
        swapping = asyncio.create_task(deployment.swap("b", cued(a_model(tmp_path, "b"), hang=True)))
        await until(lambda: any((tmp_path / "logs").glob("swap-*")))
        async with asyncio.timeout(8):
            await deployment.stop()
            with pytest.raises(EngineUnavailable, match=r"stopped|not running"):
                await swapping


async def test_rolling_swap_of_our_own_engines(tmp_path: Path) -> None:
    """The bot's own engines are swapped blue/green in turn; if the second swap fails, the first is rolled back."""
    async with deployed(tmp_path, gpus=[0, 1]) as deployment:
        await deployment.swap("b", a_model(tmp_path, "b"))
        assert models(deployment) == ["b", "b"]
        assert len(deployment.status().pids) == 2
        with pytest.raises(
            EngineUnavailable, match=r"gpu1 could not be switched to c.*exit code 3(?s:.)*b at gpu0, gpu1"
        ):
            await deployment.swap("c", a_model(tmp_path, "c", start="exit_second"))
        assert models(deployment) == ["b", "b"]
        assert all(node.state is State.READY for node in deployment.status().nodes)
        assert len(deployment.status().pids) == 2


async def chaos(deployment: Deployment, servers: Servers, folder: Path, blows: int, seed: int) -> None:
    """Kill, freeze, drain and swap servers at random moments while users chat."""
    chance = Random(seed)
    done = False
    answered = 0

    async def chat(name: str) -> None:
        nonlocal answered
        while not done:
            heard = await ask(deployment, "words:8 slow:0.01", name)
            # A server that was killed in the middle of its swap may come back with either model.
            speaker = heard.text.split()[0].rpartition("/")[0]
            assert heard.text == heard.answer.text == "".join(f"{speaker}/{number} " for number in range(8))
            answered += 1

    async def swap() -> None:
        number = 0
        while not done:
            number += 1
            name = f"m{number % 3}"
            with suppress(EngineUnavailable):
                await deployment.swap(name, a_model(folder, name))
            await asyncio.sleep(0.3)

    tasks = [asyncio.create_task(work) for work in (*map(chat, servers.chats(6)), swap())]
    for _ in range(blows):
        await asyncio.sleep(chance.uniform(0.2, 0.8))
        endpoint = chance.choice(servers.endpoints)
        blow = chance.choice(("kill", "freeze", "drain"))
        if blow == "drain":
            with suppress(EngineUnavailable):
                await deployment.drain(endpoint)
            await asyncio.sleep(chance.uniform(0, 0.3))
            with suppress(EngineUnavailable):
                await deployment.undrain(endpoint)
        else:
            servers.signal(endpoint, signal.SIGKILL if blow == "kill" else signal.SIGSTOP)
            await asyncio.sleep(chance.uniform(0, 0.3))
            servers.signal(endpoint, signal.SIGCONT)
            servers.signal(endpoint, signal.SIGKILL)
            await servers.start(endpoint, "same", Path("same"))
    for endpoint in servers.endpoints:
        with suppress(EngineUnavailable):
            await deployment.undrain(endpoint)
    seen = answered
    await until(lambda: answered > seen + 12 or any(task.done() for task in tasks), 60)
    done = True
    await asyncio.gather(*tasks)
    assert deployment.status().counters.answered == answered
    assert deployment.status().counters.failed == 0


async def test_rolling_chaos(tmp_path: Path) -> None:
    """Every question gets one whole answer while servers are randomly killed, frozen, drained and swapped."""
    async with fleet(tmp_path, 3, token_timeout=1, start_timeout=5, answer_attempts=20) as (deployment, servers):
        await chaos(deployment, servers, tmp_path, blows=5, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_rolling_chaos_for_long(tmp_path: Path) -> None:
    """Every question gets one whole answer despite forty random kills, freezes and drains during swaps."""
    async with fleet(tmp_path, 3, token_timeout=1, start_timeout=5, answer_attempts=20) as (deployment, servers):
        await chaos(deployment, servers, tmp_path, blows=40, seed=2)
