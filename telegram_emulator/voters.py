"""A handful of sample people who send pictures, ask, and vote by one rule of taste, so that a demo need not wait.

They go the way that people go: a photo, a caption, a question more, a press on 👍 or 👎 under each answer. Knows
neither pictures nor taste; both are given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from telegram_emulator.people import Attachment, People
from telegram_emulator.refusals import Json, Refused, refused
from telegram_emulator.world import User, World

UP, DOWN = "👍", "👎"
_FIRST_ID = 900_001
_NAMES = ("Ada", "Bo", "Chen", "Dara")
_PATIENCE = 120.0  # seconds for one answer


@dataclass(frozen=True, slots=True)
class Conversation:
    """One sample conversation: an encoded picture, the question under it and a second one about it."""

    picture: bytes = field(repr=False)
    question: str
    follow_up: str
    language: str = "en"


class Voters:
    """Casts votes on request. `conversations` gives the script of round 0, 1, 2 …; `taste` is true for a 👍."""

    def __init__(
        self,
        world: World,
        people: People,
        taste: Callable[[str], bool] | None,
        conversations: Callable[[int], Sequence[Conversation]] | None,
    ) -> None:
        self._world = world
        self._people = people
        self._taste = taste
        self._conversations = conversations
        self._round = 0
        self._task: asyncio.Task[None] | None = None
        self._state: Json = {"running": False, "done": 0, "total": 0, "ups": 0, "downs": 0, "error": ""}

    @property
    def ready(self) -> bool:
        """Whether there is a script and a taste to vote by."""
        return self._taste is not None and self._conversations is not None

    @property
    def state(self) -> Json:
        """How far it is: running, done, total, ups, downs and, when it broke off, error."""
        return dict(self._state)

    def start(self) -> Json:
        """Begin another round. Raises `Refused` when one is under way or there is nothing to vote by."""
        if self._taste is None or self._conversations is None:
            raise refused("there are no sample conversations here")
        if self._task is not None and not self._task.done():
            raise refused("sample votes are being cast already", 409)
        script = list(self._conversations(self._round))
        self._round += 1
        self._state = {"running": True, "done": 0, "total": 2 * len(script), "ups": 0, "downs": 0, "error": ""}
        self._task = asyncio.create_task(self._cast(script, self._taste))
        return self.state

    async def stop(self) -> None:
        """Break off."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _tell(self, **changes: object) -> None:
        self._state |= changes
        self._world.events.publish("votes", None, **self._state)

    async def _cast(self, script: list[Conversation], taste: Callable[[str], bool]) -> None:
        self._tell()
        voters = [self._world.add_user(_FIRST_ID + i, name, sample=True) for i, name in enumerate(_NAMES)]
        error = ""
        try:
            async with asyncio.TaskGroup() as group:
                for voter in voters:
                    group.create_task(self._vote(voter, script, taste))
        except* TimeoutError:
            error = f"the bot did not answer within {_PATIENCE:.0f} seconds"
        except* Refused as refusals:
            error = str(refusals.exceptions[0])
        self._tell(running=False, error=error)

    async def _vote(self, voter: User, script: list[Conversation], taste: Callable[[str], bool]) -> None:
        """Take conversations from the common script until none is left."""
        while script:
            conversation = script.pop(0)
            voter.language = conversation.language
            after = self._world.events.last
            await self._people.sends(voter.id, [Attachment(conversation.picture)], conversation.question)
            await self._rate(voter, after, taste)
            after = self._world.events.last
            self._people.writes(voter.id, conversation.follow_up)
            await self._rate(voter, after, taste)

    async def _rate(self, voter: User, after: int, taste: Callable[[str], bool]) -> None:
        """Wait for the answer, press a thumb under it, and wait until the bot took the vote."""
        async with asyncio.timeout(_PATIENCE):
            answer = await self._answer(voter, after)
            liked = taste(answer.get("text", ""))
            after = self._world.events.last
            query = self._people.presses(voter.id, answer["message_id"], _button(answer, UP if liked else DOWN))
            events = self._world.events.follow(after, lambda event: event.get("query") == query)
            async with aclosing(events):
                await anext(events)
        kind = "ups" if liked else "downs"
        self._tell(done=self._state["done"] + 1, **{kind: self._state[kind] + 1})

    async def _answer(self, voter: User, after: int) -> Json:
        """The bot's message later than the person's last one that can be rated, seen since event `after`."""
        mine = (m for m in reversed(self._world.chats[voter.id].messages.values()) if m["from"]["id"] == voter.id)
        asked = next(mine)["message_id"]
        # an earlier answer that is edited now, such as one whose vote is being marked, does not count
        events = self._world.events.follow(
            after, lambda event: event["chat"] == voter.id and event.get("message", {}).get("message_id", 0) > asked
        )
        async with aclosing(events):
            async for event in events:
                if _button(event["message"], UP):
                    return dict(event["message"])
        raise AssertionError("events end only with their reader")


def _button(message: Json, label: str) -> str:
    """The callback data of the button that carries `label`, empty without one."""
    rows = message.get("reply_markup", {}).get("inline_keyboard", [])
    return next((button.get("callback_data", "") for row in rows for button in row if label in button["text"]), "")
