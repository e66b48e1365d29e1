"""The loss of a step is the mean over its target tokens, for any split into batches and processes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from xtuner.configs import cfgs_name_path

from tests.support.lessons import drawn_job, drawn_lessons, settings
from training.data.llava import write_rows
from training.job import Job, Outcome
from training.launcher import ChildTrainer
from training.xtuner.scalars import losses

pytestmark = pytest.mark.long

PAIRS = 16
STEPS = 4
WAYS: dict[str, dict[str, Any]] = {
    "1x8": {"batch": 1, "accumulation": 8},
    "2x4": {"batch": 2, "accumulation": 4},
    "8x1": {"batch": 8, "accumulation": 1},
    "8x1 split": {"batch": 8, "accumulation": 1, "split": 4},
    # XTuner's own model, also with batches made smaller for lack of memory.
    "own": {},
    "own split": {"split": 4},
    "2x4 in two processes": {"batch": 2, "accumulation": 4, "processes": 2},
}


def make_job(folder: Path, **changes: Any) -> Job:
    """Return a job with eight pairs per step and answers of a few to about a hundred tokens."""
    numbers = {"method": "lora", "targets": "", "dropout": 0.0, "epochs": 2, "learning_rate": 1e-3}
    job = drawn_job(folder, PAIRS, **{**numbers, **changes})
    lessons = drawn_lessons(Path(job.images), PAIRS)
    unlike = [
        replace(
            each, turns=(each.turns[0], replace(each.turns[1], text=" ".join([each.turns[1].text] * (1 + place % 8))))
        )
        for place, each in enumerate(lessons)
    ]
    write_rows(unlike, Path(job.data))
    return job


def own_configuration(file: Path) -> str:
    """Write XTuner's own configuration to `file` and return the path as a string.

    A step has eight pairs, in two batches of four.
    """
    text = Path(cfgs_name_path["internvl_v2_internlm2_2b_qlora_finetune"]).read_text(encoding="utf-8")
    changes = {
        "batch_size = 8": "batch_size = 4",
        "num_workers = 4": "num_workers = 0",
        "lora_dropout=0.05": "lora_dropout=0.0",
    }
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    file.write_text(text, encoding="utf-8")
    return str(file)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, warm_python: str) -> Mapping[str, Outcome]:
    """Run the same training with every split in `WAYS` and return the outcomes by name."""
    folder = tmp_path_factory.mktemp("ways")
    found = {}
    for name, changes in WAYS.items():
        (folder / name).mkdir()
        recipe = own_configuration(folder / name / "own.py") if name.startswith("own") else ""
        job = make_job(folder / name, recipe=recipe, **changes)
        trainer = ChildTrainer(settings(python=warm_python, processes=job.processes))
        found[name] = asyncio.run(trainer.run(job))
    return found


def losses_of(outcome: Outcome) -> list[float]:
    """Return the loss of each step."""
    assert outcome.ok, outcome.reason
    return [loss for _, loss in losses(Path(str(outcome.scalars)))]


@pytest.mark.parametrize("way", ["2x4", "8x1", "8x1 split", "2x4 in two processes"])
def test_losses_and_weights_do_not_depend_on_how_a_step_is_split(trained: Mapping[str, Outcome], way: str) -> None:
    """In float32, training gives the same losses and weights however a step is split."""
    expected, found = trained["1x8"], trained[way]
    assert len(losses_of(expected)) == STEPS
    assert losses_of(found) == pytest.approx(losses_of(expected), abs=1e-5)
    one, other = (load_file(Path(str(each.adapter)) / "adapter_model.safetensors") for each in (expected, found))
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=0, atol=1e-5)


def test_a_users_configuration_keeps_its_loss_with_smaller_batches(trained: Mapping[str, Outcome]) -> None:
    """A user's configuration has nearly the same losses after its batches are made smaller.

    The losses are close, not equal, because XTuner's own model computes in half precision.
    """
    expected = losses_of(trained["own"])
    assert losses_of(trained["own split"]) == pytest.approx(expected, rel=1e-2)
