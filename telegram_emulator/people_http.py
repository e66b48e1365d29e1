"""The people's side over HTTP: what the chat page and scripted persons use.

Requests are JSON or, with pictures and files, multipart forms; answers are JSON; `/people/events` is a stream of
server-sent events that resumes where a reader left off. Knows HTTP only; what happens is in `people` and `world`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from aiohttp import web

from telegram_emulator.account import commands_for
from telegram_emulator.json_http import answer, json_object, number, routes
from telegram_emulator.parameters import read_form
from telegram_emulator.people import Attachment, People
from telegram_emulator.refusals import Json, Refused
from telegram_emulator.voters import Voters
from telegram_emulator.world import Chat, User, World


class PeopleHttp:
    """The routes below /people that tell of people and groups, and of what each person does."""

    def __init__(self, world: World, people: People, voters: Voters) -> None:
        self._world = world
        self._people = people
        self._voters = voters

    def routes(self) -> list[web.RouteDef]:
        """All routes."""
        person = r"/people/{person:\d+}"
        table = [
            ("GET", "/people", self.overview),
            ("POST", "/people", self.create_person),
            ("POST", "/people/groups", self.create_group),
            ("GET", "/people/events", self.events),
            ("GET", "/people/files/{file}", self.file),
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

    def _describe_chat(self, chat: Chat) -> Json:
        return {"id": chat.id, "kind": chat.kind, "title": chat.title, "members": sorted(chat.members)}

    def _person(self, request: web.Request) -> int:
        return self._people.user(int(request.match_info["person"])).id

    async def overview(self, request: web.Request) -> web.Response:
        """The bot, the people, the groups, and the number of the last event."""
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
        """Create a person, or rename an existing one: {id?, name, language?, username?, admin?}."""
        body = await json_object(request)
        given = number(body.get("id"))
        known = self._world.users.get(given) if given is not None else None
        user = self._world.add_user(
            given,
            str(body.get("name") or (known.name if known else "Somebody")),
            username=str(body.get("username", "")),
            language=str(body.get("language") or (known.language if known else "en")),
            **({} if known else {"admin": bool(body.get("admin"))}),
        )
        return answer(self._describe(user))

    async def create_group(self, request: web.Request) -> web.Response:
        """Create a group with the bot in it: {title, members, kind?, admin?, privacy?}."""
        body = await json_object(request)
        members = [self._people.user(int(member)).id for member in body.get("members", [])]
        chat = self._world.add_group(
            str(body.get("title", "Group")),
            members,
            kind=str(body.get("kind", "supergroup")),
            admin=bool(body.get("admin")),
            privacy=bool(body.get("privacy", True)),
        )
        return answer(self._describe_chat(chat))

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Stream events: `?after=N` (or Last-Event-ID) and `?person=ID` for those of one person's chats only."""
        after = int(request.headers.get("Last-Event-ID") or request.query.get("after") or self._world.events.last)
        person = number(request.query.get("person"))

        def wanted(event: Json) -> bool:
            chat = event["chat"]
            return person is None or chat is None or person in self._world.chats[chat].members

        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await response.prepare(request)
        await response.write(b": welcome\n\n")
        with suppress(ConnectionResetError):  # whoever followed has gone
            async for event in self._world.events.follow(after, wanted):
                await response.write(f"id: {event['id']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode())
        return response

    async def messages(self, request: web.Request) -> web.Response:
        """The messages of one of the person's chats (`?chat=`, their own by default), oldest first."""
        chat = self._people.chat_of(self._person(request), number(request.query.get("chat")))
        return answer({"messages": list(chat.messages.values()), "last_event": self._world.events.last})

    async def send(self, request: web.Request) -> web.Response:
        """Write: {text, chat?, reply_to?, topic?}; or send files, as a form with `caption` and `photo`, `raw_photo`,
        `document` or `sticker`. Several files make an album.
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
        """The menu of commands that the person sees (`?chat=`, their own chat by default)."""
        person = self._person(request)
        chat = self._people.chat_of(person, number(request.query.get("chat")))
        return answer({"commands": commands_for(self._world, self._people.user(person), chat)})

    async def open_topic(self, request: web.Request) -> web.Response:
        """Make a forum topic: {chat, name}."""
        body = await json_object(request)
        topic = self._people.opens_topic(self._person(request), str(body["name"]), chat=int(body["chat"]))
        return answer({"topic": topic})

    async def edit(self, request: web.Request) -> web.Response:
        """Edit an own message: {message, text, chat?}."""
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
        """React to a message: {message, emoji, chat?}; an empty emoji takes it back."""
        body = await json_object(request)
        chat = number(body.get("chat"))
        self._people.reacts(self._person(request), int(body["message"]), str(body["emoji"]), chat=chat)
        return answer({})

    async def block(self, request: web.Request) -> web.Response:
        """Block the bot or let it in again: {blocked}."""
        body = await json_object(request)
        self._people.blocks(self._person(request), blocked=bool(body.get("blocked", True)))
        return answer({})

    async def file(self, request: web.Request) -> web.Response:
        """A photo or document by its file id."""
        file = self._world.files.by_id(request.match_info["file"])
        if file is None:
            raise Refused(404, "Not Found")
        return web.Response(
            body=file.data,
            content_type=file.media_type.partition(";")[0],
            # what people upload is shown as a picture or saved, never run as a page of this origin
            headers={"Content-Security-Policy": "sandbox; default-src 'none'", "X-Content-Type-Options": "nosniff"},
        )
