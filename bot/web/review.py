"""The review page, on which an operator keeps, drops and edits training examples and starts a run on a selection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog
from aiohttp import web

from bot.admin.refusals import REFUSALS, NothingNew, refused, run_refused
from bot.admin.run_manager import RunManager
from bot.web.card_query import card_filter, number
from bot.web.pages import OPERATOR, Pages, local_path, see_other
from bot.web.security import read_form
from storage.chat_records import PictureState
from storage.errors import StorageError, UnknownRecord
from storage.learning_records import Review, ReviewDecision
from storage.ledger import Ledger
from storage.picture_files import PictureStore
from storage.review_cards import CardFilter

CARDS: Final = 20
EDIT_CHARACTERS: Final = 8000

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ReviewPages:
    """The review page, and the pictures on it and on other pages."""

    ledger: Ledger
    pictures: PictureStore
    runs: RunManager
    pages: Pages
    threshold: int

    def routes(self) -> list[web.RouteDef]:
        """Return the routes, which must be accessible only to the operator."""
        return [
            web.get("/review", self.review),
            web.post("/review/train", self.train),
            web.post("/review/{exchange:[0-9]{1,18}}", self.decide),
            web.get("/pictures/{sha256:[0-9a-f]{64}}", self.picture),
        ]

    async def review(self, request: web.Request, status: int = 200, **notice: Any) -> web.Response:
        """Show the cards of the rated exchanges that the query selects, below a notice if one is given."""
        chosen, cards = card_filter(request.query), self.ledger.review_cards
        shown, liked = await cards.totals(chosen, self.threshold)
        here = request.rel_url.with_path("/review").with_query(without(request.query, "language"))
        context = {
            "query": request.query,
            "shown": shown,
            "liked": liked,
            "models": await cards.models(),
            "groups": await cards.groups(),
            "here": here,
            "doubt": await self._doubt(chosen) if liked else "",
            "notice": "",
            "again": False,
            **await card_page(self.ledger, request, chosen),
            **notice,
        }
        return self.pages.render(request, "review.html", status=status, **context)

    async def _doubt(self, chosen: CardFilter) -> str:
        """Return why a run on the selected cards would be refused or end without a model; empty if it may succeed."""
        try:
            plan = await self.runs.plan(frozenset(await self.ledger.review_cards.kept(chosen)))
        except REFUSALS as refusal:
            return str(refusal)
        return plan.selection.futile or ""

    async def decide(self, request: web.Request) -> web.Response:
        """Record a decision on an exchange, and return to its card."""
        form, say = await read_form(request), self.pages.say(request)
        exchange, back = int(request.match_info["exchange"]), local_path(form.get("back", ""), "/review")
        reviewer = request[OPERATOR].name
        try:
            decision = ReviewDecision(form.get("decision", ""))
            text = form.get("text", "").replace("\r\n", "\n")[:EDIT_CHARACTERS]
            await self.ledger.reviews.add(Review(exchange, decision, reviewer, text))
        except ValueError as error:
            raise web.HTTPBadRequest(text="no such decision") from error
        except UnknownRecord as error:
            raise web.HTTPNotFound(text=say(str(error))) from error
        except StorageError as error:
            raise web.HTTPConflict(text=refused(error, say)) from error
        log.info("an exchange was reviewed", exchange=exchange, decision=decision, by=reviewer)
        return see_other(f"{back}#exchange-{exchange}")

    async def train(self, request: web.Request) -> web.Response:
        """Start a run limited to the exchanges that the query selects, except those that an operator has dropped."""
        form, say = await read_form(request), self.pages.say(request)
        only = frozenset(await self.ledger.review_cards.kept(card_filter(request.query)))
        try:
            run = await self.runs.retrain(None, confirmed=form.get("confirmed") == "1", only=only)
        except REFUSALS as refusal:
            again = isinstance(refusal, NothingNew)
            return await self.review(request, 409, notice=run_refused(refusal, say), again=again)
        log.info("an operator started a run", run=run.id, exchanges=len(only), by=request[OPERATOR].name)
        return see_other(f"/runs/{run.id}")

    async def picture(self, request: web.Request) -> web.StreamResponse:
        """Send the requested picture, unless it is quarantined or has not been re-encoded yet."""
        found = await self.ledger.pictures.get(request.match_info["sha256"])
        if found.state is not PictureState.CLEAN:
            raise web.HTTPNotFound
        data = await self.pictures.get(found.sha256)
        headers = {"Cache-Control": "private, max-age=3600"}
        return web.Response(body=data, content_type=found.media_type, headers=headers)


async def card_page(ledger: Ledger, request: web.Request, chosen: CardFilter) -> dict[str, Any]:
    """Return the template variables of a page of cards: the cards and the address of the next page."""
    before = number(request.query.get("before", "")) or None
    cards, more = await ledger.review_cards.page(chosen, before, CARDS)
    older = request.rel_url.update_query(before=cards[-1].exchange.id) if more else None
    return {"cards": cards, "older": older, "newest": before is None}


def without(query: Mapping[str, str], *names: str) -> dict[str, str]:
    """Return a query without the parameters `names` and without empty values."""
    return {name: value for name, value in query.items() if value and name not in names}
