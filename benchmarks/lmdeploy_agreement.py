"""Compare greedy answers from TurboMind and thumbtune's CPU engine, word for word.

    python -m benchmarks.lmdeploy_agreement [--prompts 50] [--model DIR]

The script starts both engines on this machine (TurboMind, lmdeploy's engine, needs a GPU) and asks both
the same questions: up to three turns with up to two pictures each, in English and Chinese, with answers
of at most 32 tokens. The default model is internvl2-tiny. The CPU engine computes in float32, and
TurboMind in float16, its most precise type. In bfloat16, TurboMind would often switch between the
model's two styles of answering, which are equally likely by design. The script prints the number of
identical answers, and the answers that differ.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from inference.internvl2.families import INTERNVL2
from inference.internvl2.tiny import CHECKPOINT
from inference.internvl2.tiny.held_out_questions import held_out
from inference.internvl2.tiny.samples import sample_pictures
from inference.internvl2.tiny.words import KINDS, LANGUAGES
from inference.messages import Answer, Engine, Picture, Prompt, Role, Sampling, Turn
from inference.serving.deployment import Deployment
from inference.settings import InferenceSettings

GREEDY = Sampling(temperature=0, max_new_tokens=32)


def prompts(number: int, seed: int = 0) -> list[Prompt]:
    """Return `number` random conversations that end with a question."""
    dice = Random(seed)
    pictures = [Picture.of(data) for data in sample_pictures().values()]
    made = []
    for index in range(number):
        language = dice.choice(LANGUAGES)
        turns = []
        for turn in range(dice.randint(1, 3)):
            shown = tuple(dice.sample(pictures, dice.randint(1, 2))) if turn == 0 or dice.random() < 0.3 else ()
            turns.append(Turn(Role.USER, held_out(language, dice.choice(KINDS), dice), shown))
            turns.append(Turn(Role.ASSISTANT, dice.choice(("Two red circles.", "图中有三个蓝色的圆形。"))))
        made.append(Prompt(INTERNVL2.system, tuple(turns[:-1]), chat=f"agree-{index}", sampling=GREEDY))
    return made


async def answers(engine: Engine, prompts: Sequence[Prompt]) -> list[str]:
    """Send `prompts` to the engine, at most four at a time, and return the answers."""
    gate = asyncio.Semaphore(4)

    async def one(prompt: Prompt) -> Answer:
        async with gate:
            async for delta in engine.answer(prompt):
                if delta.answer is not None:
                    return delta.answer
        raise AssertionError("a stream without an answer")

    return [answer.text for answer in await asyncio.gather(*map(one, prompts))]


async def compare(model: Path, number: int) -> tuple[int, list[str]]:
    """Return the number of identical answers, and a line of text for each pair of answers that differ."""
    asked = prompts(number)
    answered = []
    with TemporaryDirectory() as logs:
        for kind in ("cpu", "lmdeploy"):
            settings = InferenceSettings.model_validate(
                {"engine": kind, "model": str(model), "lmdeploy": {"dtype": "float16"}}
            )
            deployment = Deployment(settings, "compared", model, logs=Path(logs))
            await deployment.start()
            try:
                answered.append(
                    await answers(deployment, [replace(prompt, chat=f"{kind}-{prompt.chat}") for prompt in asked])
                )
            finally:
                await deployment.stop()
    rows = list(zip(asked, *answered, strict=True))
    different = [f"{row[0].turns[-1].text!r}: {row[1]!r} | {row[2]!r}" for row in rows if row[1] != row[2]]
    return len(rows) - len(different), different


def main() -> None:
    """Run the command-line interface."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--model", type=Path, default=CHECKPOINT)
    options = parser.parse_args()
    same, different = asyncio.run(compare(options.model, options.prompts))
    print("\n".join([f"{same} of {options.prompts} answers identical", *different]))


if __name__ == "__main__":
    main()
