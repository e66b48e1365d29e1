"""Guest mode: answers in chats where the bot is not a member, consent to learn from them, votes, and interruptions."""

from __future__ import annotations

import asyncio
import multiprocessing.process
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bot.handlers.guests import NO_PICTURE
from bot.handlers.unhandled_updates import SORRY
from storage.chat_records import Exchange
from storage.guests import GUESTS
from storage.learning_records import Rating
from tests.support.bot_process import FORGE
from tests.support.chatting import (
    Notebook,
    RunningBot,
    ScriptedEngine,
    Stage,
    final_reply,
    live,
    png,
    settings,
    shows,
    until,
)
from tests.support.person import DOWN, UP, Person, button

BOT = "@thumbtune_bot"
ON: dict[str, Any] = {"guests": True}


@asynccontextmanager
async def strangers(stage: Stage) -> AsyncIterator[tuple[Person, Person, int]]:
    """Yield Ada, Bob and the ID of a group of theirs that the bot is not in."""
    async with stage.person(1001) as ada, stage.person(1002, "Bob") as bob:
        yield ada, bob, stage.emulator.add_group("Strangers", [ada.id, bob.id], member=False).id


async def consent(person: Person, label: str) -> None:
    """Press the button `label` below /privacy in the private chat, and wait for its effect."""
    answer = await final_reply(person, "/privacy")
    query = await person.taps(label, answer)
    await person.toast(query)


async def test_a_guest_answers_once_and_edits_its_answer(stage: Stage) -> None:
    """A mention in a reply to a picture is answered in one message, stored, and neither rated nor a conversation."""
    gate = asyncio.Event()
    async with stage.bot(["A ", gate, "cat."], "Grey.", chat=ON) as bot, strangers(stage) as (ada, bob, group):
        picture = await bob.sends(photo=png(), caption="Look!", chat=group)
        await ada.sends(f"What is it, {BOT}?", reply_to=picture["message_id"], chat=group)
        begun = await shows(ada, "A", group)
        assert begun["guest_bot_caller_user"]["id"] == ada.id
        gate.set()
        answer = await shows(ada, "A cat.", group)
        await stage.handled(bot)
        assert (answer["message_id"], answer.get("reply_markup")) == (begun["message_id"], None)
        await ada.sends(photo=png(colour="red"), caption=f"{BOT} And this?", chat=group)
        await shows(ada, "Grey.", group)
        await stage.handled(bot)
        assert bot.engine.heard() == ["And this?"], "no history"
        assert bot.engine.prompts[0].turns[0].text == "What is it, ?"
        first, second = await bot.ledger.exchanges.get(1), await bot.ledger.exchanges.get(2)
        assert (first.chat, first.asker, first.session != second.session) == (GUESTS, ada.id, True)
        assert (await bot.ledger.people.get(ada.id)).name == "Ada"  # type: ignore[union-attr]
        assert await bot.ledger.people.chat(group) is None
        assert await bot.ledger.people.private_chats() == []
        assert stage.emulator.counts(group).sends == 2


async def test_a_guests_answer_is_edited_as_rarely_as_a_groups(stage: Stage) -> None:
    """Edits of a guest's answer are three times as far apart as in a private chat, because it has a group's limits."""
    words = [step for number in range(60) for step in (f"{number} ", 0.03)]
    began = time.monotonic()
    async with stage.bot(words, chat=ON, telegram={"edit_seconds": 0.2}), strangers(stage) as (ada, bob, group):
        picture = await bob.sends(photo=png(), chat=group)
        await ada.sends(f"What is it, {BOT}?", reply_to=picture["message_id"], chat=group)
        await shows(ada, "".join(f"{number} " for number in range(60)).strip(), group)
        assert 1 <= stage.emulator.counts(group).edits <= 2 + (time.monotonic() - began) / 0.6


async def test_the_bot_is_no_guest_by_default(stage: Stage) -> None:
    """Without `chat.guests` Telegram is not asked for guest queries, and /privacy does not mention them."""
    async with stage.bot() as bot, strangers(stage) as (ada, _, group):
        assert "guest" not in (await final_reply(ada, "/privacy"))["text"]
        await ada.sends(photo=png(), caption=f"{BOT} What?", chat=group)
        await stage.handled(bot)
        assert stage.emulator.world.guest_queries and not await ada.bot_messages(group)


async def taught(bot: RunningBot) -> list[int]:
    """Return the IDs of the exchanges from which a run would learn."""
    return [each.exchange.id for each in await bot.ledger.votes.rated_exchanges()]


async def test_votes_are_offered_and_learned_only_with_consent(stage: Stage) -> None:
    """With the asker's consent others may vote and the answer teaches; without it neither happens, even later."""
    async with stage.bot(chat=ON) as bot, strangers(stage) as (ada, bob, group):
        await ada.sends(photo=png(), caption=f"{BOT} One?", chat=group)
        await shows(ada, "Answer 1", group)
        await stage.handled(bot)
        await bot.ledger.votes.cast(Rating(1, bob.id, 1, 10**6))
        assert await taught(bot) == []
        assert await bot.ledger.comparisons.new_questions("a", "b", 10) == []
        await consent(ada, "from guest mode too")
        assert await taught(bot) == [1]
        assert len(await bot.ledger.comparisons.new_questions("a", "b", 10)) == 1
        await ada.sends(photo=png(), caption=f"{BOT} Two?", chat=group)
        answer = await ada.answer(rated=True, chat=group)
        toast = await bob.toast(await bob.taps(UP, answer))
        assert toast == "Thanks! I'll remember that you like this."
        await ada.toast(await ada.taps(DOWN, answer))
        await until(lambda: marked(ada, group, f"{UP} 1", f"{DOWN} 1"))
        assert [len(row) for row in (await ada.messages(group))[-1]["reply_markup"]["inline_keyboard"]] == [2]
        assert await taught(bot) == [1, 2]
        run = await bot.ledger.runs.start("schedule")
        await bot.ledger.run_selections.freeze(run.id, [(2, "train")])
        await consent(ada, "Don't learn from guest mode")
        assert await taught(bot) == []
        assert await bot.ledger.run_selections.of(run.id) == []
        assert "no longer works" in await bob.toast(await bob.taps(UP, answer))


async def marked(person: Person, chat: int, *labels: str) -> bool:
    """Return whether the last message of a chat has buttons with these labels."""
    (message,) = (await person.messages(chat))[-1:]
    return all(button(message, label) is not None for label in labels)


async def test_a_forged_tap_rates_nothing(stage: Stage) -> None:
    """A tap on a guest's message cannot rate an exchange that the message does not show."""
    async with stage.bot(chat=ON) as bot, strangers(stage) as (ada, bob, group):
        await bob.asks(photo=png())
        await consent(ada, "from guest mode too")
        await ada.sends(photo=png(), caption=f"{BOT} One?", chat=group)
        answer = await ada.answer(rated=True, chat=group)
        forged = {**answer, "reply_markup": {"inline_keyboard": [[{"text": UP, "callback_data": "rate:1:1"}]]}}
        world = stage.emulator.world
        world.replace(world.chats[group], forged)
        assert "can't find that answer" in await ada.toast(await ada.presses("rate:1:1", answer))
        assert await bot.ledger.votes.latest(1, ada.id) is None


async def test_a_guest_explains_what_it_needs_and_keeps_limits(stage: Stage) -> None:
    """A mention without a picture gets instructions, limits apply, and blocked people get no answer."""
    limits = {"questions_per_minute": 1, "blocked": [1002]}
    async with stage.bot(chat=ON, limits=limits) as bot, strangers(stage) as (ada, bob, group):
        await ada.sends(f"{BOT} hello", chat=group)
        await shows(ada, NO_PICTURE, group)
        await ada.sends(photo=png(), caption=f"{BOT} One?", chat=group)
        await shows(ada, "Answer 1", group)
        await ada.sends(photo=png(), caption=f"{BOT} Two?", chat=group)
        await until(lambda: received(ada, group, "That's the limit"))
        await bob.sends(photo=png(), caption=f"{BOT} Three?", chat=group)
        await stage.handled(bot)
        assert len(await ada.bot_messages(group)) == 3
        assert len(bot.engine.prompts) == 1


async def received(person: Person, chat: int, words: str) -> bool:
    """Return whether the bot's last message in a chat contains `words`."""
    return any(words in each["text"] for each in (await person.bot_messages(chat))[-1:])


async def test_a_guests_asker_can_have_everything_deleted(stage: Stage) -> None:
    """The deletion lists and deletes what a person asked the guest, with the pictures, and the consent."""
    async with stage.bot(chat=ON) as bot, strangers(stage) as (ada, _, group):
        await consent(ada, "from guest mode too")
        await ada.sends(photo=png(), caption=f"{BOT} What?", chat=group)
        await ada.answer(rated=True, chat=group)
        asked = await final_reply(ada, "/delete_my_data")
        assert "1 question with its answer" in asked["text"] and "1 picture" in asked["text"]
        await ada.taps("🗑", asked)
        await until(lambda: received(ada, ada.id, "I've deleted everything"))
        totals = await bot.ledger.counts.totals()
        assert (totals["exchanges"], totals["pictures"]) == (0, 0)
        person = await bot.ledger.people.get(ada.id)
        assert person is None or not person.teaches_as_guest


@pytest.mark.parametrize("shown", [False, True], ids=["before the answer", "in mid-answer"])
async def test_an_interrupted_guest_finishes_in_the_same_message(stage: Stage, shown: bool) -> None:
    """A question that was stored or half answered when the bot stopped is answered by the next process."""
    never = asyncio.Event()
    async with strangers(stage) as (ada, _, group):
        made = settings(stage.url, stage.emulator.token, chat=ON)
        first = RunningBot(made, stage.directory, ScriptedEngine(["Half", never]), Notebook())
        if not shown:
            stage.emulator.faults.plan("flood", 1, methods=["answerGuestQuery"], seconds=600)
        first.start()
        await ada.sends(photo=png(), caption=f"{BOT} What?", chat=group)
        if shown:
            await shows(ada, "Half", group)
        else:
            await until(lambda: not stage.emulator.faults.planned)
        await first.stop(grace=0)
        async with stage.bot("Whole.", chat=ON) as second:
            await shows(ada, "Whole.", group)
            await stage.handled(second)
            assert len(await ada.bot_messages(group)) == 1


async def test_a_killed_guest_answers_in_the_same_message(stage: Stage) -> None:
    """After `kill -9` in mid-answer, the next process finishes the answer in the same message."""

    def start() -> multiprocessing.process.BaseProcess:
        process = FORGE.Process(target=live, args=(stage.url, stage.emulator.token, str(stage.directory), 0.5))
        process.start()
        return process

    async with strangers(stage) as (ada, _, group):
        bot = start()
        try:
            await ada.sends(photo=png(), caption=f"{BOT} What?", chat=group)
            await shows(ada, "About", group)
            bot.kill()
            await asyncio.to_thread(bot.join)
            bot = start()
            await shows(ada, "About What?: all is well.", group)
            assert len(await ada.bot_messages(group)) == 1
        finally:
            bot.kill()
            await asyncio.to_thread(bot.join)


async def test_a_query_that_telegram_has_dropped_is_done(stage: Stage) -> None:
    """If Telegram no longer accepts the answer, the update is done, because there is no other way to answer."""
    async with stage.bot(chat=ON) as bot, strangers(stage) as (ada, _, group):
        words = "query is too old and response timeout expired or query ID is invalid"
        stage.emulator.faults.plan("refused", 1, methods=["answerGuestQuery"], words=words)
        await ada.sends(f"{BOT} hello", chat=group)
        await stage.handled(bot)
        assert not stage.emulator.faults.planned and not await ada.bot_messages(group)
        assert (await bot.ledger.counts.totals())["updates_set_aside"] == 0


async def test_a_message_whose_id_was_lost_stays(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the bot stops before it has recorded the message of a guest, the message stays, and the update is done."""
    recorded = asyncio.Event()

    async def never(update: int, slot: int, message: int | str) -> None:
        recorded.set()
        await asyncio.Event().wait()

    async with strangers(stage) as (ada, _, group):
        made = settings(stage.url, stage.emulator.token, chat=ON)
        first = RunningBot(made, stage.directory, ScriptedEngine(), Notebook())
        monkeypatch.setattr(first.ledger.replies, "sent", never)
        first.start()
        await ada.sends(photo=png(), caption=f"{BOT} What?", chat=group)
        await recorded.wait()
        await first.stop(grace=0)
        async with stage.bot(chat=ON) as second:
            await stage.handled(second)
            (left,) = await ada.bot_messages(group)
            assert left["text"] == "Looking at your picture…"
            assert (await second.ledger.counts.totals())["updates_set_aside"] == 0


async def test_a_guest_apologizes_for_what_it_gave_up(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """If every attempt at a guest query fails, its message becomes an apology."""

    async def fails(exchange: Exchange) -> Exchange:
        raise RuntimeError("no")

    monkeypatch.setattr("bot.updates.inbox_processor.PAUSES", (0.01,))
    async with stage.bot(chat=ON) as bot, strangers(stage) as (ada, _, group):
        monkeypatch.setattr(bot.ledger.exchanges, "record", fails)
        await ada.sends(photo=png(), caption=f"{BOT} What?", chat=group)
        await shows(ada, SORRY, group)
        assert len(await ada.bot_messages(group)) == 1


async def test_a_long_answer_is_cut_to_one_message(stage: Stage) -> None:
    """A guest has one message, so an answer that needs more ends in an ellipsis; all of it is stored."""
    words = "word " * 1500
    async with stage.bot(words, chat=ON) as bot, strangers(stage) as (ada, _, group):
        await ada.sends(photo=png(), caption=f"{BOT} What?", chat=group)
        await until(lambda: received(ada, group, "word …"))
        await stage.handled(bot)
        assert len(await ada.bot_messages(group)) == 1
        assert (await bot.ledger.exchanges.get(1)).answer == words
