"""Pictures that an earlier version stored unprocessed are re-encoded exactly once, despite interruptions."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from bot.chat.history import History
from bot.chat.picture_reencoding import CHORE, StoredPictures, finish_pictures
from bot.cli.stored_data import backup
from bot.config import Settings
from bot.live_settings import LiveSettings
from bot.settings import ChatSettings
from inference.chat_format.template import prompt_hash
from inference.messages import Picture, Prompt, Role, Turn
from storage.chat_records import PictureState
from storage.errors import UnknownRecord
from storage.integrity import ledger_faults, picture_faults
from storage.learning_records import Rating
from storage.ledger import FILE_NAME, Ledger
from storage.picture_files import PictureStore
from tests.support.chatting import DECODERS
from tests.support.hostile_pictures import GPS, large_webp, located
from tests.support.ledgers import exchange, picture
from training.data.imported_sources import ABOUT, ROWS, SourceInfo
from training.data.seen_prompt import seen_prompt


class Former:
    """A data folder as an earlier version left it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pictures = PictureStore(folder / "pictures")
        self._update = 0

    async def store(self, ledger: Ledger, data: bytes, sender: int = 1) -> str:
        """Store a picture exactly as received, and return the picture's name."""
        name = await self.pictures.put(data)
        await ledger.pictures.add(picture(name, size=len(data), media_type="image/jpeg"), sender)
        with closing(sqlite3.connect(self.folder / FILE_NAME)) as database, database:
            database.execute("UPDATE pictures SET state = 'raw' WHERE sha256 = ?", [name])
        return name

    async def says(self, ledger: Ledger, question: str, *names: str, before: tuple[Turn, ...] = ()) -> Prompt:
        """Record a liked answer in user 1's open session, and return its prompt with the answer appended."""
        self._update += 10
        turn = Turn(Role.USER, question, tuple(Picture(b"", name) for name in names))
        prompt = Prompt("Be kind.", (*before, turn), "")
        session = await ledger.sessions.open(1, 1)
        asked = exchange(session, self._update, question=question, pictures=names, prompt_hash=prompt_hash(prompt))
        made = await ledger.exchanges.record(asked)
        await ledger.votes.cast(Rating(made.id, 2, 1, self._update + 1))
        return Prompt("Be kind.", (*prompt.turns, Turn(Role.ASSISTANT, asked.answer)), "")


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[tuple[Former, Ledger, StoredPictures]]:
    async with Ledger.open(folder) as ledger:
        stored = StoredPictures(ledger, PictureStore(folder / "pictures"), DECODERS)
        yield Former(folder), ledger, stored


def history(ledger: Ledger, pictures: PictureStore) -> History:
    settings = Settings(chat=ChatSettings(system_prompt="Be kind."))
    return History(ledger, StoredPictures(ledger, pictures, DECODERS), LiveSettings(settings))


def traces(folder: Path) -> list[Path]:
    """Return the files below `folder` that contain the GPS position of the test photo."""
    return [each for each in folder.rglob("*") if each.is_file() and GPS in each.read_bytes()]


async def test_pictures_are_re_encoded_in_place(tmp_path: Path) -> None:
    """After re-encoding, exchanges, senders and run files refer to the new picture.

    Of the former picture, only the name is kept, as a pointer to the new picture.
    """
    async with opened(tmp_path) as (former, ledger, upgrade):
        name = await former.store(ledger, located(), sender=3)
        (await former.says(ledger, "What is it?", name))
        run = tmp_path / "runs" / "1"
        run.mkdir(parents=True)
        (run / "train.json").write_text(json.dumps([{"id": "exchange-1", "image": f"{name[:2]}/{name}"}]))
        assert traces(tmp_path / "pictures")
        await upgrade.finish()
        (clean,) = await ledger.pictures.all()
        assert clean.state is PictureState.CLEAN
        assert clean.sha256 != name
        assert (await ledger.exchanges.get(1)).pictures == (clean.sha256,)
        assert (await ledger.pictures.get(name)) == clean, "who still has the former name finds it"
        assert (await ledger.personal_data.count(3)).pictures == 1
        assert json.loads((run / "train.json").read_text())[0]["image"] == f"{clean.sha256[:2]}/{clean.sha256}"
        assert [each.name for each in former.pictures.files()] == [clean.sha256]
        assert not traces(tmp_path / "pictures")
        assert not await ledger.personal_data.pending_removals()
        assert await ledger.pictures.chore_done(CHORE)
        before = (await former.pictures.get(clean.sha256), clean)
        await upgrade.finish()
        assert (await former.pictures.get(clean.sha256), *await ledger.pictures.all()) == before, "once"
    assert ledger_faults(tmp_path / FILE_NAME) == picture_faults(tmp_path / FILE_NAME, former.pictures) == []


async def test_earlier_prompts_are_found_by_their_hash(tmp_path: Path) -> None:
    """Training reconstructs the prompts of a long conversation even after its picture has been renamed."""
    async with opened(tmp_path) as (former, ledger, upgrade):
        name = await former.store(ledger, located())
        said = await former.says(ledger, "What is it?", name)
        await former.says(ledger, "And this?", before=said.turns)
        picture_turn = Turn(Role.USER, "Of what colour?", (Picture(b"", name),))
        cut = Prompt("Be kind.", (picture_turn,), "")
        asked = exchange(
            await ledger.sessions.open(1, 1), 500, question="Of what colour?", prompt_hash=prompt_hash(cut)
        )
        await ledger.votes.cast(Rating((await ledger.exchanges.record(asked)).id, 2, 1, 501))
        before = [seen_prompt(each) for each in await ledger.votes.rated_exchanges()]
        await upgrade.finish()
        after = [seen_prompt(each) for each in await ledger.votes.rated_exchanges()]
        assert [[turn.text for turn in each.turns] for each in after] == [
            [turn.text for turn in each.turns] for each in before
        ]
        assert [len(each.turns) for each in after] == [1, 3, 1]
        (clean,) = await ledger.pictures.all()
        shown = {each.sha256 for prompt in after for turn in prompt.turns for each in turn.pictures}
        assert shown == {clean.sha256}


async def test_a_picture_is_re_encoded_when_it_is_needed(tmp_path: Path) -> None:
    """A picture stored exactly as received is re-encoded before an engine sees it."""
    async with opened(tmp_path) as (former, ledger, _):
        name = await former.store(ledger, located())
        await former.says(ledger, "What is it?", name)
        asked = await ledger.exchanges.get(1)
        shown_before = history(ledger, former.pictures)
        (shown,) = await shown_before.pictures(asked)
        assert GPS not in shown.data
        assert shown.sha256 == (await ledger.pictures.all())[0].sha256
        assert await shown_before.pictures(asked) == (shown,), "by its former name as well"


async def test_a_quarantined_picture_is_not_used(tmp_path: Path) -> None:
    """A quarantined picture is neither shown to the model, nor used for training, nor backed up.

    Its file is kept so that an erasure can delete it; other pictures are unaffected.
    """
    out, said = tmp_path / "backup", StringIO()
    data = tmp_path / "data"
    async with opened(data) as (former, ledger, _):
        bad = await former.store(ledger, large_webp())
        await former.says(ledger, "What is it?", bad)
        await former.says(ledger, "And now?")
        await ledger.sessions.restart(1, 1)
        good = await former.store(ledger, located())
        await former.says(ledger, "What is that?", good)
        shown_before = history(ledger, former.pictures)
        with pytest.raises(UnknownRecord, match="quarantine"):
            await shown_before.pictures(await ledger.exchanges.get(1))
        await backup(ledger, out, models=False)
        await finish_pictures(ledger, Console(file=said))
        assert "1 pictures in quarantine" in said.getvalue()
        (clean,) = [each for each in await ledger.pictures.all() if each.state is PictureState.CLEAN]
        assert [each.name for each in PictureStore(out / "pictures").files()] == [clean.sha256]
        assert [each.exchange.id for each in await ledger.votes.rated_exchanges()] == [3]
        assert former.pictures.path(bad).is_file()
    assert not picture_faults(out / FILE_NAME, PictureStore(out / "pictures"))


async def test_imported_pictures_are_re_encoded(tmp_path: Path) -> None:
    """Imported rows refer to the re-encoded pictures; a row whose picture cannot be re-encoded is quarantined."""
    source = tmp_path / "sources" / "food"
    store = PictureStore(source / "pictures")
    names = [await store.put(data) for data in (located(), large_webp())]
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Food."}]
    rows = [{"id": str(each), "image": f"{each[:2]}/{each}", "conversations": talk} for each in names]
    (source / ROWS).write_text("".join(json.dumps(each) + "\n" for each in rows))
    SourceInfo("food.json", 2, 2).write(source / ABOUT)
    async with opened(tmp_path) as (_, ledger, upgrade):
        assert not await ledger.pictures.chore_done(CHORE)
        await upgrade.finish()
    about = SourceInfo.read(source / ABOUT)
    assert (about.rows, about.pictures, about.clean) == (1, 1, True)
    (row,) = [json.loads(line) for line in (source / ROWS).read_text().splitlines()]
    assert GPS not in (source / "pictures" / row["image"]).read_bytes()
    assert row["image_wh"] == [[640, 480]]
    (put_aside,) = [json.loads(line) for line in (source / "quarantined.jsonl").read_text().splitlines()]
    assert put_aside["id"] == names[1]
    assert not traces(source)


async def test_re_encoding_survives_kills(tmp_path: Path) -> None:
    """Despite repeated `kill -9`, no picture is lost, and every exchange has its re-encoded picture."""
    count = 24
    async with opened(tmp_path) as (former, ledger, _):
        for number in range(count):
            name = await former.store(ledger, located(600 + number, 400, "teal"))
            await former.says(ledger, f"Picture {number}?", name)
    moments = random.Random(5)
    for _ in range(8):
        child = await asyncio.create_subprocess_exec(sys.executable, "-m", __spec__.name, str(tmp_path))
        await asyncio.sleep(moments.uniform(0.5, 3))
        if child.returncode is None:
            os.kill(child.pid, signal.SIGKILL)
        await child.wait()
    async with opened(tmp_path) as (former, ledger, upgrade):
        await upgrade.finish()
        kept = {each.sha256: each for each in await ledger.pictures.all()}
        assert len(kept) == count
        for number in range(count):
            (name,) = (await ledger.exchanges.get(number + 1)).pictures
            assert (kept[name].width, kept[name].state) == (600 + number, PictureState.CLEAN)
            await former.pictures.get(name)
        assert {each.name for each in former.pictures.files()} >= set(kept)
        assert not traces(tmp_path / "pictures")
    assert ledger_faults(tmp_path / FILE_NAME) == []


async def clean_until_killed(folder: Path) -> None:
    """Re-encode the pictures in `folder` as the bot does in the background."""
    async with opened(folder) as (_, __, upgrade):
        await upgrade.finish()


if __name__ == "__main__":
    asyncio.run(clean_until_killed(Path(sys.argv[1])))
