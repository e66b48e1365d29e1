"""The CPU engine without HTTP or a separate process, and prompts about drawn scenes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from inference.engines.cpu.engine import ChatEngine
from inference.engines.cpu.preprocessing import GenerationResult
from inference.internvl2.tiny import drawing, shapes
from inference.messages import Picture, Prompt, Role, Sampling, Turn

GREEDY = Sampling(temperature=0, max_new_tokens=24)


def picture(seed: int, size: tuple[int, int] = (260, 200)) -> Picture:
    """Return a drawn scene as a JPEG picture."""
    rng, into = Random(seed), io.BytesIO()
    drawing.draw(shapes.random_scene(rng), rng, size).save(into, "JPEG")
    return Picture.of(into.getvalue())


def ask(text: str, *pictures: Picture, history: tuple[Turn, ...] = (), sampling: Sampling = GREEDY) -> Prompt:
    """Return a prompt whose newest turn is `text`."""
    return Prompt("Be kind.", (*history, Turn(Role.USER, text, pictures)), "chat", sampling)


def history_after(prompt: Prompt, answer: str) -> tuple[Turn, ...]:
    """Return the conversation history up to and including `answer`."""
    return (*prompt.turns, Turn(Role.ASSISTANT, answer))


@contextmanager
def running(model: Any, tokenizer: Any, cache_bytes: int = 2**26) -> Iterator[ChatEngine]:
    """Run an engine and close it at the end."""
    engine = ChatEngine(model, tokenizer, cache_bytes=cache_bytes)
    try:
        yield engine
    finally:
        engine.close()


def answer(engine: ChatEngine, prompt: Prompt, **more: Any) -> tuple[str, GenerationResult]:
    """Return the complete answer and its generation result; `more` is passed to `Preprocessor.prepare`."""
    return engine.answer(engine.preprocessor.prepare(prompt, **more))


def engine_ends(tokenizer: Any) -> set[int]:
    """Return the IDs of the tokens that end an answer; the usage figures do not count them."""
    return set(tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>", "</s>"]))
