"""Backups are complete and verified, even if made during writes, and a bot can start from them."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from bot.admin.model_switch import ModelSwitch
from bot.admin.refusals import AdminRefusal
from bot.admin.startup_checks import settle_live_model
from inference.serving.deployment import Deployment
from inference.settings import InferenceSettings
from storage.backup import back_up
from storage.errors import StorageError
from storage.integrity import ledger_faults, picture_faults
from storage.learning_records import Model
from storage.ledger import FILE_NAME, Ledger
from storage.model_manifest import verify
from storage.model_store import ModelStore
from storage.picture_files import PictureStore
from storage.state_machines import ModelState
from tests.storage.test_crash import NEVER, check, child, output
from tests.support.bot_process import command, write_config
from tests.support.ledgers import exchange, picture
from tests.support.operating import merged_models


async def keep(ledger: Ledger, pictures: PictureStore, update: int, data: bytes) -> str:
    """Record an exchange of user 1 about a picture with content `data`, and return the picture's name."""
    name = await pictures.put(data)
    await ledger.pictures.add(picture(name, size=len(data)), 1)
    await ledger.exchanges.record(exchange(await ledger.sessions.open(1, 1), update, pictures=(name,)))
    return name


async def test_a_backup_under_load_is_whole(tmp_path: Path) -> None:
    """`thumbtune backup` during continuous writes saves everything that was acknowledged before it started."""
    data, out = tmp_path / "data", tmp_path / "backups" / "monday"
    write_config(tmp_path / "config.toml", {"storage": {"dir": str(data)}})
    async with child(data, 0, 30) as process:
        before = await output(process)
    async with child(data, NEVER, NEVER) as process:
        code, said = await command(tmp_path / "config.toml", "backup", str(out))
        process.kill()
        assert (await output(process))["finished"], "it wrote meanwhile"
    assert code == 0, said
    assert [each.name for each in out.parent.iterdir()] == ["monday"]
    assert sorted(each.name for each in out.iterdir()) == [FILE_NAME, "pictures"]
    assert out.stat().st_mode & 0o777 == 0o700
    await check(out, before)
    async with Ledger.open(out) as restored:
        pictures = PictureStore(out / "pictures")
        for each in await restored.pictures.all():
            await pictures.get(each.sha256)


async def test_models_come_along_if_wanted(tmp_path: Path) -> None:
    """Requested models are copied and verified; a damaged model makes the backup fail and leave no files."""
    store, out = ModelStore(tmp_path / "models"), tmp_path / "out"
    built = store.workspace("run-1")
    (built / "weights").write_bytes(b"1234")
    directory, _ = store.publish(built, "run-1")
    async with Ledger.open(tmp_path / "data") as ledger:
        pictures = PictureStore(tmp_path / "data" / "pictures")
        assert (await back_up(ledger, pictures, out, store)).models == ("run-1",)
        verify(out / "models" / "run-1")
        with pytest.raises(StorageError, match="already exists"):
            await back_up(ledger, pictures, out, store)
        (directory / "weights").write_bytes(b"12")
        with pytest.raises(StorageError, match="weights has 2 bytes"):
            await back_up(ledger, pictures, tmp_path / "again", store)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["data", "models", "out"]


@pytest.mark.parametrize("name", ["bot #1", "what?", "50%25"])
async def test_a_folder_may_be_called_anything(tmp_path: Path, name: str) -> None:
    """Folders with names containing special URL characters are checked and backed up like any others."""
    data, out = tmp_path / name, tmp_path / f"{name} out"
    async with Ledger.open(data) as ledger:
        pictures = PictureStore(data / "pictures")
        lost = await keep(ledger, pictures, 1, b"a picture")
        assert (await back_up(ledger, pictures, out)).pictures == 1
        pictures.path(lost).unlink()
        (fault,) = picture_faults(ledger.path, pictures)
        assert lost in fault
        assert ledger_faults(ledger.path) == []
    (data / FILE_NAME).write_bytes(b"no database at all" * 100)
    with pytest.raises(StorageError, match="damaged"):
        ledger_faults(data / FILE_NAME)
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([data.name, out.name])


async def test_who_is_forgotten_meanwhile_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a user is erased during a backup, the backup restarts without their data.

    Pictures that are lost are listed.
    """
    async with Ledger.open(tmp_path / "data") as ledger:
        pictures = PictureStore(tmp_path / "data" / "pictures")
        hers = await keep(ledger, pictures, 1, b"hers")
        real = pictures.get

        async def forgetting(name: str) -> bytes:
            if name == hers:
                await ledger.personal_data.erase(1)
                pictures.remove(hers)
            return await real(name)

        monkeypatch.setattr(pictures, "get", forgetting)
        made = await back_up(ledger, pictures, tmp_path / "out")
        assert (made.pictures, made.lost) == (0, ())
        lost = await keep(ledger, pictures, 2, b"lost")
        pictures.remove(lost)
        made = await back_up(ledger, pictures, tmp_path / "other")
        assert (made.pictures, made.lost) == (0, (lost,))
    async with Ledger.open(tmp_path / "out") as restored:
        assert not await restored.personal_data.count(1)


async def test_a_removed_model_is_none_to_go_back_to(tmp_path: Path) -> None:
    """After a restart, a model whose files the operator has removed is neither offered nor promoted.

    Once the files are back, the model is available again.
    """
    base, store = tmp_path / "base", ModelStore(tmp_path / "models")
    base.mkdir()
    async with Ledger.open(tmp_path) as ledger:
        await settle_live_model(ledger, base, store.directory)
        for name in ("run-1", "run-2"):
            directory = store.path(name)
            directory.mkdir()
            await ledger.models.add(Model(name, str(directory), ModelState.CANDIDATE, None, 0.0))
            await ledger.promotions.make(name)
        store.path("run-1").rename(tmp_path / "aside")
        assert (await settle_live_model(ledger, base, store.directory))[0].id == "run-2"
        assert (before := await ledger.models.previous()) and before.id == "base"
        deployment = Deployment(InferenceSettings(), "run-2", store.path("run-2"), logs=tmp_path)
        with pytest.raises(AdminRefusal, match="files of run-1 were deleted"):
            await ModelSwitch(ledger, deployment, merged_models(ledger, tmp_path), pause_while_training=False).promote(
                "run-1", None
            )
        (tmp_path / "aside").rename(store.path("run-1"))
        await settle_live_model(ledger, base, store.directory)
        before = await ledger.models.previous()
        assert before is not None
        assert (before.id, before.directory) == ("run-1", str(store.path("run-1")))


@pytest.mark.parametrize(("models", "answers"), [(True, "run-1"), (False, "base")])
async def test_a_restored_ledger_finds_its_models(tmp_path: Path, models: bool, answers: str) -> None:
    """A bot restored elsewhere starts with its live model.

    If the files of the live model are missing, it starts with the base model.
    """
    base, store = tmp_path / "base", ModelStore(tmp_path / "data" / "models")
    base.mkdir()
    async with Ledger.open(tmp_path / "data") as ledger:
        await settle_live_model(ledger, base, store.directory)
        built = store.workspace("run-1")
        (built / "weights").write_bytes(b"1234")
        directory, digest = store.publish(built, "run-1")
        await ledger.models.add(Model("run-1", str(directory), ModelState.CANDIDATE, None, 0.0, manifest_hash=digest))
        await ledger.promotions.make("run-1")
        pictures = PictureStore(tmp_path / "data" / "pictures")
        await back_up(ledger, pictures, tmp_path / "out", store if models else None)
    (tmp_path / "data").rename(tmp_path / "broken")
    async with Ledger.open(tmp_path / "out") as restored:
        live, trouble = await settle_live_model(restored, base, tmp_path / "out" / "models")
        assert live.id == answers
        assert (trouble is None) is models
        assert Path(live.directory).is_dir()
        assert (await restored.models.get("run-1")).directory == (
            str(tmp_path / "out" / "models" / "run-1") if models else ""
        )


async def test_nothing_unsound_is_backed_up(tmp_path: Path) -> None:
    """A damaged ledger is not backed up, and no files are left behind."""
    async with Ledger.open(tmp_path / "data") as ledger:
        database = sqlite3.connect(tmp_path / "data" / FILE_NAME)
        with database:
            database.execute("INSERT INTO exchange_pictures(exchange, position, sha256) VALUES (99, 0, 'none')")
        database.close()
        with pytest.raises(StorageError, match="damaged"):
            await back_up(ledger, await asyncio.to_thread(PictureStore, tmp_path / "p"), tmp_path / "out")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["data", "p"]
