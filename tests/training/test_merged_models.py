"""Pruning merged models and restoring them from their adapters: files, ledger rows and crashes."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file, save_file

from bot.admin.startup_checks import settle_live_model
from inference.internvl2.tiny import CHECKPOINT
from storage.errors import IllegalTransition
from storage.learning_records import Model
from storage.ledger import Ledger
from storage.model_manifest import CARD, verify
from storage.model_store import ModelStore
from storage.state_machines import ModelState
from tests.support.lessons import SYSTEM, settings
from training.adapter import WHOLE
from training.job import MergeJob, Progress, TrainingError, ignore
from training.job_specs import TrainingPaths
from training.launcher import ChildTrainer
from training.merge import merge
from training.merged_models import MergedModels
from training.run_folder import ADAPTER, MERGE_JOB

WEIGHT = "mlp1.1.bias"


class Killed(BaseException):
    """Raised to simulate a killed process."""


class Shelf:
    """A ledger with models merged from internvl2-tiny, and the `MergedModels` object that prunes them."""

    def __init__(self, folder: Path, keep: int = 1) -> None:
        self.folder = folder
        self.ledger = Ledger.open(folder)
        self.store = ModelStore(folder / "models")
        self.base = folder / "base"
        self.places = TrainingPaths(self.base, folder / "runs", folder / "sources")
        chosen = settings(keep_models=keep)
        self.merged = MergedModels(self.ledger, self.store, ChildTrainer(chosen), chosen, self.places)

    async def add(self, state: ModelState = ModelState.CANDIDATE, *, card: bool = True) -> str:
        """Add a run's adapter and the model merged from it, as the pipeline does; return the model's name.

        Without `card`, the model is one of an earlier version.
        """
        run = await self.ledger.runs.start("command")
        await self.ledger.runs.request_cancel(run.id)
        await self.ledger.runs.move(run.id, run.state.FAILED, reason="only its files matter here")
        work = self.places.runs / str(run.id)
        adapter = work / ADAPTER
        adapter.mkdir(parents=True)
        save_file({WEIGHT: torch.full_like(_bias(), run.id)}, adapter / WHOLE)
        workspace = self.store.workspace("new")
        job = MergeJob(
            str(run.id), str(self.base), str(adapter), str(workspace), work=str(work), system=SYSTEM, threads=1
        )
        assert merge(job, ignore).ok
        job.write(work / MERGE_JOB)
        if card:
            for folder in (work, workspace):
                (folder / CARD).write_text(f"The card of run {run.id}.")
        name = f"run-{run.id}"
        directory, digest = self.store.publish(workspace, name)
        await self.ledger.models.add(Model(name, str(directory), state, run.id, float(run.id), manifest_hash=digest))
        return name

    async def restart(self) -> None:
        """Tidy the model store and settle the live model, as the bot does when it starts."""
        self.store.tidy()
        await settle_live_model(self.ledger, self.base, self.store.directory)


def _bias() -> torch.Tensor:
    return load_file(CHECKPOINT / "model.safetensors")[WEIGHT]


@pytest_asyncio.fixture
async def shelf(tmp_path: Path) -> AsyncIterator[Shelf]:
    """Provide a `Shelf` with the base model live."""
    made = Shelf(tmp_path)
    shutil.copytree(CHECKPOINT, made.base)
    await made.restart()
    yield made
    await made.ledger.close()


async def test_the_live_the_previous_and_some_more_are_kept(shelf: Shelf) -> None:
    """Pruning keeps the live and previous models, a set number of the newest others, and models in use.

    Older and rejected models that are not in use keep only their adapters. An undecided model counts as one of the
    others, because the report of its run offers to promote it.
    """
    names = [await shelf.add() for _ in range(4)]
    undecided = await shelf.add(ModelState.UNDECIDED)
    rejected = await shelf.add(ModelState.REJECTED)
    for name in names[:2]:
        await shelf.ledger.promotions.make(name)
    assert await shelf.merged.prune(in_use=[rejected]) == [names[3], names[2]]
    assert shelf.store.names() == sorted([*names[:2], undecided, rejected])
    assert await shelf.merged.prune() == [rejected]
    assert await shelf.merged.prune() == []
    assert all((shelf.places.runs / name.removeprefix("run-") / ADAPTER / WHOLE).is_file() for name in names)
    assert [each.kept for each in await shelf.ledger.models.all()] == [True] * 7


@pytest.mark.parametrize("card", [True, False], ids=["with its card", "of an earlier version, without a card"])
async def test_a_pruned_model_is_restored_identically(shelf: Shelf, card: bool) -> None:
    """The real worker restores a pruned model with the same hash and reports progress."""
    name = await shelf.add(ModelState.REJECTED, card=card)
    assert await shelf.merged.prune() == [name]
    heard: list[Progress] = []
    pruned = await shelf.ledger.models.get(name)
    with pytest.raises(IllegalTransition, match="merge it again"):
        await shelf.ledger.promotions.make(name)
    model = await shelf.merged.restore(pruned, heard.append)
    assert (model.pruned, verify(Path(model.directory))) == (False, pruned.manifest_hash)
    assert (Path(model.directory) / CARD).exists() is card
    assert heard and heard[-1].step == heard[-1].steps
    await shelf.ledger.promotions.make(name)


async def test_a_model_that_cannot_be_restored_is_kept(shelf: Shelf) -> None:
    """A model is not pruned if its adapter is missing or the model was merged from another base."""
    without, other = await shelf.add(ModelState.REJECTED), await shelf.add(ModelState.REJECTED)
    shutil.rmtree(shelf.places.runs / "1" / ADAPTER)
    job = shelf.places.runs / "2" / MERGE_JOB
    job.write_text(job.read_text().replace(str(shelf.base), "/another/base"))
    assert await shelf.merged.prune() == []
    assert shelf.store.names() == [without, other]


async def test_another_model_than_the_evaluated_one_is_not_restored(shelf: Shelf) -> None:
    """Restoring a model whose adapter has changed raises an error, because the model's hash would differ.

    The error names the next step, and no files are left behind.
    """
    name = await shelf.add(ModelState.REJECTED)
    await shelf.merged.prune()
    save_file({WEIGHT: _bias()}, shelf.places.runs / "1" / ADAPTER / WHOLE)
    with pytest.raises(TrainingError, match=r"differs from the model that was evaluated.*/retrain"):
        await shelf.merged.restore(await shelf.ledger.models.get(name))
    assert list(shelf.store.directory.iterdir()) == []
    shutil.rmtree(shelf.places.runs / "1" / ADAPTER)
    with pytest.raises(TrainingError, match="choose another model"):
        await shelf.merged.restore(await shelf.ledger.models.get(name))


@pytest.mark.parametrize("killed", ["after the row", "within the removal"])
async def test_an_interrupted_removal_is_finished_by_the_next_start(
    shelf: Shelf, killed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a crash during pruning, the next start leaves a model either complete or entirely removed.

    The model is complete until its directory is renamed; after that, the remaining files are removed.
    """
    name = await shelf.add(ModelState.REJECTED)
    await shelf.ledger.models.prune(name)
    if killed == "within the removal":

        def removed_half(directory: Path) -> None:
            (directory / "config.json").unlink()
            raise Killed

        with monkeypatch.context() as patched:
            patched.setattr("storage.model_store.shutil.rmtree", removed_half)
            with pytest.raises(Killed):
                await shelf.merged.prune()
    await shelf.restart()
    model = await shelf.ledger.models.get(name)
    if killed == "within the removal":
        assert (model.directory, model.pruned) == ("", True)
        assert list(shelf.store.directory.iterdir()) == []
    else:
        assert verify(Path(model.directory)) == model.manifest_hash
        assert await shelf.merged.prune() == [name]


async def test_a_requested_promotion_keeps_the_files(shelf: Shelf) -> None:
    """A model is not pruned while its promotion is pending, and a pruned model's promotion can be requested."""
    name = await shelf.add(ModelState.REJECTED)
    asked = await shelf.ledger.promotions.request(name)
    assert await shelf.merged.prune() == []
    with pytest.raises(IllegalTransition, match="its files cannot be removed"):
        await shelf.ledger.models.prune(name)
    await shelf.ledger.promotions.finish(asked.id, "no")
    assert await shelf.merged.prune() == [name]
    assert (await shelf.ledger.promotions.request(name)).model == name
