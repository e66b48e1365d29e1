"""The inbox stores updates before acknowledging them and handles each one once, in order.

An update that cannot be handled becomes a dead letter.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import SecretStr

from bot.config import ConfigError
from bot.settings import TelegramSettings
from bot.telegram.client import open_bot
from bot.updates.inbox_processor import ATTEMPTS
from bot.updates.lanes import QueuedUpdate, members
from bot.updates.ordering import lane_of
from storage.chat_records import StoredUpdate
from storage.errors import StorageError
from storage.ledger import Ledger
from tests.support.chatting import ADMIN, Notebook, RunningBot, ScriptedEngine, Stage, png, settings
from tests.support.person import UP

AWAY = (
    "I was offline for a while and didn't answer the messages that came in. If you still want an answer, please ask "
    "again."
)


def private(text: str, **more: Any) -> dict[str, Any]:
    """Return a message in a private chat as Telegram sends it, with the fields in `more`."""
    return {
        "message_id": 5,
        "date": 1,
        "chat": {"id": 1001, "type": "private", "first_name": "Ada"},
        "from": {"id": 1001, "is_bot": False, "first_name": "Ada"},
        "text": text,
        **more,
    }


@pytest.mark.parametrize(
    ("update", "lane"),
    [
        ({"message": private("hello")}, "chat:1001"),
        ({"message": private("/new")}, "chat:1001"),
        ({"message": private("/status")}, "looks:1001"),
        ({"message": private("/cancel")}, "cancels:1001"),
        ({"message": private("/Retrain@thumbtune_bot now")}, "commands:1001"),
        ({"message": private("/ status")}, "chat:1001"),
        ({"message": private("x", chat={"id": -5, "type": "supergroup"})}, "chat:-5:1001"),
        ({"callback_query": {"id": "1", "from": {"id": 1001}, "data": "rate:1:1"}}, "taps:1001"),
        ({"callback_query": {"id": "1", "from": {"id": 1001}, "data": "again:1"}}, "answers:1001"),
        ({"message": private("/stop")}, "stop:1001:1001"),
        ({"edited_message": private("hello")}, "chat:1001"),
        ({"poll": {}}, "other"),
        ({"message": "nonsense"}, "other"),
        ({"message": {}}, "chat:0:0"),
    ],
)
def test_lanes(update: dict[str, Any], lane: str) -> None:
    """A chat's messages are handled in order; button taps and admin commands do not wait for them."""
    assert lane_of(update) == lane


def test_an_interrupted_album_keeps_its_members() -> None:
    """Pictures that arrive after a crash in the middle of an album are handled as a separate album."""

    def waiting(number: int, attempts: int, group: str | None = "g") -> QueuedUpdate:
        raw = {"message": private("", media_group_id=group) if group else private("")}
        return QueuedUpdate(StoredUpdate(number, "lane", json.dumps(raw), attempts, 1.0), raw)

    begun, late, other = waiting(2, 1), waiting(4, 0), waiting(3, 1, None)
    lane = [begun, other, waiting(1, 1), late]
    assert [each.stored.id for each in members(begun, lane)] == [1, 2]
    assert [each.stored.id for each in members(late, lane)] == [4]
    assert [each.stored.id for each in members(other, lane)] == [3]


async def test_an_update_is_stored_before_it_is_acknowledged(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """While an update cannot be stored, the polling offset stays put, so the update is sent again and answered."""
    async with stage.bot("Answer.") as bot, stage.person() as ada:
        store = bot.ledger.inbox.store
        failures = iter([True, True, False])

        async def unreliable(updates: Sequence[tuple[int, str, str]]) -> list[bool]:
            if next(failures, False):
                raise StorageError("the disk is full")
            return await store(updates)

        monkeypatch.setattr(bot.ledger.inbox, "store", unreliable)
        await ada.sends(photo=png())
        assert (await ada.answer(rated=True))["text"] == "Answer."
        assert len(await ada.bot_messages()) == 1


async def test_an_update_that_comes_twice_is_handled_once(stage: Stage) -> None:
    """An update delivered twice, by polling or by webhook, is recognized by its ID and handled once."""
    stage.emulator.world.updates.duplicates = 3
    async with stage.bot() as bot, stage.person() as ada:
        answer = await ada.asks(photo=png())
        await ada.toast(await ada.taps(UP, answer))
        update = {"update_id": 77, "message": private("/help")}
        await bot.inbox.accept(update)
        await bot.inbox.accept(update)
        await bot.settled()
        assert len(bot.engine.prompts) == 1
        assert len(await ada.bot_messages()) == 2
        assert (await bot.ledger.counts.totals())["votes"] == 1


async def test_polling_is_retried(stage: Stage) -> None:
    """Broken connections, error pages and flood control delay updates but lose none."""
    for kind in ("html_page", "reset_after", "flood"):
        stage.emulator.faults.plan(kind, methods=["getUpdates"], seconds=1)
    async with stage.bot("Answer."), stage.person() as ada:
        assert (await ada.asks(photo=png()))["text"] == "Answer."
        assert stage.emulator.faults.planned == []


@pytest.mark.parametrize(("hours", "said"), [(5.9, ["Answer 1", "Answer 2", "Answer 3"]), (6.1, [AWAY, "Answer 1"])])
async def test_old_questions_get_one_apology_after_a_downtime(stage: Stage, hours: float, said: list[str]) -> None:
    """After downtime, recent questions are answered, and older ones get a single apology per user."""
    async with stage.person() as ada:
        for _ in range(2):
            sent = await ada.sends(photo=png())
            stage.emulator.world.chats[ada.id].messages[sent["message_id"]]["date"] -= int(hours * 3600)
        async with stage.bot() as bot:
            await stage.handled(bot)
            await ada.asks(photo=png())
            assert [message["text"] for message in await ada.bot_messages()] == said


async def test_a_wrong_token_ends_the_bot(stage: Stage) -> None:
    """A token that Telegram does not know stops the bot, since retrying would be pointless."""
    made = settings(stage.url, "4242:wrong")
    bot = RunningBot(made, stage.directory, ScriptedEngine(), Notebook())
    try:
        with pytest.raises(ConfigError, match=r"telegram\.token"):
            await bot.intake.run()
    finally:
        await bot.stop()


async def test_a_wrong_address_for_the_webhook_ends_the_bot(stage: Stage) -> None:
    """A webhook address that Telegram refuses stops the bot with an error that quotes Telegram's reason."""
    hook = {"mode": "webhook", "webhook": {"url": "ftp://nowhere", "secret": SecretStr("hush")}}
    stage.emulator.faults.plan(
        "refused", methods=["setWebhook"], words="bad webhook: An HTTPS URL must be provided for webhook"
    )
    bot = RunningBot(settings(stage.url, stage.emulator.token, hook), stage.directory, ScriptedEngine(), Notebook())
    try:
        with pytest.raises(ConfigError, match=r"telegram\.webhook\.url: .*HTTPS"):
            await bot.intake.run()
    finally:
        await bot.stop()


@pytest.mark.parametrize(("token", "what"), [("", "is not set"), ("nonsense", "is not a bot token")])
def test_a_missing_token_names_the_next_step(token: str, what: str) -> None:
    """The error for a missing or malformed token says where to get a token and how to set it."""
    with pytest.raises(ConfigError, match=f"{what}.*BotFather.*THUMBTUNE_TELEGRAM__TOKEN"):
        open_bot(TelegramSettings(token=SecretStr(token)))


async def test_a_webhook_call_without_an_update_is_refused(stage: Stage) -> None:
    """A webhook body without an `update_id` is rejected as the caller's mistake."""
    async with stage.bot() as bot:
        with pytest.raises(ValueError, match="update_id"):
            await bot.inbox.accept({"message": private("hi")})


async def test_an_update_of_an_unknown_type_is_ignored(stage: Stage) -> None:
    """An update of an unknown type neither stops the bot nor is retried forever."""
    async with stage.bot() as bot, stage.person() as ada:
        await bot.inbox.accept({"update_id": 78, "message": {**private(""), "hologram": {"size": 3}}})
        await bot.settled()
        assert await bot.ledger.inbox.pending() == []
        await ada.command("/help")
        assert "/new" in (await ada.answer(rated=False, quiet=0.2))["text"]


async def test_a_webhook_is_set_and_served(stage: Stage) -> None:
    """Setting the webhook is retried until it succeeds, and an update received through it is answered."""
    from aiohttp import web

    async def call(request: web.Request) -> web.Response:
        await bot.inbox.accept(await request.json())
        return web.Response()

    app = web.Application()
    app.router.add_post("/telegram", call)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = f"http://127.0.0.1:{runner.addresses[0][1]}/telegram"
    hook = {"mode": "webhook", "webhook": {"url": address, "secret": SecretStr("hush")}}
    made = settings(stage.url, stage.emulator.token, hook)
    bot = RunningBot(made, stage.directory, ScriptedEngine("By webhook."), Notebook())
    stage.emulator.faults.plan("bad_gateway", 2, methods=["setWebhook"])
    try:
        await bot.intake.run()
        async with stage.person() as ada:
            assert (await ada.asks(photo=png()))["text"] == "By webhook."
            await bot.settled()
    finally:
        await bot.stop()
        await runner.cleanup()


async def test_a_webhook_call_does_not_overtake_replayed_updates(stage: Stage) -> None:
    """A webhook update that arrives during startup waits until the replayed updates are queued."""
    async with Ledger.open(stage.directory) as ledger:
        await ledger.inbox.store([(5, "chat:1001", json.dumps({"update_id": 5, "message": private("/help")}))])
    hook = {"mode": "webhook", "webhook": {"url": "https://bot.example.org/telegram", "secret": SecretStr("hush")}}
    bot = RunningBot(settings(stage.url, stage.emulator.token, hook), stage.directory, ScriptedEngine(), Notebook())
    try:
        async with stage.person() as ada:
            call = asyncio.create_task(bot.inbox.accept({"update_id": 6, "message": private("/start")}))
            await asyncio.sleep(0.1)
            assert not call.done()
            await bot.intake.run()
            await call
            await bot.settled()
            said = [message["text"] for message in await ada.bot_messages()]
            assert ["/help" in text for text in said] == [True, True]
            assert ["Hello" in text for text in said] == [False, True]
    finally:
        await bot.stop()


async def test_an_update_that_crashes_every_process_becomes_a_dead_letter(stage: Stage) -> None:
    """An update that was attempted many times but never finished becomes a dead letter at the next start."""
    ledger = Ledger.open(stage.directory)
    await ledger.inbox.store([(5, "chat:1001", json.dumps({"update_id": 5, "message": private("hi")}))])
    for _ in range(ATTEMPTS):
        await ledger.inbox.begin(5)
    await ledger.close()
    async with stage.person() as ada, stage.bot() as bot:
        await ada.answer(after=0, quiet=0.3)
        await bot.settled()
        assert (await bot.ledger.counts.totals())["updates_set_aside"] == 1
        assert [("Sorry" in message["text"]) for message in await ada.bot_messages()] == [True]


async def test_a_bad_payload_does_not_silence_the_alert(stage: Stage) -> None:
    """Admins are notified of a dead letter even if it has no sender to apologize to."""
    async with stage.person(ADMIN, "Root") as root, stage.bot() as bot:
        await bot.ledger.inbox.store([(5, "chat:1001", "")])
        await bot.ledger.inbox.set_aside(5, "RuntimeError: broken")
        await bot.apologies.given_up(5, "RuntimeError: broken")
        await bot.notices.settled()
        (alert,) = await root.bot_messages()
        assert "I gave up on update 5" in alert["text"]
