"""Buttons for admins, and dry runs of /retrain."""

from __future__ import annotations

from dataclasses import replace
from enum import EnumType
from pathlib import Path

import pytest
from aiogram import Router
from aiogram.filters.callback_data import CallbackData
from aiogram.types import CallbackQuery, User

from bot.handlers import broadcast, models, review, runs
from bot.handlers.commands import Command
from bot.telegram.callback_data import ADMIN_BUTTONS
from storage.learning_records import Actor, Model, Run
from storage.state_machines import ModelState, RunState
from tests.support.chatting import ADMIN, Notebook, Stage, final_reply, shows
from tests.support.person import button

RUN = Run(1, RunState.TRAINING, "admin", ADMIN, 1.0, 1.0, step=5, steps=20)


async def test_a_dry_run_begins_nothing(stage: Stage) -> None:
    """`/retrain dry` reports what a run would learn, from how many raters, and what it would omit.

    No run is started.
    """
    admin = Notebook()
    async with stage.bot(admin=admin), stage.person(ADMIN, "Root") as root:
        assert (await final_reply(root, "/retrain dry"))["text"].splitlines() == [
            "A run started now would learn from 45 liked answers from 6 people; its model would be judged on 5 rated "
            "answers.",
            "Largest share from one person: 80 %.",
            "Corrections: 9 (20 %).",
            "Of 72 rated answers, these were left out: 4 not liked enough, 1 cut off, 2 too long, 3 repeated, 12 "
            "over the limit per person.",
            "New people whose votes don't count yet: 2. The first of these votes count from 1970-01-01 00:00 UTC "
            "(training.rater_age = 2 hours; 0 counts them at once).",
            "Method: qlora; each answer is used 6 times.",
            "Other sources: food.",
        ]
        assert "/retrain dry" in (await final_reply(root, "/retrain now"))["text"]
    assert admin.asked == [("plan",)]


async def test_a_dry_run_says_that_nothing_could_judge(stage: Stage) -> None:
    """If no answers can judge a run, a dry run says that the run would end undecided, and what it takes."""
    async with stage.bot(admin=Notebook(judged=0)), stage.person(ADMIN, "Root") as root:
        text = (await final_reply(root, "/retrain dry"))["text"]
        assert (
            "⚠ A run started now would end undecided" in text and "at least 12 rated answers of the live model" in text
        )


async def test_a_futile_run_is_foreseen(stage: Stage) -> None:
    """If nearly all answers are liked, /retrain says that the run can't have a result, and so does a dry run."""
    admin = Notebook(liked_of_shown=60)
    async with stage.bot(admin=admin), stage.person(ADMIN, "Root") as root:
        warning = "⚠ A run started now would end without a new model, because nearly all answers"
        for command in ("/retrain dry", "/retrain"):
            text = (await final_reply(root, command))["text"]
            assert warning in text and "liked (60 of 60)" in text and "Give 👎" in text
        assert "Run 3 is starting" in text
        admin.same = replace(RUN, id=2)
        text = (await final_reply(root, "/retrain"))["text"]
        assert warning in text and text.endswith("Train again anyway?")
        admin.liked_of_shown = 40
        assert "⚠" not in (await final_reply(root, "/retrain"))["text"]


async def test_a_user_config_is_named(stage: Stage) -> None:
    """A dry run with the operator's own recipe file names the file instead of the hyperparameters."""
    admin = Notebook(recipe=Path("/etc/bot/mine.py"))
    async with stage.bot(admin=admin), stage.person(ADMIN, "Root") as root:
        assert "Method: as set in mine.py." in (await final_reply(root, "/retrain dry"))["text"].splitlines()


async def test_a_run_is_cancelled_by_its_button(stage: Stage) -> None:
    """The button under a run's progress message cancels that run only and disappears when the run ends."""
    admin = Notebook()
    async with stage.bot(admin=admin) as bot, stage.person(ADMIN, "Root") as root:
        run = await bot.ledger.runs.start("admin", ADMIN)
        await bot.notices.run_changed(RUN)
        await bot.notices.settled()
        (shown,) = await root.bot_messages()
        assert await root.toast(await root.taps("Cancel", shown)) == "Run 1 is being cancelled."
        await bot.ledger.runs.move(run.id, RunState.CANCELLED)
        await bot.ledger.runs.start("admin", ADMIN)
        assert await root.toast(await root.taps("Cancel", shown)) == "Run 1 has already ended."
        await bot.notices.run_changed(replace(RUN, state=RunState.CANCELLED))
        await bot.notices.settled()
        (shown,) = await root.bot_messages()
        assert button(shown, "Cancel") is None
    assert admin.asked == [("cancel", ADMIN)]


async def test_without_news_retrain_asks(stage: Stage) -> None:
    """If nothing has changed since the last run, /retrain asks for confirmation with a button.

    A tap on the button is refused if another run has ended in the meantime.
    """
    admin = Notebook(same=replace(RUN, id=1, state=RunState.DONE))
    async with stage.bot(admin=admin) as bot, stage.person(ADMIN, "Root") as root:
        for _ in range(2):
            run = await bot.ledger.runs.start("admin", ADMIN)
            for state in (RunState.TRAINING, RunState.MERGING, RunState.EVALUATING, RunState.DONE):
                await bot.ledger.runs.move(run.id, state)
        asked = await final_reply(root, "/retrain")
        assert asked["text"] == "Nothing has changed since run 1. Train again anyway?"
        assert await root.toast(await root.taps("Train again", asked)) == "Another run has ended since."
        assert ("retrain", ADMIN) not in admin.asked
        admin.same = replace(RUN, id=2, state=RunState.DONE)
        await root.taps("Train again", await final_reply(root, "/retrain"))
        assert "Run 3 is starting" in (await root.answer(rated=False))["text"]
        assert ("retrain", ADMIN) in admin.asked
        none = "Nothing new since run 2, so no scheduled run will start."
        assert none not in (await final_reply(root, "/status"))["text"].splitlines()
        admin.schedule = "0 4 * * *"
        assert none in (await final_reply(root, "/status"))["text"].splitlines()


async def test_models_are_changed_by_buttons(stage: Stage) -> None:
    """/models has buttons for the previous model and all other accepted ones; outdated buttons are refused."""
    admin = Notebook()
    async with stage.bot(admin=admin) as bot, stage.person(ADMIN, "Root") as root, stage.person() as ada:
        for name in ("base", "run-0", "run-2"):
            await bot.ledger.models.add(Model(name, f"/{name}", ModelState.CANDIDATE, None, 1.0))
            await bot.ledger.promotions.make(name)
        listed = await final_reply(root, "/models")
        assert [key["text"] for row in listed["reply_markup"]["inline_keyboard"] for key in row] == [
            "↩ Back to run-0",
            "Switch to base",
        ]
        await root.taps("Switch to base", listed)
        await shows(root, "base now answers everyone.")
        await root.taps("Back to", listed)
        await stage.handled(bot)
        await bot.ledger.promotions.make("run-0", Actor("Root", ADMIN))
        assert "A different model is live now" in await root.toast(await root.taps("Back to", listed))
        stage.emulator.world.chats[1001].messages[99] = {**listed, "message_id": 99}
        forwarded = {**listed, "message_id": 99, "chat": {"id": 1001}}
        assert await ada.toast(await ada.taps("Back to", forwarded)) == "Only admins can do that."
    assert admin.asked == [("promote", "base", ADMIN), ("rollback", ADMIN)]


async def test_a_rejected_model_answers_once_that_is_confirmed(stage: Stage) -> None:
    """Switching to a rejected model by /promote or /rollback shows why it was rejected and needs confirmation.

    The confirmation is refused once a different model is live.
    """
    admin = Notebook(doubted={"run-1": "worse", "base": "3 of its answers are empty or repeat themselves"})
    async with stage.bot(admin=admin) as bot, stage.person(ADMIN, "Root") as root, stage.person() as ada:
        for name in ("run-1", "run-2"):
            await bot.ledger.models.add(Model(name, f"/{name}", ModelState.CANDIDATE, None, 1.0))
        await bot.ledger.promotions.make("run-2")
        asked = await final_reply(root, "/promote run-1")
        assert asked["text"] == "run-1 didn't go live: worse. Use it anyway?"
        back = await final_reply(root, "/rollback")
        assert back["text"].startswith("base didn't go live: 3 of its answers")
        stage.emulator.world.chats[1001].messages[99] = {**asked, "message_id": 99}
        forwarded = {**asked, "message_id": 99, "chat": {"id": 1001}}
        assert await ada.toast(await ada.taps("Switch to", forwarded)) == "Only admins can do that."
        assert admin.asked == []
        await root.taps("Switch to run-1", asked)
        await shows(root, "run-1 now answers everyone.")
        await root.taps("Switch to base", back)
        await shows(root, "base now answers everyone.")
        await bot.ledger.promotions.make("run-1")
        assert "A different model is live now" in await root.toast(await root.taps("Switch to run-1", asked))
    assert admin.asked == [("promote", "run-1", ADMIN), ("rollback", ADMIN)]


def _tap(kind: type[CallbackData]) -> CallbackQuery:
    """Return a tap on a button with callback data of type `kind`."""
    types = {name: field.annotation for name, field in kind.model_fields.items()}
    fields = {name: "keep" if isinstance(each, EnumType) else "1" for name, each in types.items()}
    data = kind(**fields).pack()
    return CallbackQuery(id="1", from_user=User(id=1, is_bot=False, first_name="Ada"), chat_instance="1", data=data)


async def test_other_people_cannot_use_admins_buttons(stage: Stage) -> None:
    """A user who is not an admin cannot use any admin button, not even a forwarded or forged one."""
    admins = Router()
    for subject in (runs, models, broadcast, review):
        subject.register(admins)
    for handler in admins.callback_query.handlers:
        assert any([await each.call(_tap(kind)) for kind in ADMIN_BUTTONS for each in handler.filters or ()])
    forged = [_tap(kind).data or "" for kind in ADMIN_BUTTONS]
    admin = Notebook()
    async with stage.bot(admin=admin), stage.person() as ada:
        asked = await final_reply(ada, "/start")
        rows = [[{"text": data, "callback_data": data}] for data in forged]
        shown = {**asked, "message_id": 99, "reply_markup": {"inline_keyboard": rows}}
        stage.emulator.world.chats[ada.id].messages[99] = shown
        for data in forged:
            assert await ada.toast(await ada.presses(data, shown)) == "Only admins can do that."
    assert admin.asked == []


def test_a_command_must_say_who_may_use_it() -> None:
    """A handler cannot be registered for a command that is in no list: it would be open to everybody."""
    with pytest.raises(ValueError, match=r"list disk in bot/handlers/menu\.py"):
        Command("status", "disk")
