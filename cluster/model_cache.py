"""Model distribution: the bot's machine publishes models, and each node copies, verifies and keeps them.

A model is identified by the hash of all its files (`storage.model_manifest`). A node's copy is named after
the hash, appears only once it is complete, and is shared by all engines on that node.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

import fsspec
from filelock import FileLock

from storage.errors import Damaged, StorageError
from storage.model_manifest import verify
from storage.model_store import ModelStore

KEPT: Final = 3
"""The number of models that a node keeps; the least recently used ones are deleted."""


def cache_directory() -> Path:
    """Return the folder in which a node keeps its models and the logs of its engines."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "thumbtune"


def publish(directory: Path, models: str, model_hash: str) -> str:
    """Copy a model to the folder or URL `models` unless it is already there, and return its address.

    Raises:
        OSError: The copy failed. The next call starts over.
    """
    address = f"{models.rstrip('/')}/{model_hash}"
    files, path = fsspec.core.url_to_fs(address)
    whole = f"{path}/.complete"
    if not files.exists(whole):
        for file in sorted(directory.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                target = f"{path}/{file.relative_to(directory).as_posix()}"
                files.makedirs(target.rpartition("/")[0], exist_ok=True)
                files.put_file(str(file), target)
        files.touch(whole)
    return address


def fetched(address: str, model_hash: str, store: ModelStore) -> Path:
    """Return the node's own copy of a model, which is first copied from a folder or URL if necessary.

    Raises:
        Damaged: The files at the address are not those of the model.
        StorageError, OSError: The copy failed.
    """
    path = store.path(model_hash)
    # Engines that start together on one node wait for a single copy.
    with FileLock(store.directory / ".lock"):
        try:
            verify(path, model_hash, contents=False)
        except StorageError:
            shutil.rmtree(path, ignore_errors=True)
            _copy(address, model_hash, store)
        path.touch()
        _forget_oldest(store, model_hash)
    return path


def _copy(address: str, model_hash: str, store: ModelStore) -> None:
    workspace = store.workspace(model_hash)
    try:
        files, root = fsspec.core.url_to_fs(address)
        for name in files.find(root):
            relative = name.removeprefix(root.rstrip("/") + "/")
            if relative in ("manifest.json", ".complete") or "__pycache__" in relative:
                continue
            target = workspace / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(name, str(target))
        path, found = store.publish(workspace, model_hash)
        if found != model_hash:
            shutil.rmtree(path)
            raise Damaged(f"The model at {address} has the hash {found} instead of {model_hash}: copy it there again.")
    finally:
        if workspace.exists():
            store.discard(workspace)


def _forget_oldest(store: ModelStore, newest: str) -> None:
    names = [name for name in store.names() if name != newest]
    for name in sorted(names, key=lambda name: store.path(name).stat().st_mtime, reverse=True)[KEPT - 1 :]:
        # Engines that use the model already have its weights in memory.
        shutil.rmtree(store.path(name), ignore_errors=True)
