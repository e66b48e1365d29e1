"""The queue in front of the engines: order, positions and cancellation.

The queue's rules are tested in test_admission.py.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from inference.engines.lmdeploy.kv_budget import BLOCK_TOKENS
from inference.messages import Delta
from tests.support.children import notes, prompt, until
from tests.support.deployments import Deploy, Heard, ask, deployed, open_gate, under_way


@pytest.fixture
def deploy(tmp_path: Path) -> Deploy:
    """Return a function that deploys the model "a" in this test's folder."""
    return partial(deployed, tmp_path)


async def test_queue_is_first_come_first_served(deploy: Deploy, tmp_path: Path) -> None:
    """Questions are answered first come, first served, one at a time per chat, within the concurrency limit.

    Each waiting chat shows how many questions are ahead of its own.
    """
    async with deploy(concurrency=2) as deployment:
        heard: dict[str, list[Delta]] = {}
        tasks = []
        for number, chat in enumerate(["a", "a", "b", "c", "d"]):
            deltas = heard.setdefault(f"{chat}{number}", [])
            tasks.append(asyncio.create_task(ask(deployment, "words:5 slow:0.02", chat, deltas)))
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        asked = notes(tmp_path / "a", "begin")[1:]
        assert {note["chat"] for note in asked[:2]} == {"a", "b"}
        assert sorted(note["chat"] for note in asked) == ["a", "a", "b", "c", "d"]
        waits = {
            chat: [delta.waiting for delta in deltas if delta.waiting is not None] for chat, deltas in heard.items()
        }
        assert waits["a0"] == waits["b2"] == []
        assert waits["a1"][0] == 0
        assert waits["c3"][0] == 1
        assert waits["d4"][0] == 2
        assert all(numbers == sorted(numbers, reverse=True) for numbers in waits.values())
        events = [note for note in notes(tmp_path / "a", "begin", "end", "abort") if note["chat"] != "probe"]
        now: list[str] = []
        for note in events:
            if note["event"] == "begin":
                assert note["chat"] not in now
                now.append(note["chat"])
                assert len(now) <= 2
            else:
                now.remove(note["chat"])


@pytest.mark.parametrize("waiting_for_the_start", [False, True])
async def test_queue_admits_what_the_kv_cache_holds(
    deploy: Deploy, tmp_path: Path, waiting_for_the_start: bool
) -> None:
    """Requests beyond the capacity that lmdeploy reports at startup are queued, and their positions are shown."""
    two_chats = 2 * 60 * BLOCK_TOKENS
    cue = {"cache": two_chats, "late": 0.5}
    async with deploy(start=False, cue=cue, engine="lmdeploy", concurrency=None) as deployment:
        heard: list[list[Delta]] = [[] for _ in range(5)]

        async def asking() -> list[asyncio.Task[Heard]]:
            tasks = []
            for number, deltas in enumerate(heard):
                tasks.append(asyncio.create_task(ask(deployment, "gate:1", f"chat {number}", deltas)))
                await asyncio.sleep(0)
            return tasks

        if waiting_for_the_start:
            await deployment.start(wait=False)
            tasks = await asking()
        else:
            await deployment.start()
            tasks = await asking()
        await until(lambda: sum(any(delta.text for delta in deltas) for deltas in heard) == 2)
        await until(lambda: [deltas[-1].waiting for deltas in heard[2:]] == [0, 1, 2])
        status = deployment.status()
        assert (status.in_flight, status.waiting) == (2, 3)
        assert len(notes(tmp_path / "a", "begin")) == 1 + 2
        open_gate(tmp_path / "a")
        await asyncio.gather(*tasks)


@pytest.mark.parametrize("where", ["answering", "queued"])
async def test_queue_leaving_frees_the_slot_or_place(deploy: Deploy, tmp_path: Path, where: str) -> None:
    """Cancelling a question frees its slot or its place in the queue and aborts the engine's work on it."""
    async with deploy(concurrency=1) as deployment:
        first, _ = await under_way(deployment, "words:1000 slow:0.02", "first")
        second = asyncio.create_task(ask(deployment, "hi", "second"))
        await until(lambda: deployment.status().waiting == 1)
        leaver = first if where == "answering" else second
        leaver.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaver
        if where == "answering":
            assert (await second).pid
            await until(lambda: [note["chat"] for note in notes(tmp_path / "a", "abort")] == ["first"])
        else:
            first.cancel()
            assert (await ask(deployment, "hi", "third")).pid
        assert deployment.status().in_flight == 0
        assert deployment.status().counters.cancelled >= 1


async def test_queue_does_not_wait_for_readers_of_finished_answers(deploy: Deploy) -> None:
    """A chat's slot is free once the last delta arrives, even if the iterator is never closed."""
    async with deploy(concurrency=1) as deployment:
        stream = deployment.answer(prompt("hi", "one"))
        while (await anext(stream)).answer is None:
            pass
        assert deployment.status().in_flight == 0
        assert (await ask(deployment, "hi", "one")).pid
        await stream.aclose()
        assert deployment.status().counters.cancelled == 0
