"""The page of blind comparisons: two answers to a question about a picture, without the names of the models.

The operator chooses the better answer. The score shows the number of wins, and the share of wins with its
confidence interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import structlog
from aiohttp import web
from yarl import URL

from bot.admin.blind_comparison import QUESTIONS, BlindComparison
from bot.i18n import Say
from bot.web.model_changes import Change, ModelChanges, OnProgress
from bot.web.pages import OPERATOR, Pages, see_other
from bot.web.review import without
from bot.web.security import read_form
from storage.comparisons import Score
from storage.ledger import Ledger
from storage.translatable_reason import Reason
from training.evidence.proportions import wilson_interval
from training.number_format import interval

_CHOICES = {"1": 1, "2": 2, "0": 0}

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ComparisonPages:
    """The page of blind comparisons."""

    ledger: Ledger
    comparison: BlindComparison
    changes: ModelChanges
    pages: Pages

    def routes(self) -> list[web.RouteDef]:
        """Return the routes, which must be accessible only to the operator."""
        return [
            web.get("/compare", self.compare),
            web.post("/compare", self.ask),
            web.post("/compare/{comparison:[0-9]{1,18}}", self.choose),
        ]

    async def compare(self, request: web.Request) -> web.Response:
        """Show the next comparison of the two models that the query names, and their score."""
        return await self._page(request, self.changes.latest())

    async def _page(self, request: web.Request, change: Change | None, status: int = 200) -> web.Response:
        say, comparisons = self.pages.say(request), self.ledger.comparisons
        kept = [each.id for each in await self.ledger.models.all() if each.directory]
        first, second = sorted((request.query.get("first", ""), request.query.get("second", "")))
        chosen = bool(first) and first != second
        shown = await comparisons.undecided(first, second) if chosen else None
        context: dict[str, Any] = {
            "models": kept,
            "first": first,
            "second": second,
            "chosen": chosen,
            "shown": shown,
            "exchange": await self.ledger.exchanges.get(shown.exchange) if shown else None,
            "score": score_text(first, second, await comparisons.score(first, second), say) if chosen else [],
            "questions": QUESTIONS,
            "pairs": await comparisons.pairs(),
            "change": change,
            "busy": bool(change and not change.over),
            "here": request.rel_url.with_path("/compare").with_query(without(request.query, "language")),
        }
        return self.pages.render(request, "compare.html", status=status, **context)

    async def ask(self, request: web.Request) -> web.Response:
        """Have the two models that the query names answer new questions."""
        first, second = request.query.get("first", ""), request.query.get("second", "")

        async def work(on_progress: OnProgress) -> Reason:
            number = await self.comparison.ask(first, second, on_progress)
            return Reason(
                "{first} and {second} have answered {number} questions, each about a different picture.",
                first=first,
                second=second,
                number=number,
            )

        if first == second:
            raise web.HTTPBadRequest(text=self.pages.say(request)("Choose two different models."))
        log.info("an operator requested a comparison", first=first, second=second, by=request[OPERATOR].name)
        about = Reason("{first} and {second} are answering questions…", first=first, second=second)
        change = Change(about, request.path, "")
        if refused := await self.changes.begin(change, work):
            return await self._page(request, refused, 409)
        return _to(first, second)

    async def choose(self, request: web.Request) -> web.Response:
        """Record which of two answers is better, and show the next comparison of the same models."""
        choice = _CHOICES.get((await read_form(request)).get("choice", ""))
        if choice is None:
            raise web.HTTPBadRequest(text="no such choice")
        number, name = int(request.match_info["comparison"]), request[OPERATOR].name
        found = await self.ledger.comparisons.choose(number, choice, name)
        return _to(found.first, found.second)


def score_text(first: str, second: str, score: Score, say: Say) -> list[str]:
    """Return sentences about the score of two models so far."""
    decided = score.first + score.second
    told = []
    if decided:
        best, wins = (first, score.first) if score.first >= score.second else (second, score.second)
        low, high = wilson_interval(wins, decided)
        told.append(
            say(
                "{model} gave the better answer in {wins} of {decided} comparisons: {share}.",
                model=best,
                wins=wins,
                decided=decided,
                share=interval(wins / decided, low, high, say.language),
            )
        )
        if low <= 0.5:
            told.append(say("That may still be chance."))
    if score.same:
        told.append(say.count("{number} comparison was a tie.", "{number} comparisons were ties.", score.same))
    if score.open:
        told.append(say.count("{number} comparison is left.", "{number} comparisons are left.", score.open))
    return told


def _to(first: str, second: str) -> web.Response:
    return see_other(str(URL("/compare").with_query(first=first, second=second)))
