"""The engine's queue, in which each user sees their current place."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

from inference.messages import Delta, Prompt
from inference.serving.deployment import Deployment
from tests.support.chatting import ScriptedEngine, Stage, png, shows, until
from tests.support.deployments import deployed, open_gate
from tests.support.person import Person

STOP = "⏹"
LOOKING = "Looking at your picture…"


class Deployed(ScriptedEngine):
    """An engine that passes the test bot's questions on to a real deployment, with a real queue."""

    def __init__(self, deployment: Deployment) -> None:
        super().__init__()
        self._deployment = deployment

    async def answer(self, prompt: Prompt) -> AsyncGenerator[Delta, None]:
        """Stream the deployment's answer."""
        async with aclosing(self._deployment.answer(prompt)) as deltas:
            async for delta in deltas:
                yield delta


def before(number: int, person: Person) -> str:
    """Return the notice for a user whose question is waiting behind `number` others."""
    if number == 0:
        return LOOKING
    if person.language == "zh":
        return f"您前面还有 {number} 个问题……"
    return "1 question ahead of yours…" if number == 1 else f"{number} questions ahead of yours…"


async def test_the_place_in_the_queue_moves(stage: Stage, tmp_path: Path) -> None:
    """A waiting user sees their place in the queue move up, in English or Chinese, until the answer comes.

    When a question is stopped, the questions behind it move up.
    """
    async with (
        deployed(tmp_path, concurrency=1) as deployment,
        stage.bot(engine=Deployed(deployment)),
        AsyncExitStack() as people,
    ):
        languages = ["en", "en", "en", "en", "en", "zh"]
        crowd = [
            await people.enter_async_context(stage.person(1001 + number, f"P{number}", language))
            for number, language in enumerate(languages)
        ]
        first, second, third, quitter, english, chinese = crowd
        for number, person in enumerate(crowd):
            await person.sends(photo=png(), caption="words:4 gate:2")
            if person is first:
                await until(lambda: speaking(first))
            else:
                await until(lambda: deployment.status().waiting == number)  # noqa: B023 - awaited at once
                if number > 1:
                    await shows(person, before(number - 1, person))
        for place, leaver in ((2, first), (1, quitter), (0, second)):
            await leaver.taps(STOP, (await leaver.bot_messages())[-1])
            await shows(english, before(place, english))
            await shows(chinese, before(place + 1, chinese))
        await until(lambda: speaking(third))
        open_gate(tmp_path / "a")
        for person in (third, english, chinese):
            assert len((await person.answer(rated=True))["text"].split()) == 4
        assert (await quitter.bot_messages())[-1]["text"] == "I stopped before writing anything."


async def speaking(person: Person) -> bool:
    """Return whether the first words of the user's answer are shown."""
    messages = await person.bot_messages()
    return bool(messages) and messages[-1]["text"].startswith("a/")
