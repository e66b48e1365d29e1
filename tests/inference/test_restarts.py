"""Every question gets one whole answer or an explanation, even if engines die, hang or fail."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from inference.messages import (
    EngineCrashed,
    EngineRejected,
    EngineUnavailable,
)
from inference.serving.deployment import Deployment
from inference.serving.supervisor import State
from tests.support.children import alive, notes, until
from tests.support.deployments import Deploy, Heard, a_model, ask, deployed, open_gate, under_way


@pytest.fixture
def deploy(tmp_path: Path) -> Deploy:
    """Return a function that deploys the model "a" in this test's folder."""
    return partial(deployed, tmp_path)


async def test_restarts_killed_engine_is_replaced(deploy: Deploy, tmp_path: Path) -> None:
    """After `kill -9` mid-answer, every chat is notified once and gets a whole answer from the new process."""
    async with deploy() as deployment:
        old = deployment.status().pid
        assert old is not None
        chats = [await under_way(deployment, "words:10 gate:2", f"chat {number}") for number in range(3)]
        os.kill(old, signal.SIGKILL)
        open_gate(tmp_path / "a")
        heard = await asyncio.gather(*(asking for asking, _ in chats))
        assert [each.restarts for each in heard] == [1, 1, 1]
        new = deployment.status().pid
        assert {each.pid for each in heard} == {new}
        assert new != old
        assert (deployment.status().restarts, deployment.status().counters.crashes) == (1, 1)
        assert deployment.status().counters.answers_restarted == 3
        assert "SIGKILL" in deployment.status().last_error


@pytest.mark.parametrize("cue", ["die:2!", "die:0!", "hang:0!", "hang:2!"])
async def test_restarts_retry_an_answer_after_a_crash_or_hang(deploy: Deploy, cue: str) -> None:
    """An engine that dies or hangs on a question is replaced, and the question is retried."""
    async with deploy(token_timeout=0.5) as deployment:
        old = deployment.status().pid
        heard = await ask(deployment, f"words:4 {cue}")
        assert heard.restarts == 1
        assert heard.pid == deployment.status().pid != old
        assert deployment.status().counters.hangs == ("hang" in cue)


async def test_restarts_busy_is_not_hung(deploy: Deploy) -> None:
    """An engine that times out on one question while answering another is kept.

    The question that timed out is retried.
    """
    async with deploy(token_timeout=0.5) as deployment:
        old = deployment.status().pid
        talking, _ = await under_way(deployment, "words:40 slow:0.05", "talking")
        heard = await ask(deployment, "words:4 hang:0!", "waiting")
        assert (heard.restarts, heard.pid) == (1, old)
        assert ((await talking).restarts, deployment.status().pid) == (0, old)
        counters = deployment.status().counters
        assert (counters.crashes, counters.hangs, counters.answers_restarted) == (0, 0, 1)


async def test_restarts_many_interrupted_answers_cause_one_probe(deploy: Deploy, tmp_path: Path) -> None:
    """When many answers break off, a healthy engine is probed once, not once per answer."""
    async with deploy() as deployment:
        before = sum(note["chat"] == "probe" for note in notes(tmp_path / "a", "begin"))
        worker = deployment._nodes[0].slots.live.worker
        assert worker is not None
        await asyncio.gather(*(worker.suspect(EngineCrashed("broke off")) for _ in range(8)))
        assert sum(note["chat"] == "probe" for note in notes(tmp_path / "a", "begin")) - before == 1
        assert not worker.broken


async def test_restarts_stopped_process_counts_as_hung(deploy: Deploy) -> None:
    """An engine process stopped by SIGSTOP counts as hung: it is killed and replaced."""
    async with deploy(token_timeout=0.4) as deployment:
        old = deployment.status().pid
        assert old is not None
        os.kill(old, signal.SIGSTOP)
        heard = await ask(deployment, "hi")
        assert heard.pid != old
        await until(lambda: not alive(old))


@pytest.mark.parametrize("cue", ["http:500!", "cut:2!", "error:2!", "abort:2!"])
async def test_restarts_healthy_engine_is_kept(deploy: Deploy, tmp_path: Path, cue: str) -> None:
    """An engine that fails one question but still answers a probe about a picture is kept.

    Other answers continue.
    """
    async with deploy() as deployment:
        other, _ = await under_way(deployment, "gate:1", "other")
        heard = await ask(deployment, f"words:4 {cue}")
        open_gate(tmp_path / "a")
        assert heard.restarts == 1
        assert heard.pid == (await other).pid
        assert (await other).restarts == 0
        assert deployment.status().restarts == 0


async def test_restarts_a_question_that_kills_engines_is_abandoned(deploy: Deploy) -> None:
    """A question that always kills the engine fails after `answer_attempts` tries.

    Later questions are answered.
    """
    async with deploy(answer_attempts=3) as deployment:
        with pytest.raises(EngineCrashed, match="3 times"):
            await ask(deployment, "die:1")
        assert (await ask(deployment, "hi", "other")).restarts <= 1
        assert deployment.status().counters.failed == 1


async def test_restarts_rejection_is_final(deploy: Deploy) -> None:
    """A question that the engine rejects is not retried and does not restart the engine."""
    async with deploy() as deployment:
        with pytest.raises(EngineRejected):
            await ask(deployment, "http:400")
        assert deployment.status().counters.answers_restarted == 0
        assert (await ask(deployment, "hi")).pid == deployment.status().pid


async def test_restarts_failing_engine_is_reported_and_recovers(deploy: Deploy, tmp_path: Path) -> None:
    """Once the restart limit is exceeded, questions fail at once with the reason.

    The engine still recovers by itself.
    """
    async with deploy(restart_limit=2) as deployment:
        pid = deployment.status().pid
        assert pid is not None
        a_model(tmp_path, "a", start="exit")
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineUnavailable, match=r"times in a row.*exit code 3") as raised:
            await ask(deployment, "hi")
        assert "\n" not in str(raised.value), "the engine's own words are for the operator"
        assert "these weights are no good" in deployment.status().last_error
        assert deployment.status().state is State.FAILING
        a_model(tmp_path, "a")
        await until(lambda: deployment.status().state is State.READY)
        assert (await ask(deployment, "hi")).pid == deployment.status().pid


async def test_restarts_crash_loop_is_failing(deploy: Deploy, tmp_path: Path) -> None:
    """An engine that repeatedly becomes ready but dies without answering is reported as failing."""
    async with deploy(restart_limit=2) as deployment:
        pid = deployment.status().pid
        assert pid is not None
        a_model(tmp_path, "a", mayfly=True)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: deployment.status().state is State.FAILING)
        a_model(tmp_path, "a")
        await until(lambda: deployment.status().state is State.READY)


async def test_restarts_crashes_between_answers_are_not_in_a_row(deploy: Deploy) -> None:
    """However often it crashes, an engine that answers questions in between is not reported as failing."""
    async with deploy(restart_limit=1) as deployment:
        for number in range(4):
            pid = (await ask(deployment, "hi")).pid
            os.kill(pid, signal.SIGKILL)
            await until(lambda number=number: deployment.status().counters.crashes == number + 1)  # type: ignore[misc]
        assert (await ask(deployment, "hi")).pid


async def chaos(deployment: Deployment, tmp_path: Path, kills: int, seed: int) -> None:
    """Kill running engine processes at random moments while users chat and models are swapped."""
    chance = random.Random(seed)
    done = False
    answered: list[Heard] = []

    async def chat(name: str) -> None:
        while not done:
            heard = await ask(deployment, "words:8 slow:0.01", name)
            assert heard.pid
            answered.append(heard)

    async def swap() -> None:
        number = 0
        while not done:
            number += 1
            name = f"m{number % 3}"
            try:
                await deployment.swap(name, a_model(tmp_path, name))
            except EngineUnavailable as error:
                assert "SIG" in str(error)
            await asyncio.sleep(0.1)

    tasks = [asyncio.create_task(chat(f"person {number}")) for number in range(3)]
    tasks.append(asyncio.create_task(swap()))
    for _ in range(kills):
        await asyncio.sleep(chance.uniform(0.1, 0.7))
        await until(lambda: deployment.status().pids)
        # A process that has just ended by itself may still be listed.
        with suppress(ProcessLookupError):
            os.kill(chance.choice(deployment.status().pids), signal.SIGKILL)
    seen = len(answered)
    await until(lambda: len(answered) > seen + 6)
    done = True
    await asyncio.gather(*tasks)
    assert deployment.status().counters.answered == len(answered)
    assert deployment.status().counters.failed == 0


async def test_restarts_chaos(deploy: Deploy, tmp_path: Path) -> None:
    """Every question gets one whole answer despite `kill -9` of engines at random moments during swaps."""
    async with deploy(answer_attempts=10, restart_limit=20) as deployment:
        await chaos(deployment, tmp_path, kills=6, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_restarts_chaos_for_long(deploy: Deploy, tmp_path: Path) -> None:
    """Every question gets one whole answer despite sixty random engine kills during swaps."""
    async with deploy(answer_attempts=10, restart_limit=20) as deployment:
        await chaos(deployment, tmp_path, kills=60, seed=2)
