"""The HTTP API of the chat page and of scripted users: user actions, sample files and sample votes.

Requests are JSON or, with pictures and files, multipart forms. Responses are JSON, and errors have the
Bot API's format. `/people/events` is a stream of server-sent events that a client can resume. Requests
from pages of other origins are refused, so that no other site open in the browser can act as a user.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from telegram_emulator.api_errors import BotApiError, Json, api_error
from telegram_emulator.bot_account import commands_for
from telegram_emulator.parameters import read_form
from telegram_emulator.person_actions import Attachment, PersonActions
from telegram_emulator.sample_voters import SampleVoters
from telegram_emulator.world import User, World

Handler = Callable[[web.Request], Awaitable[Json | web.StreamResponse]]

NO_LEARNING: Json = {"run": "", "ended": 0.0, "votes": "", "back": False}
"""The learning status of a bot that has not had a run.

`run` is the state of the newest run: "running", "waiting" (for approval), "live", "kept" (the old model), "failed",
"cancelled" or empty. `ended` is when it ended, in seconds. `votes` is the state of the votes for another run: "ready",
"alike" (nearly all answers are liked) or empty. `back` says whether there is an earlier model.
"""


class PeopleHttp:
    """The HTTP routes under /people and /samples.

    `samples` holds the contents of the sample files, keyed by name; `note` is a line of text shown before
    the samples.
    """

    def __init__(
        self, world: World, people: PersonActions, voters: SampleVoters, samples: Mapping[str, bytes], note: str
    ) -> None:
        self._world = world
        self._people = people
        self._voters = voters
        self._samples = samples
        self._note = note
        self.learning_source: Callable[[], Awaitable[Json]] | None = None

    def routes(self) -> list[web.RouteDef]:
        """Return all routes of the API."""
        person = r"/people/{person:\d+}"
        table: list[tuple[str, str, Handler]] = [
            ("GET", "/people", self.overview),
            ("POST", "/people", self.create_person),
            ("GET", "/people/counts", self.counts),
            ("GET", "/people/events", self.events),
            ("GET", "/people/learning", self.learning),
            ("GET", "/people/files/{file}", self.file),
            ("POST", "/people/sample-votes", self.cast_sample_votes),
            ("GET", "/samples", self.samples),
            ("GET", "/samples/{name}", self.sample),
            ("GET", f"{person}/messages", self.messages),
            ("POST", f"{person}/messages", self.send),
            ("GET", f"{person}/commands", self.commands),
            ("POST", f"{person}/{{action:topics|edit|press|react|block}}", self.act),
        ]
        return [web.route(method, path, _guarded(handler)) for method, path, handler in table]

    def _person(self, request: web.Request) -> int:
        return self._people.user(int(request.match_info["person"])).id

    async def overview(self, request: web.Request) -> Json:
        """Return the bot, the users, the groups, the state of the sample votes, and the number of the last event."""
        return {
            "bot": self._world.bot,
            "people": [asdict(user) for user in self._world.users.values()],
            "groups": [
                {"id": each.id, "title": each.title, "members": sorted(each.members)}
                for each in self._world.chats.values()
                if each.kind != "private"
            ],
            "sample_votes": self._voters.state if self._voters.ready else None,
            "last_event": self._world.events.last,
        }

    async def create_person(self, request: web.Request) -> Json:
        """Create or update a user from the JSON body {id, name?, language?}."""
        body = await _json_object(request)
        number = int(body["id"])
        known = self._world.users.get(number, User(number, "Anonymous"))
        name, language = body.get("name") or known.name, body.get("language") or known.language
        return asdict(self._world.add_user(number, str(name), str(language)))

    async def learning(self, request: web.Request) -> Json:
        """Return the bot's learning status, with the keys of `NO_LEARNING`."""
        return await self.learning_source() if self.learning_source else NO_LEARNING

    async def counts(self, request: web.Request) -> Json:
        """Return how many messages the bot sent, edited and deleted in the chat `?chat=ID`.

        The response also contains the number of calls that flood control has refused across all chats.
        """
        chat = self._world.chats.get(_number(request.query.get("chat")) or 0)
        if chat is None:
            raise api_error("chat not found")
        return {**asdict(chat.counts), "refusals": self._world.flood.refusals}

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Stream the events after the number in `?after=N` or in a Last-Event-ID header, by default only new ones.

        `?person=ID` selects the events of the user's chats and the events that concern everyone.
        """
        after = int(request.headers.get("Last-Event-ID") or request.query.get("after") or self._world.events.last)
        person = _number(request.query.get("person"))

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

    async def messages(self, request: web.Request) -> Json:
        """Return the messages, oldest first, of the user's chat `?chat=ID`, by default the chat with the bot."""
        chat = self._people.chat_of(self._person(request), _number(request.query.get("chat")))
        return {"messages": list(chat.messages.values()), "last_event": self._world.events.last}

    async def send(self, request: web.Request) -> Json:
        """Send a message on behalf of the user.

        The body is JSON, {text, chat?, reply_to?, topic?}, or a form with files in the fields `photo`,
        `raw_photo`, `document` or `sticker`, and optionally a `caption`. Several files make an album.
        """
        person = self._person(request)
        fields: Mapping[str, Any]
        attachments: list[Attachment] = []
        if request.content_type == "multipart/form-data":
            fields, uploads = await read_form(request)
            attachments = [Attachment(file.data, file.name, file.media_type, field) for field, file in uploads]
        else:
            fields = await _json_object(request)
        chat, reply_to = _number(fields.get("chat")), _number(fields.get("reply_to"))
        topic = _number(fields.get("topic")) or 0
        if not attachments:
            text = str(fields.get("text") or "")
            return {"messages": [self._people.writes(person, text, chat=chat, reply_to=reply_to, topic=topic)]}
        caption = str(fields.get("caption") or fields.get("text") or "")
        sent = await self._people.sends(person, attachments, caption, chat=chat, reply_to=reply_to, topic=topic)
        return {"messages": sent}

    async def commands(self, request: web.Request) -> Json:
        """Return the command menu that the user sees in the chat `?chat=ID`, by default the chat with the bot."""
        person = self._person(request)
        chat = self._people.chat_of(person, _number(request.query.get("chat")))
        return {"commands": commands_for(self._world, self._people.user(person), chat)}

    async def act(self, request: web.Request) -> Json:
        """Take an action on behalf of the user, as specified by the JSON body.

        The bodies are {chat, name} for `topics`, {message, text, chat?} for `edit`, {message, data, chat?} for `press`,
        {message, emoji, chat?} for `react` (an empty emoji removes the reaction) and {blocked?} for `block`.
        """
        body, person, people = await _json_object(request), self._person(request), self._people
        chat = _number(body.get("chat"))
        match request.match_info["action"]:
            case "topics":
                return {"topic": people.opens_topic(person, str(body["name"]), chat=int(body["chat"]))}
            case "edit":
                return people.edits(person, int(body["message"]), str(body["text"]), chat=chat)
            case "press":
                return {"query": people.presses(person, int(body["message"]), str(body["data"]), chat=chat)}
            case "react":
                people.reacts(person, int(body["message"]), str(body["emoji"]), chat=chat)
            case _:
                people.blocks(person, blocked=bool(body.get("blocked", True)))
        return {}

    async def file(self, request: web.Request) -> web.Response:
        """Return the content of a photo, document or sticker by its file ID."""
        file = self._world.files.by_id(request.match_info["file"])
        if file is None:
            raise BotApiError(404, "Not Found")
        return web.Response(
            body=file.data,
            content_type=file.media_type.partition(";")[0],
            # An uploaded HTML file must not run as a page of this origin.
            headers={"Content-Security-Policy": "sandbox; default-src 'none'", "X-Content-Type-Options": "nosniff"},
        )

    async def cast_sample_votes(self, request: web.Request) -> Json:
        """Start a round of sample votes; the votes are random if the JSON body is {coin: true}.

        Events of kind "votes" report the progress of the round.
        """
        body = await _json_object(request)
        return self._voters.start(coin=bool(body.get("coin")))

    async def samples(self, request: web.Request) -> Json:
        """Return the name and URL of each sample, whether it is a sticker, and the note shown before the samples."""
        samples = [
            {"name": name, "url": f"/samples/{name}", "sticker": _is_webp(data)} for name, data in self._samples.items()
        ]
        return {"samples": samples, "note": self._note}

    async def sample(self, request: web.Request) -> web.Response:
        """Return the content of the sample file named in the URL."""
        data = self._samples.get(request.match_info["name"])
        if data is None:
            raise BotApiError(404, "Not Found")
        media_type = "image/webp" if _is_webp(data) else "image/jpeg"
        return web.Response(body=data, content_type=media_type, headers={"Cache-Control": "max-age=3600"})


def _is_webp(data: bytes) -> bool:
    return data[8:12] == b"WEBP"


async def _json_object(request: web.Request) -> Json:
    """Return the JSON object in the request's body.

    Raises:
        BotApiError: The body is not a JSON object.
    """
    with suppress(ValueError):
        body = await request.json()
        if isinstance(body, dict):
            return body
    raise api_error("expected a JSON object")


def _number(value: object) -> int | None:
    """Convert `value` to an integer, or return None if it is None or empty.

    Raises:
        ValueError: `value` is not an integer.
    """
    return None if value in (None, "") else int(str(value))


def _guarded(handler: Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Wrap a handler to refuse requests from pages of other origins and to return objects and errors as JSON."""

    async def guarded(request: web.Request) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        status = 200
        try:
            if origin and urlsplit(origin).netloc != request.host:
                raise api_error("pages of other origins may not call this", 403)
            body = await handler(request)
        except BotApiError as error:
            body, status = error.body(), error.code
        except (KeyError, TypeError, ValueError) as error:
            body, status = api_error(f"wrong parameters: {error}").body(), 400
        return body if isinstance(body, web.StreamResponse) else web.json_response(body, status=status)

    return guarded
