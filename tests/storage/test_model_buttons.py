"""The messages with buttons about models: which are outdated, and that an erasure removes them."""

from __future__ import annotations

from pathlib import Path

from storage.chat_records import Chat, Person
from storage.learning_records import Actor, Model
from storage.ledger import Ledger
from storage.model_buttons import ModelMessage
from storage.state_machines import ModelState, Verdict


async def test_buttons_are_outdated_once_the_state_has_changed(tmp_path: Path) -> None:
    """A message is outdated if its model is in another state than when it was sent, or if its files were deleted."""
    async with Ledger.open(tmp_path) as ledger:
        for number, name in enumerate(("run-1", "run-2", "run-3"), start=1):
            model = Model(name, f"/m/{name}", ModelState.CANDIDATE, None, 1.0)
            await ledger.models.add(model)
            await ledger.model_buttons.add(7, number, model, f"{name} is done.", caption=number == 1)
        assert await ledger.model_buttons.outdated() == []
        await ledger.models.move("run-1", ModelState.REJECTED, "worse")
        await ledger.models.drop_directory("run-2", Actor("Olga"))
        first, second = await ledger.model_buttons.outdated()
        rejected = await ledger.models.get("run-1")
        assert first == ModelMessage(7, 1, rejected, ModelState.CANDIDATE, "run-1 is done.", caption=True)
        assert (second.message, second.caption, second.model.changed_by) == (2, False, "Olga")
        await ledger.model_buttons.remove(7, 1)
        assert await ledger.model_buttons.outdated() == [second]


async def test_an_erasure_forgets_the_messages(tmp_path: Path) -> None:
    """When an admin's data is erased, nothing remains about the messages in their chat."""
    async with Ledger.open(tmp_path) as ledger:
        for person in (7, 8):
            await ledger.people.save(Person(person), Chat(person))
            await ledger.model_buttons.add(person, 1, Model("run-1", "/m", ModelState.CANDIDATE, None, 1.0), "")
        await ledger.models.add(Model("run-1", "/m", ModelState.REJECTED, None, 1.0))
        await ledger.personal_data.erase(7)
        assert [each.chat for each in await ledger.model_buttons.outdated()] == [8]


async def test_who_changed_a_model_is_known_until_the_next_change(tmp_path: Path) -> None:
    """A change by an admin is stored with their name, which the next change and the erasure of their data remove."""
    async with Ledger.open(tmp_path) as ledger:
        for name in ("base", "run-1", "run-2"):
            await ledger.models.add(Model(name, f"/m/{name}", ModelState.CANDIDATE, None, 1.0))
        await ledger.promotions.make("base")

        async def names() -> dict[str, str]:
            return {each.id: each.changed_by for each in await ledger.models.all()}

        trial = await ledger.canaries.start("run-1", 0.5, Actor("Olga"))
        assert await names() == {"base": "", "run-1": "Olga", "run-2": ""}
        await ledger.canaries.end(trial.id, Verdict.VOID, "")
        assert await names() == {"base": "", "run-1": "", "run-2": ""}
        await ledger.canaries.start("run-1", 0.5)
        await ledger.people.save(Person(7, "Ada"), Chat(7))
        await ledger.promotions.make("run-2", Actor("Ada", 7))
        assert await names() == {"base": "Ada", "run-1": "Ada", "run-2": "Ada"}
        await ledger.models.relocate("base", "/elsewhere")
        assert (await ledger.models.get("base")).changed_by == "Ada"
        await ledger.models.drop_directory("base")
        assert await names() == {"base": "", "run-1": "Ada", "run-2": "Ada"}
        await ledger.personal_data.erase(7)
        assert await names() == {"base": "", "run-1": "", "run-2": ""}
