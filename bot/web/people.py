"""The list of people, and the page of a person with what is stored about them and buttons to block or erase them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import structlog
from aiohttp import web

from bot.admin.erasure import Erasure
from bot.admin.refusals import refused
from bot.live_settings import LiveSettings
from bot.web.pages import OPERATOR, Pages, see_other
from bot.web.review import card_page
from storage.errors import StorageError
from storage.ledger import Ledger
from storage.review_cards import CardFilter

PEOPLE: Final = 500
"""The maximum number of people in the list."""

_PERSON = "/people/{person:[0-9]{1,18}}"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PeoplePages:
    """The pages of people."""

    ledger: Ledger
    erasure: Erasure
    pages: Pages
    settings: LiveSettings

    def routes(self) -> list[web.RouteDef]:
        """Return the routes, which must be accessible only to the operator."""
        return [
            web.get("/people", self.people),
            web.get(_PERSON, self.person),
            web.post(f"{_PERSON}/block", self.block),
            web.post(f"{_PERSON}/unblock", self.unblock),
            web.get(f"{_PERSON}/erase", self.ask),
            web.post(f"{_PERSON}/erase", self.erase),
        ]

    async def people(self, request: web.Request) -> web.Response:
        """List the people who have used the bot, newest first."""
        people = await self.ledger.people.newest(PEOPLE)
        return self.pages.render(request, "people.html", people=people, most=PEOPLE)

    async def person(self, request: web.Request) -> web.Response:
        """Show what is stored about a person."""
        person, say = _number(request), self.pages.say(request)
        found = await self.ledger.people.get(person)
        blocked = await self.ledger.blocks.includes(person)
        if found is None and not blocked:
            raise web.HTTPNotFound(text=say("Nothing is stored about {person}.", person=person))
        return self.pages.render(
            request,
            "person.html",
            person=person,
            found=found,
            blocked=blocked,
            is_admin=person in self.settings.now.telegram.admins,
            blocked_in_settings=person in self.settings.now.limits.blocked,
            left=await self.ledger.personal_data.count(person),
            **await card_page(self.ledger, request, CardFilter(person=person)),
        )

    async def block(self, request: web.Request) -> web.Response:
        """Block a person who is not an admin."""
        person, say = _number(request), self.pages.say(request)
        if person in self.settings.now.telegram.admins:
            raise web.HTTPConflict(text=say("Admins can't be blocked: see telegram.admins."))
        await self.ledger.blocks.add(person, request[OPERATOR].name)
        log.info("a person was blocked", by=request[OPERATOR].name)
        return see_other(f"/people/{person}")

    async def unblock(self, request: web.Request) -> web.Response:
        """Unblock a person."""
        person = _number(request)
        await self.ledger.blocks.remove(person)
        log.info("a person was unblocked", by=request[OPERATOR].name)
        return see_other(f"/people/{person}")

    async def ask(self, request: web.Request) -> web.Response:
        """Show what an erasure would delete, and ask for confirmation."""
        person = _number(request)
        found, left = await self.ledger.people.get(person), await self.ledger.personal_data.count(person)
        return self.pages.render(request, "erase.html", person=person, found=found, left=left, erased=False)

    async def erase(self, request: web.Request) -> web.Response:
        """Erase everything that is stored about a person."""
        person = _number(request)
        try:
            gone = await self.erasure.forget(person)
        except (StorageError, OSError) as error:
            raise web.HTTPServiceUnavailable(text=refused(error, self.pages.say(request))) from error
        log.info("a person's data was erased on the web page", by=request[OPERATOR].name)
        return self.pages.render(request, "erase.html", person=person, found=None, left=gone, erased=True)


def _number(request: web.Request) -> int:
    return int(request.match_info["person"])
