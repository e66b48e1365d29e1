"""What admins do by buttons, and what a run would be before it is one."""

from __future__ import annotations

from dataclasses import replace

from storage.records import Model, Run
from storage.states import ModelState, RunState
from tests.chatting import ADMIN, Notebook, Stage, shows, told
from tests.person import button

RUN = Run(1, RunState.TRAINING, "admin", ADMIN, 1.0, 1.0, step=5, steps=20)


async def test_a_dry_run_begins_nothing(stage: Stage) -> None:
    """/retrain dry says how much would be learned, from how many raters, and why not more."""
    admin = Notebook()
    async with stage.bot(admin=admin), stage.person(ADMIN, "Root") as root:
        assert (await told(root, "/retrain dry"))["text"].splitlines() == [
            "A run now would learn from 45 liked answers, 6 raters; it would be judged by 5 more.",
            "Of 60 rated answers 4 are not liked enough, 1 were cut short, 2 are too long, 3 say the same as others.",
            "How: qlora, each pair 6 times.",
            "Beside them from elsewhere: food.",
        ]
        assert "/retrain dry" in (await told(root, "/retrain now"))["text"]
    assert admin.asked == [("plan",)]


async def test_a_run_is_cancelled_by_its_button(stage: Stage) -> None:
    """The progress has a button as long as the run goes on; it cancels that run and no later one."""
    admin = Notebook()
    async with stage.bot(admin=admin) as bot, stage.person(ADMIN, "Root") as root:
        run = await bot.ledger.start_run("admin", ADMIN)
        await bot.notices.run_changed(RUN)
        (shown,) = await root.bot_messages()
        assert await root.toast(await root.taps("Cancel", shown)) == "Run 1 is being cancelled."
        await bot.ledger.move_run(run.id, RunState.CANCELLED)
        await bot.ledger.start_run("admin", ADMIN)
        assert await root.toast(await root.taps("Cancel", shown)) == "Run 1 is over already."
        await bot.notices.run_changed(replace(RUN, state=RunState.CANCELLED))
        (shown,) = await root.bot_messages()
        assert button(shown, "Cancel") is None
    assert admin.asked == [("cancel", ADMIN)]


async def test_models_are_changed_by_buttons(stage: Stage) -> None:
    """/models offers the model before, and every other that was good enough; a second tap changes nothing."""
    admin = Notebook()
    async with stage.bot(admin=admin) as bot, stage.person(ADMIN, "Root") as root, stage.person() as ada:
        for name in ("base", "run-0", "run-2"):
            await bot.ledger.add_model(Model(name, f"/{name}", ModelState.CANDIDATE, None, 1.0))
            await bot.ledger.promote(name)
        listed = await told(root, "/models")
        assert [key["text"] for row in listed["reply_markup"]["inline_keyboard"] for key in row] == [
            "↩ Back to run-0",
            "Answer with base",
        ]
        await root.taps("Answer with base", listed)
        await shows(root, "base answers from now on.")
        await root.taps("Back to", listed)
        await stage.handled(bot)
        await bot.ledger.promote("run-0", ADMIN)
        assert "Another model answers meanwhile" in await root.toast(await root.taps("Back to", listed))
        stage.emulator.world.chats[1001].messages[99] = {**listed, "message_id": 99}
        forwarded = {**listed, "message_id": 99, "chat": {"id": 1001}}
        assert await ada.toast(await ada.taps("Back to", forwarded)) == "Only my admins can do that."
    assert admin.asked == [("models",), ("promote", "base", ADMIN), ("rollback", ADMIN)]
