"""The /privacy and /delete_my_data commands, `thumbtune forget`, and the retention of answers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, cast

import pytest

from bot.admin.erasure import Erasure
from bot.admin.schedule import Schedule
from bot.updates.ordering import lane_of
from storage.learning_records import Run
from storage.ledger import FILE_NAME, Ledger
from storage.pending_removals import RemovalKind
from storage.state_machines import RunState
from tests.support.bot_process import command, write_config
from tests.support.chatting import Stage, final_reply, png, until
from tests.support.operating import Admins, News
from tests.support.person import DOWN, UP, Message, Person, button
from training.data.llava import row_name

SURE, UNSURE = "🗑", "Keep it"
DELETED = "I've deleted everything I stored about you"

KILLED_BETWEEN = """
import os, pathlib, signal
def killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path.unlink = killed
"""


def config_for(stage: Stage) -> Path:
    """Write a settings file with the stage's data folder, and return its path."""
    path = stage.directory.parent / "config.toml"
    write_config(path, {"storage": {"dir": str(stage.directory)}})
    return path


async def said_to(person: Person, message: Message, words: str) -> Message:
    """Wait until the bot's `message` contains `words`, and return the updated message."""
    async with person.time_limit(30, words):
        while True:
            now = next(each for each in await person.messages() if each["message_id"] == message["message_id"])
            if words in now["text"]:
                return now
            await asyncio.sleep(0.02)


async def run_with(ledger: Ledger, runs: Path, *exchanges: int) -> Run:
    """Add a finished run with `exchanges` in its selection and its training file, and return the run."""
    run = await ledger.runs.start("schedule")
    await ledger.run_selections.freeze(run.id, [(each, "train") for each in exchanges])
    (runs / str(run.id)).mkdir(parents=True)
    rows = [{"id": row_name(each), "conversations": []} for each in exchanges]
    (runs / str(run.id) / "train.json").write_text(json.dumps(rows))
    return await ledger.runs.move(run.id, RunState.FAILED)


async def test_privacy_explains_and_offers_the_switch(stage: Stage) -> None:
    """/privacy says what is stored, why and for how long; its button turns learning from the user off and on."""
    async with stage.bot(storage={"retention_days": 30}) as bot, stage.person() as ada:
        answer = await final_reply(ada, "/privacy")
        for words in ("pictures", "votes", "/delete_my_data", "After 30 days", "I learn from what you"):
            assert words in answer["text"]
        await ada.taps("Don't learn", answer)
        now = await said_to(ada, answer, "I don't learn from you")
        assert (await bot.ledger.people.get(ada.id)).opted_out  # type: ignore[union-attr]
        assert "I don't learn" in (await final_reply(ada, "/privacy"))["text"]
        await ada.taps("Learn from me", now)
        await said_to(ada, answer, "I learn from what you")
        assert not (await bot.ledger.people.get(ada.id)).opted_out  # type: ignore[union-attr]


async def test_thanks_for_a_vote_respect_the_opt_out(stage: Stage) -> None:
    """The votes of a user who opted out are counted, but no reply promises to learn from them."""
    async with stage.bot() as bot, stage.person() as ada:
        answer = await ada.asks(photo=png())
        choice = await final_reply(ada, "/privacy")
        await ada.taps("Don't learn", choice)
        await said_to(ada, choice, "I don't learn from you")
        for label in (UP, DOWN, "Off topic"):
            assert "I won't learn from it" in await ada.toast(await ada.taps(label, answer))
            await bot.settled()
        assert await ada.toast(await ada.taps(DOWN, answer)) == "I've removed your vote."


async def test_it_speaks_chinese(stage: Stage) -> None:
    """/privacy, /delete_my_data and the confirmation are in the user's language."""
    async with stage.bot(), stage.person(language="zh-hans") as ada:
        assert "更正" in (await final_reply(ada, "/privacy"))["text"]
        question = await final_reply(ada, "/delete_my_data")
        await ada.taps("全部删除", question)
        await said_to(ada, question, "已删除")


async def test_the_last_language_is_recorded(stage: Stage) -> None:
    """Messages that the bot sends by itself follow the language that a user's client had last, also a former one."""
    async with stage.bot() as bot, stage.person() as ada:
        for language in ("en", "zh-hans", "en"):
            stage.emulator.world.users[ada.id].language = language
            await final_reply(ada, "/privacy")
            person = await bot.ledger.people.get(ada.id)
            assert person is not None and person.client_language == language


async def test_in_a_group_it_refers_to_the_private_chat(stage: Stage) -> None:
    """In a group, /privacy and /delete_my_data refer to the private chat and show nothing about the user."""
    async with stage.bot(), stage.person() as ada:
        group = stage.emulator.add_group("Friends", [ada.id]).id
        for text in ("/privacy", "/delete_my_data"):
            await ada.sends(text, chat=group)
            answer = await ada.answer(rated=False, chat=group)
            assert "in our private chat" in answer["text"]
            assert "reply_markup" not in answer


async def test_deletion_is_confirmed_and_complete(stage: Stage) -> None:
    """/delete_my_data counts and deletes the user's questions, pictures, votes and training examples.

    Other users' data stays.
    """
    async with stage.bot() as bot, stage.person() as ada, stage.person(1002, "Ben") as ben:
        hers, both = png(colour="red"), png(colour="blue")
        answers = [await ada.asks(photo=hers, caption="Mine?"), await ada.asks(photo=both), await ben.asks(photo=both)]
        for person, answer, thumb in ((ada, answers[0], UP), (ada, answers[1], DOWN), (ben, answers[2], UP)):
            await person.toast(await person.taps(thumb, answer))
        await run_with(bot.ledger, stage.directory / "runs", 1, 2, 3)
        kept, gone = await bot.ledger.exchanges.get(3), await bot.ledger.exchanges.get(1)
        question = await final_reply(ada, "/delete_my_data")
        for words in ("2 questions", "1 picture that", "2 votes", "2 training examples", "next one is trained"):
            assert words in question["text"]
        assert "correction" not in question["text"], "there is none"
        await ada.taps(SURE, question)
        done = await said_to(ada, question, DELETED)
        assert "2 questions" in done["text"] and "reply_markup" not in done
        await bot.settled()
        assert not bot.pictures.path(gone.pictures[0]).exists()
        assert bot.pictures.path(kept.pictures[0]).exists()
        rows = json.loads((stage.directory / "runs" / "1" / "train.json").read_text())
        assert [row["id"] for row in rows] == [row_name(3)]
        assert await bot.ledger.personal_data.count(ben.id)
        assert not await bot.ledger.personal_data.count(ada.id)
        assert await bot.ledger.people.get(ada.id) is None
        # The engine's side is the running bot's; so is the log, once the request itself is handled.
        assert [each.kind for each in await bot.ledger.personal_data.pending_removals()] == [
            RemovalKind.LOG,
            RemovalKind.SESSION,
        ]
        assert "Send me a picture first" in (await final_reply(ada, "And now?"))["text"]
        assert (await bot.ledger.people.get(ada.id)).name == "Ada"  # type: ignore[union-attr]


async def test_an_empty_account_can_be_deleted(stage: Stage) -> None:
    """If only a user's name and language are stored, /delete_my_data says exactly that and can delete both."""
    async with stage.bot(), stage.person() as ada:
        question = await final_reply(ada, "/delete_my_data")
        assert "only your name" in question["text"]
        assert "0" not in question["text"]
        await ada.taps(SURE, question)
        assert (await said_to(ada, question, DELETED))["text"] == "I've deleted everything I stored about you."


async def test_a_declined_deletion_deletes_nothing(stage: Stage) -> None:
    """Declining the confirmation of a deletion deletes nothing."""
    async with stage.bot() as bot, stage.person() as ada:
        await ada.asks(photo=png())
        question = await final_reply(ada, "/delete_my_data")
        await ada.taps(UNSURE, question)
        await said_to(ada, question, "Nothing was deleted.")
        assert (await bot.ledger.personal_data.count(ada.id)).exchanges == 1


async def test_a_second_tap_deletes_nothing_more(stage: Stage) -> None:
    """Once data is deleted, any other open confirmation stops working, so data stored later is kept."""
    async with stage.bot() as bot, stage.person() as ada:
        await ada.asks(photo=png())
        first, second = await final_reply(ada, "/delete_my_data"), await final_reply(ada, "/delete_my_data")
        await ada.taps(SURE, first)
        await said_to(ada, first, DELETED)
        await ada.asks(photo=png(colour="red"))
        toast = await ada.toast(await ada.taps(SURE, second))
        assert toast == "This button no longer works."
        assert (await bot.ledger.personal_data.count(ada.id)).exchanges == 1


async def test_an_expired_confirmation_deletes_nothing(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tap on an expired confirmation deletes nothing."""
    async with stage.bot() as bot, stage.person() as ada:
        await ada.asks(photo=png())
        question = await final_reply(ada, "/delete_my_data")
        monkeypatch.setattr("bot.handlers.privacy.ASKED_SECONDS", 0.0)
        assert await ada.toast(await ada.taps(SURE, question)) == "This button no longer works."
        assert (await bot.ledger.personal_data.count(ada.id)).exchanges == 1


async def test_an_answer_in_flight_is_dropped(stage: Stage) -> None:
    """An answer that is streaming during a deletion is not recorded, and the reply says so."""
    go_on = asyncio.Event()
    async with stage.bot(["It is ", go_on, "a picture"]) as bot, stage.person() as ada:
        sent = await ada.sends(photo=png(), caption="What?")
        await until(lambda: bool(bot.engine.prompts))
        question = await final_reply(ada, "/delete_my_data")
        await ada.taps(SURE, question)
        await said_to(ada, question, DELETED)
        go_on.set()
        answer = next(each for each in await ada.bot_messages() if each["message_id"] == sent["message_id"] + 1)
        answer = await said_to(ada, answer, "dropped this question")
        assert button(answer, UP) is None
        await bot.settled()
        assert not await bot.ledger.personal_data.count(ada.id)
        assert await bot.ledger.pictures.all() == []
        assert await bot.ledger.inbox.pending() == []


async def test_a_deleted_name_is_in_no_file(stage: Stage) -> None:
    """Once a deletion is complete, the user's name and ID are in neither the ledger nor its write-ahead log."""
    async with stage.bot() as bot, stage.person(77123456789, "Zerubbabel") as person, stage.person(1002, "Ben") as ben:
        await person.asks(photo=png(), caption="Mine?")
        await ben.asks(photo=png(colour="red"))
        question = await final_reply(person, "/delete_my_data")
        await person.taps(SURE, question)
        await said_to(person, question, DELETED)
        await bot.settled()
        await Erasure(bot.ledger, lambda _: None).settle()
        for file in stage.directory.glob(f"{FILE_NAME}*"):
            data = file.read_bytes()
            assert (b"Zerubbabel" in data, b"77123456789" in data) == (False, False), file
        assert b"Ben" in (stage.directory / FILE_NAME).read_bytes()


async def test_two_deletions_while_an_answer_is_written(stage: Stage) -> None:
    """An answer in flight during two deletions is dropped, and later questions are answered."""
    go_on = asyncio.Event()
    async with stage.bot(["It is ", go_on, "a picture"], "Another.") as bot, stage.person() as ada:
        await ada.sends(photo=png(), caption="What?")
        await until(lambda: bool(bot.engine.prompts))
        for _ in range(2):
            question = await final_reply(ada, "/delete_my_data")
            await ada.taps(SURE, question)
            await said_to(ada, question, DELETED)
        go_on.set()
        assert (await ada.asks(photo=png(colour="red")))["text"] == "Another."
        await bot.settled()
        assert (await bot.ledger.counts.totals())["updates_set_aside"] == 0
        assert (await bot.ledger.personal_data.count(ada.id)).exchanges == 1


@pytest.mark.parametrize("edited", [False, True])
async def test_a_picture_in_flight_is_dropped(stage: Stage, monkeypatch: pytest.MonkeyPatch, edited: bool) -> None:
    """A question whose picture is being downloaded during a deletion is dropped, and the reply says so.

    No row remains, and the next sweep deletes the picture's file.
    """
    fetching, go_on = asyncio.Event(), asyncio.Event()
    async with stage.bot() as bot, stage.person() as ada:
        sent = await ada.sends(photo=png(), caption="What?")
        await ada.answer(rated=True)
        fetch = bot.bot.download_file

        async def slowly(*args: Any, **options: Any) -> Any:
            fetching.set()
            await go_on.wait()
            return await fetch(*args, **options)

        monkeypatch.setattr(bot.bot, "download_file", slowly)
        if edited:
            await ada.edits(sent, "What else?")
        else:
            await ada.sends(photo=png(colour="red"), caption="What?")
        await fetching.wait()
        question = await final_reply(ada, "/delete_my_data")
        await ada.taps(SURE, question)
        await said_to(ada, question, DELETED)
        go_on.set()
        await bot.settled()
        assert any("dropped this question" in each["text"] for each in await ada.bot_messages())
        assert len(bot.engine.prompts) == 1
        counts = await bot.ledger.counts.totals()
        assert [counts[each] for each in ("users", "chats", "sessions", "pictures")] == [0, 0, 0, 0]
        monkeypatch.setattr("bot.admin.erasure.ABANDONED_SECONDS", -5.0)
        await Erasure(bot.ledger).sweep()
        assert bot.pictures.files() == []


async def test_nothing_deleted_is_sent_to_the_engine_again(stage: Stage) -> None:
    """After a deletion, a new picture begins a conversation without the deleted exchanges."""
    async with stage.bot() as bot, stage.person() as ada:
        await ada.asks(photo=png(), caption="a secret")
        question = await final_reply(ada, "/delete_my_data")
        await ada.taps(SURE, question)
        await said_to(ada, question, DELETED)
        await ada.asks(photo=png(colour="red"), caption="hello")
        old, new = bot.engine.prompts
        assert [turn.text for turn in new.turns] == ["hello"]
        assert new.chat != old.chat


async def test_a_killed_deletion_is_completed(stage: Stage) -> None:
    """If a deletion is killed after deleting the rows but before the files, the next process deletes the files.

    The rows are deleted in a single step.
    """
    config = config_for(stage)
    async with stage.bot() as bot, stage.person() as ada:
        await ada.asks(photo=png())
        await run_with(bot.ledger, stage.directory / "runs", 1)
        picture = bot.pictures.path((await bot.ledger.exchanges.get(1)).pictures[0])
    code, _ = await command(config, "forget", str(ada.id), "--yes", sabotage=KILLED_BETWEEN)
    assert code == -9
    assert picture.exists()
    async with Ledger.open(stage.directory) as ledger:
        assert not await ledger.personal_data.count(ada.id)
        await Erasure(ledger, lambda _: None).settle()
        assert await ledger.personal_data.pending_removals() == []
    assert not picture.exists()
    assert json.loads((stage.directory / "runs" / "1" / "train.json").read_text()) == []


async def test_forget_on_the_command_line(stage: Stage) -> None:
    """`thumbtune forget` deletes a user's data while a bot runs; the bot then answers without the history."""
    config = config_for(stage)
    async with stage.bot() as bot, stage.person() as ada, stage.person(1002, "Ben") as ben:
        answer = await ada.asks(photo=png())
        await ben.asks(photo=png(colour="red"))
        code, said = await command(config, "forget", str(ada.id), "--yes")
        assert code == 0, said
        assert "Deleted: 1 questions with their answers, 1 pictures" in said
        assert not await bot.ledger.personal_data.count(ada.id)
        assert await ada.toast(await ada.taps(UP, answer)) == "I can't find that answer any more."
        await final_reply(ada, "And now?")
        await ben.asks("And this?")
        code, said = await command(config, "forget", "404")
        assert (code, said.strip()) == (0, "Nothing is stored about 404.")


async def test_rows_are_removed_again_after_an_active_run(stage: Stage) -> None:
    """A deletion during a run removes rows from the run's files at once and again when the run has ended.

    In between, the run may still write the files.
    """
    runs = stage.directory / "runs"
    async with stage.bot() as bot, stage.person() as ada:
        await ada.asks(photo=png())
        run = await bot.ledger.runs.start("schedule")
        await bot.ledger.run_selections.freeze(run.id, [(1, "train")])
        await bot.ledger.runs.move(run.id, RunState.TRAINING)
        forgetting = Erasure(bot.ledger, lambda _: None)
        await forgetting.forget(ada.id)
        file = runs / str(run.id) / "train.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps([{"id": row_name(1)}]))
        await forgetting.settle()
        assert [each.kind for each in await bot.ledger.personal_data.pending_removals()] == [RemovalKind.ROW]
        await bot.ledger.runs.move(run.id, RunState.CANCELLED)
        await forgetting.settle()
        assert json.loads(file.read_text()) == []
        assert await bot.ledger.personal_data.pending_removals() == []


async def test_the_daily_job_deletes_expired_answers(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daily job deletes expired unrated answers and their pictures; rated answers stay."""
    async with stage.bot() as bot, stage.person() as ada:
        rated = await ada.asks(photo=png())
        await ada.toast(await ada.taps(UP, rated))
        await final_reply(ada, "/new")
        await ada.asks(photo=png(colour="red"))
        names = [each.sha256 for each in await bot.ledger.pictures.all()]
        forgetting = Erasure(bot.ledger)
        await Schedule(
            bot.ledger, forgetting, cast(Any, Admins()), cast(Any, News()), cron="", retention_days=1
        ).expire()
        assert (await bot.ledger.counts.totals())["exchanges"] == 2
        await Schedule(
            bot.ledger, forgetting, cast(Any, Admins()), cast(Any, News()), cron="", retention_days=0
        ).expire()
        assert (await bot.ledger.counts.totals())["exchanges"] == 1
        assert [bot.pictures.path(name).exists() for name in names] == [True, False]


@pytest.mark.parametrize(
    "raw",
    [
        {"callback_query": {"from": {"id": 5}}},
        {"message": {"chat": {"id": 5, "type": "private"}, "from": {"id": 5}}},
        {"message": {"chat": {"id": -7, "type": "group"}, "from": {"id": 5}}},
        {"message": {"chat": {"id": 5, "type": "private"}, "from": {"id": 5}, "text": "/delete_my_data"}},
    ],
)
def test_every_lane_ends_in_its_user(raw: dict[str, object]) -> None:
    """An update's lane ends with the user's ID, so that the ledger can find the user's updates."""
    assert lane_of(raw).endswith(":5")
