"""`thumbtune export` writes collected data as files that other trainers and `thumbtune import` can read."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from bot.cli.import_export import export_data
from bot.config import load_settings
from inference.chat_format.template import BREAK
from inference.internvl2.tiny import CHECKPOINT
from storage.chat_records import Chat, Person
from storage.learning_records import Correction, Rating
from storage.ledger import Ledger
from storage.picture_files import PictureStore
from tests.support.bot_process import command, write_config
from tests.support.ledgers import exchange, picture
from tests.support.lessons import photo
from training.command_jobs import ImportJob
from training.data.importing import import_source
from training.data.row_parser import read_lessons, read_rows
from training.job import TrainingError, ignore


class Community:
    """A bot's settings file and ledger, with methods to fill the ledger."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.config = folder / "config.toml"
        training = {"recipe": "tiny", "threads": 1, "rater_age": 0}
        write_config(self.config, {"storage": {"dir": str(self.data)}, "training": training})
        self.pictures = PictureStore(self.data / "pictures")
        self._update = 0

    async def export(self, out: Path) -> None:
        """Run the export command in this process, writing to `out`."""
        async with Ledger.open(self.data) as ledger:
            await export_data(ledger, load_settings(self.config), out)

    async def show(self, ledger: Ledger, colour: str) -> str:
        """Store a picture of the given colour, add it to `ledger`, and return its name."""
        name = await self.pictures.put(photo(colour))
        await ledger.pictures.add(picture(name, media_type="image/jpeg", phash=""))
        return name

    async def says(self, ledger: Ledger, session: int, answer: str, *votes: int, **changes: Any) -> int:
        """Record an exchange with `votes` cast by users 2, 3 and so on, and return the exchange's ID."""
        self._update += 10
        made = (await ledger.exchanges.record(exchange(session, self._update, answer=answer, **changes))).id
        for rater, value in enumerate(votes, 2):
            await ledger.votes.cast(Rating(made, rater, value, self._update + rater))
        return made


@pytest_asyncio.fixture
async def community(tmp_path: Path) -> Community:
    """Provide a ledger with a liked chat about two pictures, a liked follow-up, and every other kind of answer."""
    made = Community(tmp_path)
    async with Ledger.open(made.data) as ledger:
        for user in (1, 2, 3, 9):
            await ledger.people.save(Person(user), Chat(user))
        red, blue = await made.show(ledger, "red"), await made.show(ledger, "blue")
        talk = await ledger.sessions.restart(1, 1)
        await made.says(ledger, talk, "Red and blue.", 1, question="Which <image> colours?", pictures=(red, blue))
        await made.says(ledger, talk, "Two.", 1, 1, question="How many?")
        other = await ledger.sessions.restart(1, 1)
        await made.says(ledger, other, "Green.", -1, pictures=(red,))
        await made.says(ledger, other, "Undecided.", 1, -1)
        await made.says(ledger, other, "Cut of", 1, finish="length")
        await made.says(ledger, other, "Unrated.")
        shy = await ledger.sessions.restart(9, 9)
        await made.says(ledger, shy, "A secret.", 1, chat=9, asker=9, pictures=(await made.show(ledger, "pink"),))
        await ledger.people.set_opted_out(9, True)
    return made


async def test_an_export_has_what_was_rated(community: Community, tmp_path: Path) -> None:
    """An export has liked answers as LLaVA rows and all votes as KTO rows, with their pictures.

    Users who opted out are left out.
    """
    out = tmp_path / "out"
    code, told = await command(community.config, "export", str(out))
    assert code == 0, told
    assert (
        "llava.json with 2 liked answers" in told
        and "2 thumbs up and 1 down, dpo.jsonl with 0 pairs, 2 pictures" in told
    )
    first, second = read_lessons(out / "llava.json", out, system="")
    assert (first.turns[0].text, first.turns[1].text) == (f"Which <{BREAK}image> colours?", "Red and blue.")
    assert (second.turns[-1].text, second.learned) == ("Two.", (False, False, False, True))
    rows = [row for _, row in read_rows(out / "kto.jsonl")]
    assert [(row["completion"][0]["content"][0]["text"], row["label"]) for row in rows] == [
        ("Red and blue.", True),
        ("Two.", True),
        ("Green.", False),
    ]
    assert [message["role"] for message in rows[1]["prompt"]] == ["system", "user", "assistant", "user"]
    assert [part["type"] for part in rows[1]["prompt"][1]["content"]] == ["image", "image", "text"]
    assert rows[1]["images_file_names"] == list(first.pictures)
    for row in rows:
        places = [part for message in row["prompt"] for part in message["content"] if part["type"] == "image"]
        assert len(places) == len(row["images_file_names"])
        assert all((out / name).is_file() for name in row["images_file_names"])
    assert len(list((out / "pictures").iterdir())) == 2
    assert "secret" not in (out / "llava.json").read_text() + (out / "kto.jsonl").read_text()


async def opened(out: Path, name: str = "") -> list[dict[str, Any]]:
    """Open an export with the datasets library in a process of its own, and return the rows of its one split.

    Each picture is returned as its format and size. The process cannot reach a hub.
    """
    program = (
        "import json, sys, datasets\n"
        "split = datasets.load_dataset(*sys.argv[1:])['train']\n"
        "assert split.features['images'] == datasets.List(datasets.Image()), split.features\n"
        "shown = lambda row: {**row, 'images': [[each.format, each.size] for each in row['images']]}\n"
        "print(json.dumps([shown(row) for row in split]))\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(out.parent / "hub")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, str(out), *([name] if name else [])),
        cwd=out.parent, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    printed, told = await process.communicate()
    assert process.returncode == 0, told.decode()
    rows: list[dict[str, Any]] = json.loads(printed)
    return rows


async def test_the_datasets_library_opens_an_export(community: Community, tmp_path: Path) -> None:
    """`load_dataset(OUT)` gives every vote with its pictures decoded, in TRL's format for KTO."""
    out = tmp_path / "out"
    await community.export(out)
    rows = await opened(out)
    assert [(row["completion"][0]["content"][0]["text"], row["label"]) for row in rows] == [
        ("Red and blue.", True),
        ("Two.", True),
        ("Green.", False),
    ]
    assert [len(row["images"]) for row in rows] == [2, 2, 1]
    assert [part["type"] for part in rows[0]["prompt"][1]["content"]] == ["image", "image", "text"]
    assert rows == await opened(out, "kto")
    assert "dpo" not in (out / "README.md").read_text(encoding="utf-8"), "there are no pairs to open"


async def test_an_export_can_be_imported(community: Community, tmp_path: Path) -> None:
    """Exported rows are unchanged after an import elsewhere."""
    out, sources = tmp_path / "out", tmp_path / "sources"
    await community.export(out)
    taking = ImportJob(
        "llava", str(out / "llava.json"), str(out), str(sources), str(CHECKPOINT), work="", system="", threads=1
    )
    assert import_source(taking, ignore).ok
    ours = list(read_lessons(sources / "llava" / "rows.jsonl", sources / "llava" / "pictures", system=""))
    for our, their in zip(ours, read_lessons(out / "llava.json", out, system=""), strict=True):
        assert (our.name, our.system, our.learned) == (their.name, their.system, their.learned)
        assert [turn.text for turn in our.turns] == [turn.text for turn in their.turns]


async def test_an_export_is_whole_or_not_there(community: Community, tmp_path: Path) -> None:
    """An export to a non-empty folder is refused, and a missing picture leaves no partial export."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(TrainingError, match="is not empty"):
        await community.export(tmp_path / "full")
    (tmp_path / "empty").mkdir()
    await community.export(tmp_path / "empty")
    for picture_file in (community.data / "pictures").glob("??/*"):
        picture_file.unlink()
    with pytest.raises(TrainingError, match="cannot be written"):
        await community.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.part").exists()


async def test_an_export_has_what_is_preferred(tmp_path: Path) -> None:
    """An exported pair is an answer and its correction, or two answers to one prompt, one of them liked more.

    Stopped answers are in no pair, nor are corrections that only repeat the answer.
    """
    community = Community(tmp_path)
    async with Ledger.open(community.data) as ledger:
        for user in (1, 2, 9):
            await ledger.people.save(Person(user), Chat(user))
        red = await community.show(ledger, "red")
        talk = await ledger.sessions.restart(1, 1)
        first = await community.says(ledger, talk, "Blue.", -1, pictures=(red,))
        again: dict[str, Any] = {"pictures": (red,), "replaces": first}
        await community.says(ledger, talk, "Red!", 1, **again)
        await community.says(ledger, talk, "Unrated.", **again)
        await community.says(ledger, talk, "Re", 1, 1, finish="abort", **again)
        await community.says(ledger, talk, "Other words.", 1, prompt_hash="another", question="Edited?", **again)
        later = await community.says(ledger, talk, "Dunno.")
        for author, update in ((2, 1), (9, 2)):
            shown = await ledger.corrections.add(Correction(later, author, f"Two, says {author}.", update))
            await ledger.corrections.confirm(shown, 1)
        for update, (answer, finish, better) in enumerate([("Tw", "abort", "Two."), ("Six.", "stop", "Six.")], 3):
            said = await community.says(ledger, talk, answer, finish=finish)
            await ledger.corrections.confirm(await ledger.corrections.add(Correction(said, 2, better, update)), 1)
        await ledger.people.set_opted_out(9, True)
    out = tmp_path / "out"
    await community.export(out)
    rows = [row for _, row in read_rows(out / "dpo.jsonl")]
    assert [[row[side][0]["content"][0]["text"] for side in ("chosen", "rejected")] for row in rows] == [
        ["Red!", "Blue."],
        ["Red!", "Unrated."],
        ["Unrated.", "Blue."],
        ["Two, says 2.", "Dunno."],
    ]
    assert all((out / name).is_file() for row in rows for name in row["images_file_names"])
    assert [message["role"] for message in rows[0]["prompt"]] == ["system", "user"]
    loaded = await opened(out, "dpo")
    assert [each["chosen"][0]["content"][0]["text"] for each in loaded] == ["Red!", "Red!", "Unrated.", "Two, says 2."]
    assert loaded[0]["images"] == [["JPEG", [200, 150]]]
    assert len(list((out / "pictures").iterdir())) == 1, "one picture is enough"
    assert {row["label"] for row in await opened(out)} == {True, False}
    assert "Two, says 2." in (out / "llava.json").read_text()
