"""Handlers for the admin commands /status, /schedule and /stats.

The commands show the state of the bot, its next run, and a chart of its answers.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Final

from aiogram import Router
from aiogram.filters import CommandObject
from aiogram.types import BufferedInputFile, Message

from bot.admin.canary_standing import standing_text
from bot.admin.monitoring import Overview
from bot.admin.notifications import cut
from bot.admin.progress import SILENT, approval_text, run_line, silence
from bot.admin.refusals import REFUSALS, refused
from bot.admin.stats_chart import draw, most_asked
from bot.admin.status_labels import line, named
from bot.handlers.commands import Command
from bot.handlers.request import Request
from bot.i18n import Say, later
from inference.serving.deployment_status import NodeStatus
from inference.serving.engine_stats import EngineStats
from inference.serving.supervisor import State
from storage.state_machines import RUN_TRANSITIONS

DAYS: Final = 30
MOST_DAYS: Final = 366
MOST_CHARACTERS: Final = 60

ENGINE_STATES: Final = {
    State.STARTING: later("starting"),
    State.READY: later("ready"),
    State.RESTARTING: later("restarting"),
    State.FAILING: later("failing"),
    State.STOPPED: later("stopped"),
}


def register(router: Router) -> None:
    """Register the handlers of this module.

    Call after `access.register`, whose handlers refuse users who are not admins.
    """
    router.message.register(show, Command("status", "schedule"))
    router.message.register(stats, Command("stats"))


async def show(message: Message, command: CommandObject, request: Request) -> None:
    """Show the state of the bot for /status, or the schedule and the outcome of the last run for /schedule."""
    services, say = request.services, request.say
    describe = _status_lines if command.command.lower() == "status" else _schedule_lines
    try:
        overview = await services.monitoring.overview()
        lines = describe(overview, say)
        running = any(RUN_TRANSITIONS[run.state] for run in overview.runs)
        if overview.schedule and not running and (same := await services.runs.unchanged_since()):
            lines.append(say("Nothing new since run {run}, so no scheduled run will start.", run=same.id))
        text = "\n".join(lines)
    except REFUSALS as refusal:
        text = refused(refusal, say)
    await request.reply.finish(text)


def _status_lines(overview: Overview, say: Say) -> list[str]:
    engine, counts = overview.engine, overview.counts
    lines = [
        line(named("live", overview.live or "–", say)),
        *([standing_text(overview.canary, say)] if overview.canary else []),
        line(
            say("engine: {kind}, {state}", kind=engine.engine, state=say(ENGINE_STATES[engine.state])),
            named("in_flight", engine.in_flight, say),
            named("waiting", engine.waiting, say),
            named("restarts", engine.restarts, say),
        ),
        *([_stats_line(engine.stats, say)] if engine.stats.answered else []),
        *(node_line(node, say) for node in engine.nodes if len(engine.nodes) > 1),
        line(*(named(name, counts.get(name, 0), say) for name in ("exchanges", "ups", "downs"))),
        line(*(named(name, counts.get(name, 0), say) for name in ("users", "pictures"))),
    ]
    if overview.changed:
        values = {key: json.dumps(value, ensure_ascii=False) for key, value in overview.changed.items()}
        changed = ", ".join(f"{key} = {cut(value, MOST_CHARACTERS)}" for key, value in values.items())
        lines.append(say("Changed on the Settings page: {settings}", settings=changed))
    if overview.last_progress and overview.last_progress.silent:
        lines.append(say(SILENT, **silence(overview.last_progress)))
    lines += [run_line(run, overview.held_back, say) for run in overview.runs[:3]]
    if overview.next_run:
        lines.append(_next_line(overview.next_run, say))
    return lines


def _schedule_lines(overview: Overview, say: Say) -> list[str]:
    if overview.next_run:
        by = say("Schedule: training.schedule = {cron}, in UTC.", cron=f'"{overview.schedule}"')
        lines = [_next_line(overview.next_run, say), by]
    else:
        lines = [
            say(
                "No schedule: I retrain only when an admin sends /retrain. To set one, use training.schedule in "
                "config.toml or on the Settings page."
            )
        ]
    return lines + [run_line(run, overview.held_back, say) for run in overview.runs[:1]]


def _next_line(time: datetime, say: Say) -> str:
    return line(named("next_run", f"{time:%Y-%m-%d %H:%M %Z}".strip(), say))


def _stats_line(stats: EngineStats, say: Say) -> str:
    """Return a line with the time to first token and the share of prompt tokens that came from a cache."""
    return say(
        "First word after {median} s (99 % of answers: within {p99} s); {cached} % of the prompt tokens cached",
        median=f"{stats.first_token_seconds_median:.2f}",
        p99=f"{stats.first_token_seconds_p99:.2f}",
        cached=f"{100 * stats.cached_share:.0f}",
    )


def node_line(node: NodeStatus, say: Say) -> str:
    """Return the status of a replica as text, followed by its last error if the replica is not ready."""
    text = say(
        "· {node}: {state}, {model}; answers in progress: {in_flight}, chats: {chats}",
        node=node.name,
        state=say("not taking questions now") if node.away else say(ENGINE_STATES[node.state]),
        model=node.model,
        in_flight=node.in_flight,
        chats=node.chats,
    )
    if node.stats.answered:
        text += f"\n  {_stats_line(node.stats, say)}"
    return text if node.state is State.READY or not node.last_error else f"{text}\n  {node.last_error.splitlines()[0]}"


async def stats(message: Message, command: CommandObject, request: Request) -> None:
    """Send a chart of the last 30 days, or of the number of days given after the command."""
    ledger, reply, say = request.services.ledger, request.reply, request.say
    number = (command.args or "").strip() or str(DAYS)
    if not (number.isdecimal() and 1 <= int(number) <= MOST_DAYS):
        await reply.finish(say("Usage: /stats DAYS, from 1 to {most}", most=MOST_DAYS))
        return
    last = datetime.now(UTC).date()
    first = last - timedelta(days=int(number) - 1)
    days = await ledger.counts.days(datetime(first.year, first.month, first.day, tzinfo=UTC).timestamp())
    if not days:
        await reply.finish(say("Nobody asked me anything in that time."))
        return
    approvals = await ledger.counts.approvals()
    trial = await request.services.trials.standing()
    picture = await asyncio.to_thread(draw, days, first, last, say, trial)
    summary = say(
        "Last {days} days: {answers} answers, {ups} 👍, {downs} 👎.",
        days=int(number),
        answers=sum(each.answers for each in days),
        ups=sum(each.ups for each in days),
        downs=sum(each.downs for each in days),
    )
    shown = [model for model in most_asked(days) if model in approvals]
    lines = [f"{model}: {approval_text(approvals[model], say)}" for model in shown]
    if trial:
        lines.append(standing_text(trial, say))
    await reply.finish_with_picture(BufferedInputFile(picture, "stats.png"), "\n".join((summary, *lines)))
