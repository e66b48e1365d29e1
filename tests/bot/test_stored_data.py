"""Commands that list and delete models and sources, and list users."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from storage.chat_records import Chat, Person
from storage.learning_records import Model, Rating
from storage.ledger import Ledger
from storage.model_manifest import MANIFEST, write_manifest
from storage.model_store import ModelStore
from storage.state_machines import ModelState, RunState
from tests.support.bot_process import Thumbtune, write_config
from tests.support.ledgers import exchange
from training.run_folder import ADAPTER

DAY = 86400.0


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write a settings file to the current folder and return the path of its data folder."""
    write_config(tmp_path / "config.toml", {"storage": {"dir": "data"}, "limits": {"blocked": [8]}})
    return tmp_path / "data"


def in_ledger(data: Path, work: Callable[[Ledger], Awaitable[Any]]) -> Any:
    """Open the ledger in `data`, run `work` with it, and return the result."""

    async def session() -> Any:
        async with Ledger.open(data) as ledger:
            return await work(ledger)

    return asyncio.run(session())


async def trained(ledger: Ledger, data: Path) -> None:
    """Record a retired base, a live run-1 and a rejected run-2 with their files, both adapters and some votes."""
    for name in ("base", "run-1", "run-2"):
        directory = data / "models" / name
        directory.mkdir(parents=True)
        (directory / "weights").write_bytes(b"w" * 2_000_000)
        write_manifest(directory)
        if name != "base":
            run = await ledger.runs.start("admin")
            adapter = data / "runs" / str(run.id) / ADAPTER
            adapter.mkdir(parents=True)
            (adapter / "weights").write_bytes(b"a" * 1_000_000)
            await ledger.runs.move(run.id, RunState.TRAINING, directory=str(adapter.parent))
            await ledger.runs.move(run.id, RunState.CANCELLED)
        state = ModelState.REJECTED if name == "run-2" else ModelState.CANDIDATE
        run_id = None if name == "base" else int(name[-1])
        await ledger.models.add(
            Model(name, str(directory), state, run_id, 20000 * DAY, reason="worse" * (name == "run-2"))
        )
        if name != "run-2":
            await ledger.promotions.make(name)
    for number, (model, value) in enumerate([("run-1", 1), ("run-1", 1), ("run-1", -1), ("base", -1)], 1):
        session = await ledger.sessions.open(1, 1)
        said = await ledger.exchanges.record(exchange(session, number, model=model))
        await ledger.votes.cast(Rating(said.id, 1, value, 100 + number))


def lines(text: str) -> dict[str, list[str]]:
    """Return the words of each line of a table, keyed by the first word."""
    return {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}


def test_models_have_a_date_and_an_approval(thumbtune: Thumbtune, data: Path) -> None:
    """Each model is listed with its date and its share of 👍; a wide table is not truncated in a pipe."""
    in_ledger(data, lambda ledger: trained(ledger, data))
    ended = thumbtune("models")
    assert ended.code == 0
    listed = lines(ended.out)
    assert listed["run-1"][1:6] == ["live", "2024-10-04", "67", "%", "(21–94"]
    assert listed["run-2"][1:4] == ["rejected", "2024-10-04", "–"]
    assert str(data / "models" / "run-2") in ended.out


def test_a_model_is_deleted_for_good(thumbtune: Thumbtune, data: Path) -> None:
    """`thumbtune models delete` says how much it frees, asks first, and deletes the model's files and adapter.

    The model stays in the ledger without its directory.
    """
    in_ledger(data, lambda ledger: trained(ledger, data))
    asked = thumbtune("models", "delete", "run-2")
    assert asked.code == 1
    assert "3.0 MB" in asked.err and "--yes" in asked.err
    assert (data / "models" / "run-2" / MANIFEST).exists()
    ended = thumbtune("models", "delete", "run-2", "--yes")
    assert (ended.code, ended.err) == (0, "")
    assert "run-2" in ended.out and "3.0 MB" in ended.out
    assert sorted(each.name for each in (data / "models").iterdir()) == ["base", "run-1"]
    assert not (data / "runs" / "2" / ADAPTER).exists()
    assert (data / "runs" / "1" / ADAPTER).exists()
    assert in_ledger(data, lambda ledger: ledger.models.get("run-2")).directory == ""
    assert "removed" in lines(thumbtune("models").out)["run-2"]
    again = thumbtune("models", "delete", "run-2", "--yes")
    assert (again.code, again.out.strip()) == (0, "run-2 has no files on the disk.")


def test_a_deletion_that_was_killed_is_completed(thumbtune: Thumbtune, data: Path) -> None:
    """A deletion that was killed after setting the files aside is completed when the command is repeated.

    The ledger's directory entry and the adapter are deleted.
    """
    in_ledger(data, lambda ledger: trained(ledger, data))
    ModelStore(data / "models").set_aside("run-2")
    assert thumbtune("models", "delete", "run-2", "--yes").code == 0
    assert in_ledger(data, lambda ledger: ledger.models.get("run-2")).directory == ""
    assert not (data / "runs" / "2" / ADAPTER).exists()
    ModelStore(data / "models").tidy()
    assert sorted(each.name for each in (data / "models").iterdir()) == ["base", "run-1"]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("run-1", "is live"),
        ("base", "Training starts from"),
        ("run-9", "no model run-9"),
        ("run-2", "is pending"),
    ],
)
def test_a_model_in_use_stays(thumbtune: Thumbtune, data: Path, model: str, why: str) -> None:
    """The live model, the base model and a model about to go live cannot be deleted and keep their files."""

    async def prepare(ledger: Ledger) -> None:
        await trained(ledger, data)
        await ledger.promotions.request("run-2")

    in_ledger(data, prepare)
    ended = thumbtune("models", "delete", model, "--yes")
    assert (ended.code, ended.out) == (1, "")
    assert why in ended.err
    assert sorted(each.name for each in (data / "models").iterdir()) == ["base", "run-1", "run-2"]


def test_a_model_that_goes_live_meanwhile_is_put_back(
    thumbtune: Thumbtune, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the bot switches to a model during the model's deletion, the files are restored."""
    in_ledger(data, lambda ledger: trained(ledger, data))
    set_aside = ModelStore.set_aside

    def meanwhile(store: ModelStore, name: str) -> Path | None:
        aside = set_aside(store, name)
        going = Thread(target=in_ledger, args=(data, lambda ledger: ledger.promotions.make("run-2")))
        going.start()
        going.join()
        return aside

    monkeypatch.setattr(ModelStore, "set_aside", meanwhile)
    ended = thumbtune("models", "delete", "run-2", "--yes")
    assert ended.code == 1
    assert "run-2 is live" in ended.err
    assert (data / "models" / "run-2" / MANIFEST).exists()
    assert (data / "runs" / "2" / ADAPTER).exists()


def imported(data: Path, name: str) -> Path:
    """Write the source `name`, laid out as an import leaves it, and return its folder."""
    folder = data / "sources" / name
    (folder / "pictures").mkdir(parents=True)
    (folder / "rows.jsonl").write_text("{}\n")
    (folder / "source.json").write_text(json.dumps({"file": "/home/f.json", "rows": 12, "pictures": 7}))
    return folder


def test_sources_are_listed_and_deleted(thumbtune: Thumbtune, data: Path) -> None:
    """Imported sources are listed with their rows and pictures; deleting one asks first and removes its folder."""
    in_ledger(data, lambda ledger: ledger.counts.totals())
    assert thumbtune("sources").out.strip() == "No source has been imported; `thumbtune import` adds one."
    food = imported(data, "food")
    imported(data, "art")
    assert lines(thumbtune("sources").out)["food"][1:3] == ["12", "7"]
    asked = thumbtune("sources", "delete", "food")
    assert asked.code == 1
    assert "12 rows" in asked.err and "--yes" in asked.err
    assert food.exists()
    ended = thumbtune("sources", "delete", "food", "--yes")
    assert (ended.code, ended.err) == (0, "")
    assert [each.name for each in (data / "sources").iterdir()] == ["art"]
    for name in ("food", "../models", "."):
        unknown = thumbtune("sources", "delete", name, "--yes")
        assert unknown.code == 1
        assert "art" in unknown.err


def test_a_source_that_a_run_reads_stays(thumbtune: Thumbtune, data: Path) -> None:
    """Sources cannot be deleted during a training run, because the run reads their pictures until it ends."""
    in_ledger(data, lambda ledger: ledger.runs.start("admin"))
    food = imported(data, "food")
    ended = thumbtune("sources", "delete", "food", "--yes")
    assert ended.code == 1
    assert "Run 1" in ended.err
    assert food.exists()


def test_people_are_listed(thumbtune: Thumbtune, data: Path) -> None:
    """Users are listed with answers, votes, last message, blocks and opt-outs; groups are not listed."""

    async def prepare(ledger: Ledger) -> None:
        for number, name in ((7, "Ada B."), (8, "Mallory"), (-5, "")):
            await ledger.people.save(Person(number, name), Chat(number))
        await ledger.people.set_opted_out(7, True)
        session = await ledger.sessions.open(7, 7)
        for number in (1, 2):
            await ledger.exchanges.record(exchange(session, number, chat=7, asker=7, created=20000 * DAY))
        await ledger.votes.cast(Rating(1, 8, 1, 9))

    in_ledger(data, prepare)
    ended = thumbtune("people")
    assert ended.code == 0
    listed = lines(ended.out)
    assert listed["7"][1:5] == ["Ada", "B.", "2", "0"]
    assert "opted out" in ended.out
    assert listed["8"][1:4] == ["Mallory", "0", "1"]
    assert "blocked" in listed["8"]
    assert "-5" not in listed
