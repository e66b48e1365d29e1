"""/status and /schedule: how the bot is, and when it learns by itself, for admins. To be asked behind `admin`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

from aiogram import Router
from aiogram.types import Message

from bot.admin.progress import SILENT, run_line, silence
from bot.admin.protocol import REFUSALS, AdminActions, Overview, refused
from bot.handlers.commands import Command
from bot.i18n import Say, later
from bot.telegram.outbox import Reply
from inference.serving.deployment_status import NodeStatus
from inference.serving.engine_stats import Seen
from inference.serving.supervisor import State

ENGINE_STATES: Final = {
    State.STARTING: later("starting"),
    State.READY: later("ready"),
    State.RESTARTING: later("restarting"),
    State.FAILING: later("failing"),
    State.STOPPED: later("stopped"),
}


def router() -> Router:
    """The handlers of this module."""
    overview = Router(name="overview")
    overview.message.register(status, Command("status"))
    overview.message.register(schedule, Command("schedule"))
    return overview


async def status(message: Message, reply: Reply, say: Say, admin: AdminActions) -> None:
    """Say how the bot is."""
    await _tell(_status_lines, reply, say, admin)


async def schedule(message: Message, reply: Reply, say: Say, admin: AdminActions) -> None:
    """Say when the next run begins by itself, and how the last one went."""
    await _tell(_schedule_lines, reply, say, admin)


async def _tell(lines: Callable[[Overview, Say], list[str]], reply: Reply, say: Say, admin: AdminActions) -> None:
    try:
        text = "\n".join(lines(await admin.overview(), say))
    except REFUSALS as refusal:
        text = refused(refusal, say)
    await reply.finish(text)


def _status_lines(overview: Overview, say: Say) -> list[str]:
    engine, counts = overview.engine, overview.counts
    lines = [
        say("Model: {model}", model=overview.live or "–"),
        say(
            "Engine: {kind}, {state}; answering {in_flight}, waiting {waiting}, restarts {restarts}",
            kind=engine.engine,
            state=say(ENGINE_STATES[engine.state]),
            in_flight=engine.in_flight,
            waiting=engine.waiting,
            restarts=engine.restarts,
        ),
        *([_seen_line(engine.seen, say)] if engine.seen.answered else []),
        *(node_line(node, say) for node in engine.nodes if len(engine.nodes) > 1),
        say(
            "Answers: {exchanges}, liked {ups}, disliked {downs}",
            exchanges=counts.get("exchanges", 0),
            ups=counts.get("ups", 0),
            downs=counts.get("downs", 0),
        ),
        say("People: {users}, pictures: {pictures}", users=counts.get("users", 0), pictures=counts.get("pictures", 0)),
    ]
    if overview.last_word and overview.last_word.silent:
        lines.append(say(SILENT, **silence(overview.last_word)))
    lines += [run_line(run, overview.rejected, say) for run in overview.runs[:3]]
    if overview.next_run:
        lines.append(_next_line(overview.next_run, say))
    return lines


def _schedule_lines(overview: Overview, say: Say) -> list[str]:
    if overview.next_run:
        by = say("By training.schedule = {cron}, in UTC.", cron=f'"{overview.schedule}"')
        lines = [_next_line(overview.next_run, say), by]
    else:
        lines = [say("I learn only when I am told to: /retrain. training.schedule in config.toml sets times.")]
    return lines + [run_line(run, overview.rejected, say) for run in overview.runs[:1]]


def _next_line(time: datetime, say: Say) -> str:
    return say("Next run: {time}", time=f"{time:%Y-%m-%d %H:%M %Z}".strip())


def _seen_line(seen: Seen, say: Say) -> str:
    """How quick the answers are, and how much of their prompts was not computed again."""
    return say(
        "First word after {median} s (99 % within {p99} s); {cached} % of the prompts from a cache",
        median=f"{seen.first_token_median:.2f}",
        p99=f"{seen.first_token_p99:.2f}",
        cached=f"{100 * seen.cached_share:.0f}",
    )


def node_line(node: NodeStatus, say: Say) -> str:
    """One of several nodes, and what ails it."""
    line = say(
        "· {node}: {state}, {model}; answering {in_flight}, chats {chats}",
        node=node.name,
        state=say("out of service") if node.away else say(ENGINE_STATES[node.state]),
        model=node.model,
        in_flight=node.in_flight,
        chats=node.chats,
    )
    if node.seen.answered:
        line += f"\n  {_seen_line(node.seen, say)}"
    return line if node.state is State.READY or not node.last_error else f"{line}\n  {node.last_error.splitlines()[0]}"
