"""The emulator has the same file limits as Telegram."""

from __future__ import annotations

import io

import aiohttp
import pytest
from aiogram.types import BufferedInputFile

from telegram_emulator import Emulator
from telegram_emulator.person_actions import Attachment
from tests.support.emulated import acquainted, jpeg, refusal, running

ADA = 7


@pytest.fixture
def emulator() -> Emulator:
    """Return an emulator in which a user, Ada, has already written to the bot."""
    return acquainted(ADA)


async def test_files_over_20_megabytes_cannot_be_fetched(emulator: Emulator) -> None:
    """getFile accepts a file of exactly 20 MB, and refuses a larger file and an unknown or empty file ID."""
    async with running(emulator) as (_, bot):
        limit = 20 * 2**20
        fits = Attachment(b"x" * limit, "fits.bin", kind="document")
        large = Attachment(b"x" * (limit + 1), "large.bin", kind="document")
        for attachment in (fits, large):
            await emulator.people.sends(ADA, [attachment])
        updates = await bot.get_updates()
        documents = [update.message.document for update in updates if update.message and update.message.document]
        assert (await bot.get_file(documents[0].file_id)).file_size == limit
        with refusal("Bad Request: file is too big"):
            await bot.get_file(documents[1].file_id)
        with refusal("Bad Request: wrong file_id or the file is temporarily unavailable"):
            await bot.get_file("nonsense")
        with refusal("Bad Request: file_id not specified"):
            await bot.get_file("")


async def test_bad_uploads_are_refused(emulator: Emulator) -> None:
    """sendPhoto refuses a photo over 10 MB, empty or undecodable files, extreme shapes and a missing photo."""
    async with running(emulator) as (_, bot):
        data = jpeg() + b"\0" * 10 * 2**20
        size, large = len(data), BufferedInputFile(data, "x.jpg")
        with refusal(
            f"Bad Request: file of size {size} bytes is too big for a photo; the maximum size is 10485760 bytes"
        ):
            await bot.send_photo(ADA, large)
        await bot.send_document(ADA, large)
        for data, reason in (
            (b"", "file must be non-empty"),
            (b"no picture", "IMAGE_PROCESS_FAILED"),
            (jpeg()[:400], "IMAGE_PROCESS_FAILED"),
            (jpeg(3000, 10), "PHOTO_INVALID_DIMENSIONS"),
        ):
            with refusal(f"Bad Request: {reason}"):
                await bot.send_photo(ADA, BufferedInputFile(data, "x.jpg"))
        with refusal("Bad Request: there is no photo in the request"):
            await bot.send_photo(ADA, "")


async def test_a_request_over_50_megabytes_is_cut_off(emulator: Emulator) -> None:
    """The emulator answers an upload over 50 MB, which Telegram would not read, with HTTP status 413."""
    async with running(emulator) as (url, _):
        form = aiohttp.FormData({"chat_id": str(ADA)})
        form.add_field("document", io.BytesIO(b"x" * (50 * 2**20 + 1)), filename="huge.bin")
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url}/bot{emulator.token}/sendDocument", data=form) as answer,
        ):
            assert answer.status == 413
            assert await answer.json() == {"ok": False, "error_code": 413, "description": "Request Entity Too Large"}
