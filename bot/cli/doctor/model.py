"""The model checks of `thumbtune doctor`: that the directory is complete and that the engine answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from bot.cli.doctor.findings import Finding
from bot.config import Settings
from inference.engines.commands import Kind, resolve
from inference.engines.lmdeploy.supported_models import CURE, unsupported
from inference.images.sample_picture import sample_picture
from inference.internvl2.checkpoint_check import problems
from inference.messages import Answer, InferenceError, Prompt, Role, Sampling, Turn
from inference.serving.deployment import Deployment
from inference.settings import TINY
from storage.errors import StorageError
from storage.model_manifest import MANIFEST, verify

FOREIGN_NAMES: Final = ("llava", "vicuna", "mistral", "cogvlm")
"""Words in a path that make lmdeploy choose another model's class (lmdeploy/model.py, lmdeploy/archs.py)."""
_FETCH: Final = "thumbtune fetch DIR downloads a complete one; set inference.model to it"
_SHOWN: Final = 4  # problems


def model_findings(settings: Settings) -> Iterator[Finding]:
    """Check the file names and file headers in the checkpoint directory."""
    directory = settings.inference.checkpoint()
    wrong = problems(directory)
    more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    detail = f"{directory}: {'; '.join(wrong[:_SHOWN])}{more}" if wrong else str(directory)
    if settings.inference.model == TINY and not wrong:
        cure = "for photos, thumbtune fetch DIR downloads InternVL2-2B; set inference.model to it"
        yield Finding("model", True, f"{TINY}, the stand-in, which only knows coloured shapes", cure)
    else:
        yield Finding("model", not wrong, detail, _FETCH if wrong else "")
    if resolve(settings.inference) is Kind.LMDEPLOY:
        taken = [name for name in FOREIGN_NAMES if name in str(directory.resolve()).lower()]
        if taken:
            cure = "move it to a path without that word: lmdeploy would load it as another model"
            yield Finding("model path", False, f"contains {taken[0]!r}", cure)
        if not wrong and (reason := unsupported(directory)):
            yield Finding("language model", False, reason, CURE)


def answer_findings(settings: Settings) -> Iterator[Finding]:
    """Start the engine and ask it about a picture.

    The check takes as long as the engine needs to start.
    """
    directory = settings.inference.checkpoint()
    if (directory / MANIFEST).is_file():
        try:
            verify(directory)
            yield Finding("model files", True, "every file matches its manifest")
        except StorageError as error:
            yield Finding("model files", False, str(error), f"delete {directory}; {_FETCH}")
    try:
        seconds, answer = asyncio.run(_ask(settings))
    except InferenceError as error:
        lines = str(error).splitlines()  # the last lines are the engine's last output, which ends with the cause
        detail = lines[0] if len(lines) == 1 else f"{lines[0]} … {lines[-1]}"
        yield Finding("answer", False, detail, "fix the findings above first; then see the log of `thumbtune run`")
        return
    detail = f"ready after {seconds:.1f} s, first token after {answer.first_token_seconds:.2f} s: {answer.text[:80]!r}"
    yield Finding("answer", bool(answer.text), detail, "" if answer.text else "the answer is empty: use another model")


async def _ask(settings: Settings) -> tuple[float, Answer]:
    """Return how many seconds the engine took to start, and its answer about the sample picture."""
    clock = asyncio.get_running_loop().time
    with TemporaryDirectory(prefix="thumbtune-doctor-") as logs:
        began = clock()
        deployment = Deployment(settings.inference, "doctor", settings.inference.checkpoint(), logs=Path(logs))
        try:
            await deployment.start()
            ready = clock() - began
            question = Turn(Role.USER, settings.chat.default_question, (sample_picture(),))
            sampling = Sampling(temperature=0, max_new_tokens=32)
            prompt = Prompt(settings.persona, (question,), chat="doctor", sampling=sampling)
            async for delta in deployment.answer(prompt):
                if delta.answer is not None:
                    return ready, delta.answer
            raise AssertionError("the engine's stream ended without an answer")
        finally:
            await deployment.stop()
