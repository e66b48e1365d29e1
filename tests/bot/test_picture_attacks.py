"""Pictures of strangers: what is costly or too much is refused, others are answered, and only clean bytes are kept."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from pathlib import Path

import pytest
from PIL import Image

from bot.chat import images
from bot.chat.images import Room
from inference.images import decoder
from inference.images.decoder_protocol import CleanPicture
from storage.backup import back_up
from storage.records import Rating
from tests.support.chatting import DECODERS, Stage, png, told, until
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
    """What lies anywhere below a folder."""
    return [each.read_bytes() for each in folder.rglob("*") if each.is_file()]


@pytest.mark.parametrize(
    ("data", "name"), [(many_scans(3000), "a.jpg"), (large_webp(), "b.webp")], ids=["scans", "memory"]
)
async def test_two_attackers_do_not_keep_others_waiting(stage: Stage, data: bytes, name: str) -> None:
    """Each of them is refused kindly, in their language, and somebody else is answered meanwhile."""
    async with stage.bot() as bot, stage.person(2, "Eve") as eve, stage.person(3, "Mallory", "zh") as mallory:
        async with stage.person() as ada:
            for attacker in (eve, mallory):
                for number in range(4):
                    await attacker.sends(document=data + bytes(number), file_name=name)
            await ada.sends(photo=png())
            assert (await ada.answer(rated=True))["text"].startswith("Answer")
        await bot.settled()
        assert "more time or memory" in (await eve.bot_messages())[-1]["text"]
        assert "超出了我的上限" in (await mallory.bot_messages())[-1]["text"]
        assert len(await bot.ledger.pictures.all()) == 1


async def test_a_tiff_of_many_directories_is_a_picture(stage: Stage) -> None:
    """Only the first is looked at."""
    async with stage.bot() as bot, stage.person() as ada:
        await ada.sends(document=many_directories(175_000), file_name="a.tiff")
        await ada.answer(rated=True)
        assert len(bot.engine.prompts) == 1


async def test_only_clean_bytes_are_kept_shown_and_copied(stage: Stage, tmp_path: Path) -> None:
    """Where a photo was taken stands nowhere: not on the disk, not at the engine, not in a backup."""
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


async def test_metadata_take_no_room(stage: Stage) -> None:
    """Of 19.9 MB a few kilobytes are kept."""
    async with stage.bot() as bot, stage.person() as ada:
        await ada.sends(document=much_metadata(), file_name="photo.jpg")
        await ada.answer(rated=True)
        assert (await bot.ledger.pictures.all())[0].size < 50_000


async def test_a_file_that_kills_decoders_is_not_decoded_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time is the last, across restarts, whoever sends it."""
    decoded: list[int] = []
    clean = DECODERS.clean

    async def noted(data: bytes, limit: float) -> CleanPicture:
        """The decoder stops as soon as it has the picture, and the deadline is near."""
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
            said = await told(eve, document=data, file_name="a.png")
            assert "more time or memory" in said["text"]
            assert len(decoded) == decodings
            assert not await bot.ledger.pictures.all()
    for pid in DECODERS.pids:
        os.kill(pid, signal.SIGCONT)  # of the two only one had a picture, and was killed


async def test_what_one_person_may_store_has_a_limit(stage: Stage) -> None:
    """More is refused with what to do; others, and admins, are not concerned."""
    limits = {"picture_megabytes_per_person": 1}
    async with stage.bot(limits=limits) as bot, stage.person(2, "Eve") as eve, stage.person() as ada:
        noise = encoded(Image.effect_noise((1200, 1000), 90).convert("RGB"), "PNG")
        await eve.sends(document=noise, file_name="a.png")
        await eve.answer(rated=True)
        assert await bot.ledger.pictures.bytes_from(eve.id) > 1_000_000
        assert "1 MB" in (await told(eve, photo=png(colour="red")))["text"]
        await ada.sends(photo=png(colour="red"))
        await ada.answer(rated=True)


async def test_a_download_ends_where_it_grows_too_large(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever size was claimed."""
    monkeypatch.setattr(images, "MAX_BYTES", 50_000)
    # Asked for a file that Telegram calls small, the server sends more.
    async with stage.bot(), stage.person() as eve:
        said = await told(eve, document=much_metadata(100_000), file_name="a.jpg")
        assert "larger than" in said["text"]


async def test_a_room_is_shared_in_turn() -> None:
    """One who wants much gets their share; others pass them by; a cancelled wait leaves no trace."""
    room = Room(3, 2)
    inside: list[str] = []
    leave = {name: asyncio.Event() for name in ("a1", "a2", "a3", "b1", "c1")}

    async def visit(person: int, name: str, weight: int = 1) -> None:
        async with room.taken(person, weight):
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
    async with room.taken(1, 2):
        pass
