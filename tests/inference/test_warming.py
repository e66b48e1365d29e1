"""Warm-up keeps recent prompts within limits and does not delay requests."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial
from pathlib import Path

import pytest

from inference.messages import Picture, Prompt, Role, Turn
from inference.serving.engine_launch import Launch
from inference.serving.engine_process import Worker
from inference.serving.prefix_warmup import RecentChats
from inference.settings import InferenceSettings
from tests.support.children import fake_command, notes, prompt, until
from tests.support.deployments import Deploy, a_model, ask, deployed, open_gate, under_way


@pytest.fixture
def deploy(tmp_path: Path) -> Deploy:
    """Return a function that deploys the model "a" in this test's folder."""
    return partial(deployed, tmp_path)


def a_worker(tmp_path: Path) -> Worker:
    return Worker(Launch("a", tmp_path, fake_command, tmp_path / "log", InferenceSettings()))


def keys(recent: RecentChats) -> list[str]:
    return [chat.key for chat in recent.newest_first()]


def test_warming_keeps_the_newest_chats(tmp_path: Path) -> None:
    """The newest prompts of `warm_chats` chats are kept, the most recently answered chat first."""
    recent, worker = RecentChats(InferenceSettings(warm_chats=3)), a_worker(tmp_path)
    for name in "abcad":
        recent.answered(prompt(f"of {name}", name), worker)
    assert keys(recent) == ["d", "a", "c"]
    assert all(worker in chat.warm for chat in recent.newest_first())
    recent.answered(prompt("later", "c"), a_worker(tmp_path))
    assert recent.newest_first()[0].prompt.turns[0].text == "later"
    assert worker not in recent.newest_first()[0].warm


def test_warming_forgets_the_old_and_the_large(tmp_path: Path) -> None:
    """Chats are dropped if they are too old or their pictures take too much memory; `warm_chats=0` keeps none."""
    worker = a_worker(tmp_path)
    old = RecentChats(InferenceSettings(warm_age=0))
    old.answered(prompt("hi"), worker)
    assert keys(old) == []
    large = RecentChats(InferenceSettings())
    picture = Picture(bytes(100 * 2**20), "one file, however often it is shown")
    for name in "abc":
        large.answered(Prompt("", (Turn(Role.USER, "hi", (picture,)),), name), worker)
    assert keys(large) == ["c", "b"]
    none = RecentChats(InferenceSettings(warm_chats=0))
    none.answered(prompt("hi"), worker)
    assert keys(none) == []


async def test_warming_comes_before_the_swap(deploy: Deploy, tmp_path: Path) -> None:
    """While the old model still answers, the new one processes each recent prompt, generating one token."""
    async with deploy() as deployment:
        for chat in ("one", "two"):
            await ask(deployment, f"words of {chat}", chat)
        await deployment.swap("b", a_model(tmp_path, "b"))
        begun = notes(tmp_path / "b", "begin")[1:]
        assert sorted(note["chat"] for note in begun) == ["one", "two"]
        assert all(note["request"]["max_tokens"] == 1 for note in begun)
        await ask(deployment, "more words", "one")
        status = deployment.status()
        assert (status.counters.warmed, status.counters.answered, status.in_flight) == (2, 3, 0)


async def test_warming_behind_a_crash(deploy: Deploy, tmp_path: Path) -> None:
    """A restarted engine processes its chats' prompts again, after the questions that are waiting."""
    async with deploy() as deployment:
        await ask(deployment, "my words", "one")
        await ask(deployment, "words:4 die:2!", "two")
        await until(lambda: deployment.status().counters.warmed == 1)
        assert [note["request"]["max_tokens"] for note in notes(tmp_path / "a", "begin") if note["chat"] == "one"] == [
            512,
            1,
        ]


async def test_warming_does_not_repeat_a_prompt_that_crashes(deploy: Deploy, tmp_path: Path) -> None:
    """A warm-up prompt that crashes the new model's engine is not repeated, and the swap succeeds without it."""
    async with deploy() as deployment:
        (tmp_path / "a" / "done-die-0").touch()
        assert (await ask(deployment, "words:3 die:0!", "poison")).restarts == 0
        old = deployment.status().pid
        await deployment.swap("b", a_model(tmp_path, "b"))
        assert len(notes(tmp_path / "b", "start")) == 2
        heard = await ask(deployment, "hi", "other")
        assert (heard.restarts, heard.answer.model) == (0, "b")
        assert heard.pid == deployment.status().pid != old


async def test_warming_leaves_out_chats_forgotten_during_a_question(deploy: Deploy, tmp_path: Path) -> None:
    """When a chat is forgotten, its prompts in progress and in the queue are not kept; its later ones are."""
    async with deploy() as deployment:
        asking, _ = await under_way(deployment, "gate:2", "private")
        waiting = asyncio.create_task(ask(deployment, "in the queue", "private"))
        await until(lambda: deployment.status().waiting == 1)
        deployment.forget("private")
        open_gate(tmp_path / "a")
        assert (await asking).restarts == (await waiting).restarts == 0
        await deployment.swap("b", a_model(tmp_path, "b"))
        assert [note["chat"] for note in notes(tmp_path / "b", "begin")] == ["probe"]
        await ask(deployment, "a new beginning", "private")
        await deployment.swap("c", a_model(tmp_path, "c"))
        assert [note["chat"] for note in notes(tmp_path / "c", "begin")] == ["probe", "private"]


async def test_warming_leaves_out_chats_forgotten_during_a_warm_up(
    deploy: Deploy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chat that is forgotten before its turn in a warm-up is not sent to the new engine."""
    monkeypatch.setattr("inference.serving.prefix_warmup._AT_ONCE", 1)
    async with deploy(warm_seconds=20) as deployment:
        open_gate(tmp_path / "a")
        for chat in ("private", "other"):
            await ask(deployment, "gate:0", chat)
        swapping = asyncio.create_task(deployment.swap("b", a_model(tmp_path, "b")))
        await until(lambda: [note["chat"] for note in notes(tmp_path / "b", "begin")] == ["probe", "other"])
        deployment.forget("private")
        open_gate(tmp_path / "b")
        await swapping
        assert [note["chat"] for note in notes(tmp_path / "b", "begin")] == ["probe", "other"]


async def test_warming_has_a_time_limit(deploy: Deploy, tmp_path: Path) -> None:
    """A slow warm-up prompt delays a swap by no more than the time limit and causes no failure."""
    async with deploy(warm_seconds=0.3) as deployment:
        (tmp_path / "a" / "gate").touch()
        await ask(deployment, "gate:0", "slow")
        async with asyncio.timeout(10):
            await deployment.swap("b", a_model(tmp_path, "b"))
        assert deployment.status().model == "b"
        assert deployment.status().counters.warmed == 0


async def test_warming_ends_when_its_node_is_the_last(deploy: Deploy, tmp_path: Path) -> None:
    """An engine in warm-up starts answering at once when the last other engine dies."""
    async with deploy(gpus=[0, 1], warm_seconds=60) as deployment:
        gate = tmp_path / "a" / "gate"
        gate.touch()
        for number in range(8):
            await ask(deployment, "gate:0", f"chat {number}")
        gate.unlink()
        first, second = (each.slots.live.pid for each in deployment._nodes)
        assert first is not None
        assert second is not None
        os.kill(second, signal.SIGKILL)
        await until(lambda: len(notes(tmp_path / "a", "start")) == 3)
        await until(lambda: deployment._nodes[1].slots.live.worker is not None)
        a_model(tmp_path, "a", late=60)
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(20):
            heard = await ask(deployment, "hi", "chat 0")
        assert heard.pid == deployment._nodes[1].slots.live.pid


async def test_warming_switched_off(deploy: Deploy, tmp_path: Path) -> None:
    """With `warm_chats=0`, no prompt is processed in advance."""
    async with deploy(warm_chats=0) as deployment:
        await ask(deployment, "my words", "one")
        await deployment.swap("b", a_model(tmp_path, "b"))
        assert [note["chat"] for note in notes(tmp_path / "b", "begin")] == ["probe"]
