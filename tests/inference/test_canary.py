"""A canary beside the live model: how it shares conversations, takes over, ends, fails and pauses."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from inference.messages import EngineUnavailable, Picture, Prompt, Role, Turn
from inference.serving.deployment import Deployment
from inference.serving.routing import CanaryRoute
from inference.serving.supervisor import State
from tests.support.children import alive, prompt, until
from tests.support.deployments import Deploy, Heard, a_model, ask, deployed, open_gate, under_way

CHATS = [f"chat {number}" for number in range(12)]


@pytest.fixture
def deploy(tmp_path: Path) -> Deploy:
    """Return a function that deploys the model "a" in this test's folder."""
    return partial(deployed, tmp_path)


@pytest.fixture
async def trial(deploy: Deploy, tmp_path: Path) -> AsyncIterator[Deployment]:
    """A deployment of the model "a" with a canary "b" for half of the conversations."""
    async with deploy(drain_timeout=5) as deployment:
        await deployment.start_canary("b", a_model(tmp_path, "b"), 0.5)
        yield deployment


async def models(deployment: Deployment) -> list[str]:
    """Return the name of the model that answers in each chat of `CHATS`.

    Fail unless each answer comes entirely from one process of the model that it names.
    """
    heard = [await ask(deployment, "words:2", chat) for chat in CHATS]
    assert all(each.pid for each in heard)
    return [each.answer.model for each in heard]


async def shared(deployment: Deployment) -> None:
    """Wait until each chat is answered by the model it is routed to.

    An engine answers nothing until its warm-up has ended.
    """
    async with asyncio.timeout(30):
        while await models(deployment) != share_of("b"):
            await asyncio.sleep(0.02)


def share_of(model: str) -> list[str]:
    """Return the model expected to answer each chat if the canary `model` has half of the conversations."""
    route = CanaryRoute(model, 0.5)
    return [model if route.takes(prompt("words:2", chat)) else "a" for chat in CHATS]


def shown(chat: str, *pictures: bytes) -> Prompt:
    """Return a prompt that shows `pictures`, each with its own question, and ends with another question."""
    turns = [Turn(Role.USER, "What is this?", (Picture.of(data),)) for data in pictures]
    return Prompt("", (*turns, Turn(Role.USER, "And now?")), chat)


def test_a_conversation_keeps_its_model() -> None:
    """Follow-ups go to their conversation's model, and a canary gets its share of conversations.

    A different picture, chat or canary means a new, independent choice of model.
    """
    route = CanaryRoute("run-1", 0.3)
    many = [shown(f"session-{number}", b"cat") for number in range(2_000)]
    taken = [route.takes(each) for each in many]
    assert 0.26 < sum(taken) / len(taken) < 0.34
    assert taken == [route.takes(replace(each, turns=each.turns[:1])) for each in many]
    assert taken == [route.takes(shown(each.chat, b"dog", b"cat")) for each in many]
    for other in ([route.takes(shown(each.chat, b"cat", b"dog")) for each in many],
                  [CanaryRoute("run-2", 0.3).takes(each) for each in many]):  # fmt: skip
        assert 0.35 < sum(now != then for now, then in zip(taken, other, strict=True)) / len(taken) < 0.49
    assert not any(CanaryRoute("run-1", 0).takes(each) for each in many)
    assert all(CanaryRoute("run-1", 1).takes(each) for each in many)


async def test_two_models_answer(trial: Deployment) -> None:
    """The same conversations always go to the canary, and a question can name the model that must answer it."""
    expected = share_of("b")
    assert set(expected) == {"a", "b"}
    assert await models(trial) == await models(trial) == expected
    status = trial.status()
    assert (status.model, len(status.pids)) == ("a", 2)
    assert status.canary is not None
    assert (status.canary.model, status.canary.share, status.canary.state) == ("b", 0.5, State.READY)
    assert {name: tally.answers for name, tally in status.tallies.items()} == {
        name: 2 * expected.count(name) for name in "ab"
    }
    for chat in CHATS[:4]:
        for name in "ab":
            async with aclosing(trial.answer(replace(prompt("words:2", chat), model=name))) as stream:
                assert Heard([delta async for delta in stream]).answer.model == name
    with pytest.raises(EngineUnavailable, match="No engine has the model c"):
        async with aclosing(trial.answer(replace(prompt("words:2"), model="c"))) as stream:
            await anext(stream)


async def test_the_canary_takes_over(trial: Deployment, tmp_path: Path) -> None:
    """The canary's own process becomes the live one; the former live process finishes its answers and ends."""
    live = trial.status().pid
    chat = CHATS[share_of("b").index("a")]
    talk, _ = await under_way(trial, "words:3 gate:1", chat)
    (canary,) = set(trial.status().pids) - {live}
    swapping = trial.swap("b", tmp_path / "b")
    open_gate(tmp_path / "a")
    await swapping
    assert (await talk).pid == live
    assert (await talk).restarts == 0
    status = trial.status()
    assert (status.model, status.pid, status.pids, status.canary) == ("b", canary, (canary,), None)
    assert set(await models(trial)) == {"b"}
    await trial.swap("a", tmp_path / "a")
    assert set(await models(trial)) == {"a"}


async def test_a_shown_model_gets_its_share_later(deploy: Deploy, tmp_path: Path) -> None:
    """A canary without a share answers only who names it; its process serves the trial and then all chats.

    The model's directory may be renamed meanwhile: the engine starts again from the new one.
    """
    async with deploy() as deployment:
        live = deployment.status().pid
        assert [each.pid for each in deployment.workers_of("a")] == [live]
        await deployment.start_canary("b", a_model(tmp_path, "new"), 0)
        assert deployment.canary_is_idle
        (canary,) = set(deployment.status().pids) - {live}
        assert [each.pid for each in deployment.workers_of("b")] == [canary]
        assert set(await models(deployment)) == {"a"}
        directory = (tmp_path / "new").rename(tmp_path / "b")
        await deployment.start_canary("b", directory, 0.5)
        assert not deployment.canary_is_idle
        assert await models(deployment) == share_of("b")
        assert set(deployment.status().pids) == {live, canary}
        os.kill(canary, signal.SIGKILL)
        await until(lambda: (found := deployment.status().canary) and found.state is State.READY and found.crashes == 1)
        (canary,) = set(deployment.status().pids) - {live}
        await deployment.swap("b", directory)
        assert deployment.status().pids == (canary,)


async def test_the_canary_ends(trial: Deployment, tmp_path: Path) -> None:
    """A stopped canary finishes its answers; the live model's process keeps running and then answers all chats."""
    live = trial.status().pid
    talk, _ = await under_way(trial, "words:3 gate:1", CHATS[share_of("b").index("b")])
    open_gate(tmp_path / "b")
    await trial.stop_canary()
    assert (await talk).answer.model == "b"
    assert (await talk).restarts == 0
    assert (trial.status().pids, trial.status().canary) == ((live,), None)
    assert set(await models(trial)) == {"a"}
    await trial.stop_canary()


async def test_another_model_ends_the_canary(trial: Deployment, tmp_path: Path) -> None:
    """A swap to a third model ends the canary to make room, so three engines never run at once."""
    await trial.swap("c", a_model(tmp_path, "c"))
    assert (len(trial.status().pids), trial.status().canary) == (1, None)
    assert set(await models(trial)) == {"c"}


async def test_live_answers_for_a_failing_canary(trial: Deployment, tmp_path: Path) -> None:
    """If the canary crashes during an answer, the live model answers instead and the canary is restarted."""
    chat = CHATS[share_of("b").index("b")]
    live = trial.status().pid
    (canary,) = set(trial.status().pids) - {live}
    talk, _ = await under_way(trial, "words:3 gate:1", chat)
    open_gate(tmp_path / "a")
    a_model(tmp_path, "b", late=2)  # so that the canary is not ready again before the question is asked again
    os.kill(canary, signal.SIGKILL)
    heard = await talk
    assert (heard.answer.model, heard.pid, heard.restarts) == ("a", live, 1)
    await until(lambda: (found := trial.status().canary) and found.state is State.READY and found.crashes == 1)
    await until(lambda: len(trial.status().pids) == 2)
    assert not alive(canary)
    open_gate(tmp_path / "b")
    await shared(trial)
    assert trial.status().pid == live
    assert trial.status().counters.crashes == 1


async def test_a_canary_that_does_not_start(deploy: Deploy, tmp_path: Path) -> None:
    """If a canary fails to start, the live model is untouched and answers all conversations."""
    async with deploy() as deployment:
        live = deployment.status().pid
        with pytest.raises(EngineUnavailable, match="exit code 3"):
            await deployment.start_canary("b", a_model(tmp_path, "b", start="exit"), 0.5)
        assert (deployment.status().pids, deployment.status().canary) == ((live,), None)
        assert set(await models(deployment)) == {"a"}


async def test_a_canary_survives_a_restart(deploy: Deploy, tmp_path: Path) -> None:
    """After a restart, the canary starts after the live model and has the same conversations as before.

    Engines that are killed are restarted.
    """
    async with deploy(start=False) as deployment:
        await deployment.start(wait=False)
        deployment.run_canary("b", a_model(tmp_path, "b"), 0.5)
        await shared(deployment)
        for pid in deployment.status().pids:
            os.kill(pid, signal.SIGKILL)
        await shared(deployment)


async def test_a_canary_rests_with_the_live_model(trial: Deployment) -> None:
    """A pause ends the engines of both the live model and the canary, and resuming restarts both."""
    await trial.pause()
    assert trial.status().pids == ()
    await trial.resume()
    await until(lambda: len(trial.status().pids) == 2)
    await shared(trial)


async def test_every_replica_has_the_canary(deploy: Deploy, tmp_path: Path) -> None:
    """With several GPUs, each engine gets a canary; if one canary fails to start, none remains."""
    async with deploy(gpus=(0, 1)) as deployment:
        await deployment.start_canary("b", a_model(tmp_path, "b"), 0.5)
        assert len(deployment.status().pids) == 4
        assert await models(deployment) == share_of("b")
        await deployment.swap("b", tmp_path / "b")
        assert len(deployment.status().pids) == 2
        assert set(await models(deployment)) == {"b"}
        with pytest.raises(EngineUnavailable):
            await deployment.start_canary("c", a_model(tmp_path, "c", start="exit_second"), 0.5)
        assert (len(deployment.status().pids), deployment.status().canary) == (2, None)


@pytest.mark.parametrize("swap", ["blue-green", "cold"])
async def test_where_a_canary_can_run(deploy: Deploy, swap: str) -> None:
    """No canary can run with cold swaps, which are for GPUs too small for two engines."""
    async with deploy(start=False, swap=swap) as deployment:
        assert deployment.can_try is (swap == "blue-green")
