"""/stats: answers and votes over time, and how the models fared, as a picture. To be asked behind `admin`."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Final

from aiogram import Router
from aiogram.filters import CommandObject
from aiogram.types import BufferedInputFile, Message

from bot.admin.charts import draw
from bot.handlers.commands import Command
from bot.i18n import Say
from bot.telegram.outbox import Reply
from storage.ledger import Ledger

DAYS: Final = 30
MOST_DAYS: Final = 366


def router() -> Router:
    """The handler of this module."""
    statistics = Router(name="statistics")
    statistics.message.register(stats, Command("stats"))
    return statistics


async def stats(message: Message, command: CommandObject, reply: Reply, say: Say, ledger: Ledger) -> None:
    """Send the picture, of the last 30 days or of as many as are named."""
    wish = (command.args or "").strip() or str(DAYS)
    if not (wish.isdecimal() and 1 <= int(wish) <= MOST_DAYS):
        await reply.finish(say("How many days back? Write /stats and a number from 1 to {most}.", most=MOST_DAYS))
        return
    last = datetime.now(UTC).date()
    first = last - timedelta(days=int(wish) - 1)
    days = await ledger.counts.days(datetime(first.year, first.month, first.day, tzinfo=UTC).timestamp())
    if not days:
        await reply.finish(say("Nobody has asked me anything in that time."))
        return
    picture = await asyncio.to_thread(draw, days, first, last, say)
    await reply.finish_with_picture(
        BufferedInputFile(picture, "stats.png"),
        say(
            "The last {days} days: {answers} answers, {ups} 👍, {downs} 👎.",
            days=int(wish),
            answers=sum(each.answers for each in days),
            ups=sum(each.ups for each in days),
            downs=sum(each.downs for each in days),
        ),
    )
