"""The check that a checkpoint directory is complete."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from inference.internvl2.checkpoint_check import INDEX, problems, weight_bytes
from inference.internvl2.tiny import CHECKPOINT


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the checkpoint shipped with thumbtune."""
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "model", ignore=shutil.ignore_patterns("__pycache__")))


def _without(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).unlink()


def _cut(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _damage_header(model: Path) -> None:
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[8:20] = b"not json at all"[:12]
    weights.write_bytes(content)


def _empty(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"")


def _index(model: Path) -> None:
    names = {"a": "model-00001-of-00002.safetensors", "b": "model.safetensors"}
    (model / INDEX).write_text(json.dumps({"weight_map": names}))


def _other_architecture(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))


def _other_template(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"template": "internvl_zh"}))


def test_a_complete_checkpoint_has_no_problems(checkpoint: Path) -> None:
    """The shipped checkpoint has no problems, and its reported size is that of its weight file."""
    assert problems(checkpoint) == []
    assert weight_bytes(checkpoint) == (checkpoint / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_without("generation_config.json"), "generation_config.json is missing"),
        (_without("tokenizer_config.json"), "tokenizer_config.json is missing"),
        (_without("tokenizer.json"), "tokenizer.json, tokenizer.model, or vocab.json with merges.txt is missing"),
        (_without("model.safetensors"), "*.safetensors is missing"),
        (_cut, "model.safetensors has"),
        (_damage_header, "model.safetensors has a damaged header"),
        (_empty, "model.safetensors is cut off"),
        (_index, "model-00001-of-00002.safetensors is missing"),
        (lambda model: (model / "config.json").write_text("{"), "config.json is not JSON"),
        (_other_architecture, "['LlamaForCausalLM']"),
        (_other_template, "config.json names the chat template 'internvl_zh'"),
    ],
)
def test_problems_name_the_file(checkpoint: Path, damage: Callable[[Path], None], words: str) -> None:
    """Each kind of damage to a checkpoint is reported as one problem that names the file."""
    damage(checkpoint)
    found = problems(checkpoint)
    assert len(found) == 1 and words in found[0], found


def test_no_code_of_a_checkpoint_is_needed(checkpoint: Path) -> None:
    """A checkpoint without its Python files counts as complete, because none of them is ever run."""
    for file in checkpoint.glob("*.py"):
        file.unlink()
    assert problems(checkpoint) == []


def test_no_directory(tmp_path: Path) -> None:
    """A checkpoint directory that does not exist is reported as missing."""
    assert problems(tmp_path / "nowhere") == ["there is no such directory"]
