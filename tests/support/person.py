"""A user on the emulator who writes, sends pictures, waits for answers and presses buttons.

The user acts through the emulator's HTTP interface for users and waits for events on its event stream
instead of sleeping. An answer is recognized by its rating buttons, or by no longer changing.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

import aiohttp

Message = dict[str, Any]

UP, DOWN = "👍", "👎"


class Person:
    """A user with a private chat on the emulator.

    Use as an async context manager, or call `close` at the end.
    """

    def __init__(self, emulator_url: str, user_id: int, name: str = "Ada", language: str = "en") -> None:
        self.url = emulator_url
        self.id = user_id
        self.name = name
        self.language = language
        self._asked = 0  # id of the last message sent
        self._since = 0  # id of the last event before that message
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        await self.arrives()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection to the emulator."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def arrives(self) -> None:
        """Register the user with the emulator; other methods do so as well."""
        if self._session is None:
            self._session = aiohttp.ClientSession(self.url, timeout=aiohttp.ClientTimeout(total=None))
            await self._post("/people", {"id": self.id, "name": self.name, "language": self.language})

    async def sends(
        self,
        text: str | None = None,
        *,
        photo: bytes | None = None,
        caption: str = "",
        document: bytes | None = None,
        file_name: str = "picture.jpg",
        media_type: str = "",
        album: Sequence[bytes] = (),
        raw_photo: bytes | None = None,
        sticker: bytes | None = None,
        reply_to: int | None = None,
        chat: int | None = None,
        topic: int | None = None,
    ) -> Message:
        """Send a text, or a photo, document or album with a caption; return the message, or the album's first.

        `raw_photo` is passed on unchecked, even if it is damaged. `chat` is a group's ID, by default the private
        chat.
        """
        await self.arrives()
        self._since = (await self._get("/people"))["last_event"]
        fields = {"chat": chat, "reply_to": reply_to, "topic": topic}
        pictures = [photo] if photo is not None else list(album)
        if text is not None:
            body = await self._post(f"/people/{self.id}/messages", {"text": text, **fields})
        else:
            form = aiohttp.FormData({name: str(value) for name, value in fields.items() if value is not None})
            form.add_field("caption", caption)
            for picture in pictures:
                form.add_field("photo", picture, filename="photo.jpg", content_type="image/jpeg")
            if raw_photo is not None:
                form.add_field("raw_photo", raw_photo, filename="photo.jpg", content_type="image/jpeg")
            if sticker is not None:
                form.add_field("sticker", sticker, filename="sticker", content_type=media_type or "image/webp")
            if document is not None:
                kind = media_type or "application/octet-stream"
                form.add_field("document", io.BytesIO(document), filename=file_name, content_type=kind)
            body = await self._post(f"/people/{self.id}/messages", form)
        sent: list[Message] = body["messages"]
        self._asked = sent[-1]["message_id"]
        return sent[0]

    async def opens_topic(self, chat: int, name: str) -> int:
        """Open a forum topic in a group and return the topic's ID."""
        return int((await self._post(f"/people/{self.id}/topics", {"chat": chat, "name": name}))["topic"])

    async def command(self, command: str) -> Message:
        """Send a command such as "/new"."""
        return await self.sends(command)

    async def edits(self, message: Message, text: str) -> Message:
        """Edit the text or the caption of a message that the user sent."""
        self._since = (await self._get("/people"))["last_event"]
        body = {"message": message["message_id"], "chat": message["chat"]["id"], "text": text}
        edited: Message = await self._post(f"/people/{self.id}/edit", body)
        return edited

    async def taps(self, label: str, message: Message) -> str:
        """Press the inline button labelled `label` under the current version of a message; return the query's ID."""
        chat, number = message["chat"]["id"], message["message_id"]
        current = next((m for m in await self.messages(chat) if m["message_id"] == number), message)
        data = button(current, label)
        if data is None:
            raise AssertionError(f"no button {label!r} under message {number}\n{await self.chat_so_far(chat)}")
        return await self.presses(data, message)

    async def presses(self, data: str, message: Message) -> str:
        """Press the inline button with the callback data `data` and return the query's ID."""
        body = {"message": message["message_id"], "data": data, "chat": message["chat"]["id"]}
        return str((await self._post(f"/people/{self.id}/press", body))["query"])

    async def toast(self, query: str, seconds: float = 30) -> str:
        """Return the text of the bot's answer to a callback query; it is often empty."""
        async with self.time_limit(seconds, f"an answer to the query {query}"):
            async for event in self.events(0):
                if event["kind"] == "toast" and event["query"] == query:
                    return str(event["text"])
        raise AssertionError("the event stream ended")

    async def reacts(self, message: Message, emoji: str) -> None:
        """React to a message with an emoji."""
        body = {"message": message["message_id"], "chat": message["chat"]["id"], "emoji": emoji}
        await self._post(f"/people/{self.id}/react", body)

    async def blocks(self, blocked: bool = True) -> None:
        """Block the bot, or unblock it if `blocked` is False."""
        await self.arrives()
        await self._post(f"/people/{self.id}/block", {"blocked": blocked})

    async def messages(self, chat: int | None = None) -> list[Message]:
        """Return all messages of the chat in their current form, oldest first."""
        await self.arrives()
        query = {} if chat is None else {"chat": str(chat)}
        found: list[Message] = (await self._get(f"/people/{self.id}/messages", query))["messages"]
        return found

    async def bot_messages(self, chat: int | None = None) -> list[Message]:
        """Return the bot's messages in the chat."""
        return [message for message in await self.messages(chat) if message["from"]["is_bot"]]

    async def counts(self, chat: int | None = None) -> dict[str, int]:
        """Return how many messages the bot sent, edited and deleted in the chat."""
        found: dict[str, int] = await self._get("/people/counts", {"chat": str(chat or self.id)})
        return found

    async def answer(
        self,
        *,
        after: int | None = None,
        rated: bool | None = None,
        seconds: float = 60,
        quiet: float = 1.0,
        chat: int | None = None,
    ) -> Message:
        """Return the bot's final message after message `after`, by default after the user's last one.

        If `rated` is True, a message is final when it has a 👍 button. If `rated` is False, a message is final
        when it has no Stop button and has not changed for `quiet` seconds. If `rated` is None, either will do.
        After `seconds` seconds, TimeoutError is raised with a message that shows the chat so far.
        """
        asked = self._asked if after is None else after
        where = self.id if chat is None else chat
        async with self.time_limit(seconds, f"an answer to message {asked}", where):
            candidates: dict[int, Message] = {}
            events = self.events(self._since if after is None else 0)
            arriving: asyncio.Future[Message] | None = None
            try:
                while True:
                    arriving = arriving or asyncio.ensure_future(anext(events))
                    resting = rated is not True and any(_may_be_final(m) for m in candidates.values())
                    await asyncio.wait([arriving], timeout=quiet if resting else None)
                    if not arriving.done():  # nothing happened in the chat for a while
                        return next(m for m in reversed(candidates.values()) if _may_be_final(m))
                    event, arriving = arriving.result(), None
                    if event["chat"] != where:
                        continue
                    if event["kind"] == "deleted":
                        candidates.pop(event["message_id"], None)
                    message = event.get("message")
                    if message and message["from"]["is_bot"] and message["message_id"] > asked:
                        candidates[message["message_id"]] = message
                        if rated is not False and button(message, UP) is not None:
                            return dict(message)
            finally:
                if arriving is not None:
                    arriving.cancel()
                    await asyncio.gather(arriving, return_exceptions=True)
                await events.aclose()

    async def first_words(self, seconds: float = 60) -> str:
        """Return the text that first replaces the placeholder in the answer to the user's last message."""
        asked = self._asked
        events = self.events(self._since)
        async with self.time_limit(seconds, f"the first words on message {asked}"), aclosing(events):
            sent: dict[int, str] = {}
            async for event in events:
                message = event.get("message") or {}
                if event["chat"] != self.id or message.get("message_id", 0) <= asked or not message["from"]["is_bot"]:
                    continue
                text = message.get("text", "")
                if sent.setdefault(message["message_id"], text) != text:
                    return str(text)
        raise AssertionError("the event stream ended")

    async def asks(self, text: str | None = None, *, seconds: float = 60, **what: Any) -> Message:
        """Send a message and return the bot's answer, which has rating buttons."""
        await self.sends(text, **what)
        return await self.answer(rated=True, seconds=seconds)

    async def chat_so_far(self, chat: int | None = None) -> str:
        """Return the chat as text, for error messages."""
        lines = [f"--- the chat {chat or self.id} so far:"]
        for message in await self.messages(chat):
            who = "bot" if message["from"]["is_bot"] else message["from"]["first_name"]
            content = (
                message.get("text") or f"[{'photo' if 'photo' in message else 'file'}] {message.get('caption', '')}"
            )
            rows = message.get("reply_markup", {}).get("inline_keyboard", [])
            buttons = " ".join(f"<{key['text']}>" for row in rows for key in row)
            lines.append(f"{message['message_id']} {who}: {content} {buttons}")
        return "\n".join(lines)

    def time_limit(self, seconds: float, what: str, chat: int | None = None) -> _TimeLimit:
        """Return a time limit whose error message says what was awaited and shows the chat.

        `what` describes what is awaited, for example `an answer to message 7`.
        """
        return _TimeLimit(self, seconds, what, chat)

    async def events(self, after: int) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the events in the user's chats after event `after`, indefinitely."""
        await self.arrives()
        assert self._session is not None
        query = {"person": str(self.id), "after": str(after)}
        async with self._session.get("/people/events", params=query) as stream:
            async for line in stream.content:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])

    async def _get(self, path: str, query: dict[str, str] | None = None) -> Any:
        await self.arrives()
        assert self._session is not None
        async with self._session.get(path, params=query) as answer:
            return await self._body(answer)

    async def _post(self, path: str, body: dict[str, Any] | aiohttp.FormData) -> Any:
        assert self._session is not None
        form = body if isinstance(body, aiohttp.FormData) else None
        async with self._session.post(path, data=form, json=None if form else body) as answer:
            return await self._body(answer)

    async def _body(self, answer: aiohttp.ClientResponse) -> Any:
        body = await answer.json()
        if answer.status != 200:
            raise AssertionError(f"{answer.url.path} answered {answer.status}: {body.get('description')}")
        return body


class _TimeLimit:
    """A time limit whose error message says what was awaited and shows the chat."""

    def __init__(self, person: Person, seconds: float, what: str, chat: int | None) -> None:
        self._person = person
        self._seconds = seconds
        self._what = what
        self._chat = chat
        self._limit = asyncio.timeout(seconds)
        self._began = 0.0

    async def __aenter__(self) -> None:
        self._began = time.monotonic()
        await self._limit.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._limit.__aexit__(kind, error, trace)
        except TimeoutError:
            waited = time.monotonic() - self._began
            chat = await self._person.chat_so_far(self._chat)
            raise TimeoutError(f"{self._person.name} waited {waited:.1f} s for {self._what}\n{chat}") from None


def button(message: Message, label: str) -> str | None:
    """Return the callback data of the first inline button whose text contains `label`, or None."""
    rows = message.get("reply_markup", {}).get("inline_keyboard", [])
    return next((key.get("callback_data", "") for row in rows for key in row if label in key["text"]), None)


def _may_be_final(message: Message) -> bool:
    """Return whether a message has content and no Stop button, and so may be final."""
    text = message.get("text") or message.get("caption") or ""
    says = any(character.isalnum() for character in text) or "photo" in message or "document" in message
    return says and button(message, "⏹") is None
