"""The doctor's eye for the model: is the directory whole, and does the configured engine answer a picture with it?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from bot.cli.doctor.findings import Finding
from bot.config import Settings
from inference.engines.commands import Kind, resolve
from inference.internvl2.checkpoint_check import problems
from inference.messages import Answer, InferenceError, Prompt, Role, Sampling, Turn
from inference.serving.deployment import Deployment
from inference.serving.readiness import sample_picture
from storage.errors import StorageError
from storage.model_store import MANIFEST, verify

FOREIGN_NAMES: Final = ("llava", "vicuna", "mistral", "cogvlm")
"""lmdeploy takes a model for another one by these words in its path (lmdeploy/model.py, lmdeploy/archs.py)."""
_FETCH: Final = "thumbtune fetch DIR brings a whole one; set inference.model to it"
_NAMED: Final = 4


def model_findings(settings: Settings) -> Iterator[Finding]:
    """The checkpoint directory, by its names and file headers."""
    directory = settings.inference.checkpoint()
    wrong = problems(directory)
    more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
    detail = f"{directory}: {'; '.join(wrong[:_NAMED])}{more}" if wrong else str(directory)
    yield Finding("model", not wrong, detail, _FETCH if wrong else "")
    if resolve(settings.inference) is Kind.LMDEPLOY:
        taken = [name for name in FOREIGN_NAMES if name in str(directory.resolve()).lower()]
        if taken:
            cure = "move it to a path without that word: lmdeploy would take it for another model"
            yield Finding("model path", False, f"has {taken[0]!r} in it", cure)


def answer_findings(settings: Settings) -> Iterator[Finding]:
    """Start the engine once and ask it about a picture. Takes as long as a start takes."""
    directory = settings.inference.checkpoint()
    if (directory / MANIFEST).is_file():
        try:
            verify(directory)
            yield Finding("model files", True, "every file as it was published")
        except StorageError as error:
            yield Finding("model files", False, str(error), f"delete {directory}; {_FETCH}")
    try:
        seconds, answer = asyncio.run(_asked(settings))
    except InferenceError as error:
        said = str(error).splitlines()  # with the engine's last lines, of which the last is why
        detail = said[0] if len(said) == 1 else f"{said[0]} … {said[-1]}"
        yield Finding("answer", False, detail, "mend what is found above first; then `thumbtune run` logs the rest")
        return
    detail = f"ready after {seconds:.1f} s, first token after {answer.first_token_seconds:.2f} s: {answer.text[:80]!r}"
    yield Finding("answer", bool(answer.text), detail, "" if answer.text else "the model says nothing: take another")


async def _asked(settings: Settings) -> tuple[float, Answer]:
    """Seconds until the engine was ready, and its answer about the sample picture."""
    clock = asyncio.get_running_loop().time
    with TemporaryDirectory(prefix="thumbtune-doctor-") as logs:
        began = clock()
        deployment = Deployment(settings.inference, "doctor", settings.inference.checkpoint(), logs=Path(logs))
        try:
            await deployment.start()
            ready = clock() - began
            question = Turn(Role.USER, settings.chat.default_question, (sample_picture(),))
            sampling = Sampling(temperature=0, max_new_tokens=32)
            prompt = Prompt(settings.chat.persona, (question,), chat="doctor", sampling=sampling)
            async for delta in deployment.answer(prompt):
                if delta.answer is not None:
                    return ready, delta.answer
            raise AssertionError("an engine's stream ends with the answer or raises")
        finally:
            await deployment.stop()
