"""The page of models: approval over time, the canary's evidence, and the same buttons as in the chat."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog
from aiohttp import web

from bot.admin.canary_standing import standing_text
from bot.admin.canary_trial import Trials
from bot.admin.model_checks import refuse_harmful
from bot.admin.model_deletion import bytes_on_disk, model_files, refuse_in_use
from bot.admin.model_news import approved
from bot.admin.model_switch import RESTING
from bot.admin.progress import approval_text
from bot.admin.refusals import CHANGED, AdminRefusal
from bot.i18n import Say, later
from bot.web.charts import Chart, approval_chart, evidence_chart
from bot.web.model_changes import Change, ModelChanges, OnProgress, Work
from bot.web.pages import ANYBODY, OPERATOR, Pages, see_other, start_events
from bot.web.security import read_form
from storage.counts import Approval
from storage.errors import StorageError
from storage.learning_records import Actor, Model
from storage.ledger import Ledger
from storage.state_machines import ANSWERING, MODEL_TRANSITIONS, ModelState
from storage.translatable_reason import Reason

_MODEL: Final = "/models/{model:[A-Za-z0-9][A-Za-z0-9._-]{0,99}}"
ON_PAGE: Final = later("Changed on the Models page: {what}")
ON_PAGE_BY: Final = later("Changed on the Models page by {name}: {what}")

HELP: Final = {
    "approve": later("✔ Approve: the model goes live at once and answers everyone."),
    "switch": later("Switch: the model answers everyone from now on, without a trial."),
    "promote": later("✔ Promote: the canary answers everyone from now on, without waiting for more votes."),
    "stop": later("✖ Stop: the trial ends, the canary is rejected, and the live model answers everyone again."),
    "back": later("↩ Back to {model}: this model, which was live before, answers everyone again."),
    "delete": later("Delete: the model's files and its adapter are removed for good, so it can't answer again."),
}
"""Explanations of the buttons."""

APPROVE_CANARY: Final = later("✔ Approve: the model becomes a canary.")
CANARY: Final = later(
    "A canary is a new model that first answers in a share of the conversations, until the votes decide whether it "
    "goes live."
)

LOOK_SECONDS = 1.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model on the page: its approval in words and as a chart, and its current buttons.

    `erased` is the number of answers used by the model's run that have been erased or withdrawn since.
    """

    model: Model
    approval: str
    chart: Chart | None
    actions: Collection[str]
    erased: int


@dataclass(frozen=True, slots=True)
class ModelPages:
    """The page of models, and the page that asks before a model is deleted."""

    ledger: Ledger
    trials: Trials
    changes: ModelChanges
    pages: Pages

    def routes(self) -> list[web.RouteDef]:
        """Return the routes, which must be accessible only to the operator."""
        return [
            web.get("/models", self.models),
            web.get("/models/events", self.events),
            web.post("/models/rollback", self.roll_back),
            web.post(f"{_MODEL}/approve", self.approve),
            web.post(f"{_MODEL}/promote", self.promote),
            web.post(f"{_MODEL}/stop", self.stop_canary),
            web.get(f"{_MODEL}/delete", self.ask),
            web.post(f"{_MODEL}/delete", self.delete),
        ]

    async def models(self, request: web.Request) -> web.Response:
        """Show all models and, once only, the outcome of the latest change."""
        return await self._page(request, self.changes.latest())

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Send a server-sent event once a model is added, changes its state or is deleted, then end the stream."""
        response = await start_events(request)
        with suppress(ConnectionResetError, StorageError):
            shown = await self._states()
            while await self._states() == shown:
                await response.write(b":\n\n")  # fails if the browser is gone
                await asyncio.sleep(LOOK_SECONDS)
            await response.write(b"data: changed\n\n")
        return response

    async def _states(self) -> list[tuple[str, ModelState, bool]]:
        return [(each.id, each.state, each.kept) for each in await self.ledger.models.all()]

    async def _page(self, request: web.Request, change: Change | None, status: int = 200) -> web.Response:
        say, switch = self.pages.say(request), self.trials.switch
        models, votes = await self.ledger.models.all(), await self.ledger.counts.votes_per_day()
        previous = await self.ledger.models.previous()
        pending = {each.model for each in await self.ledger.promotions.pending()}
        trial = await self.trials.standing()
        erased = await self.ledger.run_selections.erased()
        starting = self.trials.status().swapping_to or ""
        entries = []
        for model in sorted(models, key=lambda each: (each.state not in ANSWERING, -each.created)):
            days = votes.get(model.id, {})
            text = _approval(days.values(), say)
            chart = approval_chart(days, f"{model.id}: {text}", say) if days else None
            actions = allowed_actions(model, previous.id if previous else "", pending, tried=self.trials.can_try)
            entries.append(ModelEntry(model, text, chart, actions, erased.get(model.run or 0, 0)))
        live = next((each.id for each in models if each.state is ModelState.LIVE), "")
        context: dict[str, Any] = {
            "entries": [each for each in entries if each.model.kept],
            "removed": [each for each in entries if not each.model.kept],
            "help": self._help({action for each in entries for action in each.actions}, previous, say),
            "live": live,
            "approve": self.trials.settings.now.training.approve,
            "trial": standing_text(trial, say) if trial else "",
            "evidence": evidence_chart(trial.evidence, standing_text(trial, say), say)
            if trial and trial.evidence.pairs
            else None,
            "resting": say(Reason(RESTING, run=switch.away_for)) if switch.away_for is not None else "",
            "change": change,
            "starting": starting,
            "busy": bool((change and not change.over) or starting),
            "confirm": bool(change and change.can_be_confirmed and change.live == live),
            "here": request.rel_url.with_path("/models"),
        }
        return self.pages.render(request, "models.html", status=status, **context)

    def _help(self, actions: Collection[str], previous: Model | None, say: Say) -> list[str]:
        """Return explanations of the buttons for `actions` and, if a button concerns canaries, of canaries."""
        texts = {**HELP, "approve": APPROVE_CANARY} if self.trials.can_try else HELP
        told = [say(text, model=previous.id if previous else "") for action, text in texts.items() if action in actions]
        return [say(CANARY), *told] if "stop" in actions or ("approve" in actions and self.trials.can_try) else told

    async def approve(self, request: web.Request) -> web.Response:
        """Put a candidate into service, as a canary or as the live model."""
        wanted = request.match_info["model"]

        async def work(_: OnProgress) -> Reason:
            model = await self.trials.approve(wanted, _actor(request))
            return self._announced(request, model, approved(model))

        return await self._carry_out(request, Reason("Warming up {model}…", model=wanted), work)

    async def promote(self, request: web.Request) -> web.Response:
        """Make a model live; a rejected or undecided model needs a second press."""
        wanted, form = request.match_info["model"], await read_form(request)

        async def work(on_progress: OnProgress) -> Reason:
            confirmed = await self._confirmed(form)
            model = await self.trials.switch.promote(wanted, _actor(request), on_progress, confirmed=confirmed)
            return self._announced(request, model, Reason("{model} now answers everyone.", model=model.id))

        return await self._carry_out(request, Reason("Warming up {model}…", model=wanted), work)

    async def roll_back(self, request: web.Request) -> web.Response:
        """Go back to the previous model, if the live model has not changed since the page was shown."""
        form = await read_form(request)

        async def work(on_progress: OnProgress) -> Reason:
            await self._refuse_changed(form)
            confirmed = await self._confirmed(form)
            model = await self.trials.switch.rollback(_actor(request), on_progress, confirmed=confirmed)
            return self._announced(request, model, Reason("{model} now answers everyone.", model=model.id))

        return await self._carry_out(request, Reason("Warming up the previous model…"), work)

    async def stop_canary(self, request: web.Request) -> web.Response:
        """End the trial of a canary."""
        wanted = request.match_info["model"]

        async def work(_: OnProgress) -> Reason:
            model = await self.trials.stop(wanted, _actor(request))
            what = Reason("{model} was stopped; the live model answers everyone again.", model=wanted)
            return self._announced(request, model, what)

        return await self._carry_out(request, Reason("Stopping {model}…", model=wanted), work)

    async def ask(self, request: web.Request) -> web.Response:
        """Show what a deletion would remove, and ask for confirmation."""
        model = request.match_info["model"]
        freed = await asyncio.to_thread(bytes_on_disk, await model_files(self.ledger, model))
        return self.pages.render(request, "delete_model.html", model=model, freed=freed)

    async def delete(self, request: web.Request) -> web.Response:
        """Delete a model's files and adapter."""
        wanted = request.match_info["model"]

        async def work(_: OnProgress) -> Reason:
            await self.trials.switch.delete(wanted, _actor(request))
            model = await self.ledger.models.get(wanted)
            return self._announced(request, model, Reason("{model} was deleted.", model=wanted))

        return await self._carry_out(request, Reason("Deleting {model}…", model=wanted), work)

    def _announced(self, request: web.Request, model: Model, what: Reason) -> Reason:
        """Notify the admins of what was done with a model, and return `what`."""
        name = _actor(request).name
        news = Reason(ON_PAGE_BY, name=name, what=what) if name else Reason(ON_PAGE, what=what)
        self.trials.notices.model_changed(model, news)
        return what

    async def _carry_out(self, request: web.Request, about: Reason, work: Work) -> web.Response:
        """Begin a change, and redirect to the page unless the change is refused within a moment."""
        live = await self.ledger.models.live()
        change = Change(about, request.path, live.id if live else "")
        log.info("an operator requested a model change", path=request.path, by=request[OPERATOR].name)
        if refused := await self.changes.begin(change, work):
            return await self._page(request, refused, 409)
        return see_other("/models")

    async def _confirmed(self, form: dict[str, str]) -> bool:
        """Return whether a form overrules a verdict; raise `AdminRefusal` if the live model has changed since."""
        if form.get("confirmed") != "1":
            return False
        await self._refuse_changed(form)
        return True

    async def _refuse_changed(self, form: dict[str, str]) -> None:
        live = await self.ledger.models.live()
        if live is None or live.id != form.get("live", ""):
            raise AdminRefusal(CHANGED)


def _actor(request: web.Request) -> Actor:
    name = request[OPERATOR].name
    return Actor("" if name == ANYBODY else name)


def allowed_actions(model: Model, previous: str, pending: Collection[str], *, tried: bool) -> list[str]:
    """Return the actions that are possible for a model now, as keys of `HELP`.

    `previous` is the model that a rollback makes live, and `pending` contains those whose promotion is pending. Unless
    approved models are `tried` as canaries first, approving one is the same as switching to it.
    """
    actions = []
    if model.state is ModelState.CANDIDATE and model.kept:
        actions.append("approve")
    if ModelState.LIVE in MODEL_TRANSITIONS[model.state] and model.kept and _passes(refuse_harmful, model):
        other = "promote" if model.state is ModelState.CANARY else "switch"
        if model.id == previous:
            actions.append("back")
        elif tried or "approve" not in actions:
            actions.append(other)
    if model.state is ModelState.CANARY:
        actions.append("stop")
    if model.kept and _passes(refuse_in_use, model, pending):
        actions.append("delete")
    return actions


def _passes(rule: Callable[..., None], *of: object) -> bool:
    try:
        rule(*of)
    except AdminRefusal:
        return False
    return True


def _approval(days: Collection[Approval], say: Say) -> str:
    total = Approval(sum(each.ups for each in days), sum(each.downs for each in days))
    return approval_text(total, say) if total.votes else say("no votes")
