"""After a user's data is erased, neither the next model nor an active run uses it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from storage.state_machines import RunState
from tests.support.person import Message, Person, button
from tests.support.whole_bot import ADMIN, WholeBot, picture, whole_bot, words
from training.data.llava import row_name


async def teaches(whole: WholeBot, person: Person, pictures: int) -> None:
    """Send `pictures` pictures as `person` and like each answer."""
    for number in range(pictures):
        answer = await hears(whole, person, "👍", photo=picture(100 * person.id + number))
        await person.toast(await person.taps("👍", answer))


async def hears(whole: WholeBot, person: Person, label: str, text: str | None = None, **what: bytes) -> Message:
    """Send a message as `person` and return the bot's answer that has a button labelled `label`."""
    asked = await person.sends(text, **what)  # type: ignore[arg-type]
    return await whole.says(person.id, lambda message: button(message, label) is not None, after=asked["message_id"])


async def leaves(whole: WholeBot, person: Person) -> Message:
    """Delete all of `person`'s data with /delete_my_data, and return the bot's request for confirmation."""
    question = await hears(whole, person, "Delete everything", "/delete_my_data")
    await person.taps("Delete everything", question)
    await whole.says(person.id, lambda message: words(message).startswith("I've deleted everything"))
    return question


async def taught_by(whole: WholeBot) -> dict[int, set[str]]:
    """Return the names of the data set rows made from each user's rated answers, by user ID."""
    found: dict[int, set[str]] = {}
    async with whole.ledger() as ledger:
        for each in await ledger.votes.rated_exchanges():
            found.setdefault(each.exchange.asker, set()).add(row_name(each.exchange.id))
    return found


def learned(whole: WholeBot, run: int) -> set[str]:
    """Return the names of the data set rows that run number `run` was trained or evaluated on."""
    files = [whole.data / "runs" / str(run) / name for name in ("train.json", "judged.json")]
    return {row["id"] for file in files for row in json.loads(file.read_bytes())}


async def live(whole: WholeBot, model: str) -> None:
    """Wait until `model` is the live model."""
    async with whole.ledger() as ledger, asyncio.timeout(30):
        while (found := await ledger.models.live()) is None or found.id != model:
            await asyncio.sleep(0.02)


async def test_the_next_model_knows_nothing_of_who_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Erasure removes a user's rows from the live model's run at once, and the next model does not use them.

    The next model is trained from the base model. If an active run uses the user's data, the run is
    cancelled and restarted without the data.
    """
    async with whole_bot(tmp_path, monkeypatch) as whole, whole.running():
        root = await whole.person(ADMIN, "Root", "en")
        ada, bob, cem = [
            await whole.person(1001 + place, name, "en") for place, name in enumerate(("Ada", "Bob", "Cem"))
        ]
        for person, pictures in ((ada, 2), (bob, 2), (cem, 4)):
            await teaches(whole, person, pictures)
        rows = await taught_by(whole)
        hers, his, others = rows[ada.id], rows[bob.id], rows[cem.id]

        await root.sends("/retrain")
        await live(whole, "run-1")
        assert learned(whole, 1) == hers | his | others
        assert "2 training examples" in words(await leaves(whole, ada))
        assert learned(whole, 1) == his | others
        await root.sends("/retrain")
        await live(whole, "run-2")
        assert learned(whole, 2) == his | others
        job = json.loads((whole.data / "runs" / "2" / "finetune.json").read_bytes())
        assert job["base"] == str(whole.base), "never on top of what has learned from her"

        whole.cue("hang")
        await root.sends("/retrain")
        same = await whole.says(root.id, lambda message: "Nothing has changed since run 2." in words(message))
        await root.taps("Train again", same)
        await whole.says(root.id, lambda message: "Run 3: training" in words(message) and "▓" in words(message))
        whole.cue("good")
        await leaves(whole, bob)
        await live(whole, "run-4")
        assert learned(whole, 4) == others
        async with whole.ledger() as ledger:
            assert (await ledger.runs.get(3)).state is RunState.CANCELLED
            assert (await ledger.runs.get(4)).requested_by == ADMIN
        await whole.says(root.id, lambda message: words(message) == "Run 3 was cancelled. Nothing has changed.")
        told = await whole.says(root.id, lambda message: words(message).startswith("Run 4 is done."))
        assert "live" in words(told)
        assert learned(whole, 1) == learned(whole, 2) == others
