"""The progress of the demo bot's learning, for the hint on the chat page."""

from __future__ import annotations

from typing import Any

from bot.admin.refusals import REFUSALS
from bot.admin.run_manager import RunManager
from storage.learning_records import Run
from storage.state_machines import RUN_TRANSITIONS, ModelState, RunState

_OUTCOMES = {
    ModelState.CANDIDATE: "kept",
    ModelState.UNDECIDED: "kept",
    ModelState.REJECTED: "kept",
    ModelState.CANARY: "live",
    ModelState.LIVE: "live",
}


async def learning(runs: RunManager) -> dict[str, Any]:
    """Return the state of the newest run and of the votes that another run would learn from.

    Returns:
        The keys are `run` ("running", "waiting" for approval, "starting" while the new model's engine starts,
        "live", "kept" if the old model stays, "failed", "cancelled", or empty), `ended` (the time of the last
        change of the run or, if it is later, of the live model), `votes` ("ready", "alike" if nearly all answers are
        liked, or empty if a run would have no result or nothing new to learn from) and `back` (whether /rollback
        would find an earlier model).
    """
    newest, switched = await runs.ledger.runs.latest(1), await runs.ledger.promotions.newest()
    state = await _state(newest[0], runs) if newest else ""
    changes = [*(run.updated for run in newest), *([switched.done or 0.0] if switched else [])]
    return {
        "run": state,
        "ended": max(changes, default=0.0) if newest else 0.0,
        "votes": "" if state in ("running", "waiting", "starting") else await _votes(runs),
        "back": await runs.ledger.models.previous() is not None,
    }


async def _state(run: Run, runs: RunManager) -> str:
    if RUN_TRANSITIONS[run.state]:
        return "running"
    if run.state is not RunState.DONE or run.model is None:
        return str(run.state.value)
    model = await runs.ledger.models.get(run.model)
    if runs.trials.status().swapping_to == model.id:
        return "starting"
    if model.state is ModelState.CANDIDATE and model.kept:
        if runs.trials.settings.now.training.approve:
            return "waiting"
        if not await runs.ledger.runs.is_settled(run.id):
            return "running"  # it is about to go live
    return _OUTCOMES.get(model.state, "")


async def _votes(runs: RunManager) -> str:
    try:
        plan = await runs.plan()
    except REFUSALS:
        return ""
    if plan.selection.likes_everything:
        return "alike"
    last = await runs.ledger.runs.last_verdict()
    return "" if plan.selection.futile or (last and last[1] == plan.fingerprint) else "ready"
