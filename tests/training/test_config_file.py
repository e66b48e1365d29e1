"""The plan for the optimizer steps of a training run, and the XTuner configuration file made from it."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from training.data.mixture import Mixture
from training.job import RATED, Job
from training.xtuner.config_file import StepPlan, config_text


def mixture(rows: int) -> Mixture:
    """Return a training mixture of `rows` liked answers."""
    return Mixture(Path("checked.jsonl"), {RATED: rows}, longest=1, pictures=[])


@pytest.mark.parametrize("rows", [1, 2, 7, 33, 1000])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_plan_fits_any_number_of_rows(rows: int, accumulation: int) -> None:
    """For any number of rows, a plan has whole steps, a warm-up shorter than the run, and enough data.

    The rows are repeated so that one epoch over the data lasts for the whole run.
    """
    job = Job("1", "", "", "", work="", system="", epochs=2.5, batch=4, accumulation=accumulation)
    plan = StepPlan.for_job(job, rows)
    assert 0 <= plan.warmup < plan.steps
    assert plan.batches == plan.steps * accumulation
    assert plan.repeats * rows >= plan.batches * job.batch
    assert plan.batches * job.batch >= rows * job.epochs


def test_the_loader_has_a_timeout(tmp_path: Path) -> None:
    """On a GPU, the data loader has a timeout, so that a run fails if a loader process loses a batch.

    Without the timeout, the run would wait for the batch forever.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mmengine's imports, not ours
        from mmengine.config import Config

    job = Job("1", "", "", "", work=str(tmp_path), system="")
    text = config_text(job, StepPlan.for_job(job, 9), mixture(9), gpu=True)
    loader = Config.fromstring(text, ".py")["train_dataloader"]
    assert loader["num_workers"] > 0
    assert loader["timeout"] > 0


class Rows:
    """A dataset of `rows` rows of different lengths, repeated `passes` times."""

    def __init__(self, rows: int, passes: int) -> None:
        self.lengths = [100 + 37 * number % 1000 for number in range(rows)] * passes

    def __len__(self) -> int:
        return len(self.lengths)


@pytest.mark.parametrize("rows", [3, 16, 50])
def test_passes_are_complete_before_the_next(rows: int) -> None:
    """Each pass over the data is complete before the next one begins.

    No pair therefore occurs twice in a step if there are enough pairs. Each pass has a different order; the
    orders stay the same in a resumed run and with several processes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # XTuner's imports, not ours
        from training.xtuner.accumulation import StepSampler

    passes, pairs = 4, 8

    def order(**changes: int) -> list[int]:
        sampler = StepSampler(
            Rows(rows, passes), passes, per_device_batch_size=pairs, length_property="lengths", seed=1
        )
        for name, value in changes.items():
            setattr(sampler, name, value)
        return list(sampler)

    whole = order()
    assert len(whole) % pairs == 0
    assert whole[rows * passes :] == whole[: len(whole) - rows * passes], (
        "an incomplete last step is filled from the beginning"
    )
    ways = set()
    for first in range(0, rows * passes, rows):
        assert sorted(whole[first : first + rows]) == list(range(first, first + rows))
        ways.add(tuple(number - first for number in whole[first : first + rows]))
    assert len(ways) == (passes if rows > pairs else 1)
    assert order(begin=3 * pairs) == whole[3 * pairs :]
    shares = [order(rank=rank, world_size=2, begin=pairs // 2) for rank in (0, 1)]
    assert [number for both in zip(*shares, strict=True) for number in both] == whole[pairs:]


@pytest.mark.parametrize("rows", [3, 9, 40, 200])
def test_the_learning_rate_reaches_its_peak(rows: int, tmp_path: Path) -> None:
    """The learning rate reaches its full value after even a short warm-up, and decays to nearly zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mmengine's imports, not ours
        import mmengine.optim  # noqa: F401 registers the schedules
        from mmengine.config import Config
        from mmengine.registry import PARAM_SCHEDULERS

    job = Job("1", "", "", "", work=str(tmp_path), system="", epochs=6, batch=4, learning_rate=1e-3)
    plan = StepPlan.for_job(job, rows)
    text = config_text(job, plan, mixture(rows), gpu=False)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=job.learning_rate)
    schedules = [
        PARAM_SCHEDULERS.build({**each, "optimizer": optimizer})
        for each in Config.fromstring(text, ".py")["param_scheduler"]
    ]
    rates = []
    for _ in range(plan.steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for each in schedules:
            each.step()
    assert rates.index(max(rates)) == plan.warmup
    assert max(rates) == pytest.approx(job.learning_rate)
    assert plan.steps < 10 or rates[-1] < 0.1 * max(rates)
