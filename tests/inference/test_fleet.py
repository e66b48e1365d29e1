"""Real CPU engines as replicas: conversations continue while replicas die or swap models."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from inference.internvl2.families import INTERNVL2
from inference.internvl2.tiny import CHECKPOINT
from inference.internvl2.tiny.samples import sample_pictures
from inference.messages import Answer, Delta, Picture, Prompt, Role, Sampling, Turn
from inference.serving.deployment import Deployment
from inference.serving.supervisor import State
from inference.settings import InferenceSettings
from tests.support.children import until
from tests.support.fleets import Fleet

pytestmark = pytest.mark.long

QUESTIONS = ("What is this?", "Which colour?", "How many are there?", "And the shape?", "Are you sure?")
MOST_TURNS = 40


@dataclass
class Talk:
    """A user's conversation about one picture, restarted (`/new`) before it exceeds the context window.

    Attributes:
        answers: The answer to each question, across restarts.
        follow_ups: The answers to questions that are not the first of a conversation.
    """

    chat: str
    picture: Picture
    turns: list[Turn] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    follow_ups: list[Answer] = field(default_factory=list)

    async def asks(self, deployment: Deployment) -> Answer:
        """Ask the next question and return its answer; fail unless there is exactly one whole answer."""
        if len(self.turns) > MOST_TURNS:
            self.turns.clear()
        text = QUESTIONS[len(self.answers) % len(QUESTIONS)]
        self.turns.append(Turn(Role.USER, text, () if self.turns else (self.picture,)))
        prompt = Prompt(INTERNVL2.system, tuple(self.turns), self.chat, Sampling(temperature=0, max_new_tokens=12))
        deltas: list[Delta] = [delta async for delta in deployment.answer(prompt)]
        said = ""
        for delta in deltas:
            said = "" if delta.restarted else said + delta.text
        (answer,) = (delta.answer for delta in deltas if delta.answer is not None)
        assert answer.text == said
        assert answer.finish in ("stop", "length")
        self.turns.append(Turn(Role.ASSISTANT, answer.text))
        self.answers.append(answer)
        if len(self.turns) > 2:
            self.follow_ups.append(answer)
        return answer

    @property
    def tiles(self) -> int:
        """Number of the picture's tiles, as counted by the engine for the first answer."""
        return self.answers[0].usage.encoded_tiles


def talks(chats: list[str]) -> list[Talk]:
    """Return one conversation for each chat, each about a different picture."""
    samples = [Picture.of(data) for data in sample_pictures().values()]
    return [Talk(chat, picture) for chat, picture in zip(chats, samples, strict=False)]


def checkpoint(folder: Path, name: str) -> Path:
    """Link the shipped checkpoint into `folder` under `name` and return the link's path."""
    (folder / name).symlink_to(CHECKPOINT, target_is_directory=True)
    return folder / name


async def test_fleet_nothing_is_lost_and_caches_are_hit(tmp_path: Path, warm_python: str) -> None:
    """No question is lost and caches stay useful while an engine is killed and all get a new model.

    Eight users talk to three engines. Every question gets one whole answer, and at least 95 % of the picture
    tokens of follow-ups come from a cache, by the engines' own count.
    """
    settings = InferenceSettings.model_validate(
        {"engine": "cpu", "gpus": (0, 1, 2), "threads": 1, "cache_megabytes": 256, "python": warm_python}
    )
    deployment = Deployment(settings, "m1", checkpoint(tmp_path, "m1"), logs=tmp_path / "logs")
    cards = Fleet(deployment)
    people = talks(cards.chats(8))
    done = False
    chatting: list[asyncio.Task[None]] = []

    async def chat(talk: Talk, pace: Random) -> None:
        while not done:
            await talk.asks(deployment)
            await asyncio.sleep(pace.uniform(0.3, 0.8))

    async def rounds(number: int) -> None:
        """Wait until each user has received `number` further answers."""
        wanted = [len(talk.answers) + number for talk in people]

        def answered() -> bool:
            if ended := [task for task in chatting if task.done()]:
                ended[0].result()
            return all(len(talk.answers) >= want for talk, want in zip(people, wanted, strict=True))

        await until(answered, 60)

    def spread() -> list[int]:
        return [node.chats for node in deployment.status().nodes]

    try:
        await deployment.start()
        chatting += [asyncio.create_task(chat(talk, Random(number))) for number, talk in enumerate(people)]
        await rounds(2)
        home = spread()
        assert sorted(home) == [2, 3, 3]

        await cards.kill(cards.names[0])
        await until(lambda: deployment.status().nodes[0].state is not State.READY)
        await rounds(2)
        await until(lambda: spread() == home, 60)
        await rounds(2)

        await deployment.swap("m2", checkpoint(tmp_path, "m2"))
        assert [node.model for node in deployment.status().nodes] == ["m2"] * 3
        await rounds(2)
        assert spread() == home
        done = True
        await asyncio.gather(*chatting)
        counters = deployment.status().counters
    finally:
        for task in chatting:
            task.cancel()
        await asyncio.gather(*chatting, return_exceptions=True)
        await deployment.stop()
    assert counters.answered == sum(len(talk.answers) for talk in people)
    assert (counters.failed, counters.cancelled, counters.swaps) == (0, 0, 1)
    assert {talk.answers[0].model for talk in people} == {"m1"}
    assert {talk.answers[-1].model for talk in people} == {"m2"}
    shown = sum(talk.tiles * len(talk.follow_ups) for talk in people)
    encoded = sum(answer.usage.encoded_tiles for talk in people for answer in talk.follow_ups)
    assert encoded <= 0.05 * shown, f"{encoded} of {shown} tiles of follow-ups were encoded again"


async def test_fleet_follow_up_after_a_swap_is_warm(tmp_path: Path, warm_python: str) -> None:
    """The first follow-up after a swap finds its picture encoded and its prefix computed by the new model."""
    settings = InferenceSettings.model_validate({"engine": "cpu", "threads": 1, "python": warm_python})
    deployment = Deployment(settings, "m1", CHECKPOINT, logs=tmp_path)
    (talk,) = talks(["ada"])[:1]
    try:
        await deployment.start()
        first = await talk.asks(deployment)
        assert first.usage.encoded_tiles > 1
        await deployment.swap("m2", checkpoint(tmp_path, "m2"))
        assert deployment.status().counters.warmed == 1
        second = await talk.asks(deployment)
        assert second.model == "m2"
        assert second.usage.encoded_tiles == 0
        assert second.usage.cached_tokens >= first.usage.prompt_tokens - 1
    finally:
        await deployment.stop()
