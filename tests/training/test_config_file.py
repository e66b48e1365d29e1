"""The plan for the optimizer steps of a training run, and the XTuner configuration file made from it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from training.data.mixture import Mixture
from training.job import RATED, Job
from training.xtuner.config_file import StepPlan, config_text

PAIRS = 8
"""The number of samples in each step of `StepSampler`'s tests."""


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
    """A dataset of rows about the given pictures, repeated `passes` times."""

    def __init__(self, pictures: Sequence[str], passes: int) -> None:
        self.pictures = [(each,) if each else () for each in pictures] * passes

    def __len__(self) -> int:
        return len(self.pictures)


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Return a function that returns the order of a dataset's samples in one of several processes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # XTuner's imports, not ours
        from training.xtuner import accumulation

    def ordered(rows: Rows, passes: int, *, rank: int = 0, processes: int = 1, begin: int = 0) -> list[int]:
        monkeypatch.setattr(accumulation, "get_rank", lambda: rank)
        monkeypatch.setattr(accumulation, "get_world_size", lambda: processes)
        sampler = accumulation.StepSampler(rows, passes, samples=PAIRS // processes, seed=1)
        sampler.begin = begin
        return list(sampler)

    return ordered


@pytest.mark.parametrize("rows", [3, 16, 50])
def test_passes_are_complete_before_the_next(rows: int, order: Callable[..., list[int]]) -> None:
    """Each pass over the data is complete before the next one begins, in another order.

    No pair therefore occurs twice in a step if there are enough pairs.
    """
    passes = 4
    whole = order(Rows([""] * rows, passes), passes)
    assert len(whole) % PAIRS == 0
    assert whole[rows * passes :] == whole[: len(whole) - rows * passes], (
        "an incomplete last step is filled from the beginning"
    )
    ways = set()
    for first in range(0, rows * passes, rows):
        assert sorted(whole[first : first + rows]) == list(range(first, first + rows))
        ways.add(tuple(number - first for number in whole[first : first + rows]))
    assert len(ways) > 1


def test_resumed_and_distributed_training_takes_the_same_steps(order: Callable[..., list[int]]) -> None:
    """The order stays the same in a resumed run, and the processes share the samples of each step."""
    rows = Rows(["a", "b", "a", "", "c", "c", "c"] * 9, 2)
    whole = order(rows, 2)
    assert order(rows, 2, begin=3 * PAIRS) == whole[3 * PAIRS :]
    shares = [order(rows, 2, rank=rank, processes=2, begin=PAIRS // 2) for rank in (0, 1)]
    assert [number for both in zip(*shares, strict=True) for number in both] == whole[PAIRS:]


def test_samples_about_the_same_picture_share_a_batch(order: Callable[..., list[int]]) -> None:
    """Most samples about one picture are in the same batch, but few steps are about a single picture only."""
    rows = Rows([str(number % 10) for number in range(160)], 3)
    whole = order(rows, 3)
    assert set(whole) == set(range(480)), "no sample is left out"
    batches = [whole[first : first + 4] for first in range(0, len(whole), 4)]
    computed = sum(len({rows.pictures[each] for each in batch}) for batch in batches)
    assert computed < 0.5 * len(whole)
    steps = [whole[first : first + PAIRS] for first in range(0, len(whole), PAIRS)]
    assert sum(len({rows.pictures[each] for each in step}) == 1 for step in steps) < 0.2 * len(steps)


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
