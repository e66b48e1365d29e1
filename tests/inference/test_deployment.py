"""A deployment with real child processes: start, stop, first words, a real engine and external servers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from inference.engines.access_key import KEY_VARIABLE
from inference.internvl2.families import INTERNVL2
from inference.internvl2.tiny import CHECKPOINT
from inference.messages import (
    EngineUnavailable,
    Picture,
    Prompt,
    Role,
    Sampling,
    Turn,
)
from inference.process.child import Child
from inference.serving.deployment import Deployment
from inference.serving.engine_launch import free_port
from inference.serving.supervisor import State
from inference.settings import InferenceSettings
from tests.support.children import fake_command, notes, until
from tests.support.deployments import QUICK, Deploy, a_model, ask, deployed, open_gate, under_way


@pytest.fixture
def deploy(tmp_path: Path) -> Deploy:
    """Return a function that deploys the model "a" in this test's folder."""
    return partial(deployed, tmp_path)


async def test_deployment_answers(deploy: Deploy) -> None:
    """A started deployment answers with its model's words and reports its status."""
    async with deploy() as deployment:
        heard = await ask(deployment, "words:3")
        assert heard.text.split()[-1].endswith("/2")
        status = deployment.status()
        assert heard.pid == status.pid == status.pids[0]
        assert (status.model, status.state, status.restarts) == ("a", State.READY, 0)
        assert (status.in_flight, status.waiting, status.swapping_to, status.paused) == (0, 0, None, False)
        assert status.uptime > 0
        assert status.counters.answered == 1
        assert status.stats.encoded_tiles == 3


async def test_deployment_gives_each_launch_a_key_and_uses_it(deploy: Deploy, tmp_path: Path) -> None:
    """Each launch of an engine has its own key, which appears neither in a log nor on a command line.

    All requests to a process carry its key: probes, questions, warm-up and metrics.
    """

    def key(pid: int | None) -> str:
        values = dict(line.split("=", 1) for line in read(pid, "environ"))
        assert values[KEY_VARIABLE] not in " ".join(read(pid, "cmdline"))
        return values[KEY_VARIABLE]

    def read(pid: int | None, name: str) -> list[str]:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode().split("\0")[:-1]

    async with deploy(warm_chats=1) as deployment:
        keys = {key(deployment.status().pid)}
        assert deployment.status().pid in {note["pid"] for note in notes(tmp_path / "a", "begin")}
        await ask(deployment, "cut:1!")
        await deployment.engine_numbers()
        await deployment.swap("b", a_model(tmp_path, "b"))
        keys.add(key(deployment.status().pid))
    assert len(keys) == 2
    assert min(len(each) for each in keys) > 30
    assert not notes(tmp_path / "a", "stranger") + notes(tmp_path / "b", "stranger")
    written = "".join(each.read_text() for each in (tmp_path / "logs").glob("*.log*"))
    assert "serving a" in written
    assert not any(each in written for each in keys)


async def test_deployment_readiness_requires_an_answer_about_a_picture(deploy: Deploy, tmp_path: Path) -> None:
    """An engine serves no user until it has answered a question with a picture."""
    async with deploy(cue={"late": 0.3}):
        first = notes(tmp_path / "a", "begin")[0]["request"]
    assert any(part["type"] == "image_url" for part in first["messages"][-1]["content"])


@pytest.mark.parametrize(
    ("cue", "more", "said"),
    [
        ({"start": "exit"}, {}, "exit code 3.*these weights are no good"),
        ({"start": "deaf"}, {"start_timeout": 0.6}, "not ready within 0.6 s"),
        ({"late": 30}, {"start_timeout": 0.6}, "not ready within 0.6 s"),
        ({"start": "refuse"}, {}, "refused a question about a simple picture.*I refuse"),
    ],
)
async def test_deployment_failed_start(deploy: Deploy, cue: dict[str, Any], more: dict[str, Any], said: str) -> None:
    """An engine that fails to start raises an error with the reason and its last output lines.

    No process is left running.
    """
    async with deploy(start=False, cue=cue, **more) as deployment:
        with pytest.raises(EngineUnavailable, match=f"(?s){said}"):
            await deployment.start()
        with pytest.raises(EngineUnavailable):
            await ask(deployment, "hi")


async def test_deployment_missing_interpreter(tmp_path: Path) -> None:
    """A missing Python interpreter raises an error that names the setting `inference.python`."""
    settings = InferenceSettings.model_validate(QUICK | {"python": str(tmp_path / "python")})
    deployment = Deployment(settings, "a", a_model(tmp_path, "a"), logs=tmp_path)
    with pytest.raises(EngineUnavailable, match=r"inference\.python"):
        await deployment.start()


async def test_deployment_starting_in_the_background(deploy: Deploy) -> None:
    """With `wait=False`, chats queue for an engine that is still starting, and a failed start is retried."""
    async with deploy(start=False, cue={"start": "exit_once", "late": 0.2}) as deployment:
        await deployment.start(wait=False)
        assert (await ask(deployment, "hi")).restarts == 0
        assert deployment.status().restarts == 1


async def test_deployment_limits_the_wait_for_a_starting_engine(deploy: Deploy) -> None:
    """A question waits at most `wait_timeout` seconds for an engine that is starting."""
    async with deploy(start=False, cue={"late": 30}, wait_timeout=0.2) as deployment:
        await deployment.start(wait=False)
        with pytest.raises(EngineUnavailable, match="starting"):
            await ask(deployment, "hi")


async def test_deployment_stop_while_answering(deploy: Deploy) -> None:
    """Stopping a deployment ends answers in flight and queued questions with EngineUnavailable.

    Stopping it again has no effect.
    """
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
    """Stopping with a drain refuses new questions and lets answers in flight finish before the engine ends."""
    async with deploy() as deployment:
        asking, _ = await under_way(deployment, "gate:2", "one")
        stopping = asyncio.create_task(deployment.stop(drain=20))
        await asyncio.sleep(0)
        with pytest.raises(EngineUnavailable):
            await ask(deployment, "hi", "two")
        open_gate(tmp_path / "a")
        assert (await asking).pid
        await stopping


async def test_deployment_signals_whether_a_first_token_is_awaited(deploy: Deploy, tmp_path: Path) -> None:
    """The byte in the `first_words` file is 1 from when a question is asked until its answer's first word.

    The byte is 0 while the rest of the answer arrives.
    """
    async with deploy() as deployment:
        file = deployment.first_words
        assert file.read_bytes() == b"\0"
        asking = asyncio.create_task(ask(deployment, "gate:0", "one"))
        await until(lambda: file.read_bytes() == b"\1")
        open_gate(tmp_path / "a")
        await asking
        assert file.read_bytes() == b"\0"
        (tmp_path / "a" / "gate").unlink()
        asking, _ = await under_way(deployment, "gate:2", "two")
        assert file.read_bytes() == b"\0"
        open_gate(tmp_path / "a")
        await asking


async def test_deployment_real_engine(tmp_path: Path) -> None:
    """A deployment with the real CPU engine answers a question about a picture.

    A follow-up question encodes no tile.
    """
    settings = InferenceSettings.model_validate({"engine": "cpu", "threads": 1, "cache_megabytes": 64})
    deployment = Deployment(settings, "tiny", CHECKPOINT, logs=tmp_path)
    await deployment.start()
    try:
        question = Turn(Role.USER, "What is this? <IMG_CONTEXT><|im_end|>", (another_picture(),))
        asked = Prompt(INTERNVL2.system, (question,), "chat", Sampling(seed=1, max_new_tokens=16))
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
    """Return a picture that no engine has seen during warm-up; it is square and therefore one tile."""
    encoded = BytesIO()
    Image.new("RGB", (100, 100), (20, 30, 220)).save(encoded, "PNG")
    return Picture.of(encoded.getvalue(), "image/png")


async def test_deployment_external(tmp_path: Path) -> None:
    """An external server is used but never started, stopped or swapped, and is used again once it is back."""
    port = free_port()
    directory = a_model(tmp_path, "a")
    settings = InferenceSettings.model_validate(
        {key: value for key, value in QUICK.items() if key != "engine"} | {"endpoint": f"http://127.0.0.1:{port}"}
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


async def test_deployment_external_server_missing(tmp_path: Path) -> None:
    """If no server runs at an external address, the deployment raises an error that names the address."""
    settings = InferenceSettings.model_validate({"endpoint": f"http://127.0.0.1:{free_port()}", "start_timeout": 0.3})
    deployment = Deployment(settings, "ours", tmp_path, logs=tmp_path)
    with pytest.raises(EngineUnavailable, match="Is it running at this address"):
        await deployment.start()
