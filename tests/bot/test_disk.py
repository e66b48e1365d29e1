"""On a full disk, each message gets one notice; none is answered before it is stored, and none is lost."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from bot.admin.erasure import Erasure
from storage.errors import NotSaved, StorageError
from storage.ledger import Ledger
from storage.pending_removals import Removal, RemovalKind
from tests.support.bot_process import FORGE
from tests.support.chatting import ScriptedEngine, Stage, live, png, shows, until
from tests.support.ledgers import picture
from tests.support.person import DOWN, UP, Message, Person, button

FULL = "My disk is full; ask again once my operator has made room."
CHINESE = "我的磁盘已满；请等运营者腾出空间后再问我。"


@contextmanager
def bot_process(stage: Stage, seconds: float = 0.05) -> Iterator[BaseProcess]:
    """Run a bot in its own process and yield the process.

    The bot answers "About …: all is well." and pauses for `seconds` before each part.
    """
    process = FORGE.Process(
        target=live, args=(stage.url, stage.emulator.token, str(stage.directory), seconds), daemon=True
    )
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def limit(process: BaseProcess, size: int) -> None:
    """Stop `process` from writing any file beyond `size` bytes, as if the disk were full."""
    assert process.pid is not None
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


async def test_nothing_is_answered_from_memory_and_nothing_is_lost(stage: Stage) -> None:
    """On a full disk, each message gets one notice, however often Telegram resends the message.

    Once there is room, each message is answered once. In a group, only messages that address the bot get the
    notice. A tap is answered with the notice and does not count later.
    """
    with bot_process(stage) as process:
        async with stage.person() as ada, stage.person(1002, "小明", "zh") as ming:
            group = stage.emulator.add_group("Friends", [ada.id, ming.id], privacy=False).id
            before = await ada.asks(photo=png(), caption="before")
            limit(process, 0)
            await ming.sends(photo=png(colour="red"), caption="你好")
            await shows(ming, CHINESE)
            await ada.sends("my dog is called Rex", chat=group)
            await ada.sends("@thumbtune_bot who is Rex?", chat=group)
            spoken = await shows(ada, FULL, group)
            assert spoken["reply_to_message"]["text"] == "@thumbtune_bot who is Rex?"
            for _ in range(2):
                assert await ada.toast(await ada.taps(UP, before)) == FULL
            await ada.sends("still here")
            await shows(ada, FULL)
            await ada.sends("and now?")
            await until(lambda: _said(ada, FULL, 2))
            assert [len(await person.bot_messages(chat)) for person, chat in ((ada, group), (ming, None))] == [1, 1]
            limit(process, resource.RLIM_INFINITY)
            await until(lambda: _said(ada, "About and now?: all is well.", 1))
            await until(lambda: _said(ming, "About 你好: all is well.", 1))
            await until(lambda: not len(stage.emulator.world.updates))
            await ada.toast(await ada.taps(UP, before))
            await ada.asks("last")
            said = [message["text"] for message in await ada.bot_messages()]
    answers = [f"About {question}: all is well." for question in ("before", "still here", "and now?", "last")]
    assert sorted(said) == sorted([*answers, FULL, FULL])
    async with Ledger.open(stage.directory) as ledger:
        counts = await ledger.counts.totals()
        assert (counts["exchanges"], counts["ups"], counts["downs"]) == (5, 1, 0)


async def test_a_disk_that_fills_up_while_an_answer_is_written(stage: Stage) -> None:
    """If the disk fills up during an answer, a notice replaces the partial answer.

    The question waits, and once there is room, the full answer replaces the notice.
    """
    with bot_process(stage, 1.0) as process:
        async with stage.person() as ada:
            await ada.sends(photo=png(), caption="meanwhile")
            await ada.first_words()
            limit(process, 0)
            await shows(ada, FULL)
            limit(process, resource.RLIM_INFINITY)
            assert (await ada.answer(rated=True))["text"] == "About meanwhile: all is well."
            (answer,) = await ada.bot_messages()
            await ada.toast(await ada.taps(DOWN, answer))
    async with Ledger.open(stage.directory) as ledger:
        counts = await ledger.counts.totals()
        assert (counts["exchanges"], counts["downs"], counts["updates_set_aside"]) == (1, 1, 0)


async def test_a_reaction_waits_for_room(stage: Stage) -> None:
    """On a full disk, a reaction gets no reply; it counts as soon as it can be stored."""
    with bot_process(stage) as process:
        async with stage.person() as ada:
            answer = await ada.asks(photo=png(), caption="before")
            limit(process, 0)
            await ada.reacts(answer, UP)
            await ada.sends("and?")
            await shows(ada, FULL)
            assert button((await ada.bot_messages())[0], f"{UP} ✓") is None
            limit(process, resource.RLIM_INFINITY)
            await until(lambda: _thumb_shown(ada, answer))
            assert await _said(ada, FULL, 1)


async def test_a_webhook_call_that_cannot_be_stored_is_not_acknowledged(stage: Stage) -> None:
    """A webhook call that cannot be stored fails, and its sender gets one notice.

    Once there is room, Telegram's next call succeeds and the question is answered.
    """
    async with stage.bot(engine=ScriptedEngine("A dog.", "Brown.")) as bot, stage.person() as ada:
        picture = await ada.asks(photo=png(), caption="before")
        call = {"update_id": 99, "message": {**_by(ada), "message_id": 77, "text": "Which colour? " + "x" * 500_000}}
        tap = {"id": "7", "from": _by(ada)["from"], "chat_instance": "1", "message": picture, "data": "rate:1:1"}
        full, roomy = "SELECT page_count FROM pragma_page_count", 1_000_000
        (pages,) = await bot.ledger._writer.do(lambda database: database.execute(full).fetchone())
        await bot.ledger._writer.do(lambda database: database.execute(f"PRAGMA max_page_count = {pages}").fetchall())
        for _ in range(3):
            with pytest.raises(NotSaved):
                await bot.inbox.store([call, {"update_id": 98, "callback_query": tap}])
        await bot.inbox.accept({"update_id": 98, "callback_query": tap})
        assert [message["text"] for message in await ada.bot_messages()] == ["A dog.", FULL]
        await bot.ledger._writer.do(lambda database: database.execute(f"PRAGMA max_page_count = {roomy}").fetchall())
        await bot.inbox.accept(call)
        await bot.settled()
        assert "too long" in (await ada.bot_messages())[-1]["text"]
        assert (await bot.ledger.counts.totals())["ups"] == 0


def _by(person: Person) -> dict[str, Any]:
    """Return the date, chat and sender fields of a message in the private chat of `person`."""
    sender = {"id": person.id, "is_bot": False, "first_name": person.name}
    return {"date": int(time.time()), "chat": {"id": person.id, "type": "private"}, "from": sender}


async def _said(person: Person, text: str, times: int) -> bool:
    """Return whether the private chat of `person` has exactly `times` messages from the bot that say `text`."""
    return [message["text"] for message in await person.bot_messages()].count(text) == times


async def _thumb_shown(person: Person, answer: Message) -> bool:
    """Return whether the 👍 button of `answer` is now marked as tapped by `person`."""
    messages = await person.bot_messages()
    return button(next(each for each in messages if each["message_id"] == answer["message_id"]), "👍 ✓") is not None


async def test_the_ledger_reports_a_full_disk(stage: Stage) -> None:
    """The ledger reports a full disk until something is stored again; the admins get an alert."""
    async with stage.bot() as bot:
        pages = "SELECT page_count FROM pragma_page_count"
        (count,) = await bot.ledger._writer.do(lambda database: database.execute(pages).fetchone())
        await bot.ledger._writer.do(lambda database: database.execute(f"PRAGMA max_page_count = {count}").fetchall())
        with pytest.raises(NotSaved, match="full"):
            await bot.ledger.inbox.store([(1, "a:1", "x" * 1_000_000)])
        assert "is full" in bot.ledger.trouble
        await bot.ledger._writer.do(lambda database: database.execute("PRAGMA max_page_count = 1000000").fetchall())
        await bot.ledger.inbox.store([(1, "a:1", "x" * 1_000_000)])
        assert bot.ledger.trouble == ""


async def test_a_picture_that_cannot_be_deleted_stays_recorded(tmp_path: Path) -> None:
    """The error for a picture that cannot be deleted names the picture, and the deletion is retried later."""
    async with Ledger.open(tmp_path) as ledger:
        forgetting = Erasure(ledger, lambda _: None)
        name = "ab" * 32
        path = tmp_path / "pictures" / "ab" / name
        path.mkdir(parents=True)
        await ledger.pictures.add(picture(name), 1)
        with pytest.raises(StorageError, match=f"Deleting the picture .*{name}"):
            await forgetting.forget(1)
        assert Removal(RemovalKind.PICTURE, name) in await ledger.personal_data.pending_removals()
        path.rmdir()
        await forgetting.settle()
        assert await ledger.personal_data.pending_removals() == []


async def test_files_without_a_row_are_swept(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Picture files that a full disk or a crash left without a ledger row are removed after a while.

    Recorded files stay.
    """
    async with stage.bot() as bot:
        kept, left = await bot.pictures.put(b"kept"), await bot.pictures.put(b"left")
        await bot.ledger.pictures.add(picture(kept))
        forgetting = Erasure(bot.ledger)
        assert await forgetting.sweep() == 0
        monkeypatch.setattr("bot.admin.erasure.ABANDONED_SECONDS", -5.0)
        assert await forgetting.sweep() == 1
        assert (bot.pictures.path(kept).exists(), bot.pictures.path(left).exists()) == (True, False)
