"""Rolling swaps: the engines on several GPUs get a new model one after the other."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from inference.messages import EngineUnavailable
from inference.serving.deployment import Deployment
from inference.serving.supervisor import State
from tests.support.children import notes, until
from tests.support.deployments import a_model, ask, deployed
from tests.support.fleets import Fleet, fleet


def models(deployment: Deployment) -> list[str]:
    return [node.model for node in deployment.status().nodes]


async def test_rolling_swap_while_people_chat(tmp_path: Path) -> None:
    """Three engines change models one by one without interrupting answers or mixing models within them.

    Afterwards, the chats are on the same GPUs.
    """
    async with fleet(tmp_path, 3) as cards:
        done = False
        heard_models: list[str] = []

        async def chat(name: str) -> None:
            while not done:
                heard = await ask(cards.deployment, "words:6 slow:0.01", name)
                assert heard.restarts == 0
                assert heard.pid
                heard_models.append(heard.answer.model)

        names = cards.chats(6)
        tasks = [asyncio.create_task(chat(name)) for name in names]
        await until(lambda: len(heard_models) > 6)
        await cards.deployment.swap("b", a_model(tmp_path, "b"))
        assert models(cards.deployment) == ["b"] * 3
        seen = len(heard_models)
        await until(lambda: len(heard_models) > seen + 12)
        done = True
        await asyncio.gather(*tasks)
        assert set(heard_models[:6]) == {"a"}
        assert set(heard_models[-6:]) == {"b"}
        assert (cards.deployment.status().model, cards.deployment.status().counters.swaps) == ("b", 1)
        for name in names:
            assert (await ask(cards.deployment, "hi", name)).pid == cards.pid(cards.home(name))


async def test_rolling_swap_warms_the_new_model(tmp_path: Path) -> None:
    """Before the new model's engine answers a chat, it has processed the chat's newest prompt."""
    async with fleet(tmp_path, 2) as cards:
        chat = cards.chats(1)[0]
        await ask(cards.deployment, "my words", chat)
        await cards.deployment.swap("b", a_model(tmp_path, "b"))
        asked = [note for note in notes(tmp_path / "b", "begin") if note["chat"] == chat]
        warmed = [note["pid"] for note in asked if note["request"]["max_tokens"] == 1]
        assert warmed == [cards.pid(cards.home(chat))]


async def test_rolling_swap_cancelled(tmp_path: Path) -> None:
    """After a cancelled swap, each engine has one of the two models, and the next swap reaches all."""
    async with fleet(tmp_path, 2) as cards:
        swapping = asyncio.create_task(cards.deployment.swap("b", a_model(tmp_path, "b", late=0.5)))
        await until(lambda: cards.deployment.status().swapping_to == "b")
        swapping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await swapping
        assert set(models(cards.deployment)) <= {"a", "b"}
        await cards.deployment.swap("c", a_model(tmp_path, "c"))
        assert models(cards.deployment) == ["c", "c"]


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


async def chaos(cards: Fleet, folder: Path, blows: int, seed: int) -> None:
    """Kill, freeze and swap engines at random moments while users chat."""
    chance = Random(seed)
    deployment = cards.deployment
    done = False
    answered = 0

    async def chat(name: str) -> None:
        nonlocal answered
        while not done:
            heard = await ask(deployment, "words:8 slow:0.01", name)
            assert heard.pid, "one engine of one model said it all"
            answered += 1

    async def swap() -> None:
        number = 0
        while not done:
            number += 1
            name = f"m{number % 3}"
            with suppress(EngineUnavailable):
                await deployment.swap(name, a_model(folder, name))
            await asyncio.sleep(0.3)

    tasks = [asyncio.create_task(work) for work in (*map(chat, cards.chats(6)), swap())]
    for _ in range(blows):
        await asyncio.sleep(chance.uniform(0.2, 0.8))
        blow = chance.choice((signal.SIGKILL, signal.SIGSTOP))
        with suppress(AssertionError, ProcessLookupError):  # it may be between two engines
            cards.signal(chance.choice(cards.names), blow)
    seen = answered
    await until(lambda: answered > seen + 12 or any(task.done() for task in tasks), 60)
    done = True
    await asyncio.gather(*tasks)
    assert deployment.status().counters.answered == answered
    assert deployment.status().counters.failed == 0


async def test_rolling_chaos(tmp_path: Path) -> None:
    """Every question gets one whole answer while engines are randomly killed, frozen and swapped."""
    async with fleet(tmp_path, 3, token_timeout=1, start_timeout=5, answer_attempts=20) as cards:
        await chaos(cards, tmp_path, blows=5, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_rolling_chaos_for_long(tmp_path: Path) -> None:
    """Every question gets one whole answer despite forty random kills and freezes during swaps."""
    async with fleet(tmp_path, 3, token_timeout=1, start_timeout=5, answer_attempts=20) as cards:
        await chaos(cards, tmp_path, blows=40, seed=2)
