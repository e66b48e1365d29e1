"""Models reach a node through a folder or a URL, are checked against their hash, and are kept."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from cluster.model_cache import KEPT, fetched, publish
from storage.errors import Damaged
from storage.model_manifest import files_hash, verify
from storage.model_store import ModelStore


@pytest.fixture
def node(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "node")


def a_model(folder: Path, weights: str) -> Path:
    (folder / "parts").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("The model's card.")
    (folder / "parts" / "model.safetensors").write_text(weights)
    return folder


@pytest.mark.parametrize("url", ["{folder}/shared", "file://{folder}/shared", "memory://models"])
def test_a_model_reaches_a_node(tmp_path: Path, node: ModelStore, url: str) -> None:
    """A published model is copied once; later starts need neither the URL nor the bot's folder."""
    model = a_model(tmp_path / "model", "abc")
    digest = files_hash(model)
    address = publish(model, url.format(folder=tmp_path), digest)
    assert publish(model, url.format(folder=tmp_path), digest) == address
    path = fetched(address, digest, node)
    assert verify(path, digest) == digest
    assert (path / "parts" / "model.safetensors").read_text() == "abc"
    assert fetched("/nowhere", digest, node) == path


def test_other_files_are_refused(tmp_path: Path, node: ModelStore) -> None:
    """A copy whose contents do not match the hash is refused and not kept."""
    model = a_model(tmp_path / "model", "abc")
    digest = files_hash(model)
    (model / "config.json").write_text('{"other": 1}')
    with pytest.raises(Damaged, match="instead of"):
        fetched(str(model), digest, node)
    assert node.names() == []
    assert not list(node.directory.glob("*building*"))


def test_a_damaged_copy_is_replaced(tmp_path: Path, node: ModelStore) -> None:
    """A node's copy that lacks a file is replaced."""
    model = a_model(tmp_path / "model", "abc")
    digest = files_hash(model)
    (fetched(str(model), digest, node) / "config.json").unlink()
    assert verify(fetched(str(model), digest, node), digest) == digest


def test_engines_of_one_node_may_fetch_at_once(tmp_path: Path, node: ModelStore) -> None:
    """Several engines that start together share one copy."""
    model = a_model(tmp_path / "model", "abc")
    digest = files_hash(model)
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(partial(fetched, model_hash=digest, store=node), [str(model)] * 4))
    assert paths == {node.path(digest)}
    assert node.names() == [digest]


def test_the_oldest_copies_are_deleted(tmp_path: Path, node: ModelStore) -> None:
    """A node keeps the most recently used models."""
    digests = []
    for number in range(KEPT + 2):
        model = a_model(tmp_path / f"model-{number}", f"weights {number}")
        digests.append(files_hash(model))
        path = fetched(str(model), digests[-1], node)
        os.utime(path, (number, number))
    assert set(node.names()) == set(digests[-KEPT:])
