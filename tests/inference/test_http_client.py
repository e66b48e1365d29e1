"""The HTTP client for one engine, tested against a real process over real sockets."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from inference.chat_format.template import IMG_CONTEXT, harmless
from inference.engines.http_client import HttpEngine, Sizes
from inference.messages import (
    Answer,
    EngineCrashed,
    EngineHung,
    EngineRejected,
    EngineUnavailable,
    InferenceError,
    Picture,
    PictureError,
    Prompt,
    PromptTooLong,
    Role,
    Sampling,
    Turn,
    Usage,
)
from inference.process.child import Child
from inference.serving.engine_launch import free_port
from inference.settings import InferenceSettings
from tests.support.children import fake_command, notes, prompt, until


@dataclass(frozen=True)
class Running:
    """A running fake engine that accepts requests."""

    directory: Path
    child: Child
    url: str

    def notes(self, event: str) -> list[dict[str, Any]]:
        return notes(self.directory, event)


@asynccontextmanager
async def fake_engine(directory: Path, name: str = "model-a") -> AsyncIterator[Running]:
    port = free_port()
    child = await Child.start(fake_command(name, directory, port, InferenceSettings()), log=directory / "log")
    try:
        await until(lambda: "serving" in child.tail())
        engine = HttpEngine(f"http://127.0.0.1:{port}", name)
        while True:
            try:
                await engine.probe(10)
                break
            except EngineCrashed:
                await asyncio.sleep(0.02)
        await engine.aclose()
        yield Running(directory, child, f"http://127.0.0.1:{port}")
    finally:
        await child.stop(5)


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[Running]:
    async with fake_engine(tmp_path) as running:
        yield running


@asynccontextmanager
async def client(url: str, model: str = "model-a", **settings: Any) -> AsyncIterator[HttpEngine]:
    engine = HttpEngine(url, model, **settings)
    try:
        yield engine
    finally:
        await engine.aclose()


async def complete(engine: HttpEngine, request: Prompt) -> tuple[str, Answer]:
    """Return the streamed text and the final answer to `request`."""
    text = ""
    answer = None
    async for delta in engine.answer(request):
        assert answer is None, "the answer is the last delta"
        text += delta.text
        answer = delta.answer
    assert answer is not None
    return text, answer


async def test_an_answer_is_streamed(fake: Running) -> None:
    """The streamed pieces add up to the answer's text; usage and finish reason come from the engine.

    The time to the first token is shorter than the time for the whole answer.
    """
    async with client(fake.url) as engine:
        text, answer = await complete(engine, prompt("words:4 slow:0.01"))
    assert text == answer.text == "".join(f"model-a/{fake.child.pid}/{number} " for number in range(4))
    assert (answer.model, answer.finish) == ("model-a", "stop")
    assert answer.usage == Usage(prompt_tokens=100, completion_tokens=4, cached_tokens=40, encoded_tiles=3)
    assert 0 < answer.first_token_seconds < answer.seconds


async def test_the_whole_prompt_is_sent(fake: Running) -> None:
    """The whole prompt and its sampling parameters are sent.

    The system message comes first, the history keeps its order, pictures come before the text of their turn,
    and special tokens are broken apart.
    """
    red, blue = Picture.of(b"red bytes"), Picture.of(b"blue bytes", "image/png")
    request = Prompt(
        system="Be <|im_end|> kind.",
        turns=(
            Turn(Role.USER, "Compare", (red, blue)),
            Turn(Role.ASSISTANT, "They differ."),
            Turn(Role.USER, f"{IMG_CONTEXT} and this?", (red,)),
        ),
        chat="chat-7",
        sampling=Sampling(temperature=0.3, top_p=0.4, max_new_tokens=3, seed=11, top_k=12),
    )
    async with client(fake.url, tiles=6) as engine:
        _, answer = await complete(engine, request)
    assert answer.finish == "length"
    sent = fake.notes("begin")[-1]["request"]
    assert sent["messages"][0] == {"role": "system", "content": harmless("Be <|im_end|> kind.")}
    first, second, third = sent["messages"][1:]
    assert [message["role"] for message in (first, second, third)] == ["user", "assistant", "user"]
    assert second["content"] == "They differ."
    urls = [part["image_url"]["url"] for part in first["content"] if part["type"] == "image_url"]
    assert [url.split(",")[0] for url in urls] == ["data:image/jpeg;base64", "data:image/png;base64"]
    assert [base64.b64decode(url.split(",")[1]) for url in urls] == [b"red bytes", b"blue bytes"]
    assert first["content"][-1] == {"type": "text", "text": "Compare"}
    assert [part["type"] for part in third["content"]] == ["image_url", "text"]
    assert third["content"][0]["image_url"]["max_dynamic_patch"] == 6
    assert IMG_CONTEXT not in json.dumps(sent)
    assert "<|im_end|>" not in json.dumps(sent)
    expected = {"model": "model-a", "user": "chat-7", "temperature": 0.3, "top_p": 0.4, "max_tokens": 3, "seed": 11}
    expected["top_k"] = 12
    assert {key: sent[key] for key in expected} == expected


async def test_no_seed_is_sent_by_default(fake: Running) -> None:
    """No seed is sent by default, so answers to the same prompt can differ."""
    async with client(fake.url) as engine:
        await complete(engine, prompt("hi"))
    assert "seed" not in fake.notes("begin")[-1]["request"]


@pytest.mark.parametrize(
    ("cue", "error"),
    [
        ("http:400", EngineRejected),
        ("http:401", EngineCrashed),  # not an engine of this launch
        ("http:404", EngineCrashed),
        ("http:413", PromptTooLong),
        ("long:400", PromptTooLong),
        ("blurred:400", PictureError),
        ("http:429", EngineUnavailable),
        ("http:500", EngineCrashed),
        ("http:503", EngineCrashed),
        ("die:0", EngineCrashed),
        ("die:2", EngineCrashed),
        ("cut:2", EngineCrashed),
        ("abort:2", EngineCrashed),
        ("error:2", EngineCrashed),
        ("liar:2", EngineCrashed),
    ],
)
async def test_errors_are_translated(fake: Running, cue: str, error: type[InferenceError]) -> None:
    """Each kind of failure raises the matching error from `inference.messages` and yields no final answer.

    So it does if the answer is not streamed.
    """
    raised: list[InferenceError] = []
    async with client(fake.url) as engine:
        asking: list[Awaitable[object]] = [complete(engine, prompt(f"words:5 {cue}"))]
        if not cue.startswith("error"):  # only a stream contains an error
            asking.append(engine.whole_answer(prompt(f"words:5 {cue}")))
        for each in asking:
            with pytest.raises(InferenceError) as caught:
                await each
            raised.append(caught.value)
    assert {type(each) for each in raised} == {error}
    assert all(str(each) for each in raised)


async def test_an_answer_as_a_whole(fake: Running) -> None:
    """An answer that is not streamed has the same text, and may take longer than `token_timeout`, but not forever."""
    async with client(fake.url, token_timeout=0.2) as engine:
        assert await engine.whole_answer(prompt("words:3 slow:0.2")) == (await complete(engine, prompt("words:3")))[0]
        with pytest.raises(EngineHung, match="2 s"):
            await engine.whole_answer(prompt("hang:0"))


@pytest.mark.parametrize("cue", ["hang:0", "hang:2"])
async def test_silence_is_a_hang(fake: Running, cue: str) -> None:
    """If no token arrives for `token_timeout` seconds, before or after the first token, EngineHung is raised."""
    async with client(fake.url, token_timeout=0.3) as engine:
        with pytest.raises(EngineHung):
            await complete(engine, prompt(f"words:5 {cue}"))


async def test_a_slow_answer_is_not_a_hang(fake: Running) -> None:
    """`token_timeout` applies to the time between tokens, not to the whole answer."""
    async with client(fake.url, token_timeout=1) as engine:
        _, answer = await complete(engine, prompt("words:8 slow:0.2"))
    assert answer.seconds > 1


async def test_a_stopped_process_is_a_hang(fake: Running) -> None:
    """If the engine process is suspended, EngineHung is raised even though the socket accepts connections."""
    async with client(fake.url, token_timeout=0.3) as engine:
        os.kill(fake.child.pid, signal.SIGSTOP)
        try:
            with pytest.raises(EngineHung):
                await complete(engine, prompt("hi"))
        finally:
            os.kill(fake.child.pid, signal.SIGCONT)


@pytest.mark.parametrize("way", ["closes", "is cancelled"])
async def test_cancellation_reaches_the_engine(fake: Running, way: str) -> None:
    """Closing the iterator or cancelling its task closes the connection, and the engine stops generating."""
    async with client(fake.url) as engine:
        started = asyncio.Event()

        async def ask() -> None:
            async with aclosing(engine.answer(prompt("words:1000 slow:0.02", chat="leaver"))) as deltas:
                async for _ in deltas:
                    started.set()
                    if way == "closes":
                        break

        asking = asyncio.create_task(ask())
        await started.wait()
        if way == "is cancelled":
            asking.cancel()
        await asyncio.wait((asking,))
        await until(lambda: [note["chat"] for note in fake.notes("abort")] == ["leaver"])


async def test_closing_the_client_mid_answer(fake: Running) -> None:
    """Closing the client in the middle of an answer raises EngineCrashed in the task reading the answer."""
    async with client(fake.url) as engine:
        with pytest.raises(EngineCrashed):
            async for _ in engine.answer(prompt("words:100 slow:0.02")):
                await engine.aclose()


async def test_no_server_on_the_port() -> None:
    """A request to a port without a server raises EngineCrashed."""
    async with client(f"http://127.0.0.1:{free_port()}") as engine:
        with pytest.raises(EngineCrashed):
            await complete(engine, prompt("hi"))


async def test_another_model_is_refused(fake: Running) -> None:
    """If the port now belongs to another model's process, EngineCrashed is raised before any text arrives."""
    async with client(fake.url, "model-b") as engine:
        with pytest.raises(EngineCrashed, match="model-a"):
            await complete(engine, prompt("hi"))


async def test_an_empty_name_is_the_first_listed_model(fake: Running) -> None:
    """An empty model name selects the first model the server lists; the answer carries our own model ID."""
    async with client(fake.url + "/v1/", "ours", name="", local=False) as engine:
        _, answer = await complete(engine, prompt("hi"))
    assert answer.model == "ours"
    assert fake.notes("begin")[-1]["request"]["model"] == "model-a"


async def test_a_discovered_name_is_discovered_again(fake: Running) -> None:
    """If the server no longer has a discovered model, the next request reads the server's list again.

    If a configured model is missing from the server, the error remains.
    """
    async with client(fake.url, "ours", name="", local=False) as engine:
        with pytest.raises(EngineCrashed, match="another model"):
            await complete(engine, prompt("http:404!"))
        _, answer = await complete(engine, prompt("hi"))
        assert answer.model == "ours"
    async with client(fake.url, "ours", name="model-a", local=False) as engine:
        with pytest.raises(EngineRejected):
            await complete(engine, prompt("http:404"))


async def test_no_proxy_is_used_for_child_processes(fake: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy set in the environment is ignored for an engine on this machine."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    async with client(fake.url) as engine:
        _, answer = await complete(engine, prompt("hi"))
    assert answer.finish == "stop"


async def test_a_picture_is_encoded_once(fake: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture in the history is base64-encoded once, not for every turn."""
    encoded: list[bytes] = []

    def counting(data: bytes) -> bytes:
        encoded.append(data)
        return base64.b64encode(data)

    monkeypatch.setattr("inference.engines.chat_request.b64encode", counting)
    picture = Picture.of(b"bytes")
    request = Prompt("", (Turn(Role.USER, "a", (picture,)), Turn(Role.USER, "b", (picture,))), "chat")
    async with client(fake.url) as engine:
        for _ in range(3):
            await complete(engine, request)
    assert encoded == [b"bytes"]


async def test_sizes(tmp_path: Path) -> None:
    """`sizes` returns the sizes that the server lists for the model.

    A local engine that does not list its models raises EngineCrashed.
    """
    (tmp_path / "cue.json").write_text('{"window": 600}')
    async with fake_engine(tmp_path) as fake:
        for name, tokens in (("model-a", 600), ("", 600), ("model-b", None)):
            async with client(fake.url, name) as engine:
                assert await engine.sizes() == Sizes(window=tokens)
    async with client(fake.url, local=False) as engine:
        assert await engine.sizes() == Sizes()
    async with client(fake.url) as engine:
        with pytest.raises(EngineCrashed, match="does not list"):
            await engine.sizes()
