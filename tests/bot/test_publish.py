"""`thumbtune publish` uploads a trained model or its adapter to a hub, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from huggingface_hub import ModelCard

from inference.hub.listing import ORIGIN
from inference.internvl2.tiny import CHECKPOINT
from storage.learning_records import Model
from storage.ledger import Ledger
from storage.model_manifest import CARD, MANIFEST
from storage.model_store import ModelStore
from storage.state_machines import ModelState, RunState
from tests.support.bot_process import Ended, ran, write_config
from tests.support.publishing_hub import TOKEN, PublishingHub, Repository
from training.gate.report import Decision, Report
from training.job import Job
from training.model_card import model_card
from training.run_folder import ADAPTER, FINETUNE_JOB, REPORT

REPO = "someone/our-model"
PICTURE = "examples/image1.jpg"


class Shelf:
    """A data folder with the model run-1 and its run's files; the base has a picture, as official checkpoints do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = folder / "base"
        self.data = folder / "data"
        self.run = self.data / "runs" / "1"
        write_config(
            folder / "config.toml", {"storage": {"dir": str(self.data)}, "inference": {"model": str(self.base)}}
        )

    async def fill(self) -> None:
        """Make the base, the run and its merged model."""
        shutil.copytree(CHECKPOINT, self.base)
        (self.base / PICTURE).parent.mkdir()
        (self.base / PICTURE).write_bytes(b"a picture of the base's authors")
        (self.base / ORIGIN).write_text(json.dumps({"repo": "OpenGVLab/InternVL2-2B"}))
        job = Job("1", str(self.base), "train.json", "pictures", work=str(self.run), system="")
        adapter = self.run / ADAPTER
        adapter.mkdir(parents=True)
        job.write(self.run / FINETUNE_JOB)
        report = Report(Decision.ACCEPTED)
        report.write(self.run / REPORT)
        (self.run / CARD).write_text(model_card("run-1", job, report))
        (adapter / "adapter_config.json").write_text(json.dumps({"r": 8, "base_model_name_or_path": str(self.base)}))
        (adapter / "adapter_model.safetensors").write_bytes(b"a" * 5000)
        (adapter / CARD).write_text("PEFT's card")
        store = ModelStore(self.data / "models")
        workspace = store.workspace("run-1")
        shutil.copytree(self.base, workspace, dirs_exist_ok=True)
        shutil.copyfile(self.run / CARD, workspace / CARD)
        directory, digest = store.publish(workspace, "run-1")
        async with Ledger.open(self.data) as ledger:
            run = await ledger.runs.start("admin")
            await ledger.runs.move(run.id, RunState.TRAINING, directory=str(self.run))
            await ledger.runs.move(run.id, RunState.CANCELLED)
            await ledger.models.add(Model("base", str(self.base), ModelState.CANDIDATE, None, 0.0))
            await ledger.models.add(
                Model("run-1", str(directory), ModelState.CANDIDATE, run.id, 0.0, manifest_hash=digest)
            )

    async def publish(self, *words: str) -> Ended:
        """Run the command and return the outcome."""
        return await ran("publish", *words, "--config", str(self.folder / "config.toml"))


@pytest_asyncio.fixture
async def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[PublishingHub]:
    """Provide a hub, which the environment of child processes names."""
    async with PublishingHub() as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield made


@pytest_asyncio.fixture
async def shelf(tmp_path: Path) -> Shelf:
    """Provide a data folder with a trained model."""
    made = Shelf(tmp_path)
    await made.fill()
    return made


async def test_a_model_is_uploaded_with_its_card_and_without_pictures(hub: PublishingHub, shelf: Shelf) -> None:
    """The model's files and card arrive in a new private repository; the base's example picture stays here."""
    ended = await shelf.publish("run-1", REPO, "--yes")
    assert (ended.code, ended.out) == (0, f"{hub.url}/{REPO}/commit/1\n"), ended.err
    found = hub.repositories[REPO]
    assert found.private
    assert found.messages == ["Upload run-1"]
    directory = shelf.data / "models" / "run-1"
    expected = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    assert set(found.files) == expected - {PICTURE, MANIFEST}
    assert all(content == (directory / name).read_bytes() for name, content in found.files.items())
    assert ModelCard(found.files[CARD].decode()).data.to_dict()["base_model_relation"] == "finetune"  # type: ignore[no-untyped-call]


async def test_an_adapter_is_uploaded_without_paths_of_this_machine(hub: PublishingHub, shelf: Shelf) -> None:
    """The adapter's card and configuration name the base's repository; PEFT's own card is replaced."""
    ended = await shelf.publish("run-1", REPO, "--adapter", "--public", "--yes")
    assert ended.code == 0, ended.err
    found = hub.repositories[REPO]
    assert not found.private
    assert set(found.files) == {"adapter_config.json", "adapter_model.safetensors", CARD}
    config = json.loads(found.files["adapter_config.json"])
    assert config == {"r": 8, "base_model_name_or_path": "OpenGVLab/InternVL2-2B"}
    data = ModelCard(found.files[CARD].decode()).data.to_dict()  # type: ignore[no-untyped-call]
    assert (data["base_model_relation"], data["library_name"]) == ("adapter", "peft")
    assert not any(str(shelf.folder).encode() in content for content in found.files.values())


async def test_nothing_is_uploaded_without_a_confirmation(hub: PublishingHub, shelf: Shelf) -> None:
    """Without --yes and without a terminal the command lists the files and refuses."""
    ended = await shelf.publish("run-1", REPO)
    assert ended.code == 1
    assert "model.safetensors" in ended.err and "a private repository?" in ended.err
    assert hub.repositories == {}


@pytest.mark.parametrize("options", [(), ("--adapter",)])
async def test_a_folder_with_anything_else_is_refused(hub: PublishingHub, shelf: Shelf, options: tuple[str]) -> None:
    """A picture in the model's or the adapter's folder ends the command before anything is sent."""
    folder = shelf.run / ADAPTER if options else shelf.data / "models" / "run-1"
    (folder / "someone.jpg").write_bytes(b"a picture of a person")
    ended = await shelf.publish("run-1", REPO, "--yes", *options)
    assert ended.code == 1
    assert "someone.jpg" in ended.err
    assert hub.repositories == {}


async def test_a_picture_that_is_not_the_bases_is_refused(hub: PublishingHub, shelf: Shelf) -> None:
    """A picture that was in the model when it was made is left out only if the base model has the same."""
    (shelf.base / PICTURE).write_bytes(b"another picture")
    ended = await shelf.publish("run-1", REPO, "--yes")
    assert ended.code == 1
    assert f"contains more than a model: {PICTURE}" in ended.err
    assert hub.repositories == {}


async def test_a_private_model_does_not_go_to_a_public_repository(hub: PublishingHub, shelf: Shelf) -> None:
    """An existing public repository is refused without --public."""
    hub.repositories[REPO] = Repository(private=False)
    ended = await shelf.publish("run-1", REPO, "--yes")
    assert ended.code == 1
    assert f"{REPO} is public" in ended.err
    assert hub.repositories[REPO].files == {}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("base", REPO), "was not trained here"),
        (("run-9", REPO), "run-9"),
        (("run-1", "no/repository/name"), "is not a valid repository name"),
    ],
)
async def test_what_cannot_be_published_is_refused(
    hub: PublishingHub, shelf: Shelf, words: tuple[str, ...], told: str
) -> None:
    """The base, an unknown model and an invalid repository are refused with a reason."""
    ended = await shelf.publish(*words, "--yes")
    assert ended.code == 1
    assert told in ended.err and "Traceback" not in ended.err
    assert hub.repositories == {}


async def test_a_refusing_hub_is_reported(hub: PublishingHub, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a token that may write, the hub's refusal is reported with what to check."""
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    ended = await shelf.publish("run-1", REPO, "--yes")
    assert ended.code == 1
    assert "check HF_TOKEN" in ended.err and "Traceback" not in ended.err
    assert hub.repositories == {}
