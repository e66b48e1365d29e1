"""The deployment over real child processes: restarts, swaps, queue, pause, stop."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from inference.deployment import Deployment
from inference.messages import (
    Answer,
    Delta,
    EngineCrashed,
    EngineRejected,
    EngineUnavailable,
    InferenceError,
    Picture,
    Prompt,
    Role,
    Sampling,
    Turn,
)
from inference.process import Child
from inference.prompt import SYSTEM
from inference.settings import InferenceSettings
from inference.supervisor import State
from inference.tiny import CHECKPOINT
from inference.worker import free_port
from tests.children import alive, fake_command, notes, prompt, until

QUICK: dict[str, Any] = {
    "engine": "cpu",
    "concurrency": 8,
    "start_timeout": 20,
    "token_timeout": 20,
    "stop_timeout": 5,
    "restart_delay": 0.02,
    "restart_delay_max": 0.1,
}


def a_model(parent: Path, name: str, **cue: Any) -> Path:
    """A model directory for the fake engine."""
    directory = parent / name
    directory.mkdir(exist_ok=True)
    (directory / "cue.json").write_text(json.dumps(cue))
    return directory


def open_gate(directory: Path) -> None:
    """Let answers with a `gate` in this model directory go on."""
    (directory / "gate").touch()


Deploy = Callable[..., AbstractAsyncContextManager[Deployment]]


@pytest.fixture
def deploy(tmp_path: Path) -> Deploy:
    """Make a deployment of model "a", started unless `start=False`; at the end no process is left."""

    @asynccontextmanager
    async def make(start: bool = True, cue: dict[str, Any] | None = None, **more: Any) -> AsyncIterator[Deployment]:
        settings = InferenceSettings.model_validate(QUICK | more)
        directory = a_model(tmp_path, "a", **(cue or {}))
        deployment = Deployment(settings, "a", directory, logs=tmp_path / "logs", command=fake_command)
        try:
            if start:
                await deployment.start()
            yield deployment
        finally:
            await deployment.stop()
        assert deployment.status().pids == ()
        assert not any(alive(note["pid"]) for name in os.listdir(tmp_path) for note in notes(tmp_path / name, "start"))

    return make


@dataclass
class Heard:
    """What one question got: every delta, and the text as a person would see it in the end."""

    deltas: list[Delta]

    @property
    def answer(self) -> Answer:
        assert self.deltas[-1].answer is not None
        return self.deltas[-1].answer

    @property
    def restarts(self) -> int:
        return sum(delta.restarted for delta in self.deltas)

    @property
    def text(self) -> str:
        text = ""
        for delta in self.deltas:
            text = "" if delta.restarted else text + delta.text
        return text

    @property
    def pid(self) -> int:
        """The process that spoke; fails unless every word, in order, is one process's of the answer's model."""
        words = self.text.split()
        speakers = {tuple(word.split("/")[:2]) for word in words}
        assert len(speakers) == 1, self.text
        ((model, pid),) = speakers
        assert words == [f"{model}/{pid}/{number}" for number in range(len(words))]
        assert model == self.answer.model
        assert self.text == self.answer.text
        return int(pid)


async def ask(deployment: Deployment, text: str, chat: str = "chat", heard: list[Delta] | None = None) -> Heard:
    """Ask and listen to the end; `heard` lets the caller watch."""
    deltas = [] if heard is None else heard
    async with aclosing(deployment.answer(prompt(text, chat))) as stream:
        async for delta in stream:
            deltas.append(delta)
    return Heard(deltas)


async def under_way(deployment: Deployment, text: str, chat: str) -> tuple[asyncio.Task[Heard], list[Delta]]:
    """Ask and return as soon as the first word is there."""
    heard: list[Delta] = []
    asking = asyncio.create_task(ask(deployment, text, chat, heard))
    await until(lambda: asking.done() or any(delta.text for delta in heard))
    return asking, heard


async def test_deployment_answers(deploy: Deploy) -> None:
    """A started deployment answers with its model's words and says how it stands."""
    async with deploy() as deployment:
        heard = await ask(deployment, "words:3")
        assert heard.text.split()[-1].endswith("/2")
        status = deployment.status()
        assert heard.pid == status.pid == status.pids[0]
        assert (status.model, status.state, status.restarts) == ("a", State.READY, 0)
        assert (status.in_flight, status.waiting, status.swapping_to, status.paused) == (0, 0, None, False)
        assert status.uptime > 0
        assert status.counters.answered == 1
        assert status.counters.encoded_tiles == 3


async def test_deployment_readiness_is_a_picture_answered(deploy: Deploy, tmp_path: Path) -> None:
    """Before anybody is served, the engine has answered a question with a picture."""
    async with deploy(cue={"late": 0.3}):
        first = notes(tmp_path / "a", "begin")[0]["request"]
    assert any(part["type"] == "image_url" for part in first["messages"][-1]["content"])


@pytest.mark.parametrize(
    ("cue", "more", "said"),
    [
        ({"start": "exit"}, {}, "exit code 3.*these weights are no good"),
        ({"start": "deaf"}, {"start_timeout": 0.6}, "not ready within 0.6 s"),
        ({"late": 30}, {"start_timeout": 0.6}, "not ready within 0.6 s"),
        ({"start": "refuse"}, {}, "refused a simple picture.*I refuse"),
    ],
)
async def test_deployment_failed_start(deploy: Deploy, cue: dict[str, Any], more: dict[str, Any], said: str) -> None:
    """An engine that does not come up is an error with the reason and its last lines; nothing is left running."""
    async with deploy(start=False, cue=cue, **more) as deployment:
        with pytest.raises(EngineUnavailable, match=f"(?s){said}"):
            await deployment.start()
        with pytest.raises(EngineUnavailable):
            await ask(deployment, "hi")


async def test_deployment_missing_interpreter(tmp_path: Path) -> None:
    """An interpreter that is not there is an error that names the setting."""
    settings = InferenceSettings.model_validate(QUICK | {"python": str(tmp_path / "python")})
    deployment = Deployment(settings, "a", a_model(tmp_path, "a"), logs=tmp_path)
    with pytest.raises(EngineUnavailable, match=r"inference\.python"):
        await deployment.start()


async def test_deployment_starting_in_the_background(deploy: Deploy) -> None:
    """Without waiting, chats queue for an engine that is still starting, and a failed start is tried again."""
    async with deploy(start=False, cue={"start": "exit_once", "late": 0.2}) as deployment:
        await deployment.start(wait=False)
        assert (await ask(deployment, "hi")).restarts == 0
        assert deployment.status().restarts == 1


async def test_deployment_patience_with_a_starting_engine(deploy: Deploy) -> None:
    """A question waits for a starting engine only so long."""
    async with deploy(start=False, cue={"late": 30}, wait_timeout=0.2) as deployment:
        await deployment.start(wait=False)
        with pytest.raises(EngineUnavailable, match="starting"):
            await ask(deployment, "hi")


async def test_deployment_killed_engine_is_replaced(deploy: Deploy) -> None:
    """`kill -9` in mid-answer: every chat is told once and answered in whole by the new process."""
    async with deploy() as deployment:
        old = deployment.status().pid
        assert old is not None
        chats = [await under_way(deployment, "words:10 slow:0.03", f"chat {number}") for number in range(3)]
        os.kill(old, signal.SIGKILL)
        heard = await asyncio.gather(*(asking for asking, _ in chats))
        assert [each.restarts for each in heard] == [1, 1, 1]
        new = deployment.status().pid
        assert {each.pid for each in heard} == {new}
        assert new != old
        assert (deployment.status().restarts, deployment.status().counters.crashes) == (1, 1)
        assert deployment.status().counters.begun_anew == 3
        assert "SIGKILL" in deployment.status().last_error


@pytest.mark.parametrize("cue", ["die:2!", "die:0!", "hang:0!", "hang:2!"])
async def test_deployment_crash_or_hang_is_begun_anew(deploy: Deploy, cue: str) -> None:
    """An engine that dies or falls silent over a question is replaced and the question answered anew."""
    async with deploy(token_timeout=0.5) as deployment:
        old = deployment.status().pid
        heard = await ask(deployment, f"words:4 {cue}")
        assert heard.restarts == 1
        assert heard.pid == deployment.status().pid != old
        assert deployment.status().counters.hangs == ("hang" in cue)


async def test_deployment_stopped_process_counts_as_hung(deploy: Deploy) -> None:
    """A process under SIGSTOP is killed and replaced."""
    async with deploy(token_timeout=0.4) as deployment:
        old = deployment.status().pid
        assert old is not None
        os.kill(old, signal.SIGSTOP)
        heard = await ask(deployment, "hi")
        assert heard.pid != old
        await until(lambda: not alive(old))


@pytest.mark.parametrize("cue", ["http:500!", "cut:2!", "error:2!", "abort:2!"])
async def test_deployment_healthy_engine_is_kept(deploy: Deploy, tmp_path: Path, cue: str) -> None:
    """One question's failure does not cost the others their process while it still answers a picture."""
    async with deploy() as deployment:
        other, _ = await under_way(deployment, "gate:1", "other")
        heard = await ask(deployment, f"words:4 {cue}")
        open_gate(tmp_path / "a")
        assert heard.restarts == 1
        assert heard.pid == (await other).pid
        assert (await other).restarts == 0
        assert deployment.status().restarts == 0


async def test_deployment_poison_is_given_up(deploy: Deploy) -> None:
    """A question that kills every engine is given up after so many, and others are answered afterwards."""
    async with deploy(answer_attempts=3) as deployment:
        with pytest.raises(EngineCrashed, match="3 times"):
            await ask(deployment, "die:1")
        assert (await ask(deployment, "hi", "other")).restarts <= 1
        assert deployment.status().counters.failed == 1


async def test_deployment_rejection_is_final(deploy: Deploy) -> None:
    """What the engine refuses is neither repeated nor a reason to restart."""
    async with deploy() as deployment:
        with pytest.raises(EngineRejected):
            await ask(deployment, "http:400")
        assert deployment.status().counters.begun_anew == 0
        assert (await ask(deployment, "hi")).pid == deployment.status().pid


async def test_deployment_failing_engine_is_told_and_recovers(deploy: Deploy, tmp_path: Path) -> None:
    """Beyond the restart limit people are told at once and why; the engine comes back without anybody's help."""
    async with deploy(restart_limit=2) as deployment:
        pid = deployment.status().pid
        assert pid is not None
        a_model(tmp_path, "a", start="exit")
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineUnavailable, match=r"(?s)times in a row.*exit code 3.*no good"):
            await ask(deployment, "hi")
        assert deployment.status().state is State.FAILING
        a_model(tmp_path, "a")
        await until(lambda: deployment.status().state is State.READY)
        assert (await ask(deployment, "hi")).pid == deployment.status().pid


async def test_deployment_crash_loop_is_failing(deploy: Deploy, tmp_path: Path) -> None:
    """An engine that gets ready and dies again and again, nobody answered in between, is told as failing too."""
    async with deploy(restart_limit=2) as deployment:
        pid = deployment.status().pid
        assert pid is not None
        a_model(tmp_path, "a", mayfly=True)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: deployment.status().state is State.FAILING)
        a_model(tmp_path, "a")
        await until(lambda: deployment.status().state is State.READY)


async def test_deployment_crashes_between_answers_are_not_in_a_row(deploy: Deploy) -> None:
    """However often an engine dies, it is not failing while it answers people in between."""
    async with deploy(restart_limit=1) as deployment:
        for number in range(4):
            pid = (await ask(deployment, "hi")).pid
            os.kill(pid, signal.SIGKILL)
            await until(lambda number=number: deployment.status().counters.crashes == number + 1)  # type: ignore[misc]
        assert (await ask(deployment, "hi")).pid


async def test_deployment_swap_while_people_chat(deploy: Deploy, tmp_path: Path) -> None:
    """Four people chat through several swaps: no error, no restart, each answer one model's; old processes end."""
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
            assert deployment.model == target
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
async def test_deployment_failed_swap(
    deploy: Deploy, tmp_path: Path, cue: dict[str, Any] | None, more: dict[str, Any], said: str
) -> None:
    """A model that does not come up leaves the live one as it is: same process, answer in progress unharmed."""
    async with deploy(**more) as deployment:
        old = deployment.status().pid
        asking, _ = await under_way(deployment, "gate:2", "meanwhile")
        target = tmp_path / "b" if cue is None else a_model(tmp_path, "b", **cue)
        with pytest.raises(EngineUnavailable, match=f"(?s){said}"):
            await deployment.swap("b", target)
        assert (deployment.model, deployment.status().pid, deployment.status().pids) == ("a", old, (old,))
        open_gate(tmp_path / "a")
        assert (await asking).pid == old
        assert (await asking).restarts == 0
        assert deployment.status().counters.failed_swaps == 1
        await deployment.swap("c", a_model(tmp_path, "c"))
        assert deployment.model == "c"


async def test_deployment_old_engine_finishes_its_answers(deploy: Deploy, tmp_path: Path) -> None:
    """After the flip new questions go to the new model while the old one ends what it has begun."""
    async with deploy() as deployment:
        old = deployment.status().pid
        asking, heard = await under_way(deployment, "gate:2", "long")
        swapping = asyncio.create_task(deployment.swap("b", a_model(tmp_path, "b")))
        await until(lambda: deployment.model == "b")
        assert not asking.done(), "the long answer is still under way"
        assert len(deployment.status().pids) == 2
        assert (await ask(deployment, "hi", "new")).answer.model == "b"
        open_gate(tmp_path / "a")
        assert (await asking).pid == old
        assert (await asking).restarts == 0
        await swapping
        assert heard[-1].answer is not None


async def test_deployment_drain_has_an_end(deploy: Deploy, tmp_path: Path) -> None:
    """An answer that outlasts the drain is voided and given in whole by the new model."""
    async with deploy(drain_timeout=0.2, stop_timeout=0.2) as deployment:
        asking, _ = await under_way(deployment, "gate:2", "endless")
        open_gate(a_model(tmp_path, "b"))
        await deployment.swap("b", tmp_path / "b")
        heard = await asking
        assert heard.restarts == 1
        assert heard.pid == deployment.status().pid
        assert heard.answer.model == "b"


async def test_deployment_swaps_are_serialised(deploy: Deploy, tmp_path: Path) -> None:
    """Two swaps at once go one after the other: never more than two processes, the last one asked for is live."""
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
        assert deployment.model == "d"
        assert deployment.status().counters.swaps == 3


async def test_deployment_crash_of_the_old_engine_during_a_swap(deploy: Deploy, tmp_path: Path) -> None:
    """The live engine dying while the new one warms up harms neither the chats nor the swap."""
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


async def test_deployment_crash_of_the_draining_engine(deploy: Deploy, tmp_path: Path) -> None:
    """The old engine dying after the flip is not restarted; what it was saying is answered by the new model."""
    async with deploy() as deployment:
        old = deployment.status().pid
        assert old is not None
        asking, _ = await under_way(deployment, "gate:2", "chat")
        open_gate(a_model(tmp_path, "b"))
        swapping = asyncio.create_task(deployment.swap("b", tmp_path / "b"))
        await until(lambda: deployment.model == "b")
        os.kill(old, signal.SIGKILL)
        await swapping
        assert deployment.status().pids == (deployment.status().pid,)
        heard = await asking
        assert heard.restarts == 1
        assert heard.answer.model == "b"
        assert heard.pid == deployment.status().pid
        assert len(notes(tmp_path / "a", "start")) == 1


async def test_deployment_killed_while_warming_up(deploy: Deploy, tmp_path: Path) -> None:
    """The new engine killed before it is ready fails the swap at once and touches nobody."""
    async with deploy() as deployment:
        old = deployment.status().pid
        swapping = asyncio.create_task(deployment.swap("b", a_model(tmp_path, "b", late=10)))
        await until(lambda: notes(tmp_path / "b", "start"))
        os.kill(notes(tmp_path / "b", "start")[0]["pid"], signal.SIGKILL)
        with pytest.raises(EngineUnavailable, match="SIGKILL"):
            await swapping
        assert (await ask(deployment, "hi")).pid == old


async def test_deployment_swap_rescues_a_failing_model(deploy: Deploy, tmp_path: Path) -> None:
    """A rollback works also when the live model does not come up any more."""
    async with deploy(restart_limit=1, restart_delay=5, restart_delay_max=60) as deployment:
        a_model(tmp_path, "a", start="exit")
        pid = deployment.status().pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: deployment.status().state is State.FAILING)
        await deployment.swap("b", a_model(tmp_path, "b"))
        assert (await ask(deployment, "hi")).answer.model == "b"


async def test_deployment_swap_to_the_live_model(deploy: Deploy, tmp_path: Path) -> None:
    """Naming the model that is live and ready does nothing: a swap can be repeated safely."""
    async with deploy() as deployment:
        old = deployment.status().pid
        await deployment.swap("a", tmp_path / "a")
        assert deployment.status().pid == old
        assert deployment.status().counters.swaps == 0


@pytest.mark.parametrize("moment", ["warming", "draining"])
async def test_deployment_cancelled_swap(deploy: Deploy, tmp_path: Path, moment: str) -> None:
    """A swap cancelled before the flip leaves no new process, after it no old one; the next swap works."""
    async with deploy() as deployment:
        asking, _ = await under_way(deployment, "gate:2", "long")
        late = 10 if moment == "warming" else 0
        swapping = asyncio.create_task(deployment.swap("b", a_model(tmp_path, "b", late=late)))
        if moment == "warming":
            await until(lambda: notes(tmp_path / "b", "start"))
        else:
            await until(lambda: deployment.model == "b")
        swapping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await swapping
        assert deployment.model == ("a" if moment == "warming" else "b")
        open_gate(tmp_path / "a")
        await deployment.swap("c", a_model(tmp_path, "c"))
        assert (await asking).restarts == 0
        assert deployment.status().pids == (deployment.status().pid,)


async def test_deployment_stubborn_engine_is_killed(deploy: Deploy, tmp_path: Path) -> None:
    """An old engine that ignores SIGTERM and has children of its own is gone when the swap returns."""
    async with deploy(cue={"stubborn": True, "crowd": True}, stop_timeout=0.2) as deployment:
        await deployment.swap("b", a_model(tmp_path, "b"))
        old = [notes(tmp_path / "a", "start")[0]["pid"], notes(tmp_path / "a", "crowd")[0]["crowd"]]
        await until(lambda: not any(alive(pid) for pid in old))


async def test_deployment_stop_while_answering(deploy: Deploy) -> None:
    """Stopping cuts answers off and turns the queue away, each with EngineUnavailable; a second stop is nothing."""
    async with deploy(concurrency=1) as deployment:
        asking, _ = await under_way(deployment, "gate:2", "one")
        queued = asyncio.create_task(ask(deployment, "hi", "two"))
        await until(lambda: deployment.status().waiting == 1)
        await deployment.stop()
        for each in (asking, queued, ask(deployment, "hi", "three")):
            with pytest.raises(EngineUnavailable):
                await each
        await deployment.stop()
        assert deployment.status().state is State.STOPPED
        with pytest.raises(EngineUnavailable):
            await deployment.swap("b", Path())


async def test_deployment_stop_lets_answers_end(deploy: Deploy, tmp_path: Path) -> None:
    """With a drain, what is under way is finished before the engine ends, and nothing new is let in."""
    async with deploy() as deployment:
        asking, _ = await under_way(deployment, "gate:2", "one")
        stopping = asyncio.create_task(deployment.stop(drain=20))
        await asyncio.sleep(0)
        with pytest.raises(EngineUnavailable):
            await ask(deployment, "hi", "two")
        open_gate(tmp_path / "a")
        assert (await asking).pid
        await stopping


@pytest.mark.parametrize("moment", ["at once", "warming", "draining"])
async def test_deployment_stop_during_a_swap(deploy: Deploy, tmp_path: Path, moment: str) -> None:
    """Stopping in the middle of a swap ends both processes soon, whatever the swap is at."""
    async with deploy() as deployment:
        asking, _ = await under_way(deployment, "gate:2", "long")
        late = 10 if moment == "warming" else 0
        swapping = asyncio.create_task(deployment.swap("b", a_model(tmp_path, "b", late=late)))
        if moment == "at once":
            await until(lambda: deployment.status().swapping_to)
        elif moment == "warming":
            await until(lambda: notes(tmp_path / "b", "start"))
        else:
            await until(lambda: deployment.model == "b")
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


async def test_deployment_pause_frees_the_engine(deploy: Deploy, tmp_path: Path) -> None:
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


async def test_deployment_pause_voids_what_does_not_end(deploy: Deploy, tmp_path: Path) -> None:
    """An answer that outlasts the drain is begun anew after the pause, and its chat is told of the pause."""
    async with deploy(drain_timeout=0.1, stop_timeout=0.2) as deployment:
        asking, heard = await under_way(deployment, "gate:2", "long")
        await deployment.pause()
        await until(lambda: Delta(waiting=0, paused=True) in heard)
        open_gate(tmp_path / "a")
        await deployment.resume()
        assert (await asking).restarts == 1
        assert (await asking).pid == deployment.status().pid


async def test_deployment_swap_while_paused(deploy: Deploy, tmp_path: Path) -> None:
    """A model promoted during a pause is the one that answers after it."""
    async with deploy() as deployment:
        await deployment.pause()
        await deployment.swap("b", a_model(tmp_path, "b"))
        waiting = asyncio.create_task(ask(deployment, "hi"))
        await until(lambda: deployment.status().waiting == 1)
        await deployment.resume()
        assert (await waiting).answer.model == "b"


async def test_deployment_queue(deploy: Deploy, tmp_path: Path) -> None:
    """Answers are limited in number, one a chat, first come first served; who waits hears how many are before."""
    async with deploy(concurrency=2) as deployment:
        heard: dict[str, list[Delta]] = {}
        tasks = []
        for number, chat in enumerate(["a", "a", "b", "c", "d"]):
            deltas = heard.setdefault(f"{chat}{number}", [])
            tasks.append(asyncio.create_task(ask(deployment, "words:5 slow:0.02", chat, deltas)))
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        asked = notes(tmp_path / "a", "begin")[1:]
        assert [note["chat"] for note in asked][:2] == ["a", "b"]
        assert sorted(note["chat"] for note in asked) == ["a", "a", "b", "c", "d"]
        waits = {
            chat: [delta.waiting for delta in deltas if delta.waiting is not None] for chat, deltas in heard.items()
        }
        assert waits["a0"] == waits["b2"] == []
        assert waits["a1"][0] == 0
        assert waits["c3"][0] == 1
        assert waits["d4"][0] == 2
        assert all(numbers == sorted(numbers, reverse=True) for numbers in waits.values())
        events = [note for note in notes_in_order(tmp_path / "a") if note["chat"] != "probe"]
        now: list[str] = []
        for note in events:
            if note["event"] == "begin":
                assert note["chat"] not in now
                now.append(note["chat"])
                assert len(now) <= 2
            else:
                now.remove(note["chat"])


def notes_in_order(directory: Path) -> list[dict[str, Any]]:
    """All begins and ends of one model directory, as they were noted."""
    lines = (directory / "events.jsonl").read_text().splitlines()
    return [note for note in map(json.loads, lines) if note["event"] in ("begin", "end", "abort")]


@pytest.mark.parametrize("where", ["answering", "queued"])
async def test_deployment_leaving_gives_the_place_up(deploy: Deploy, tmp_path: Path, where: str) -> None:
    """Who stops listening frees the place or the stand in the queue, and the engine's work is aborted."""
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


async def test_deployment_answer_need_not_be_read_to_its_end(deploy: Deploy) -> None:
    """With the last delta in hand the place is free, also when the iterator is never closed."""
    async with deploy(concurrency=1) as deployment:
        stream = deployment.answer(prompt("hi", "one"))
        while (await anext(stream)).answer is None:
            pass
        assert deployment.status().in_flight == 0
        assert (await ask(deployment, "hi", "one")).pid
        await stream.aclose()
        assert deployment.status().counters.cancelled == 0


async def test_deployment_logs_both_slots(deploy: Deploy, tmp_path: Path) -> None:
    """The two slots have a log file each, with the command line and the process's number."""
    async with deploy() as deployment:
        await deployment.swap("b", a_model(tmp_path, "b"))
        blue, green = ((tmp_path / "logs" / f"engine-{slot}.log").read_text() for slot in ("blue", "green"))
        assert "serving a" in blue
        assert "serving b" in green
        assert str(deployment.status().pid) in green


async def test_deployment_real_engine(tmp_path: Path) -> None:
    """The CPU engine answers through all of this: a picture, then a follow-up that encodes no tile."""
    settings = InferenceSettings.model_validate({"engine": "cpu", "threads": 1, "cache_megabytes": 64})
    deployment = Deployment(settings, "tiny", CHECKPOINT, logs=tmp_path)
    await deployment.start()
    try:
        question = Turn(Role.USER, "What is this? <IMG_CONTEXT><|im_end|>", (another_picture(),))
        asked = Prompt(SYSTEM, (question,), "chat", Sampling(seed=1, max_new_tokens=16))
        first = [delta async for delta in deployment.answer(asked)][-1].answer
        assert first is not None
        assert first.model == "tiny"
        assert first.usage.encoded_tiles == 1
        more = (question, Turn(Role.ASSISTANT, first.text), Turn(Role.USER, "What colour is it?"))
        second = [delta async for delta in deployment.answer(replace(asked, turns=more))][-1].answer
        assert second is not None
        assert second.usage.encoded_tiles == 0
        assert second.usage.cached_tokens >= first.usage.prompt_tokens
    finally:
        await deployment.stop()


def another_picture() -> Picture:
    """A picture that no engine has seen while it was warming up; square, so it is one tile."""
    encoded = BytesIO()
    Image.new("RGB", (100, 100), (20, 30, 220)).save(encoded, "PNG")
    return Picture.of(encoded.getvalue(), "image/png")


async def test_deployment_external(tmp_path: Path) -> None:
    """A given server is used but not started, stopped or swapped; when it comes back it is used again."""
    port = free_port()
    directory = a_model(tmp_path, "a")
    settings = InferenceSettings.model_validate(
        {key: value for key, value in QUICK.items() if key != "engine"} | {"endpoints": [f"http://127.0.0.1:{port}"]}
    )
    line = fake_command("their-name", directory, port, settings)
    server = await Child.start(line, log=tmp_path / "server")
    deployment = Deployment(settings, "ours", directory, logs=tmp_path)
    await deployment.start()
    heard = await ask(deployment, "hi")
    assert heard.answer.model == "ours"
    assert heard.text.startswith(f"their-name/{server.pid}/")
    assert deployment.status().pids == ()
    with pytest.raises(EngineUnavailable, match="load"):
        await deployment.swap("b", directory)
    await deployment.pause()
    await deployment.resume()
    asking, deltas = await under_way(deployment, "words:10 slow:0.05", "chat")
    server.kill()
    await server.wait()
    server = await Child.start(line, log=tmp_path / "server")
    await asking
    assert deltas[-1].answer is not None
    assert f"/{server.pid}/" in deltas[-1].answer.text
    await deployment.stop()
    assert server.returncode is None
    await server.stop(5)


async def test_deployment_external_not_there(tmp_path: Path) -> None:
    """An address where nobody answers is told as such."""
    settings = InferenceSettings.model_validate(
        {"endpoints": [f"http://127.0.0.1:{free_port()}"], "start_timeout": 0.3}
    )
    deployment = Deployment(settings, "ours", tmp_path, logs=tmp_path)
    with pytest.raises(EngineUnavailable, match="Is it running, at this address"):
        await deployment.start()


async def chaos(deployment: Deployment, tmp_path: Path, kills: int, seed: int) -> None:
    """Kill whatever engine process there is at random moments while people chat and models are swapped."""
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
        os.kill(chance.choice(deployment.status().pids), signal.SIGKILL)
    seen = len(answered)
    await until(lambda: len(answered) > seen + 6)
    done = True
    await asyncio.gather(*tasks)
    assert deployment.status().counters.answered == len(answered)
    assert deployment.status().counters.failed == 0


async def test_deployment_chaos(deploy: Deploy, tmp_path: Path) -> None:
    """`kill -9` of engines at random moments, swaps going on: every question gets one whole answer."""
    async with deploy(answer_attempts=10, restart_limit=20) as deployment:
        await chaos(deployment, tmp_path, kills=6, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_deployment_chaos_for_long(deploy: Deploy, tmp_path: Path) -> None:
    """The same sixty times."""
    async with deploy(answer_attempts=10, restart_limit=20) as deployment:
        await chaos(deployment, tmp_path, kills=60, seed=2)
