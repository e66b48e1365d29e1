"""When the ledger is lost, the bot refuses to start with an empty one, and stored pictures are kept."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any, cast

import pytest

from bot.admin.erasure import Erasure, ManyStrays
from bot.admin.schedule import Schedule
from bot.cli.doctor.checks import examine
from bot.config import load_settings
from storage.errors import StorageError
from storage.ledger import FILE_NAME, Ledger
from storage.model_manifest import MANIFEST
from storage.picture_files import PictureStore
from tests.support.bot_process import command, write_config
from tests.support.ledgers import picture
from tests.support.operating import Admins, News
from tests.support.whole_bot import whole_bot


async def _without_a_model(folder: Path) -> None:
    await Ledger.open(folder).close()


async def _of_no_bytes(folder: Path) -> None:
    (folder / FILE_NAME).touch()


async def _missing(_: Path) -> None: ...


async def _pictures(folder: Path, *contents: bytes) -> list[str]:
    """Write picture files dated yesterday, and return their names."""
    store = PictureStore(folder / "pictures")
    names = [await store.put(each) for each in contents]
    for name in names:
        yesterday = time.time() - 86400
        os.utime(store.path(name), (yesterday, yesterday))
    return names


@pytest.mark.parametrize("lose", [_missing, _of_no_bytes, _without_a_model])
async def test_no_bot_starts_beside_an_empty_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lose: object
) -> None:
    """If pictures exist without a ledger, the bot refuses to start, names the next step and changes nothing."""
    async with whole_bot(tmp_path, monkeypatch) as whole:
        async with whole.running():
            pass
        (name,) = await _pictures(whole.data, b"a picture")
        for file in whole.data.glob(f"{FILE_NAME}*"):
            file.unlink()
        await lose(whole.data)  # type: ignore[operator]
        with pytest.raises(StorageError, match=r"the database was lost\. Restore the latest backup"):
            async with whole.running():
                raise AssertionError("it started")
        assert PictureStore(whole.data / "pictures").path(name).read_bytes() == b"a picture"
        (whole.data / "pictures").rename(whole.data / "pictures.kept")
        async with whole.running() as application:
            assert application.address


async def test_the_doctor_finds_trained_models_without_a_ledger(tmp_path: Path) -> None:
    """`thumbtune doctor` reports a lost ledger if trained models exist without a ledger."""
    config = tmp_path / "config.toml"
    write_config(config, {"storage": {"dir": str(tmp_path / "data")}})
    (tmp_path / "data" / "models" / "run-1").mkdir(parents=True)
    (tmp_path / "data" / "models" / "run-1" / MANIFEST).touch()
    (found,) = [each for each in await asyncio.to_thread(examine, load_settings(config)) if each.name == "database"]
    assert not found.ok
    assert "the database was lost" in found.cure


async def test_many_strays_are_left_to_an_admin(tmp_path: Path) -> None:
    """The daily cleanup deletes picture files unknown to the ledger, but only reports them if there are many.

    `thumbtune sweep` can then delete the files.
    """
    folder, config = tmp_path / "data", tmp_path / "config.toml"
    write_config(config, {"storage": {"dir": str(folder)}})
    admins = Admins()
    async with Ledger.open(folder) as ledger:
        names = await _pictures(folder, *(b"%d" % number for number in range(8)))
        for name in names[:2]:
            await ledger.pictures.add(picture(name))
        forgetting = Erasure(ledger)
        schedule = Schedule(ledger, forgetting, cast(Any, admins), cast(Any, News()), cron="")
        await schedule.tidy()
        assert admins.alerts == ["strays"]
        with pytest.raises(ManyStrays, match="6 of 8"):
            await forgetting.sweep()
        store = PictureStore(folder / "pictures")
        assert len(store.files()) == 8

        code, said = await command(config, "sweep")
        assert (code, len(store.files())) == (1, 8)
        assert "6 of 8 picture files are not in the database" in said
        code, said = await command(config, "sweep", "--yes")
        assert (code, said.strip()) == (0, "Deleted: 6 picture files.")
        assert sorted(each.name for each in store.files()) == sorted(names[:2])
        assert "nothing to sweep" in (await command(config, "sweep"))[1]

        await _pictures(folder, b"a stray")
        await schedule.tidy()
        assert admins.alerts == ["strays"]
        assert len(store.files()) == 2
