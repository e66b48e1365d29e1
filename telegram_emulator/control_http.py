"""What scripts and the demo want of the emulator over HTTP, beside what people do: trouble, counts, samples, votes.

Knows HTTP only; what a fault or a sample voter does is in `faults` and `voters`.
"""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from telegram_emulator.faults import Faults
from telegram_emulator.json_http import answer, json_object, number, routes
from telegram_emulator.refusals import Refused, refused
from telegram_emulator.voters import Voters
from telegram_emulator.world import World


class ControlHttp:
    """The routes below /people that are nobody's in particular, and those below /samples."""

    def __init__(self, world: World, voters: Voters, faults: Faults, samples: Mapping[str, bytes], note: str) -> None:
        self._world = world
        self._voters = voters
        self._faults = faults
        self._samples = samples
        self._note = note

    def routes(self) -> list[web.RouteDef]:
        """All routes."""
        return routes(
            [
                ("GET", "/people/counts", self.counts),
                ("GET", "/people/sample-votes", self.sample_votes),
                ("POST", "/people/sample-votes", self.cast_sample_votes),
                ("POST", "/people/faults", self.plan_fault),
                ("DELETE", "/people/faults", self.clear_faults),
                ("POST", "/people/flood", self.set_flood),
                ("POST", "/people/delivery", self.set_delivery),
                ("GET", "/samples", self.samples),
                ("GET", "/samples/{name}", self.sample),
            ]
        )

    async def counts(self, request: web.Request) -> web.Response:
        """What the bot sent, edited and deleted in `?chat=`, and how often flood control refused it in all."""
        chat = self._world.chats.get(number(request.query.get("chat")) or 0)
        if chat is None:
            raise refused("chat not found")
        counts = chat.counts
        flood = self._world.flood.refusals
        return answer({"sends": counts.sends, "edits": counts.edits, "deletes": counts.deletes, "refusals": flood})

    async def sample_votes(self, request: web.Request) -> web.Response:
        """How far the sample votes are."""
        return answer(self._voters.state)

    async def cast_sample_votes(self, request: web.Request) -> web.Response:
        """Start casting; progress comes as events of kind "votes"."""
        return answer(self._voters.start())

    async def plan_fault(self, request: web.Request) -> web.Response:
        """Plan trouble: {kind, count?, methods?, chat?, seconds?, skip?} (see `faults`)."""
        body = await json_object(request)
        try:
            self._faults.plan(str(body.pop("kind", "")), **body)
        except (TypeError, ValueError) as error:
            raise refused(f"no such fault: {error}") from None
        return answer({"planned": len(self._faults.planned)})

    async def clear_faults(self, request: web.Request) -> web.Response:
        """No more trouble."""
        self._faults.clear()
        return answer({})

    async def set_flood(self, request: web.Request) -> web.Response:
        """Switch flood control: {on, penalty?}."""
        body = await json_object(request)
        self._world.flood.on = bool(body.get("on", True))
        self._world.flood.penalty = number(body.get("penalty"))
        return answer({"on": self._world.flood.on})

    async def set_delivery(self, request: web.Request) -> web.Response:
        """Deliver the next updates twice ({duplicates: n}) or collect and reverse them ({held_back: n})."""
        body = await json_object(request)
        self._world.updates.duplicates = int(body.get("duplicates", 0))
        self._world.updates.held_back = int(body.get("held_back", 0))
        return answer({})

    async def samples(self, request: web.Request) -> web.Response:
        """The samples' names and addresses, which are stickers, and what to know before one sends any."""
        samples = [
            {"name": name, "url": f"/samples/{name}", "sticker": _is_webp(data)} for name, data in self._samples.items()
        ]
        return answer({"samples": samples, "note": self._note})

    async def sample(self, request: web.Request) -> web.Response:
        """One sample."""
        data = self._samples.get(request.match_info["name"])
        if data is None:
            raise Refused(404, "Not Found")
        media_type = "image/webp" if _is_webp(data) else "image/jpeg"
        return web.Response(body=data, content_type=media_type, headers={"Cache-Control": "max-age=3600"})


def _is_webp(data: bytes) -> bool:
    return data[8:12] == b"WEBP"
