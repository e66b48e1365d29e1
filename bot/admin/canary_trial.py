"""The trial of a canary: an accepted model answers a share of conversations until votes decide whether to keep it.

The evidence is computed from the ledger's votes, so erased votes no longer count. After a promotion, the
new live model is watched, and is rolled back if it clearly fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from bot.admin.canary_standing import Standing, standing, with_votes
from bot.admin.model_switch import ModelSwitch
from bot.admin.notifications import Notifications
from bot.admin.refusals import AdminRefusal
from bot.i18n import later
from bot.live_settings import LiveSettings
from inference.serving.deployment_status import Status
from inference.serving.engine_stats import Tally
from inference.serving.supervisor import State
from storage.learning_records import Actor, Model, Trial
from storage.ledger import Ledger
from storage.state_machines import ModelState, Verdict
from storage.translatable_reason import Reason
from training.evidence.sequential import HORIZON_DAYS, HORIZON_VOTES, Canary

DAY_SECONDS: Final = 86_400.0
WATCHED_SECONDS: Final = DAY_SECONDS
"""How long after its promotion a model can be rolled back for a fault."""

CRASHES: Final = 5
ANSWERS: Final = 20
BROKEN: Final = 0.5
BROKEN_BEFORE: Final = 0.1
"""A model counts as broken if at least half of its answers are broken, but at most a tenth of the other model's. Each
model needs at least 20 answers."""

NO_CANARY: Final = later(
    '{model} went live at once: a canary needs two engines side by side, which inference.swap = "cold" and external '
    "servers don't allow."
)
PROMOTED: Final = later("The canary {model} is live now. {reason}")
ROLLED_BACK: Final = later(
    "The canary {model} was rolled back; {live} answers everyone again. {reason} No scheduled run will start "
    "until there are new votes."
)
RETURNED: Final = later(
    "{model} was rolled back; {live} is live again. {reason} No scheduled run will start until there are new votes."
)
NOT_CANDIDATE: Final = later("{model} isn't waiting for approval: {now}.")
NOT_CANARY: Final = later("{model} isn't a canary right now: {now}.")
NOW: Final = {
    ModelState.CANDIDATE: later("it is waiting for approval"),
    ModelState.UNDECIDED: later("its evaluation was undecided"),
    ModelState.CANARY: later("it has already been approved and is now a canary"),
    ModelState.LIVE: later("it is live now"),
    ModelState.RETIRED: later("another model has replaced it"),
    ModelState.REJECTED: later("it was rejected ({reason})"),
}
STOPPED: Final = Reason("an admin stopped its trial")

log = structlog.get_logger()


@dataclass(eq=False)
class Trials:
    """Puts accepted candidates into service, either in a trial or, if no trial can be held, at once."""

    ledger: Ledger
    switch: ModelSwitch
    status: Callable[[], Status]
    notices: Notifications
    settings: LiveSettings

    _weighed: tuple[int, int] | None = field(default=None, init=False)
    """The trial and the newest vote for which the evidence was last weighed."""

    @property
    def can_try(self) -> bool:
        """Whether an accepted model becomes a canary first."""
        return bool(self.settings.now.training.canary) and self.switch.can_try

    async def standing(self) -> Standing | None:
        """Return the standing of the running trial, or None if no trial is running."""
        return await standing(self.ledger, self.settings.now.trust)

    async def accept(self, candidate: Model, by: Actor | None = None) -> Model:
        """Begin the trial of a candidate, or promote it if trials are switched off or no canary can run.

        `by` is the admin who approved it, if approval was needed.

        Raises the same errors as `ModelSwitch.promote`.
        """
        share = self.settings.now.training.canary
        if self.can_try:
            return await self.switch.begin_trial(candidate.id, share, by)
        model = await self.switch.promote(candidate.id, by)
        if share:
            await self.notices.notify(NO_CANARY, model=model.id)
        return model

    async def approve(self, model: str, by: Actor) -> Model:
        """Accept a candidate that is waiting for approval; `by` is the admin who approves it.

        Raises `AdminRefusal` if `model` is not a candidate, and the same errors as `accept`.
        """
        candidate = await self.ledger.models.get(model)
        if candidate.state is not ModelState.CANDIDATE:
            raise AdminRefusal(Reason(NOT_CANDIDATE, model=model, now=_now(candidate)))
        log.info("candidate approved", model=model, by=by.user)
        return await self.accept(candidate, by)

    async def stop(self, model: str, by: Actor) -> Model:
        """End a canary's trial and reject the canary; `by` is the admin who decided this.

        Raises `AdminRefusal` if `model` is not the running canary.
        """
        trial = await self.ledger.canaries.running()
        if trial is None or trial.model != model:
            raise AdminRefusal(Reason(NOT_CANARY, model=model, now=_now(await self.ledger.models.get(model))))
        log.info("trial stopped", model=model, by=by.user)
        return await self.switch.end_trial(trial, Verdict.STOPPED, STOPPED, by)

    async def look(self) -> None:
        """Promote or roll back the canary if votes or a fault decide its trial; roll back a failing promoted model."""
        trial = await self.ledger.canaries.running()
        if trial is None:
            await self._watch_promoted()
        elif reason := fault_of_canary(self.status(), trial):
            await self._roll_back(trial, reason)
        else:
            over = time.time() - trial.started >= HORIZON_DAYS * DAY_SECONDS
            newest = (trial.id, await self.ledger.votes.newest())  # a choice that counts in a duel also casts a vote
            if (over or newest != self._weighed) and (found := await self.standing()):
                await self._decide(found, over)
                self._weighed = newest

    async def _decide(self, found: Standing, over: bool) -> None:
        """Promote the canary or roll it back if the votes decide its trial.

        If `over` is true, the time for the trial is up and the trial ends in any case.
        """
        trial = found.trial
        if found.evidence.verdict is Canary.HARMFUL:
            await self._roll_back(trial, with_votes(found, Reason("Its answers are liked less often.")))
        elif reason := _grounds(found, over):
            log.info("canary promoted", model=trial.model, votes=found.votes, reason=reason)
            await self.switch.promote(trial.model, None, why=reason)
            await self.notices.notify(PROMOTED, model=trial.model, reason=reason)

    async def _roll_back(self, trial: Trial, reason: Reason) -> None:
        log.warning("canary rolled back", model=trial.model, reason=reason)
        await self.switch.end_trial(trial, Verdict.ROLLED_BACK, reason)
        await self.notices.notify(ROLLED_BACK, model=trial.model, live=trial.live, reason=reason)

    async def _watch_promoted(self) -> None:
        status = self.status()
        if status.state is not State.FAILING and status.tallies.get(status.model, Tally()).answers < ANSWERS:
            return
        promotion = await self.ledger.promotions.newest()
        recent = promotion is not None and promotion.done is not None and time.time() - promotion.done < WATCHED_SECONDS
        if promotion is None or not recent or promotion.back or not promotion.previous:
            return
        if promotion.model != status.model or not (reason := fault_of_live(status, promotion.previous)):
            return
        log.warning("promoted model rolled back", model=promotion.model, reason=reason)
        live = await self.switch.rollback(None, confirmed=True, why=reason)
        await self.notices.notify(RETURNED, model=promotion.model, live=live.id, reason=reason)


def _now(model: Model) -> Reason:
    return Reason(NOW[model.state], reason=model.reason)


def fault_of_canary(status: Status, trial: Trial) -> Reason | None:
    """Return what is clearly wrong with the canary's engine or answers, or None if nothing is wrong."""
    canary = status.canary
    if canary is not None and (canary.state is State.FAILING or canary.crashes >= CRASHES):
        return _failing(canary.last_error)
    return _broken(status, trial.model, trial.live)


def fault_of_live(status: Status, before: str) -> Reason | None:
    """Return what is clearly wrong with the live model, or None if nothing is wrong.

    `before` is the previous live model.
    """
    return _failing(status.last_error) if status.state is State.FAILING else _broken(status, status.model, before)


def _failing(error: str) -> Reason:
    return Reason("Its engine keeps failing: {error}", error=error.partition("\n")[0])


def _broken(status: Status, model: str, other: str) -> Reason | None:
    found, before = status.tallies.get(model, Tally()), status.tallies.get(other, Tally())
    if min(found.answers, before.answers) < ANSWERS:
        return None
    if found.broken < BROKEN * found.answers or before.broken > BROKEN_BEFORE * before.answers:
        return None
    return Reason(
        "{broken} of its {answers} answers were empty or cut off at the length limit.",
        broken=found.broken,
        answers=found.answers,
    )


def _grounds(found: Standing, over: bool) -> Reason | None:
    """Return the reason to promote the canary, or None if there is no reason yet."""
    if found.evidence.verdict is Canary.NO_WORSE:
        return with_votes(found, Reason("Its answers are liked at least as often."))
    if over or found.votes >= HORIZON_VOTES:
        points = f"{100 * found.evidence.detectable_harm:.0f}"
        return with_votes(
            found,
            Reason(
                "No harm was detected; with this many votes, a drop of {points} points or more would have been "
                "noticed.",
                points=points,
            ),
        )
    return None
