"""/stats, for admins: answers and votes over time as a picture, and the approval of each model."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Final

from aiogram import Router
from aiogram.filters import CommandObject
from aiogram.types import BufferedInputFile, Message

from bot.admin.canary_standing import standing_text
from bot.admin.charts import draw, most_asked
from bot.admin.progress import approval_text
from bot.handlers.commands import Command
from bot.handlers.request import Request

DAYS: Final = 30
MOST_DAYS: Final = 366


def router() -> Router:
    """Return the handler of this module. It belongs behind `admin_only`."""
    statistics = Router(name="stats")
    statistics.message.register(stats, Command("stats"))
    return statistics


async def stats(message: Message, command: CommandObject, request: Request) -> None:
    """Send the picture of the last days: 30, or the number after the command."""
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
    trial = await request.services.admin.standing()
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
