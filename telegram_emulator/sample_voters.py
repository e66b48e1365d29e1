"""Scripted users who ask about pictures and vote on the answers, so that a demo has votes right away.

In each conversation, a sample voter sends a photo with a question as its caption, asks a second
question, and presses 👍 or 👎 under both answers, using the same actions as other users. The caller
provides the pictures and the rule for voting.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from telegram_emulator.api_errors import BotApiError, Json, api_error
from telegram_emulator.person_actions import Attachment, PersonActions
from telegram_emulator.world import User, World

UP, DOWN = "👍", "👎"
_FIRST_ID = 900_001
_NAMES = ("Ada", "Bo", "Chen", "Dara")
_ANSWER_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class SampleConversation:
    """An encoded picture, the question sent as its caption, and a second question about the picture."""

    picture: bytes = field(repr=False)
    question: str
    follow_up: str
    language: str = "en"


class SampleVoters:
    """Scripted users who converse with the bot and vote on its answers in rounds.

    `conversations` takes the number of a round (0, 1, 2 …) and returns its script. `likes` takes the text of
    an answer and returns true for 👍 or false for 👎.
    """

    def __init__(
        self,
        world: World,
        people: PersonActions,
        likes: Callable[[str], bool] | None,
        conversations: Callable[[int], Sequence[SampleConversation]] | None,
    ) -> None:
        self._world = world
        self._people = people
        self._likes = likes
        self._conversations = conversations
        self._round = 0
        self._task: asyncio.Task[None] | None = None
        self._state: Json = {"running": False, "done": 0, "total": 0, "ups": 0, "downs": 0, "last": 0.0, "error": ""}

    @property
    def ready(self) -> bool:
        """Whether both a script and a rule for voting were provided."""
        return self._likes is not None and self._conversations is not None

    @property
    def state(self) -> Json:
        """The progress of the current or last round.

        The keys are running, done, total, ups, downs, last (when the last vote was cast, in seconds) and error (empty
        unless the round failed).
        """
        return dict(self._state)

    def start(self, *, coin: bool = False) -> Json:
        """Start the next round and return its state.

        If `coin` is true, votes are random instead of following the rule.

        Raises:
            BotApiError: A round is already running, or no script or rule was provided.
        """
        if self._likes is None or self._conversations is None:
            raise api_error("there are no sample conversations here")
        if self._task is not None and not self._task.done():
            raise api_error("sample votes are already being cast", 409)
        script = list(self._conversations(self._round))
        self._round += 1
        self._state |= {"running": True, "done": 0, "total": 2 * len(script), "ups": 0, "downs": 0, "error": ""}
        toss = random.Random(self._round)
        likes = (lambda _: toss.random() < 0.5) if coin else self._likes
        self._task = asyncio.create_task(self._cast(script, likes))
        return self.state

    async def stop(self) -> None:
        """Cancel the running round, if any."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _report(self, **changes: object) -> None:
        self._state |= changes
        self._world.events.publish("votes", None, **self._state)

    async def _cast(self, script: list[SampleConversation], likes: Callable[[str], bool]) -> None:
        self._report()
        voters = [self._world.add_user(_FIRST_ID + i, name, sample=True) for i, name in enumerate(_NAMES)]
        error = ""
        try:
            async with asyncio.TaskGroup() as group:
                for voter in voters:
                    group.create_task(self._vote(voter, script, likes))
        except* TimeoutError:
            error = f"the bot did not answer within {_ANSWER_SECONDS:.0f} seconds"
        except* BotApiError as errors:
            error = str(errors.exceptions[0])
        self._report(running=False, error=error)

    async def _vote(self, voter: User, script: list[SampleConversation], likes: Callable[[str], bool]) -> None:
        """Play conversations from the shared script as `voter` until none are left."""
        while script:
            conversation = script.pop(0)
            voter.language = conversation.language
            after = self._world.events.last
            await self._people.sends(voter.id, [Attachment(conversation.picture)], conversation.question)
            await self._rate(voter, after, likes)
            after = self._world.events.last
            self._people.writes(voter.id, conversation.follow_up)
            await self._rate(voter, after, likes)

    async def _rate(self, voter: User, after: int, likes: Callable[[str], bool]) -> None:
        """Wait for the bot's answer, press 👍 or 👎 under it, and wait until the bot has acknowledged the press."""
        async with asyncio.timeout(_ANSWER_SECONDS):
            answer = await self._answer(voter, after)
            liked = likes(answer.get("text", ""))
            after = self._world.events.last
            query = self._people.presses(voter.id, answer["message_id"], _button(answer, UP if liked else DOWN))
            events = self._world.events.follow(after, lambda event: event.get("query") == query)
            async with aclosing(events):
                await anext(events)
        kind = "ups" if liked else "downs"
        self._report(last=time.time(), **{each: self._state[each] + 1 for each in ("done", kind)})

    async def _answer(self, voter: User, after: int) -> Json:
        """Wait for the bot's first message with vote buttons after the voter's last message, and return it.

        Only events after number `after` are considered.
        """
        mine = (m for m in reversed(self._world.chats[voter.id].messages.values()) if m["from"]["id"] == voter.id)
        question = next(mine)["message_id"]
        # Edits of earlier answers, such as the check mark of a vote, do not count.
        events = self._world.events.follow(
            after, lambda event: event["chat"] == voter.id and event.get("message", {}).get("message_id", 0) > question
        )
        async with aclosing(events):
            async for event in events:
                if _button(event["message"], UP):
                    return dict(event["message"])
        raise AssertionError("the event log never ends")


def _button(message: Json, label: str) -> str:
    """Return the callback data of the button whose text contains `label`, or an empty string if there is none."""
    rows = message.get("reply_markup", {}).get("inline_keyboard", [])
    return next((button.get("callback_data", "") for row in rows for button in row if label in button["text"]), "")
