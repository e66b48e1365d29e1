"""`thumbtune retrain`, `promote`, `rollback` and `status`: control the running bot from another process.

A command writes its request to the ledger, which the bot polls; the bot writes the result there too. The
parameter `running` is a function that returns whether a bot is running. Nothing is requested unless a
bot is running, and a command stops waiting if the bot stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from rich.markup import escape
from rich.table import Table

from bot.admin.canary_standing import standing, standing_text
from bot.admin.model_checks import model_before
from bot.admin.progress import held_back, outcome, progress_details
from bot.admin.refusals import NOTHING_NEW, REJECTED
from bot.admin.status_labels import NAMES, named
from bot.cli.terminal import CommandRefused, confirm, notes, progress_bar, progress_text, results
from bot.config import Settings
from bot.i18n import Translator
from storage.errors import IllegalTransition
from storage.learning_records import EQUAL_TRUST, Promotion, Run, Trust
from storage.ledger import Ledger
from storage.model_store import ModelStore
from storage.state_machines import RUN_TRANSITIONS, ModelState, RunState
from training.run_plan import RunPlanner

POLL_SECONDS: Final = 0.5
STOPPED: Final = "the bot stopped before it carried this out"


async def retrain(ledger: Ledger, running: Callable[[], bool], wait: bool, *, approve: bool = False) -> None:
    """Request a run, and return once it has begun or, with `wait`, once its model is in use.

    A model is in use when it is live or a canary. With `approve`, an accepted model first needs an admin's
    approval, for which the command does not wait.

    Raises:
        RunBusy: Another run has not ended.
        CommandRefused: No bot is running, the run fails, or its model does not go live.
    """
    _require_bot(running)
    run = await _follow(ledger, await ledger.runs.start("command", None), running, wait)
    if RUN_TRANSITIONS[run.state]:
        results.print(f"Run {run.id} has begun. `thumbtune status` shows its progress.")
        return
    state, result = outcome(run, held_back(await ledger.models.all()))
    if state != RunState.DONE:
        raise CommandRefused(f"Run {run.id}: {state}. {result}")
    model = await ledger.models.get(run.model) if run.model else None
    end = f"{run.model} is live."
    if model and model.state is ModelState.CANARY:
        found = await ledger.canaries.running()
        share = f"{100 * found.share:.0f} %" if found else "a share"
        end = (
            f"{run.model} answers in {share} of the conversations as a canary, until the votes decide; `thumbtune "
            "status` shows how it is doing."
        )
    elif model and model.state is ModelState.CANDIDATE:
        if not approve:
            raise CommandRefused(
                f"Run {run.id} is done, but the switch to {run.model} failed; the bot's log says why. "
                f"`thumbtune promote {run.model}` tries again."
            )
        end = (
            f"{run.model} waits until an admin approves it in the chat (training.approve), or "
            f"`thumbtune promote {run.model}` makes it live."
        )
    results.print(f"Run {run.id}: {state}. {end}")


async def confirm_without_news(ledger: Ledger, running: Callable[[], bool], settings: Settings, yes: bool) -> None:
    """Ask for confirmation if a run would learn from the same data as the last finished run.

    Raises:
        CommandRefused: No bot is running, or the operator declines.
    """
    _require_bot(running)
    models = ModelStore(settings.storage.dir / "models")
    if same := await RunPlanner(ledger, models, settings.job_specs(), settings.trust).unchanged_since():
        confirm(NOTHING_NEW.format(run=same.id), yes=yes)


async def promote(ledger: Ledger, running: Callable[[], bool], model: str, yes: bool) -> None:
    """Ask the running bot to switch to a model, and wait for the switch.

    Raises:
        UnknownRecord: There is no such model.
        CommandRefused: No bot is running, the operator declines, or the switch fails.
    """
    _require_bot(running)
    await _confirm_rejected(ledger, model, yes)
    await _await_promotion(ledger, running, await ledger.promotions.request(model))


async def rollback(ledger: Ledger, running: Callable[[], bool], yes: bool) -> None:
    """Ask the running bot to switch to the previous model, and wait for the switch.

    Raises:
        AdminRefusal: There is no previous model.
        CommandRefused: No bot is running, the operator declines, or the switch fails.
    """
    _require_bot(running)
    model = await model_before(ledger)
    await _confirm_rejected(ledger, model, yes)
    await _await_promotion(ledger, running, await ledger.promotions.request(model, back=True))


async def _confirm_rejected(ledger: Ledger, model: str, yes: bool) -> None:
    if reason := (await ledger.models.get(model)).reason:
        confirm(REJECTED.format(model=model, reason=reason), yes=yes)


async def status(ledger: Ledger, running: bool, *, trust: Trust = EQUAL_TRUST) -> None:
    """Print the live model, the canary, the amount of collected data, and the latest runs."""
    say = Translator({}).to()
    results.print(f"bot: {'running' if running else 'not running'}")
    live = await ledger.models.live()
    results.print(named("live", live.id if live else "none yet; start the bot", say))
    if found := await standing(ledger, trust):
        results.print(standing_text(found, say))
    for name, count in (await ledger.counts.totals()).items():
        results.print(named(name, count, say))
    table = Table("run", "state", "started by", NAMES["samples"], "progress", "average loss", "result", box=None)
    held = held_back(await ledger.models.all())
    for run in await ledger.runs.latest(10):
        state, result = outcome(run, held)
        loss = "" if run.loss is None else f"{run.loss:.3f}"
        progress = "; ".join(progress_details(run, say))
        table.add_row(str(run.id), state, run.trigger, str(run.samples), progress, loss, escape(result))
    if table.row_count:
        results.print(table)


def _require_bot(running: Callable[[], bool]) -> None:
    if not running():
        raise CommandRefused("No bot is running on this data folder: start it with `thumbtune run`, then try again.")


async def _follow(ledger: Ledger, run: Run, running: Callable[[], bool], to_the_end: bool) -> Run:
    """Show a run's progress until it has begun or, with `to_the_end`, until its outcome is known.

    Raises:
        CommandRefused: The bot stops before then.
    """
    with progress_bar() as bar:
        task = bar.add_task(run.state, total=None)
        while True:
            alive = running()
            run = await ledger.runs.get(run.id)
            bar.update(
                task,
                description=progress_text(run.state, run.loss, run.seconds_left),
                completed=run.step,
                total=run.steps or None,
            )
            if await _decided(ledger, run) if to_the_end else run.state is not RunState.DUE:
                return run
            if not alive:
                await _abandon(ledger, run)
            await asyncio.sleep(POLL_SECONDS)


async def _decided(ledger: Ledger, run: Run) -> bool:
    """Return whether a run has ended and the fate of its model, if any, is settled.

    By then, the model is in use, is waiting for approval, was held back, or failed to go live.
    """
    if RUN_TRANSITIONS[run.state]:
        return False
    if run.model is None or (await ledger.models.get(run.model)).state is not ModelState.CANDIDATE:
        return True
    return await ledger.runs.is_settled(run.id)


async def _abandon(ledger: Ledger, run: Run) -> None:
    """Report that the bot stopped before a run was finished, and cancel the run if it has not begun.

    Raises:
        CommandRefused: Always, unless a newly started bot has begun the run in the meantime.
    """
    if run.state is not RunState.DUE:
        was = "done" if run.state is RunState.DONE else run.state
        raise CommandRefused(
            f"The bot stopped while run {run.id} was {was}. The bot finishes handling it at its next start; "
            "`thumbtune status` shows the result."
        )
    with suppress(IllegalTransition):
        await ledger.runs.move(run.id, RunState.CANCELLED, reason=STOPPED)
        await ledger.runs.settle(run.id)
        raise CommandRefused(
            f"The bot stopped before it started run {run.id}: start it with `thumbtune run`, then try again."
        )


async def _await_promotion(ledger: Ledger, running: Callable[[], bool], request: Promotion) -> None:
    with notes.status(f"waiting for the bot to switch to {request.model} (Ctrl-C does not cancel the request)"):
        while True:
            alive = running()
            promotion = await ledger.promotions.get(request.id)
            if promotion.done or promotion.error:
                break
            if alive:
                await asyncio.sleep(POLL_SECONDS)
            else:
                with suppress(IllegalTransition):  # the next bot has carried it out
                    await ledger.promotions.finish(request.id, STOPPED)
    if promotion.error:
        raise CommandRefused(f"{promotion.model} is not live: {promotion.error}")
    results.print(f"{promotion.model} is live.")
