"""Regenerating and stopping answers."""

from __future__ import annotations

import asyncio
import time

from bot.telegram.keyboards import AGAIN
from inference.messages import Delta, EngineUnavailable
from storage.learning_records import Model
from storage.state_machines import ModelState
from tests.support.chatting import ADMIN, Stage, final_reply, png, shows, until
from tests.support.person import DOWN, UP, button

STOP = "⏹"


async def test_another_answer_stands_beside_the_first(stage: Stage) -> None:
    """🔄 adds a second answer that quotes the question; both can be rated, and only the newest has 🔄."""
    async with stage.bot("One.", "Two.") as bot, stage.person() as ada:
        question = await ada.sends(photo=png(), caption="What?")
        first = await ada.answer(rated=True)
        await ada.toast(await ada.taps(AGAIN, first))
        second = await ada.answer(rated=True, after=first["message_id"])
        await bot.settled()
        assert second["text"] == "Two."
        assert second["reply_to_message"]["message_id"] == question["message_id"]

        async def updated() -> bool:
            shown = [(button(each, UP), button(each, AGAIN)) for each in await ada.bot_messages()]
            return shown == [("rate:1:1", None), ("rate:2:1", "again:2")]

        await until(updated)  # buttons are updated in the background
        one, two = [await bot.ledger.exchanges.get(number) for number in (1, 2)]
        assert (one.replaces, two.replaces) == (None, 1)
        assert (one.question, one.pictures, one.prompt_hash) == (two.question, two.pictures, two.prompt_hash)
        assert one.seed != two.seed
        for message, thumb in ((first, DOWN), (second, UP)):
            await ada.toast(await ada.taps(thumb, message))
        await bot.settled()
        assert [await bot.ledger.votes.latest(number, ada.id) for number in (1, 2)] == [-1, 1]
        assert [button(each, AGAIN) for each in await ada.bot_messages()] == [None, "again:2"]


async def test_a_duel_needs_two_answers(stage: Stage) -> None:
    """During a canary, 🔄 asks both models and shows their answers as a duel.

    If one model fails, or both give the same answer, a single answer is shown.
    """
    async with (
        stage.bot("One.", [EngineUnavailable("gone")], "Two.", "Three.", "Three.", "A.", "B.") as bot,
        stage.person() as ada,
    ):
        await bot.ledger.models.add(Model("base", "/m/base", ModelState.LIVE, None, 1.0))
        await bot.ledger.models.add(Model("run-1", "/m/1", ModelState.CANDIDATE, None, 1.0))
        await bot.ledger.canaries.start("run-1", 0.5)
        answer = await ada.asks(photo=png(), caption="What?")
        for expected in ("Two.", "Three."):
            await ada.taps(AGAIN, answer)
            answer = await ada.answer(rated=True, after=answer["message_id"])
            assert answer["text"] == expected
        await ada.taps(AGAIN, answer)
        duel = await final_reply(ada, after=answer["message_id"])
        assert duel["text"].split() == ["1️⃣", "A.", "2️⃣", "B.", "Which", "is", "better?"]
        await bot.settled()
        asked = [each.model for each in bot.engine.prompts]
        assert asked[0] == "" and [set(asked[number : number + 2]) for number in (1, 3, 5)] == 3 * [{"base", "run-1"}]


async def test_a_duel_is_decided_once(stage: Stage) -> None:
    """A duel gives the chosen answer one 👍; once this vote is removed, later taps do not restore it."""
    async with stage.bot("One.", "A.", "B.") as bot, stage.person() as ada:
        await bot.ledger.models.add(Model("base", "/m/base", ModelState.LIVE, None, 1.0))
        await bot.ledger.models.add(Model("run-1", "/m/1", ModelState.CANDIDATE, None, 1.0))
        await bot.ledger.canaries.start("run-1", 0.5)
        answer = await ada.asks(photo=png(), caption="What?")
        await ada.taps(AGAIN, answer)
        duel = await final_reply(ada, after=answer["message_id"])
        chosen = button(duel, "2️⃣")
        assert chosen is not None
        await ada.toast(await ada.presses(chosen, duel))
        await bot.settled()
        shown = stage.emulator.world.chats[ada.id].messages[duel["message_id"]]
        assert shown["text"].split("\n\n") == ["1️⃣ A.", "2️⃣ B.", "You chose 2️⃣."]
        exchange = await bot.ledger.exchanges.for_message(ada.id, duel["message_id"])
        assert exchange is not None and exchange.answer == "B."
        assert await bot.ledger.votes.latest(exchange.id, ada.id) == 1
        assert await ada.toast(await ada.taps(f"{UP} ✓", duel)) == "I've removed your vote."
        stage.emulator.world.chats[ada.id].messages[99] = old = {**duel, "message_id": 99}
        await ada.toast(await ada.presses(chosen, old))
        await bot.settled()
        assert await bot.ledger.votes.latest(exchange.id, ada.id) is None
        assert button((await ada.bot_messages())[-1], UP) == f"rate:{exchange.id}:1"


async def test_a_regenerated_answer_to_a_deleted_question_is_dropped(stage: Stage) -> None:
    """If the first answer is deleted while the second is streaming, one reply says the question was dropped."""
    go_on = asyncio.Event()
    async with stage.bot("One.", ["Two", go_on, "."]) as bot, stage.person() as ada:
        first = await ada.asks(photo=png(), caption="What?")
        await ada.toast(await ada.taps(AGAIN, first))
        await until(lambda: len(bot.engine.prompts) == 2)
        assert await bot.ledger.personal_data.expire(time.time() + 1) == 1
        go_on.set()
        assert "dropped this question" in (await final_reply(ada, after=first["message_id"]))["text"]
        await bot.settled()
        assert len(bot.engine.prompts) == 2
        assert (await bot.ledger.counts.totals())["exchanges"] == 0


async def test_the_newest_answer_is_in_the_history(stage: Stage) -> None:
    """A regenerated answer replaces the first one in the next prompt and in the training data."""
    async with stage.bot("One.", "Later.", "Two.", "Last.") as bot, stage.person() as ada:
        first = await ada.asks(photo=png(), caption="a?")
        later = await ada.asks("b?")
        await ada.toast(await ada.taps(AGAIN, first))
        again = await ada.answer(rated=True, after=later["message_id"])
        assert bot.engine.heard() == ["a?"], "another answer is given as the first one was"
        last = await ada.asks("c?")
        assert bot.engine.heard() == ["a?", "Two.", "b?", "Later.", "c?"]
        await ada.toast(await ada.taps(UP, again))
        await ada.toast(await ada.taps(UP, last))
        rated = {each.exchange.answer: each for each in await bot.ledger.votes.rated_exchanges()}
        assert [each.answer for each in rated["Two."].history] == []
        assert [each.answer for each in rated["Last."].history] == ["Two.", "Later."]


async def test_retry_is_about_the_last_question(stage: Stage) -> None:
    """/retry regenerates the last answer, or says that there is nothing to answer again."""
    async with stage.bot("One.", "Two.", "Three.", chat={"temperature": 0}) as bot, stage.person() as ada:
        assert "nothing to answer again" in (await final_reply(ada, "/retry"))["text"]
        await ada.asks(photo=png(), caption="a?")
        await ada.asks("b?")
        assert (await ada.asks("/retry"))["text"] == "Three."
        assert bot.engine.heard() == ["a?", "One.", "b?"]
        assert bot.engine.prompts[1].sampling.temperature == 0
        assert bot.engine.prompts[2].sampling.temperature > 0, "the likeliest words would only be said again"
        assert (await bot.ledger.exchanges.get(3)).replaces == 2


async def test_an_old_button_regenerates_nothing(stage: Stage) -> None:
    """Two quick taps on the same 🔄 button give only one new answer."""
    async with stage.bot() as bot, stage.person() as ada:
        first = await ada.asks(photo=png())
        taps = [await ada.taps(AGAIN, first) for _ in range(2)]
        assert [await ada.toast(query) for query in taps] == ["", "There's already a newer answer to this question."]
        await bot.settled()
        assert len(bot.engine.prompts) == 2


async def test_stop_keeps_the_partial_answer(stage: Stage) -> None:
    """⏹ ends generation; the partial answer is recorded, can be rated and is part of the history."""
    never = asyncio.Event()
    async with stage.bot(["Half an", never, " answer."], "Next.") as bot, stage.person() as ada:
        await ada.sends(photo=png(), caption="a?")
        unfinished = await shows(ada, "Half an")
        assert await ada.toast(await ada.taps(STOP, unfinished)) == "Stopping…"
        answer = await ada.answer(rated=True)
        assert (answer["text"], button(answer, STOP)) == ("Half an", None)
        assert bot.engine.ended == 1
        exchange = await bot.ledger.exchanges.get(1)
        assert (exchange.answer, exchange.finish, exchange.model) == ("Half an", "abort", "scripted")
        await ada.toast(await ada.taps(UP, answer))
        await ada.asks("b?")
        assert bot.engine.heard() == ["a?", "Half an", "b?"]
        assert len(await ada.bot_messages()) == 2


async def test_the_stop_command_does_not_wait_for_the_answer(stage: Stage) -> None:
    """/stop ends the answer in flight, drops the queued questions and says so; later questions are answered."""
    never = asyncio.Event()
    async with stage.bot(["One", never]) as bot, stage.person() as ada:
        assert (await final_reply(ada, "/stop"))["text"] == "There's nothing to stop."
        await ada.sends(photo=png(), caption="a?")
        await shows(ada, "One")
        await ada.sends("b?")
        await ada.sends("/stop")
        await bot.settled()
        texts = [message["text"] for message in await ada.bot_messages()][1:]
        assert sorted(texts) == ["I stopped before writing anything.", "I've stopped.", "One"]
        assert len(bot.engine.prompts) == 1
        assert (await ada.asks("c?"))["text"] == "Answer 2"


async def test_a_queued_question_can_be_stopped(stage: Stage) -> None:
    """⏹ removes a waiting question from the queue, and nothing is recorded."""
    never = asyncio.Event()
    async with stage.bot([Delta(waiting=2), never]) as bot, stage.person() as ada:
        await ada.sends(photo=png())
        await ada.toast(await ada.taps(STOP, await shows(ada, "2 questions ahead of yours…")))
        assert (await final_reply(ada))["text"] == "I stopped before writing anything."
        assert bot.engine.ended == 1
        assert (await bot.ledger.counts.totals())["exchanges"] == 0


async def test_a_late_stop_finds_a_finished_answer(stage: Stage) -> None:
    """A tap on ⏹ after the answer has finished changes nothing."""
    gate = asyncio.Event()
    async with stage.bot(["All", gate, " of it."]) as bot, stage.person() as ada:
        await ada.sends(photo=png())
        unfinished = await shows(ada, "All")
        data = button(unfinished, STOP)
        gate.set()
        answer = await ada.answer(rated=True)
        stage.emulator.world.chats[ada.id].messages[answer["message_id"]] = unfinished  # as seen by a slow client
        query = stage.emulator.people.presses(ada.id, answer["message_id"], str(data))
        assert await ada.toast(query) == "That answer is already finished."
        assert (await bot.ledger.exchanges.get(1)).finish == "stop"


async def test_only_the_asker_and_admins_stop_and_regenerate(stage: Stage) -> None:
    """In a group, only the user who asked and admins can stop or regenerate an answer."""
    never = asyncio.Event()
    async with (
        stage.bot(["Half", never], ["Other", never]) as bot,
        stage.person(1001) as ada,
        stage.person(1002, "Bob") as bob,
        stage.person(ADMIN, "Root") as root,
    ):
        group = stage.emulator.add_group("Friends", [ada.id, bob.id, root.id]).id
        await ada.sends(photo=png(), caption="@thumbtune_bot a?", chat=group)
        unfinished = await shows(ada, "Half", group)
        assert await bob.toast(await bob.taps(STOP, unfinished)) == "Only the person who asked can do that."
        await ada.toast(await ada.taps(STOP, unfinished))
        answer = await ada.answer(rated=True, chat=group)
        assert await bob.toast(await bob.taps(AGAIN, answer)) == "Only the person who asked can do that."
        await root.toast(await root.taps(AGAIN, answer))
        unfinished = await shows(ada, "Other", group)
        await root.toast(await root.taps(STOP, unfinished))
        await bot.settled()
        assert [(await bot.ledger.exchanges.get(number)).asker for number in (1, 2)] == [ada.id, ada.id]
