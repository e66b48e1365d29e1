"""Training with DeepSpeed's ZeRO 3 in two processes. Skipped where DeepSpeed, an extra, is not installed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from inference.internvl2.model_sizes import count, read_sizes
from inference.internvl2.tiny import CHECKPOINT
from tests.support.lessons import drawn_job, settings
from tests.support.small_checkpoints import write_small
from training.adapter import Adapter
from training.job import Job
from training.launcher import ChildTrainer
from training.xtuner.scalars import losses

pytestmark = pytest.mark.long
pytest.importorskip("deepspeed")


def test_each_process_holds_its_share() -> None:
    """Each of two processes holds half of a model loaded in partitions; gathered, it equals the checkpoint."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    line += ["-m", "tests.support.partitioned_shares", str(CHECKPOINT)]
    said = subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()
    found = sorted(each.split()[1:] for each in said if each.startswith("rank "))
    assert [each[0] for each in found] == ["0", "1"]
    sizes = read_sizes(CHECKPOINT)
    for _, whole, share, right in found:
        assert int(whole) == 0, "no weight is left whole"
        # Weights of an odd size are padded.
        assert int(share) == pytest.approx(count(list(sizes.weights)) / 2, abs=len(sizes.weights))
        assert right == "True"


@pytest.mark.parametrize("case", ["lora", "full", "full, with a shared output layer"])
def test_losses_are_those_of_training_without_deepspeed(tmp_path: Path, case: str) -> None:
    """Training with partitioned weights gives the same losses, and saves the same weights, as without DeepSpeed."""
    numbers = {"targets": "", "epochs": 2, "learning_rate": 3e-4, "projector": True, "batch": 2, "accumulation": 2}
    more: dict[str, Any] = {"method": "lora", "vision_rank": 4} if case == "lora" else {"method": "full"}
    if "shared" in case:
        more["base"] = str(write_small(tmp_path / "base", "qwen3-1b"))
    trained = {}
    for stage in (0, 3):
        folder = tmp_path / str(stage)
        folder.mkdir()
        trained[stage] = _train(drawn_job(folder, 12, right=False, deepspeed=stage, **numbers, **more))
    assert trained[3][0] == pytest.approx(trained[0][0], rel=2e-2)
    assert trained[3][1] == trained[0][1]


def _train(job: Job) -> tuple[list[float], frozenset[str]]:
    """Train in two processes; return the losses and the names of the changed weights."""
    trainer = ChildTrainer(settings(processes=2, deepspeed=job.deepspeed, knobs={"method": job.method}))
    outcome = asyncio.run(trainer.run(job))
    assert outcome.ok, outcome.reason
    return [loss for _, loss in losses(Path(str(outcome.scalars)))], Adapter(Path(str(outcome.adapter))).names()
