"""Hostile pictures are refused without delaying other users, and only re-encoded bytes are stored."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from pathlib import Path

import pytest
from PIL import Image

from bot.chat import picture_receiver
from bot.chat.picture_receiver import FairSemaphore
from inference.images import decoder
from inference.images.decoder_protocol import CleanPicture
from storage.backup import back_up
from storage.learning_records import Rating
from tests.support.chatting import DECODERS, Stage, final_reply, png, until
from tests.support.hostile_pictures import (
    GPS,
    encoded,
    large_webp,
    located,
    many_directories,
    many_scans,
    much_metadata,
)
from training.data.export import export


def files(folder: Path) -> list[bytes]:
    """Return the contents of all files below `folder`."""
    return [each.read_bytes() for each in folder.rglob("*") if each.is_file()]


@pytest.mark.parametrize(
    ("data", "name"), [(many_scans(3000), "a.jpg"), (large_webp(), "b.webp")], ids=["scans", "memory"]
)
async def test_two_attackers_do_not_delay_others(stage: Stage, data: bytes, name: str) -> None:
    """Attackers' pictures are refused in each attacker's language, while another user gets an answer."""
    async with stage.bot() as bot, stage.person(2, "Eve") as eve, stage.person(3, "Mallory", "zh") as mallory:
        async with stage.person() as ada:
            for attacker in (eve, mallory):
                for number in range(4):
                    await attacker.sends(document=data + bytes(number), file_name=name)
            await ada.sends(photo=png())
            assert (await ada.answer(rated=True))["text"].startswith("Answer")
        await bot.settled()
        assert "too much time or memory" in (await eve.bot_messages())[-1]["text"]
        assert "太耗时间或内存" in (await mallory.bot_messages())[-1]["text"]
        assert len(await bot.ledger.pictures.all()) == 1


async def test_a_tiff_of_many_directories_is_accepted(stage: Stage) -> None:
    """A TIFF file with many directories is accepted, because only the first directory is read."""
    async with stage.bot() as bot, stage.person() as ada:
        await ada.sends(document=many_directories(175_000), file_name="a.tiff")
        await ada.answer(rated=True)
        assert len(bot.engine.prompts) == 1


async def test_only_re_encoded_bytes_are_stored_and_sent(stage: Stage, tmp_path: Path) -> None:
    """A photo's GPS position is never stored on disk, sent in a prompt, backed up or exported."""
    async with stage.bot() as bot, stage.person() as ada:
        data = located(1600, 1200)
        await ada.sends(document=data, file_name="photo.jpg", caption="What is it?")
        await ada.answer(rated=True)
        await ada.asks("And now?")
        (stored,) = await bot.ledger.pictures.all()
        seen = [each.data for prompt in bot.engine.prompts for turn in prompt.turns for each in turn.pictures]
        assert seen == [await bot.pictures.get(stored.sha256)] * 2
        assert not Image.open(io.BytesIO(seen[0])).getexif()
        await back_up(bot.ledger, bot.pictures, tmp_path / "backup")
        await bot.ledger.votes.cast(Rating(1, 2, 1, 10**9))
        rated, stored_at = await bot.ledger.votes.rated_exchanges(), bot.pictures.path
        export(tmp_path / "export", [], rated, [], threshold=0, stored=stored_at, types={})
        await ada.sends(document=data, file_name="again.jpg", caption="What is it?")
        await ada.answer(rated=True)
        assert len(await bot.ledger.pictures.all()) == 1, "the same photo gives the same bytes"
    kept = [stage.directory / "pictures", tmp_path / "backup" / "pictures", tmp_path / "export" / "pictures"]
    assert [files(folder) for folder in kept] == [[seen[0]]] * 3
    assert GPS not in seen[0]


async def test_metadata_is_not_stored(stage: Stage) -> None:
    """A 19.9 MB photo that consists almost entirely of metadata is stored in a few kilobytes."""
    async with stage.bot() as bot, stage.person() as ada:
        await ada.sends(document=much_metadata(), file_name="photo.jpg")
        await ada.answer(rated=True)
        assert (await bot.ledger.pictures.all())[0].size < 50_000


async def test_a_file_that_kills_decoders_is_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that has killed decoders twice is not decoded again, even after a restart or from another sender."""
    decoded: list[int] = []
    clean = DECODERS.clean

    async def noted(data: bytes, limit: float) -> CleanPicture:
        """Record the decoding, and suspend the decoder processes so that they exceed their time limit."""
        decoded.append(len(data))
        for pid in DECODERS.pids:
            os.kill(pid, signal.SIGSTOP)
        return await clean(data, limit)

    DECODERS.warm()
    await until(lambda: len(DECODERS.pids) == 2)
    monkeypatch.setattr(decoder, "WALL_SECONDS", 1.0)
    monkeypatch.setattr(DECODERS, "clean", noted)
    data = png(300, 200)
    for decodings in (1, 2, 2):
        async with stage.bot() as bot, stage.person() as eve:
            said = await final_reply(eve, document=data, file_name="a.png")
            assert "too much time or memory" in said["text"]
            assert len(decoded) == decodings
            assert not await bot.ledger.pictures.all()
    for pid in DECODERS.pids:
        os.kill(pid, signal.SIGCONT)  # of the two only one had a picture, and was killed


async def test_the_storage_of_a_person_is_limited(stage: Stage) -> None:
    """Once a user's pictures reach the storage limit, further ones are refused, with advice on what to do.

    The limit is per user and does not apply to admins.
    """
    limits = {"picture_megabytes_per_person": 1}
    async with stage.bot(limits=limits) as bot, stage.person(2, "Eve") as eve, stage.person() as ada:
        noise = encoded(Image.effect_noise((1200, 1000), 90).convert("RGB"), "PNG")
        await eve.sends(document=noise, file_name="a.png")
        await eve.answer(rated=True)
        assert await bot.ledger.pictures.bytes_from(eve.id) > 1_000_000
        assert "1 MB" in (await final_reply(eve, photo=png(colour="red")))["text"]
        await ada.sends(photo=png(colour="red"))
        await ada.answer(rated=True)


async def test_a_download_ends_where_it_grows_too_large(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download stops once it exceeds the size limit, whatever size Telegram has announced."""
    monkeypatch.setattr(picture_receiver, "MAX_BYTES", 50_000)
    # Asked for a file that Telegram calls small, the server sends more.
    async with stage.bot(), stage.person() as eve:
        said = await final_reply(eve, document=much_metadata(100_000), file_name="a.jpg")
        assert "larger than" in said["text"]


async def test_a_fair_semaphore_is_shared() -> None:
    """A user with many requests gets a limited share, others can overtake them, and cancelled waits do no harm."""
    room = FairSemaphore(3, 2)
    inside: list[str] = []
    leave = {name: asyncio.Event() for name in ("a1", "a2", "a3", "b1", "c1")}

    async def visit(person: int, name: str, weight: int = 1) -> None:
        async with room.acquired(person, weight):
            inside.append(name)
            await leave[name].wait()

    visits = {name: asyncio.create_task(visit(ord(name[0]), name)) for name in leave}
    await until(lambda: len(inside) == 3)
    assert inside == ["a1", "a2", "b1"]
    visits["c1"].cancel()
    leave["b1"].set()
    await visits["b1"]
    assert inside == ["a1", "a2", "b1"]
    leave["a1"].set()
    await until(lambda: "a3" in inside)
    leave["a2"].set()
    leave["a3"].set()
    await asyncio.gather(*visits.values(), return_exceptions=True)
    async with room.acquired(1, 2):
        pass
