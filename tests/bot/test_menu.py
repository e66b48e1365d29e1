"""The command menus that Telegram shows to all users and to admins."""

from __future__ import annotations

from typing import Any

import aiohttp
from aiogram import Router

from bot.handlers.commands import register
from bot.handlers.menu import ADMINS, EVERYBODY, announce_commands
from tests.support.chatting import ADMIN, Stage


async def test_the_menu_of_commands_is_announced(stage: Stage) -> None:
    """Users see the commands in their language, and admins see the admin commands as well.

    An admin who cannot be reached is skipped.
    """
    async with (
        stage.bot(telegram={"admins": (ADMIN, 999)}) as bot,
        stage.person(language="zh") as ada,
        stage.person(ADMIN, "Root") as root,
    ):
        await announce_commands(bot.bot, bot.settings.telegram, bot.translator, bot.ledger)
        people = {person["id"]: person for person in (await menu(stage, ada.id), await menu(stage, root.id))}
        assert [each["command"] for each in people[ada.id]["commands"]] == list(EVERYBODY)
        assert people[ada.id]["commands"][0]["description"] == "开始新的对话"
        assert {each["command"] for each in people[root.id]["commands"]} == {*EVERYBODY, *ADMINS}


async def test_former_admins_lose_the_menu(stage: Stage) -> None:
    """Former admins lose the admin menu in every language, even if they blocked the bot.

    The menu is removed the next time the bot starts and can reach Telegram.
    """
    async with stage.person(8, "Eve", language="zh") as eve, stage.person(ADMIN, "Root") as root:
        for admins, deaf, commands in (
            ((ADMIN, eve.id, 999), False, {*EVERYBODY, *ADMINS}),
            ((ADMIN,), True, {*EVERYBODY, *ADMINS}),
            ((ADMIN,), False, {*EVERYBODY}),
        ):
            if deaf:
                stage.emulator.faults.plan("refused", 99, methods=["deletemycommands"], words="try later")
            async with stage.bot(telegram={"admins": admins}) as bot:
                await announce_commands(bot.bot, bot.settings.telegram, bot.translator, bot.ledger)
                menus = [await menu(stage, person.id) for person in (eve, root)]
                kept = await bot.ledger.menus.all()
            assert {each["command"] for each in menus[0]["commands"]} == commands
            assert {each["command"] for each in menus[1]["commands"]} == {*EVERYBODY, *ADMINS}
            stage.emulator.faults.clear()
            await eve.blocks()
        assert kept == {(ADMIN, ""), (ADMIN, "zh")}
        assert not [scope for scope in stage.emulator.world.commands if scope[1] == eve.id]


async def menu(stage: Stage, person: int) -> dict[str, Any]:
    """Return the command menu that the emulator shows to `person`."""
    async with aiohttp.ClientSession() as session, session.get(f"{stage.url}/people/{person}/commands") as answer:
        return {"id": person, **await answer.json()}


def test_the_filter_of_unknown_commands_runs_in_the_event_loop() -> None:
    """Filters are coroutines, because aiogram calls other functions in a thread, for every message that gets so far."""
    router = Router()
    register(router)
    filters = [each for handler in router.message.handlers for each in handler.filters or ()]
    assert filters
    assert all(each.awaitable for each in filters)
