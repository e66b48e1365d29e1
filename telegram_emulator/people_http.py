"""The HTTP API of the chat page and of scripted people: what each person does, the samples and the sample votes.

Requests are JSON or, with pictures and files, multipart forms; answers are JSON. `/people/events` is a stream of
server-sent events that a reader can resume.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from aiohttp import web

from telegram_emulator.account import commands_for
from telegram_emulator.api_errors import BotApiError, Json, api_error
from telegram_emulator.json_http import answer, json_object, number, routes
from telegram_emulator.parameters import read_form
from telegram_emulator.person_actions import Attachment, PersonActions
from telegram_emulator.sample_voters import SampleVoters
from telegram_emulator.world import EmulatedChat, User, World


class PeopleHttp:
    """The routes below /people and /samples. `samples` are files by name; `note` is a line shown before them."""

    def __init__(
        self, world: World, people: PersonActions, voters: SampleVoters, samples: Mapping[str, bytes], note: str
    ) -> None:
        self._world = world
        self._people = people
        self._voters = voters
        self._samples = samples
        self._note = note

    def routes(self) -> list[web.RouteDef]:
        """Return all routes."""
        person = r"/people/{person:\d+}"
        table = [
            ("GET", "/people", self.overview),
            ("POST", "/people", self.create_person),
            ("GET", "/people/counts", self.counts),
            ("GET", "/people/events", self.events),
            ("GET", "/people/files/{file}", self.file),
            ("POST", "/people/sample-votes", self.cast_sample_votes),
            ("GET", "/samples", self.samples),
            ("GET", "/samples/{name}", self.sample),
            ("GET", f"{person}/messages", self.messages),
            ("POST", f"{person}/messages", self.send),
            ("GET", f"{person}/commands", self.commands),
            ("POST", f"{person}/topics", self.open_topic),
            ("POST", f"{person}/edit", self.edit),
            ("POST", f"{person}/press", self.press),
            ("POST", f"{person}/react", self.react),
            ("POST", f"{person}/block", self.block),
        ]
        return routes(table)

    def _describe(self, user: User) -> Json:
        return {
            "id": user.id,
            "name": user.name,
            "language": user.language,
            "admin": user.admin,
            "sample": user.sample,
            "chats": [chat.id for chat in self._world.chats.values() if user.id in chat.members],
        }

    def _describe_chat(self, chat: EmulatedChat) -> Json:
        return {"id": chat.id, "kind": chat.kind, "title": chat.title, "members": sorted(chat.members)}

    def _person(self, request: web.Request) -> int:
        return self._people.user(int(request.match_info["person"])).id

    async def overview(self, request: web.Request) -> web.Response:
        """Return the bot, the people, the groups, and the number of the last event."""
        return answer(
            {
                "bot": self._world.bot,
                "people": [self._describe(user) for user in self._world.users.values()],
                "groups": [self._describe_chat(c) for c in self._world.chats.values() if c.kind != "private"],
                "sample_votes": self._voters.state if self._voters.ready else None,
                "last_event": self._world.events.last,
            }
        )

    async def create_person(self, request: web.Request) -> web.Response:
        """Create a person, or change an existing one: {id, name?, language?}."""
        body = await json_object(request)
        known = self._world.users.get(int(body["id"]))
        user = self._world.add_user(
            int(body["id"]),
            str(body.get("name") or (known.name if known else "Anonymous")),
            language=str(body.get("language") or (known.language if known else "en")),
        )
        return answer(self._describe(user))

    async def counts(self, request: web.Request) -> web.Response:
        """Return how many messages the bot sent, edited and deleted in `?chat=`, and flood control's total refusals."""
        chat = self._world.chats.get(number(request.query.get("chat")) or 0)
        if chat is None:
            raise api_error("chat not found")
        counts = chat.counts
        flood = self._world.flood.refusals
        return answer({"sends": counts.sends, "edits": counts.edits, "deletes": counts.deletes, "refusals": flood})

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Stream the events after `?after=N` (or Last-Event-ID); `?person=ID` selects those of one person's chats."""
        after = int(request.headers.get("Last-Event-ID") or request.query.get("after") or self._world.events.last)
        person = number(request.query.get("person"))

        def wanted(event: Json) -> bool:
            chat = event["chat"]
            return person is None or chat is None or person in self._world.chats[chat].members

        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await response.prepare(request)
        await response.write(b": welcome\n\n")
        with suppress(ConnectionResetError):  # the reader has disconnected
            async for event in self._world.events.follow(after, wanted):
                await response.write(f"id: {event['id']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode())
        return response

    async def messages(self, request: web.Request) -> web.Response:
        """Return the messages of one of the person's chats (`?chat=`, by default theirs with the bot), oldest first."""
        chat = self._people.chat_of(self._person(request), number(request.query.get("chat")))
        return answer({"messages": list(chat.messages.values()), "last_event": self._world.events.last})

    async def send(self, request: web.Request) -> web.Response:
        """Send a text: {text, chat?, reply_to?, topic?}.

        Or send files in a form: `caption` and `photo`, `raw_photo`, `document` or `sticker`; several make an album.
        """
        person = self._person(request)
        fields: Mapping[str, Any]
        attachments: list[Attachment] = []
        if request.content_type == "multipart/form-data":
            texts, uploads = await read_form(await request.multipart())
            fields = {name: values[-1] for name, values in texts.items()}
            attachments = [
                Attachment(
                    file.data, file.name, file.media_type, field == "document", field == "sticker", field == "raw_photo"
                )
                for field, file in uploads
            ]
        else:
            fields = await json_object(request)
        chat, reply_to = number(fields.get("chat")), number(fields.get("reply_to"))
        topic = number(fields.get("topic")) or 0
        if not attachments:
            text = str(fields.get("text") or "")
            return answer({"messages": [self._people.writes(person, text, chat=chat, reply_to=reply_to, topic=topic)]})
        caption = str(fields.get("caption") or fields.get("text") or "")
        sent = await self._people.sends(person, attachments, caption, chat=chat, reply_to=reply_to, topic=topic)
        return answer({"messages": sent})

    async def commands(self, request: web.Request) -> web.Response:
        """Return the menu of commands that the person sees (`?chat=`, by default their chat with the bot)."""
        person = self._person(request)
        chat = self._people.chat_of(person, number(request.query.get("chat")))
        return answer({"commands": commands_for(self._world, self._people.user(person), chat)})

    async def open_topic(self, request: web.Request) -> web.Response:
        """Create a forum topic: {chat, name}."""
        body = await json_object(request)
        topic = self._people.opens_topic(self._person(request), str(body["name"]), chat=int(body["chat"]))
        return answer({"topic": topic})

    async def edit(self, request: web.Request) -> web.Response:
        """Edit the person's own message: {message, text, chat?}."""
        body = await json_object(request)
        chat = number(body.get("chat"))
        return answer(self._people.edits(self._person(request), int(body["message"]), str(body["text"]), chat=chat))

    async def press(self, request: web.Request) -> web.Response:
        """Press an inline button: {message, data, chat?}."""
        body = await json_object(request)
        chat = number(body.get("chat"))
        query = self._people.presses(self._person(request), int(body["message"]), str(body["data"]), chat=chat)
        return answer({"query": query})

    async def react(self, request: web.Request) -> web.Response:
        """React to a message: {message, emoji, chat?}; an empty emoji removes the reaction."""
        body = await json_object(request)
        chat = number(body.get("chat"))
        self._people.reacts(self._person(request), int(body["message"]), str(body["emoji"]), chat=chat)
        return answer({})

    async def block(self, request: web.Request) -> web.Response:
        """Block or unblock the bot: {blocked}."""
        body = await json_object(request)
        self._people.blocks(self._person(request), blocked=bool(body.get("blocked", True)))
        return answer({})

    async def file(self, request: web.Request) -> web.Response:
        """Return a photo or document by its file id."""
        file = self._world.files.by_id(request.match_info["file"])
        if file is None:
            raise BotApiError(404, "Not Found")
        return web.Response(
            body=file.data,
            content_type=file.media_type.partition(";")[0],
            # An uploaded HTML file must not run as a page of this origin.
            headers={"Content-Security-Policy": "sandbox; default-src 'none'", "X-Content-Type-Options": "nosniff"},
        )

    async def cast_sample_votes(self, request: web.Request) -> web.Response:
        """Start a round of sample votes: {coin?}. Its progress is in the events of kind "votes"."""
        body = await json_object(request)
        return answer(self._voters.start(coin=bool(body.get("coin"))))

    async def samples(self, request: web.Request) -> web.Response:
        """Return the samples' names and addresses, which of them are stickers, and the note."""
        samples = [
            {"name": name, "url": f"/samples/{name}", "sticker": _is_webp(data)} for name, data in self._samples.items()
        ]
        return answer({"samples": samples, "note": self._note})

    async def sample(self, request: web.Request) -> web.Response:
        """Return a sample's file."""
        data = self._samples.get(request.match_info["name"])
        if data is None:
            raise BotApiError(404, "Not Found")
        media_type = "image/webp" if _is_webp(data) else "image/jpeg"
        return web.Response(body=data, content_type=media_type, headers={"Cache-Control": "max-age=3600"})


def _is_webp(data: bytes) -> bool:
    return data[8:12] == b"WEBP"
