"""Short training jobs on internvl2-tiny: methods, optimizers, resuming, and two processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from xtuner.configs import cfgs_name_path

from inference.internvl2.checkpoint import load_model
from inference.internvl2.tiny import CHECKPOINT
from tests.support.lessons import SYSTEM, drawn_job, settings
from training.adapter import Adapter
from training.job import Job, MergeJob, Outcome, Progress, ignore
from training.launcher import ChildTrainer
from training.merge import merge
from training.xtuner.scalars import losses

pytestmark = pytest.mark.long

PAIRS = 12
STEPS = 12
VARIANTS: dict[str, dict[str, Any]] = {
    # Batches of one pair, four per step. Several processes must give the same result.
    "qlora": {"batch": 1, "accumulation": 4},
    "lora": {"method": "lora", "vision_rank": 4, "dropout": 0.05, "checkpointing": True},
    "full": {"method": "full", "learning_rate": 3e-4, "projector": True},
    # They begin with very small steps.
    "dadapt_adam": {"optimizer": "dadapt_adam", "learning_rate": 1.0, "epochs": 6, "alpha": 256},
    "prodigy": {"optimizer": "prodigy", "learning_rate": 1.0, "epochs": 6, "alpha": 256},
}


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished training job with its outcome."""

    job: Job
    outcome: Outcome

    @property
    def adapter(self) -> Adapter:
        """The adapter that the job trained."""
        return Adapter(Path(str(self.outcome.adapter)))

    @property
    def losses(self) -> list[float]:
        """The loss of each step."""
        points = losses(Path(str(self.outcome.scalars)))
        assert [step for step, _ in points] == list(range(1, self.outcome.steps + 1)), "every step once"
        return [loss for _, loss in points]


def make_job(folder: Path, **changes: Any) -> Job:
    """Return a job with four pairs per step that teaches wrong colours, which are unlikely at first."""
    numbers = {"targets": "", "epochs": 4, "learning_rate": 1e-3, **changes}
    return drawn_job(folder, PAIRS, right=False, **numbers)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, warm_python: str) -> Mapping[str, Trained]:
    """Train every variant in `VARIANTS` and return the finished jobs by name."""
    folder = tmp_path_factory.mktemp("variants")
    trainer = ChildTrainer(settings(python=warm_python))
    found = {}
    for name, changes in VARIANTS.items():
        (folder / name).mkdir()
        job = make_job(folder / name, **changes)
        found[name] = Trained(job, asyncio.run(trainer.run(job)))
        assert found[name].outcome.ok, found[name].outcome.reason
    return found


@pytest.mark.parametrize("name", VARIANTS)
def test_the_loss_falls(trained: Mapping[str, Trained], name: str) -> None:
    """Every method and optimizer learns.

    The losses in the last quarter of the steps are well below those in the first quarter.
    """
    values = trained[name].losses
    quarter = len(values) // 4
    assert sum(values[-quarter:]) < 0.8 * sum(values[:quarter]), values


@pytest.mark.parametrize("name", VARIANTS)
def test_what_was_trained_is_merged(trained: Mapping[str, Trained], tmp_path: Path, name: str) -> None:
    """The merged model differs from the base in exactly the parts that the method trains."""
    job = trained[name].job
    (tmp_path / "out").mkdir()
    merging = MergeJob(
        "1", job.base, str(trained[name].outcome.adapter), str(tmp_path / "out"), work=job.work, system=SYSTEM
    )
    assert merge(merging, ignore).ok
    before, after = load_model(CHECKPOINT).state_dict(), load_model(tmp_path / "out").state_dict()
    changed = {each for each in before if not torch.equal(before[each], after[each])}
    assert changed <= trained[name].adapter.names()
    parts = {each.split(".")[0] for each in changed}
    expected = {"lora": {"language_model", "vision_model"}, "full": {"language_model", "mlp1"}}
    assert parts == expected.get(name, {"language_model"})
    if name == "full":
        assert "language_model.model.tok_embeddings.weight" in changed


def test_without_targets_every_linear_layer_is_trained(trained: Mapping[str, Trained]) -> None:
    """Without `targets`, the adapter covers all linear layers of the language model and nothing else."""
    model = load_model(CHECKPOINT).language_model
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert trained["qlora"].adapter.names() == {f"language_model.{name}.weight" for name in linear}


def test_tensorboard_reads_the_log(trained: Mapping[str, Trained]) -> None:
    """TensorBoard can read the loss of each step from the files in the run's folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(Path(trained["qlora"].job.work) / "xtuner" / "vis_data"))
    log.Reload()
    assert [each.value for each in log.Scalars("loss")] == pytest.approx(trained["qlora"].losses)


def test_a_killed_training_resumes_in_two_processes(
    trained: Mapping[str, Trained], tmp_path: Path, warm_python: str
) -> None:
    """After `kill -9`, a training job resumes from its last checkpoint in two processes.

    The two share the pairs of a step, and the losses are those of one uninterrupted process.
    """
    trainer = ChildTrainer(settings(python=warm_python))
    job = make_job(tmp_path, **VARIANTS["qlora"], save_steps=4)

    def kill(progress: Progress) -> None:
        if progress.step == 6:
            for pid in trainer.pids:
                os.kill(pid, signal.SIGKILL)

    assert "SIGKILL" in asyncio.run(trainer.run(job, kill)).reason
    heard: list[Progress] = []
    again = Trained(job, asyncio.run(ChildTrainer(settings(python=warm_python, processes=2)).run(job, heard.append)))
    assert again.outcome.ok, again.outcome.reason
    assert [each.step for each in heard if each.step] == list(range(5, STEPS + 1)), "one of them tells of each step"
    assert again.losses == pytest.approx(trained["qlora"].losses, rel=1e-2)
    assert not list(tmp_path.rglob("*.pth")), "what is finished needs no checkpoint"


def test_a_users_configuration_runs_with_smaller_batches_if_memory_is_short(tmp_path: Path, warm_python: str) -> None:
    """A user's configuration that runs out of memory with batches of two continues with batches of one."""
    text = Path(cfgs_name_path["internvl_v2_internlm2_2b_qlora_finetune"]).read_text(encoding="utf-8")
    for old, new in {"batch_size = 8": "batch_size = 2", "num_workers = 4": "num_workers = 0", "1e-6": "1e-3"}.items():
        assert old in text
        text = text.replace(old, new)
    own = tmp_path / "mine.py"
    own.write_text(
        f"{text}\nfrom tests.support.cramped import Cramped\ncustom_hooks.append(dict(type=Cramped, most=1))\n"
    )
    job = make_job(tmp_path, recipe=str(own))
    done = Trained(job, asyncio.run(ChildTrainer(settings(python=warm_python)).run(job)))
    assert done.outcome.ok, done.outcome.reason
    assert Job.read(tmp_path / "finetune.json").split == 2
    assert len(done.losses) == PAIRS // 4, "the pairs of a step are as many as before"
    assert "mlp1.1.weight" in done.adapter.names(), "XTuner's own model trains the projector"
    assert "train example" not in (tmp_path / "finetune.log").read_text(), "the log has no words of users"
