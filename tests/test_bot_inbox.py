"""The inbox: stored before acknowledged, in order, once, and finished after whatever crash."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from typing import Any

import pytest
from pydantic import SecretStr

from bot.albums import Waiting, members
from bot.config import ConfigError
from bot.inbox import ATTEMPTS
from bot.lanes import lane_of
from bot.settings import TelegramSettings
from bot.telegram import open_bot
from storage.errors import StorageError
from storage.ledger import FILE_NAME, Ledger
from storage.records import StoredUpdate
from tests.chatting import Notebook, RunningBot, ScriptedEngine, Stage, png, settings, until
from tests.killing import all_sends, killed_while, nothing_pending
from tests.person import UP, Person, button

AWAY = (
    "I was away for a while and have not answered what came in meanwhile. Please ask again what you still want to know."
)


def private(text: str, **more: Any) -> dict[str, Any]:
    """A message in a private chat, as Telegram sends it."""
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
        ({"message": private("/status")}, "commands:1001"),
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
    """A chat's talk keeps its order; taps and admin commands do not queue behind it."""
    assert lane_of(update) == lane


def test_an_album_that_a_crash_interrupted_stays_as_it_was_begun() -> None:
    """Members that came after the crash make a turn of their own."""

    def waiting(number: int, attempts: int, group: str | None = "g") -> Waiting:
        raw = {"message": private("", media_group_id=group) if group else private("")}
        return Waiting(StoredUpdate(number, "lane", json.dumps(raw), attempts, 1.0), raw)

    begun, late, other = waiting(2, 1), waiting(4, 0), waiting(3, 1, None)
    lane = [begun, other, waiting(1, 1), late]
    assert [each.update.id for each in members(begun, lane)] == [1, 2]
    assert [each.update.id for each in members(late, lane)] == [4]
    assert [each.update.id for each in members(other, lane)] == [3]


async def test_an_update_is_in_the_ledger_before_telegram_forgets_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing can be stored the offset stays, so the update comes again and is answered."""
    async with stage.bot("Answer.") as bot, stage.person() as ada:
        store = bot.ledger.store_updates
        failures = iter([True, True, False])

        async def unreliable(updates: Iterable[tuple[int, str, str]]) -> list[bool]:
            if next(failures, False):
                raise StorageError("the disk is full")
            return await store(updates)

        monkeypatch.setattr(bot.ledger, "store_updates", unreliable)
        await ada.sends(photo=png())
        assert (await ada.answer(rated=True))["text"] == "Answer."
        assert len(await ada.bot_messages()) == 1


async def test_an_update_that_comes_twice_is_handled_once(stage: Stage) -> None:
    """Delivered again by polling or by a webhook, it is known by its number."""
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
        assert (await bot.ledger.counts())["votes"] == 1


async def test_trouble_with_fetching_is_sat_out(stage: Stage) -> None:
    """Broken connections, error pages and floods of getUpdates delay updates and lose none."""
    for kind in ("html_page", "reset_after", "flood"):
        stage.emulator.faults.plan(kind, methods=["getUpdates"], seconds=1)
    async with stage.bot("Answer."), stage.person() as ada:
        assert (await ada.asks(photo=png()))["text"] == "Answer."
        assert stage.emulator.faults.planned == []


@pytest.mark.parametrize(("hours", "said"), [(5.9, ["Answer 1", "Answer 2", "Answer 3"]), (6.1, [AWAY, "Answer 1"])])
async def test_after_a_long_downtime_old_questions_are_excused_once(
    stage: Stage, hours: float, said: list[str]
) -> None:
    """Recent questions are answered when the bot comes back; older ones get one sentence together."""
    async with stage.person() as ada:
        for _ in range(2):
            sent = await ada.sends(photo=png())
            stage.emulator.world.chats[ada.id].messages[sent["message_id"]]["date"] -= int(hours * 3600)
        async with stage.bot() as bot:
            await stage.handled(bot)
            await ada.asks(photo=png())
            assert [message["text"] for message in await ada.bot_messages()] == said


async def test_a_wrong_token_ends_the_bot(stage: Stage) -> None:
    """Nothing is gained by asking again with a token that Telegram does not know."""
    made = settings(stage.url, "4242:wrong")
    bot = RunningBot(made, stage.directory, ScriptedEngine(), Notebook())
    try:
        with pytest.raises(ConfigError, match=r"telegram\.token"):
            await bot.intake.run()
    finally:
        await bot.stop()


async def test_a_wrong_address_for_the_webhook_ends_the_bot(stage: Stage) -> None:
    """Telegram's own words say what is wrong with it."""
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


@pytest.mark.parametrize(("token", "what"), [("", "is not set"), ("nonsense", "is no bot's token")])
def test_without_a_token_the_next_step_is_said(token: str, what: str) -> None:
    """`thumbtune run` says where a token comes from and how it is set."""
    with pytest.raises(ConfigError, match=f"{what}.*BotFather.*THUMBTUNE_TELEGRAM__TOKEN"):
        open_bot(TelegramSettings(token=SecretStr(token)))


async def test_an_update_that_is_no_update_is_refused(stage: Stage) -> None:
    """A webhook call without a number is the caller's mistake."""
    async with stage.bot() as bot:
        with pytest.raises(ValueError, match="update_id"):
            await bot.inbox.accept({"message": private("hi")})


async def test_an_update_of_an_unknown_kind_is_passed_over(stage: Stage) -> None:
    """What Telegram invents later neither stops the bot nor is tried for ever."""
    async with stage.bot() as bot, stage.person() as ada:
        await bot.inbox.accept({"update_id": 78, "message": {**private(""), "hologram": {"size": 3}}})
        await bot.settled()
        assert await bot.ledger.pending_updates() == []
        await ada.command("/help")
        assert "/new" in (await ada.answer(rated=False, quiet=0.2))["text"]


async def test_a_webhook_is_announced_and_served(stage: Stage) -> None:
    """Telegram is told where to call, however often that fails at first; what is accepted there is answered."""
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


async def test_a_webhook_call_does_not_overtake_what_was_left_over(stage: Stage) -> None:
    """What comes while the bot starts waits until that from before stands in its place."""
    async with Ledger.open(stage.directory) as ledger:
        await ledger.store_updates([(5, "chat:1001", json.dumps({"update_id": 5, "message": private("/help")}))])
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


@pytest.mark.parametrize("shown", [0, 1], ids=["before any word", "in mid-answer"])
async def test_a_stopped_answer_is_finished_by_the_next_process(stage: Stage, shown: int) -> None:
    """The placeholder of the first process becomes the answer of the second; there is one message."""
    never = asyncio.Event()
    async with stage.person() as ada:
        made = settings(stage.url, stage.emulator.token)
        first = RunningBot(made, stage.directory, ScriptedEngine(["Half", never] if shown else [never]), Notebook())
        first.start()
        await ada.sends(photo=png(), caption="What?")
        await until(lambda: bool(first.engine.prompts))
        await until(lambda: last_text(stage, ada) == ("Half" if shown else "Looking at your picture…"))
        await first.stop(grace=0)
        assert first.engine.ended == 1
        async with stage.bot("Whole.") as second:
            assert (await ada.answer(rated=True))["text"] == "Whole."
            await second.settled()
            assert len(await ada.bot_messages()) == 1
            assert second.engine.prompts[0].turns[0].text == "What?"
            assert (await second.ledger.counts())["exchanges"] == 1


async def test_a_recorded_answer_is_shown_again_not_made_again(stage: Stage) -> None:
    """Stopped between the record and the last edit, the next process shows what is recorded."""
    stage.emulator.faults.plan("flood", 1, methods=["editMessageText"], seconds=600)
    async with stage.person() as ada:
        made = settings(stage.url, stage.emulator.token)
        first = RunningBot(made, stage.directory, ScriptedEngine("Recorded."), Notebook())
        first.start()
        await ada.sends(photo=png())
        await until(lambda: stage.emulator.faults.planned == [])
        async with asyncio.timeout(10):
            while (await first.ledger.counts())["exchanges"] == 0:
                await asyncio.sleep(0.02)
        await first.stop(grace=0)
        async with stage.bot("Something else.") as second:
            answer = await ada.answer(rated=True)
            assert answer["text"] == "Recorded."
            assert button(answer, UP) == "rate:1:1"
            assert not second.engine.prompts
            assert len(await ada.bot_messages()) == 1


async def test_a_finished_reply_is_left_alone(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between the last edit and the inbox's own note, the next process does nothing visible."""
    reached = asyncio.Event()

    async def never(update: int) -> None:
        reached.set()
        await asyncio.Event().wait()

    made = settings(stage.url, stage.emulator.token)
    async with stage.person(1001) as ada, stage.person(1002, "Bob") as bob:
        first = RunningBot(made, stage.directory, ScriptedEngine(), Notebook())
        monkeypatch.setattr(first.ledger, "finish_update", never)
        first.start()
        await ada.asks(photo=png())
        await bob.command("/help")
        await bob.answer(rated=False, quiet=0.2)
        await reached.wait()
        assert len(await first.ledger.pending_updates()) == 2
        await first.stop(grace=0)
        counts = [stage.emulator.counts(person.id) for person in (ada, bob)]
        before = [(each.sends, each.edits) for each in counts]
        async with stage.bot() as second:
            await until(lambda: nothing_pending(second.ledger))
            assert not second.engine.prompts
            assert [(each.sends, each.edits) for each in counts] == before


async def test_a_stopped_album_is_one_turn_again(stage: Stage) -> None:
    """All members of an interrupted album are asked about together by the next process."""
    never = asyncio.Event()
    async with stage.person() as ada:
        made = settings(stage.url, stage.emulator.token)
        first = RunningBot(made, stage.directory, ScriptedEngine([never]), Notebook())
        first.start()
        await ada.sends(album=[png(colour=colour, form="JPEG") for colour in ("red", "blue")], caption="Both?")
        await until(lambda: len(first.engine.prompts) == 1)
        await first.stop(grace=0)
        async with stage.bot("Both.") as second:
            assert (await ada.answer(rated=True))["text"] == "Both."
            await second.settled()
            assert len(second.engine.prompts[0].turns[0].pictures) == 2
            assert len(await ada.bot_messages()) == 1


async def test_an_album_that_was_answered_is_not_answered_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped while the members of an answered album were being ticked off, the next process ticks off the rest."""
    async with stage.person() as ada:
        made = settings(stage.url, stage.emulator.token)
        first = RunningBot(made, stage.directory, ScriptedEngine(), Notebook())
        finish = first.ledger.finish_update
        ticked: list[int] = []

        async def only_one(update: int) -> None:
            if ticked:
                await asyncio.Event().wait()
            ticked.append(update)
            await finish(update)

        monkeypatch.setattr(first.ledger, "finish_update", only_one)
        first.start()
        await ada.asks(album=[png(colour=colour, form="JPEG") for colour in ("red", "green", "blue")])
        await until(lambda: bool(ticked))
        await first.stop(grace=0)
        async with stage.bot() as second:
            await until(lambda: nothing_pending(second.ledger))
            assert not second.engine.prompts
            assert len(await ada.bot_messages()) == 1


async def test_an_update_that_kills_every_process_is_set_aside(stage: Stage) -> None:
    """After many attempts that never ended, the update is given up at the next start."""
    ledger = Ledger.open(stage.directory)
    await ledger.store_updates([(5, "chat:1001", json.dumps({"update_id": 5, "message": private("hi")}))])
    for _ in range(ATTEMPTS):
        await ledger.begin_update(5)
    await ledger.close()
    async with stage.person() as ada, stage.bot() as bot:
        await ada.answer(after=0, quiet=0.3)
        await bot.settled()
        assert (await bot.ledger.counts())["updates_set_aside"] == 1
        assert [("sorry" in message["text"]) for message in await ada.bot_messages()] == [True]


async def test_killed_again_and_again_every_question_gets_one_answer(stage: Stage) -> None:
    """`kill -9` of the bot at arbitrary moments: one rated answer each, every vote once, nothing left undone."""
    await killed_while_people_talk(stage, kills=6, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(6))
async def test_killed_ten_times_in_many_ways(stage: Stage, seed: int) -> None:
    """The same, longer, at other moments."""
    await killed_while_people_talk(stage, kills=10, seed=seed)


async def killed_while_people_talk(stage: Stage, kills: int, seed: int) -> None:
    """Three people ask and vote while the bot is killed; afterwards everything was answered and counted once."""
    questions = kills + 3
    asked = 3 * questions
    people = [Person(stage.url, 2000 + number, f"P{number}") for number in range(3)]

    async def talk(person: Person) -> None:
        for number in range(questions):
            answer = await person.asks(photo=png(), caption=f"thing {number}", seconds=120)
            await person.taps(UP, answer)

    try:
        await killed_while(stage, people, talk, kills=kills, seed=seed)
        async with Ledger.open(stage.directory) as ledger:
            counts = await ledger.counts()
        for person in people:
            rated = [message["text"] for message in await person.bot_messages() if button(message, UP)]
            assert rated == [f"About thing {number}: all is well." for number in range(questions)]
        assert (counts["exchanges"], counts["votes"], counts["ups"]) == (asked, asked, asked)
        assert asked <= all_sends(stage, people) <= asked + doubts(stage)
    finally:
        for person in people:
            await person.close()


def doubts(stage: Stage) -> int:
    """How often a reply was begun again without knowing whether it had been sent."""
    with closing(sqlite3.connect(stage.directory / FILE_NAME)) as database:
        return int(database.execute("SELECT coalesce(sum(doubtful), 0) FROM replies").fetchone()[0])


async def exchanges(ledger: Ledger, number: int) -> bool:
    """Whether so many were recorded."""
    return (await ledger.counts())["exchanges"] == number


def last_text(stage: Stage, person: Person) -> str:
    """What the last message of the chat says."""
    messages = list(stage.emulator.world.chats[person.id].messages.values())
    return str(messages[-1].get("text", "")) if messages else ""
