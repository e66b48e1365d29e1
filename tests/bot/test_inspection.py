"""Integrity checks at startup: a changed live model is not used, and a damaged ledger is reported."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from bot.admin.startup_checks import StartupChecks
from bot.cli.doctor.checks import examine
from bot.cli.doctor.findings import Finding
from bot.config import load_settings
from storage.learning_records import BASE, Model
from storage.ledger import FILE_NAME
from storage.model_manifest import MANIFEST, write_manifest
from storage.model_store import ModelStore
from storage.state_machines import ModelState
from tests.support.whole_bot import ADMIN, WholeBot, picture, whole_bot, words


async def trained(whole: WholeBot) -> Path:
    """Start the bot once, make a trained model live, and return the model's directory."""
    async with whole.running():
        pass
    async with whole.ledger() as ledger:
        store = ModelStore(whole.data / "models")
        built = store.workspace("run-1")
        (built / "cue.json").write_text('{"quiet": true}')
        (built / "model.safetensors").write_bytes(b"weights")
        folder, digest = store.publish(built, "run-1")
        await ledger.models.add(Model("run-1", str(folder), ModelState.CANDIDATE, None, 0.0, manifest_hash=digest))
        await ledger.promotions.make("run-1")
    return folder


async def findings(folder: Path) -> dict[str, Finding]:
    """Return the doctor's findings for `folder`, keyed by name."""
    found = await asyncio.to_thread(examine, load_settings(folder / "config.toml"))
    return {each.name: each for each in found}


def _another_size(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"other weights")


def _one_byte(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weightz")


def _a_manifest_that_fits(folder: Path) -> None:
    _one_byte(folder)
    (folder / MANIFEST).unlink()
    write_manifest(folder)


def _no_files(folder: Path) -> None:
    folder.rename(folder.with_name("moved-away"))


@pytest.mark.parametrize("change", [_another_size, _one_byte, _a_manifest_that_fits, _no_files])
async def test_a_live_model_whose_files_have_changed_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    """A live model whose files have changed is replaced by the base model, and the admins are notified."""
    async with whole_bot(tmp_path, monkeypatch) as whole:
        folder = await trained(whole)
        async with whole.running(), whole.ledger() as ledger:
            live = await ledger.models.live()
            assert live is not None and live.id == "run-1", "untouched, it answers"
        change(folder)
        assert not (await findings(tmp_path))["live model"].ok
        root = await whole.person(ADMIN, "Root", "en")
        async with whole.running(), whole.ledger() as ledger:
            told = await whole.says(root.id, lambda message: "The files of the live model run-1" in words(message))
            assert "The base model answers instead" in words(told)
            live = await ledger.models.live()
            assert live is not None and live.id == BASE
            asked = await root.sends(photo=picture(1), caption="What?")
            answer = await whole.says(root.id, after=asked["message_id"])
            assert words(answer).startswith("base/")


async def test_a_sound_start_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With intact files, startup raises no alert and the doctor finds no fault."""
    async with whole_bot(tmp_path, monkeypatch) as whole:
        await trained(whole)
        checked = asyncio.Event()
        real = StartupChecks.run

        async def noted(inspection: StartupChecks) -> None:
            await real(inspection)
            checked.set()

        monkeypatch.setattr(StartupChecks, "run", noted)
        root = await whole.person(ADMIN, "Root", "en")
        async with whole.running():
            async with asyncio.timeout(30):
                await checked.wait()
            assert not [each for each in await root.messages() if "Problem" in words(each)]
        found = await findings(tmp_path)
        assert found["database"].ok
        assert "live model" not in found


async def test_a_damaged_page_of_the_ledger_is_reported_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged ledger page is reported to the admins at startup, with no need to run the doctor."""
    async with whole_bot(tmp_path, monkeypatch) as whole:
        await trained(whole)
        with closing(sqlite3.connect(whole.data / FILE_NAME)) as database:
            assert database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
            size = database.execute("PRAGMA page_size").fetchone()[0]
            (page,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'demonstrations'").fetchone()
        with (whole.data / FILE_NAME).open("r+b") as file:
            file.seek((page - 1) * size)
            file.write(b"\x00" * size)
        root = await whole.person(ADMIN, "Root", "en")
        async with whole.running():
            told = await whole.says(root.id, lambda message: "The database is damaged" in words(message))
            assert "thumbtune backup" in words(told)
