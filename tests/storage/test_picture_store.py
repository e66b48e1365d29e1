"""The picture folder: files named by digest, written atomically and checked when read."""

from __future__ import annotations

import asyncio
import os
import time
from hashlib import sha256
from pathlib import Path

import pytest

from storage.errors import Damaged, StorageError, UnknownRecord
from storage.picture_files import PictureStore

DATA = b"\x89PNG and so on" * 1000
NAME = sha256(DATA).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> PictureStore:
    return PictureStore(tmp_path / "pictures")


def files(store: PictureStore) -> list[str]:
    return sorted(str(path.relative_to(store.directory)) for path in store.directory.rglob("*") if path.is_file())


async def test_a_picture_comes_back(store: PictureStore) -> None:
    """A picture is kept as a single file in a folder with a two-character name, and read back by its digest."""
    assert await store.put(DATA) == NAME
    assert await store.get(NAME) == DATA
    assert store.path(NAME) == store.directory / NAME[:2] / NAME
    assert files(store) == [f"{NAME[:2]}/{NAME}"]


async def test_a_picture_is_kept_once(store: PictureStore) -> None:
    """A picture stored several times, concurrently or later, is kept as one file and written only once."""
    assert set(await asyncio.gather(*(store.put(DATA) for _ in range(20)))) == {NAME}
    before = store.path(NAME).stat()
    await store.put(DATA)
    after = store.path(NAME).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert files(store) == [f"{NAME[:2]}/{NAME}"]


async def test_a_damaged_picture_is_noticed_and_mended(store: PictureStore) -> None:
    """Reading a damaged picture raises an error that names the file; storing the picture again repairs it."""
    await store.put(DATA)
    store.path(NAME).write_bytes(DATA[:-1] + b"!")
    with pytest.raises(Damaged, match=NAME):
        await store.get(NAME)
    await store.put(DATA)
    assert await store.get(NAME) == DATA


async def test_no_reader_sees_half_a_picture(store: PictureStore) -> None:
    """While a large picture is being written, its path either does not exist or holds the whole picture.

    A process killed while writing therefore leaves no partial picture there.
    """
    for number in range(2):
        data = bytes([number]) * (16 << 20)
        path = store.path(sha256(data).hexdigest())
        sizes = set()
        put = asyncio.ensure_future(store.put(data))
        while not put.done():
            sizes.add(path.stat().st_size if path.is_file() else None)
            await asyncio.sleep(0)
        await put
        assert sizes <= {None, len(data)}
        path.unlink()


async def test_a_missing_picture(store: PictureStore) -> None:
    """Reading a missing picture is an error; removing a picture twice is not."""
    with pytest.raises(UnknownRecord, match=NAME):
        await store.get(NAME)
    await store.put(DATA)
    for _ in range(2):
        store.remove(NAME)
    with pytest.raises(UnknownRecord):
        await store.get(NAME)


async def test_a_removed_picture_is_off_the_disk(store: PictureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removing a picture syncs its folder to disk, even if the file is already gone.

    A process may have died after deleting the file but before syncing the folder.
    """
    await store.put(DATA)
    forced: list[Path] = []
    monkeypatch.setattr("storage.picture_files.sync_directory", forced.append)
    for _ in range(2):
        store.remove(NAME)
    assert forced == [store.path(NAME).parent] * 2


@pytest.mark.parametrize("name", ["", "../../etc/passwd", NAME.upper(), NAME[:-1], NAME + "0", NAME + "\n"])
async def test_a_name_is_a_digest(store: PictureStore, name: str) -> None:
    """Any picture name other than 64 lowercase hexadecimal digits is refused."""
    with pytest.raises(StorageError, match="not a picture name"):
        await store.get(name)


async def test_what_a_killed_process_left_is_tidied_away(store: PictureStore) -> None:
    """Opening the store deletes old partial files but keeps recent ones, which may still be being written."""
    old, young = store.directory / "incoming" / ".old.part", store.directory / "incoming" / ".young.part"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    PictureStore(store.directory)
    assert (old.exists(), young.exists()) == (False, True)


async def test_trouble_with_the_folder_is_named(tmp_path: Path, store: PictureStore) -> None:
    """A folder that cannot be used raises an error that names it, both at startup and when writing."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="Opening the picture folder"):
        PictureStore(tmp_path / "file" / "pictures")
    (store.directory / NAME[:2]).write_text("in the way")
    with pytest.raises(StorageError, match="Writing the picture"):
        await store.put(DATA)
