"""Errors that stop a training job before its first step, and their reasons."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
import torch

from inference.internvl2.tiny import CHECKPOINT
from tests.support.lessons import drawn_job, settings
from tests.support.llava_files import said, write_file
from training.data.row_parser import RowError
from training.job import TrainingError
from training.launcher import ChildTrainer
from training.worker import explained
from training.xtuner.finetune import prepare_data


def test_targets_that_match_nothing_are_the_reason(tmp_path: Path, warm_python: str) -> None:
    """If a pattern in `targets` matches no layer, training fails with a reason that names the pattern."""
    trainer = ChildTrainer(settings(python=warm_python))
    outcome = asyncio.run(trainer.run(drawn_job(tmp_path, 2, targets="attention_wo")))
    assert not outcome.ok
    assert "attention_wo" in outcome.reason


def test_an_invalid_row_fails_the_run_before_training(tmp_path: Path, warm_python: str) -> None:
    """A row with a missing picture fails the run before training; the reason names the file and the row.

    XTuner itself would train on another sample instead.
    """
    job = drawn_job(tmp_path, 3)
    rows = json.loads((tmp_path / "train.json").read_text(encoding="utf-8"))
    (tmp_path / "pictures" / rows[1]["image"]).unlink()
    outcome = asyncio.run(ChildTrainer(settings(python=warm_python)).run(job))
    assert not outcome.ok
    assert "train.json row 2: the picture" in outcome.reason and "missing" in outcome.reason
    assert not (tmp_path / "xtuner").exists()


def test_a_four_bit_checkpoint_cannot_be_trained(tmp_path: Path) -> None:
    """A base model with quantized weights is refused before anything is loaded; the error names the base."""
    base = shutil.copytree(CHECKPOINT, tmp_path / "awq")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(TrainingError, match="awq has quantized weights"):
        prepare_data(drawn_job(tmp_path, 1, base=str(base)))


def test_a_source_with_a_row_that_is_too_long_fails_the_run(tmp_path: Path) -> None:
    """A source row that is too long raises an error that names the row, its length and the maximum length."""
    source = {"path": str(tmp_path / "other.json"), "images": str(tmp_path), "repeat_times": None}
    write_file(tmp_path / "other.json", [{"conversations": said("Why? " * 600, "It.")}])
    with pytest.raises(RowError, match=r"other\.json row 1: \d+ tokens .* max_length 512"):
        prepare_data(drawn_job(tmp_path, 1, sources=[source]))


def test_only_liked_answers_that_are_too_long_fail_the_run(tmp_path: Path) -> None:
    """If all liked answers are too long, the run fails with a reason that names the setting to raise."""
    with pytest.raises(TrainingError, match="all 2 liked answers are longer than 30 tokens: raise max_length"):
        prepare_data(drawn_job(tmp_path, 2, max_length=30))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("The total norm of order 2.0 for gradients is non-finite"), "learning_rate"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "training.while_training"),
        (RuntimeError("DataLoader timed out after 600 seconds"), "finetune.log"),
        (ModuleNotFoundError("No module named 'xtuner'"), "make install"),
    ],
)
def test_known_errors_are_explained(error: RuntimeError | ImportError, words: str) -> None:
    """Errors that an operator can fix get a message that says what to do; other errors stay unchanged."""
    assert words in str(explained(error))
    strange = RuntimeError("shapes do not fit")
    assert explained(strange) is strange
