"""The people's side over HTTP: what the chat page and scripted persons use.

Requests are JSON or, with pictures and files, multipart forms; answers are JSON; `/people/events` is a stream of
server-sent events that resumes where a reader left off. Knows HTTP only; what happens is in `people` and `world`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from bot.emulator.account import commands_for
from bot.emulator.faults import Faults
from bot.emulator.parameters import read_form
from bot.emulator.people import Attachment, People
from bot.emulator.refusals import Json, Refused, refused
from bot.emulator.voters import Voters
from bot.emulator.world import Chat, User, World


def _answer(body: object) -> web.Response:
    return web.json_response(body, dumps=lambda value: json.dumps(value, ensure_ascii=False))


async def _json(request: web.Request) -> Json:
    try:
        body = await request.json()
    except ValueError:
        raise refused("expected a JSON object") from None
    if not isinstance(body, dict):
        raise refused("expected a JSON object")
    return body


def _number(value: object) -> int | None:
    return None if value in (None, "") else int(str(value))


class PeopleHttp:
    """The routes below /people and /samples."""

    def __init__(
        self, world: World, people: People, voters: Voters, faults: Faults, samples: Mapping[str, bytes]
    ) -> None:
        self._world = world
        self._people = people
        self._voters = voters
        self._faults = faults
        self._samples = samples

    def routes(self) -> list[web.RouteDef]:
        """All routes, each guarded against pages of other origins."""
        person = r"/people/{person:\d+}"
        table = [
            ("GET", "/people", self.overview),
            ("POST", "/people", self.create_person),
            ("POST", "/people/groups", self.create_group),
            ("GET", "/people/events", self.events),
            ("GET", "/people/files/{file}", self.file),
            ("GET", "/people/counts", self.counts),
            ("GET", "/people/sample-votes", self.sample_votes),
            ("POST", "/people/sample-votes", self.cast_sample_votes),
            ("POST", "/people/faults", self.plan_fault),
            ("DELETE", "/people/faults", self.clear_faults),
            ("POST", "/people/flood", self.set_flood),
            ("POST", "/people/delivery", self.set_delivery),
            ("GET", f"{person}/messages", self.messages),
            ("POST", f"{person}/messages", self.send),
            ("GET", f"{person}/commands", self.commands),
            ("POST", f"{person}/topics", self.open_topic),
            ("POST", f"{person}/edit", self.edit),
            ("POST", f"{person}/press", self.press),
            ("POST", f"{person}/react", self.react),
            ("POST", f"{person}/stop-draft", self.stop_draft),
            ("POST", f"{person}/block", self.block),
            ("GET", "/samples", self.samples),
            ("GET", "/samples/{name}", self.sample),
        ]
        return [web.route(method, path, _guarded(handler)) for method, path, handler in table]

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
        return _answer(
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
        body = await _json(request)
        number = _number(body.get("id"))
        known = self._world.users.get(number) if number is not None else None
        user = self._world.add_user(
            number,
            str(body.get("name") or (known.name if known else "Somebody")),
            username=str(body.get("username", "")),
            language=str(body.get("language") or (known.language if known else "en")),
            **({} if known else {"admin": bool(body.get("admin"))}),
        )
        return _answer(self._describe(user))

    async def create_group(self, request: web.Request) -> web.Response:
        """Create a group with the bot in it: {title, members, kind?, admin?, privacy?}."""
        body = await _json(request)
        members = [self._people.user(int(member)).id for member in body.get("members", [])]
        chat = self._world.add_group(
            str(body.get("title", "Group")),
            members,
            kind=str(body.get("kind", "supergroup")),
            admin=bool(body.get("admin")),
            privacy=bool(body.get("privacy", True)),
        )
        return _answer(self._describe_chat(chat))

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Stream events: `?after=N` (or Last-Event-ID) and `?person=ID` for those of one person's chats only."""
        after = int(request.headers.get("Last-Event-ID") or request.query.get("after") or self._world.events.last)
        person = _number(request.query.get("person"))

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
        chat = self._people.chat_of(self._person(request), _number(request.query.get("chat")))
        return _answer({"messages": list(chat.messages.values()), "last_event": self._world.events.last})

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
            fields = await _json(request)
        chat, reply_to = _number(fields.get("chat")), _number(fields.get("reply_to"))
        topic = _number(fields.get("topic")) or 0
        if not attachments:
            text = str(fields.get("text") or "")
            return _answer({"messages": [self._people.writes(person, text, chat=chat, reply_to=reply_to, topic=topic)]})
        caption = str(fields.get("caption") or fields.get("text") or "")
        sent = await self._people.sends(person, attachments, caption, chat=chat, reply_to=reply_to, topic=topic)
        return _answer({"messages": sent})

    async def commands(self, request: web.Request) -> web.Response:
        """The menu of commands that the person sees (`?chat=`, their own chat by default)."""
        person = self._person(request)
        chat = self._people.chat_of(person, _number(request.query.get("chat")))
        return _answer({"commands": commands_for(self._world, self._people.user(person), chat)})

    async def open_topic(self, request: web.Request) -> web.Response:
        """Make a forum topic: {chat, name}."""
        body = await _json(request)
        topic = self._people.opens_topic(self._person(request), str(body["name"]), chat=int(body["chat"]))
        return _answer({"topic": topic})

    async def edit(self, request: web.Request) -> web.Response:
        """Edit an own message: {message, text, chat?}."""
        body = await _json(request)
        chat = _number(body.get("chat"))
        return _answer(self._people.edits(self._person(request), int(body["message"]), str(body["text"]), chat=chat))

    async def press(self, request: web.Request) -> web.Response:
        """Press an inline button: {message, data, chat?}."""
        body = await _json(request)
        chat = _number(body.get("chat"))
        query = self._people.presses(self._person(request), int(body["message"]), str(body["data"]), chat=chat)
        return _answer({"query": query})

    async def react(self, request: web.Request) -> web.Response:
        """React to a message: {message, emoji, chat?}; an empty emoji takes it back."""
        body = await _json(request)
        chat = _number(body.get("chat"))
        self._people.reacts(self._person(request), int(body["message"]), str(body["emoji"]), chat=chat)
        return _answer({})

    async def stop_draft(self, request: web.Request) -> web.Response:
        """Press Stop on the draft that the bot shows: {}."""
        self._people.stops_draft(self._person(request))
        return _answer({})

    async def block(self, request: web.Request) -> web.Response:
        """Block the bot or let it in again: {blocked}."""
        body = await _json(request)
        self._people.blocks(self._person(request), blocked=bool(body.get("blocked", True)))
        return _answer({})

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

    async def counts(self, request: web.Request) -> web.Response:
        """What the bot sent, edited and deleted in `?chat=`, and how often flood control refused it in all."""
        chat = self._world.chats.get(_number(request.query.get("chat")) or 0)
        if chat is None:
            raise refused("chat not found")
        counts = chat.counts
        flood = self._world.flood.refusals
        return _answer({"sends": counts.sends, "edits": counts.edits, "deletes": counts.deletes, "refusals": flood})

    async def sample_votes(self, request: web.Request) -> web.Response:
        """How far the sample votes are."""
        return _answer(self._voters.state)

    async def cast_sample_votes(self, request: web.Request) -> web.Response:
        """Start casting; progress comes as events of kind "votes"."""
        return _answer(self._voters.start())

    async def plan_fault(self, request: web.Request) -> web.Response:
        """Plan trouble: {kind, count?, methods?, chat?, seconds?, skip?} (see `faults`)."""
        body = await _json(request)
        try:
            self._faults.plan(str(body.pop("kind", "")), **body)
        except (TypeError, ValueError) as error:
            raise refused(f"no such fault: {error}") from None
        return _answer({"planned": len(self._faults.planned)})

    async def clear_faults(self, request: web.Request) -> web.Response:
        """No more trouble."""
        self._faults.clear()
        return _answer({})

    async def set_flood(self, request: web.Request) -> web.Response:
        """Switch flood control: {on, penalty?}."""
        body = await _json(request)
        self._world.flood.on = bool(body.get("on", True))
        self._world.flood.penalty = _number(body.get("penalty"))
        return _answer({"on": self._world.flood.on})

    async def set_delivery(self, request: web.Request) -> web.Response:
        """Deliver the next updates twice ({duplicates: n}) or collect and reverse them ({held_back: n})."""
        body = await _json(request)
        self._world.updates.duplicates = int(body.get("duplicates", 0))
        self._world.updates.held_back = int(body.get("held_back", 0))
        return _answer({})

    async def samples(self, request: web.Request) -> web.Response:
        """The sample pictures' names and addresses."""
        return _answer({"samples": [{"name": name, "url": f"/samples/{name}"} for name in self._samples]})

    async def sample(self, request: web.Request) -> web.Response:
        """One sample picture."""
        data = self._samples.get(request.match_info["name"])
        if data is None:
            raise Refused(404, "Not Found")
        return web.Response(body=data, content_type="image/jpeg", headers={"Cache-Control": "max-age=3600"})


def _guarded(handler: Any) -> Any:
    """Refuse requests that other sites' pages send, and put refusals into JSON."""

    async def guarded(request: web.Request) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        try:
            if origin and urlsplit(origin).netloc != request.host:
                raise refused("pages of other origins have no say here", 403)
            response: web.StreamResponse = await handler(request)
        except Refused as refusal:
            return web.json_response(refusal.body(), status=refusal.code)
        except (KeyError, TypeError, ValueError) as error:
            return web.json_response(refused(f"wrong parameters: {error}").body(), status=400)
        return response

    return guarded
