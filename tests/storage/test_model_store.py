"""Model directories: manifests, checks and publishing."""

from __future__ import annotations

import json
import os
import shutil
import time
from hashlib import file_digest, sha256
from io import FileIO
from pathlib import Path

import pytest

from storage.errors import Damaged, StorageError, UnknownRecord
from storage.model_manifest import CARD, MANIFEST, content_hash, read_manifest, verify, write_manifest
from storage.model_store import ModelStore

FILES = {"config.json": b"{}", "model.safetensors": b"\x00" * 70_000, "code/modeling.py": b"import torch\n"}


def fill(directory: Path) -> Path:
    for name, data in FILES.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return directory


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


@pytest.fixture
def published(store: ModelStore) -> Path:
    return store.publish(fill(store.workspace("run-1")), "run-1")[0]


def test_a_manifest_lists_every_file(tmp_path: Path) -> None:
    """A manifest has each file's size and SHA-256, subfolders included, and a hash that depends only on these."""
    one, two = fill(tmp_path / "one"), fill(tmp_path / "two")
    (one / "code" / "__pycache__").mkdir()
    (one / "code" / "__pycache__" / "modeling.pyc").write_bytes(b"cache")
    found = write_manifest(one)
    written = json.loads((one / MANIFEST).read_text())
    assert written["files"] == {
        name: {"sha256": sha256(data).hexdigest(), "size": len(data)} for name, data in FILES.items()
    }
    assert found == written["hash"] == write_manifest(one) == write_manifest(two) == verify(one)
    (two / "config.json").write_bytes(b"{ }")
    assert write_manifest(two) != found


def test_a_model_has_the_same_hash_before_and_after_its_publication(store: ModelStore, published: Path) -> None:
    """Publication and a new card do not change a model's content hash; adding or removing another file does.

    If the manifest is missing or damaged, the hash is computed from the files.
    """
    built = fill(store.workspace("run-2"))
    found = content_hash(built)
    assert found == content_hash(published) == read_manifest(published).hash
    (built / CARD).write_text("The model was accepted.")
    assert content_hash(built) == found
    assert write_manifest(built) != found
    assert content_hash(built) == found
    (published / MANIFEST).write_text("{")
    assert content_hash(published) == found
    (built / "config.json").unlink()
    write_manifest(built)
    assert content_hash(built) != found
    with pytest.raises(StorageError, match="no files"):
        content_hash(store.workspace("run-3"))


def test_sealing_again_hashes_only_what_was_written_since(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    built, hashed = fill(store.workspace("run-2")), list[str]()

    def counted(file: FileIO, kind: str) -> object:
        hashed.append(Path(file.name).name)
        return file_digest(file, kind)

    monkeypatch.setattr("storage.model_manifest.file_digest", counted)
    an_hour_ago = time.time() - 3600
    for name in FILES:
        os.utime(built / name, (an_hour_ago, an_hour_ago))
    sealed = store.seal(built)
    assert sorted(hashed) == sorted(Path(name).name for name in FILES)
    hashed.clear()
    (built / CARD).write_text("The model was accepted.")
    (built / "config.json").write_bytes(b"[]")
    directory, published = store.publish(built, "run-2")
    assert sorted(hashed) == [CARD, "config.json"]
    assert published != sealed
    assert verify(directory, published) == published


def test_a_file_written_while_others_are_hashed_is_hashed_again(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that changes, at the same size, between its hashing and the manifest does not keep the old hash."""
    built = fill(store.workspace("run-2"))

    def rewritten(file: FileIO, kind: str) -> object:
        found = file_digest(file, kind)
        (built / "config.json").write_bytes(b"[]")
        return found

    monkeypatch.setattr("storage.model_manifest.file_digest", rewritten)
    store.seal(built)
    monkeypatch.undo()
    directory, published = store.publish(built, "run-2")
    assert verify(directory, published) == published


def test_a_computed_hash_is_kept_until_a_file_changes(store: ModelStore, tmp_path: Path) -> None:
    """The files are read again if one has another size or modification time, or if hashes cannot be kept."""
    built, known = fill(store.workspace("run-2")), tmp_path / "known"
    found = content_hash(built, known)
    [kept] = known.iterdir()
    kept.write_text("f" * 64)
    assert content_hash(built, known) == "f" * 64
    kept.write_text("damaged")
    assert content_hash(built, known) == kept.read_text() == found
    (built / "config.json").write_bytes(b"{ }")
    assert content_hash(built, known) == content_hash(built) != found
    assert content_hash(built, kept) == content_hash(built), "the folder is a file"


def test_an_empty_directory_is_no_model(tmp_path: Path) -> None:
    """A directory without files gets no manifest."""
    with pytest.raises(StorageError, match="no files"):
        write_manifest(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_differs_is_named(published: Path) -> None:
    """A check names every file that is missing, has been added, or differs in size or content."""
    (published / "config.json").unlink()
    (published / "model.safetensors").write_bytes(b"\x00" * 69_999 + b"\x01")
    (published / "code" / "modeling.py").write_bytes(b"import os\nimport torch\n")
    (published / "extra.txt").write_bytes(b"new")
    with pytest.raises(Damaged) as caught:
        verify(published)
    for part in (
        "config.json is missing",
        "model.safetensors has changed",
        "code/modeling.py has 23 bytes instead of 13",
        "extra.txt is not in the manifest",
    ):
        assert part in str(caught.value)


def test_a_manifest_cannot_be_edited(published: Path) -> None:
    """A manifest that is missing, changed, truncated or in another format is refused."""
    path = published / MANIFEST
    whole = path.read_text()
    path.write_text(whole.replace(sha256(b"{}").hexdigest(), sha256(b"[]").hexdigest()))
    with pytest.raises(Damaged, match="its hash does not match"):
        verify(published)
    for broken in (whole[: len(whole) // 2], "[]", '{"files": {"a": 1}}', "{}"):
        path.write_text(broken)
        with pytest.raises(Damaged, match=r"manifest\.json is damaged"):
            verify(published)
    path.write_text(whole.replace('"version": 1', '"version": 2'))
    with pytest.raises(StorageError, match="update thumbtune"):
        verify(published)
    path.unlink()
    with pytest.raises(UnknownRecord, match=r"no manifest\.json"):
        verify(published)


def test_a_model_is_published_whole(store: ModelStore) -> None:
    """A model appears under its name only with its manifest; until then, only its workspace exists."""
    built = fill(store.workspace("run-1"))
    assert store.names() == []
    path, manifest_hash = store.publish(built, "run-1")
    assert path == store.path("run-1")
    assert store.names() == ["run-1"]
    assert verify(path) == read_manifest(path).hash == manifest_hash
    assert [each.name for each in store.directory.iterdir()] == ["run-1"]


def test_a_name_is_taken_once(store: ModelStore, published: Path) -> None:
    """Publishing a second model under a name already in use is refused; the first model is left unchanged."""
    again = fill(store.workspace("run-1"))
    (again / "config.json").write_bytes(b"other")
    with pytest.raises(StorageError, match="already exists"):
        store.publish(again, "run-1")
    verify(published)
    store.discard(again)
    store.discard(again)
    assert [each.name for each in store.directory.iterdir()] == ["run-1"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../run-1", ".hidden", "with space", "run-1\n", "x" * 101])
def test_names_stay_in_the_folder(store: ModelStore, name: str) -> None:
    """A name that could lead outside the model folder is refused by every method that takes a name."""
    for use in (store.path, store.workspace):
        with pytest.raises(StorageError, match="not a valid model name"):
            use(name)


def test_leftovers_are_tidied_away(store: ModelStore, published: Path, tmp_path: Path) -> None:
    """Tidying deletes what killed processes left unfinished, but not published models or other folders."""
    left = fill(store.workspace("run-2"))
    shutil.copytree(left, store.directory / "mine")
    assert store.tidy() == [left]
    assert sorted(each.name for each in store.directory.iterdir()) == ["mine", "run-1"]
    assert store.names() == ["run-1"]
    with pytest.raises(StorageError, match="not a workspace"):
        store.discard(published)


def test_trouble_with_the_folder_is_named(tmp_path: Path) -> None:
    """A model folder that cannot be created raises an error that names it."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file/models"):
        ModelStore(tmp_path / "file" / "models")
