"""The /model command: the live version and its training data."""

from __future__ import annotations

from storage.learning_records import Model, Rating
from storage.state_machines import ModelState, RunState
from tests.support.chatting import Stage, final_reply, png
from tests.support.person import UP


async def test_model_names_version_and_votes(stage: Stage) -> None:
    """/model names the live version and the number of votes and users behind it; the first version has none."""
    async with stage.bot() as bot, stage.person() as ada, stage.person(1002, "小伟", "zh") as wei:
        assert (await final_reply(ada, "/model"))["text"] == "There's no model yet."
        ledger = bot.ledger
        await ledger.models.add(Model("base", "/m/base", ModelState.CANDIDATE, None, 1.0))
        await ledger.promotions.make("base")
        assert "Version 1 (base). The original model" in (await final_reply(ada, "/model"))["text"]
        for person in (ada, wei):
            await person.toast(await person.taps(UP, await person.asks(photo=png())))
        run = await ledger.runs.start("admin")
        await ledger.run_selections.freeze(run.id, [(1, "train"), (2, "train")])
        for state in (RunState.TRAINING, RunState.MERGING, RunState.EVALUATING, RunState.DONE):
            await ledger.runs.move(run.id, state)
        await ledger.models.add(Model("run-1", "/m/1", ModelState.CANDIDATE, run.id, 2.0))
        await ledger.promotions.make("run-1")
        await ledger.votes.cast(Rating(1, 99, 1, 10**12))  # after the fact
        assert (await final_reply(ada, "/model"))[
            "text"
        ] == "Version 2 (run-1), trained on 2 liked answers (2 votes from 2 people)."
        assert (await final_reply(wei, "/model"))[
            "text"
        ] == "第 2 版（run-1），用 2 条好评回答（来自 2 人的 2 次评价）训练而成。"
