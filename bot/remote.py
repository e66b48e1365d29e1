"""The running bot from another process: `thumbtune retrain`, `promote`, `rollback`, `status` and `models`.

What is asked of it is a row in the ledger, which it looks for, and what came of that another; so this needs no port and
no password, and what is asked while no bot runs (`running` is False) is done by the next one.
"""

from __future__ import annotations

import asyncio
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bot.admin import AdminRefusal
from bot.changeover import model_before
from bot.progress import on_terminal, outcome, rejections, terminal_bar
from storage.ledger import Ledger
from storage.records import Promotion, Run
from storage.states import RunState
from training.figures import clock

POLL_SECONDS: Final = 0.5


async def retrain(ledger: Ledger, running: bool, wait: bool, console: Console) -> None:
    """Ask for a run; follow it to its end if `wait`, which is exit code 1 unless it is done. Raises RunBusy."""
    run = await ledger.start_run("command", None)
    who = "the running bot takes it up" if running else "no bot is running, so it begins with the next start of one"
    console.print(f"Run {run.id} is due; {who}. `thumbtune status` shows how it goes.")
    if wait:
        run = await _follow(ledger, run, console)
        state, result = outcome(run, rejections(await ledger.models()))
        console.print(f"Run {run.id}: {state}. {escape(result)}")
        if run.state is not RunState.DONE:
            raise SystemExit(1)


async def promote(ledger: Ledger, running: bool, model: str, console: Console) -> None:
    """Ask for a model to answer, and wait until it does. Raises UnknownRecord, AdminRefusal."""
    await ledger.model(model)
    await _await_promotion(ledger, running, await ledger.request_promotion(model, None), console)


async def rollback(ledger: Ledger, running: bool, console: Console) -> None:
    """Ask for the model before the present one to answer, and wait until it does. Raises AdminRefusal."""
    await _await_promotion(ledger, running, await ledger.request_promotion(await model_before(ledger), None), console)


async def status(ledger: Ledger, console: Console) -> None:
    """Print which model answers, what was collected, and the latest runs."""
    live = await ledger.live_model()
    console.print(f"answering: {live.id if live else 'no model yet; start the bot'}", highlight=False)
    for name, count in (await ledger.counts()).items():
        console.print(f"{name.replace('_', ' ')}: {count}")
    table = Table("run", "state", "by", "pairs", "step", "loss", "result", box=None)
    rejected = rejections(await ledger.models())
    for run in await ledger.runs(10):
        state, result = outcome(run, rejected)
        loss = "" if run.loss is None else f"{run.loss:.3f}"
        step = f"{run.step}/{run.steps}" if run.steps else ""
        if run.seconds_left is not None:
            step += f", {clock(run.seconds_left)} left"
        table.add_row(str(run.id), state, run.trigger, str(run.samples), step, loss, escape(result))
    if table.row_count:
        console.print(table)


async def models(ledger: Ledger, console: Console) -> None:
    """Print every kept model."""
    table = Table("model", "state", "run", "folder", "note", box=None)
    for model in await ledger.models():
        state = model.state if model.directory else "removed"
        table.add_row(model.id, state, str(model.run or ""), escape(model.directory), escape(model.reason))
    console.print(table)


async def _follow(ledger: Ledger, run: Run, console: Console) -> Run:
    with terminal_bar(console) as bar:
        task = bar.add_task(run.state, total=None)
        while run.state in (RunState.DUE, RunState.TRAINING, RunState.MERGING, RunState.EVALUATING):
            await asyncio.sleep(POLL_SECONDS)
            run = await ledger.run(run.id)
            told = on_terminal(run.state, run.loss, run.seconds_left)
            bar.update(task, description=told, completed=run.step, total=run.steps or None)
    return run


async def _await_promotion(ledger: Ledger, running: bool, asked: Promotion, console: Console) -> None:
    promotion = asked
    if not running:
        console.print("No bot is running: the next one that starts does it.")
    with console.status(f"waiting for the bot to change to {asked.model} (Ctrl-C leaves the request in place)"):
        while not (promotion.done or promotion.error):
            await asyncio.sleep(POLL_SECONDS)
            promotion = await ledger.promotion(asked.id)
    if promotion.error:
        raise AdminRefusal(promotion.error)
    console.print(f"{promotion.model} answers now.")
