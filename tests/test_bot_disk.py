"""A disk that takes nothing: people are answered all the same, and told what could not be saved."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest

from bot.forgetting import Forgetting
from storage.errors import NotSaved, StorageError
from storage.ledger import Ledger
from storage.records import Kind, Removal
from tests.chatting import Stage, live, png, shows, told, until
from tests.ledgers import picture
from tests.person import DOWN, UP, Message, Person, button

NOT_SAVED = "My disk is full, so I could not save that. My admins know."


@contextmanager
def bot_process(stage: Stage) -> Iterator[SpawnProcess]:
    """A bot that answers "About …: all is well." as a process of its own."""
    process = multiprocessing.get_context("spawn").Process(
        target=live, args=(stage.url, stage.emulator.token, str(stage.directory)), daemon=True
    )
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def limit(process: SpawnProcess, size: int) -> None:
    """From now on the kernel refuses to write any file of the process beyond `size` bytes, as a full disk would."""
    assert process.pid is not None
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


async def test_the_chat_goes_on_while_nothing_can_be_saved(stage: Stage) -> None:
    """Old friends and newcomers get answers, follow-ups know their picture, a vote says that it was not saved.

    With room again everything is saved as ever, and what was answered meanwhile is not answered twice.
    """
    with bot_process(stage) as process:
        async with stage.person() as ada, stage.person(1002, "Ben") as ben:
            before = await ada.asks(photo=png(), caption="before")
            limit(process, 0)
            assert "About still here" in (await ada.asks("still here"))["text"]
            fresh = await ben.asks(photo=png(colour="red"), caption="newcomer")
            assert "About newcomer" in fresh["text"]
            assert "About follow-up" in (await ben.asks("follow-up"))["text"]
            assert await ada.toast(await ada.taps(UP, before)) == NOT_SAVED
            assert await ben.toast(await ben.taps(DOWN, fresh)) == NOT_SAVED
            assert (await told(ada, "/new"))["text"] == NOT_SAVED
            said = [len(await person.bot_messages()) for person in (ada, ben)]
            limit(process, resource.RLIM_INFINITY)
            after = await ben.asks(photo=png(colour="blue"), caption="after")
            await ben.toast(await ben.taps(UP, after))
            await ada.toast(await ada.taps(UP, before))
            assert button(after, "🔄") is not None
            assert button(fresh, "🔄") is None
    with bot_process(stage):
        async with stage.person() as ada, stage.person(1002, "Ben") as ben:
            await ada.asks("once more")
            assert [len(await person.bot_messages()) for person in (ada, ben)] == [said[0] + 1, said[1] + 1]
    async with Ledger.open(stage.directory) as ledger:
        counts = await ledger.counts()
        assert (counts["exchanges"], counts["ups"], counts["downs"]) == (3, 2, 0)
        rated = await ledger.rated_exchanges()
        assert [(each.exchange.question, len(each.history)) for each in rated] == [("before", 0), ("after", 0)]


async def test_a_reaction_that_cannot_be_saved_is_told_once(stage: Stage) -> None:
    """A reply in the reader's language, whether the answer was saved before or not; with room again it is a vote."""
    english = "My disk is full, so I could not save your reaction. My admins know."
    chinese = "我的磁盘已满，没能保存你的表情回应。管理员已经知道了。"
    with bot_process(stage) as process:
        async with stage.person() as ada, stage.person(1002, "小明", "zh") as ming:
            before = await ada.asks(photo=png(), caption="before")
            limit(process, 0)
            unsaved = await ming.asks(photo=png(colour="red"), caption="meanwhile")
            for person, answer, sentence in ((ada, before, english), (ming, unsaved, chinese)):
                await person.reacts(answer, UP)
                told_so = await shows(person, sentence)
                assert told_so["reply_to_message"]["message_id"] == answer["message_id"]
                await person.reacts(answer, DOWN)
                # In the same lane, so what was to be said of the reaction has been said when this is answered.
                assert await person.toast(await person.taps(UP, answer)) != ""
                assert (await person.bot_messages())[-1]["message_id"] == told_so["message_id"]
            limit(process, resource.RLIM_INFINITY)
            await ada.reacts(before, "")
            await ada.reacts(before, UP)
            await until(lambda: _thumb_shown(ada, before))
            await ming.reacts(unsaved, UP)
            await ming.toast(await ming.taps(UP, unsaved))
            assert [len(await person.bot_messages()) for person in (ada, ming)] == [2, 2]
    async with Ledger.open(stage.directory) as ledger:
        counts = await ledger.counts()
        assert (counts["exchanges"], counts["ups"], counts["downs"]) == (1, 1, 0)


async def _thumb_shown(person: Person, answer: Message) -> bool:
    """Whether the answer shows the person's 👍 as given."""
    messages = await person.bot_messages()
    return button(next(each for each in messages if each["message_id"] == answer["message_id"]), "👍 ✓") is not None


async def test_the_ledger_tells_its_trouble(stage: Stage) -> None:
    """A full disk shows as the ledger's trouble until something was saved again; the admins are alerted of it."""
    async with stage.bot() as bot:
        pages = "SELECT page_count FROM pragma_page_count"
        (count,) = await bot.ledger._writer.do(lambda database: database.execute(pages).fetchone())
        await bot.ledger._writer.do(lambda database: database.execute(f"PRAGMA max_page_count = {count}").fetchall())
        with pytest.raises(NotSaved, match="full"):
            await bot.ledger.store_updates([(1, "a:1", "x" * 1_000_000)])
        assert "is full" in bot.ledger.trouble
        await bot.ledger._writer.do(lambda database: database.execute("PRAGMA max_page_count = 1000000").fetchall())
        await bot.ledger.store_updates([(1, "a:1", "x" * 1_000_000)])
        assert bot.ledger.trouble == ""


async def test_a_picture_that_cannot_be_deleted_stays_noted(tmp_path: Path) -> None:
    """Whoever asks for it is told which picture that is, and it is tried again later."""
    async with Ledger.open(tmp_path) as ledger:
        forgetting = Forgetting.beside(ledger, tmp_path, lambda _: None)
        name = "ab" * 32
        path = tmp_path / "pictures" / "ab" / name
        path.mkdir(parents=True)
        await ledger.add_picture(picture(name), 1)
        with pytest.raises(StorageError, match=f"Deleting the picture .*{name}"):
            await forgetting.forget(1)
        assert Removal(Kind.PICTURE, name) in await ledger.removals()
        path.rmdir()
        await forgetting.settle()
        assert await ledger.removals() == []


async def test_files_without_a_row_are_swept(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a full disk or a crash left between a picture's file and its row goes after a while; known ones stay."""
    async with stage.bot() as bot:
        kept, left = await bot.pictures.put(b"kept"), await bot.pictures.put(b"left")
        await bot.ledger.add_picture(picture(kept))
        forgetting = Forgetting.beside(bot.ledger, stage.directory)
        assert await forgetting.sweep() == 0
        monkeypatch.setattr("bot.forgetting.ABANDONED_SECONDS", -5.0)
        assert await forgetting.sweep() == 1
        assert (bot.pictures.path(kept).exists(), bot.pictures.path(left).exists()) == (True, False)
