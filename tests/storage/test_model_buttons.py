"""The messages with buttons about models: which are outdated, and that an erasure removes them."""

from __future__ import annotations

from pathlib import Path

from storage.chat_records import Chat, Person
from storage.learning_records import Model
from storage.ledger import Ledger
from storage.state_machines import ModelState


async def test_buttons_are_outdated_once_the_state_has_changed(tmp_path: Path) -> None:
    """A message is outdated if its model is in another state than when it was sent, or if its files were deleted."""
    async with Ledger.open(tmp_path) as ledger:
        for number, name in enumerate(("run-1", "run-2", "run-3"), start=1):
            model = Model(name, f"/m/{name}", ModelState.CANDIDATE, None, 1.0)
            await ledger.models.add(model)
            await ledger.model_buttons.add(7, number, model)
        await ledger.models.move("run-1", ModelState.REJECTED, "worse")
        await ledger.models.drop_directory("run-2")
        assert await ledger.model_buttons.outdated() == [(7, 1), (7, 2)]
        await ledger.model_buttons.remove(7, 1)
        assert await ledger.model_buttons.outdated() == [(7, 2)]


async def test_an_erasure_forgets_the_messages(tmp_path: Path) -> None:
    """When an admin's data is erased, nothing remains about the messages in their chat."""
    async with Ledger.open(tmp_path) as ledger:
        for person in (7, 8):
            await ledger.people.save(Person(person), Chat(person))
            await ledger.model_buttons.add(person, 1, Model("run-1", "/m", ModelState.CANDIDATE, None, 1.0))
        await ledger.models.add(Model("run-1", "/m", ModelState.REJECTED, None, 1.0))
        await ledger.personal_data.erase(7)
        assert await ledger.model_buttons.outdated() == [(8, 1)]
