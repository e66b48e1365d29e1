"""Votes by button and by reaction, in private chats and in groups; reasons and corrections."""

from __future__ import annotations

import pytest

from storage.chat_records import Exchange
from storage.errors import UnknownRecord
from storage.learning_records import RatedExchange, Trust
from tests.support.chatting import ADMIN, RunningBot, Stage, png, until
from tests.support.ledgers import newest_update
from tests.support.lessons import settings
from tests.support.person import DOWN, UP, Message, Person, button
from training.data.selection import select_pairs

BETTER = "✍"


async def latest(bot: RunningBot, person: Person, chat: int | None = None) -> Message:
    """Wait until all updates are handled, and return the bot's last message."""
    await bot.settled()
    return (await person.bot_messages(chat))[-1]


async def labels(bot: RunningBot, person: Person, chat: int | None = None) -> list[list[str]]:
    """Return the labels of the buttons under the bot's last message, row by row."""
    message = await latest(bot, person, chat)
    return [[key["text"] for key in row] for row in message.get("reply_markup", {}).get("inline_keyboard", [])]


async def test_the_same_thumb_again_takes_it_back(stage: Stage) -> None:
    """A second tap on the same thumb withdraws the vote, so it no longer counts; the ledger keeps both rows."""
    async with stage.bot() as bot, stage.person() as ada:
        answer = await ada.asks(photo=png())
        await ada.toast(await ada.taps(UP, answer))
        assert await ada.toast(await ada.taps(UP, answer)) == "I've removed your vote."
        assert await bot.ledger.votes.latest(1, ada.id) is None
        assert await labels(bot, ada) == [["👍", "👎", "🔄"]]
        counts = await bot.ledger.counts.totals()
        assert (counts["votes"], counts["ups"], counts["downs"]) == (2, 0, 0)
        assert await bot.ledger.votes.rated_exchanges() == []
        await ada.toast(await ada.taps(UP, answer))
        assert await bot.ledger.votes.latest(1, ada.id) == 1


async def test_a_thumb_down_offers_reasons(stage: Stage) -> None:
    """A 👎 offers reasons; the chosen one is stored and marked, and changing the vote to 👍 removes the reasons."""
    async with stage.bot() as bot, stage.person() as ada:
        answer = await ada.asks(photo=png())
        await ada.toast(await ada.taps(DOWN, answer))
        assert await labels(bot, ada) == [
            ["👍", "👎 ✓", "🔄"],
            ["Not true", "Off topic"],
            ["Wrong length", "Wrong tone"],
            ["✍ Suggest a better answer"],
        ]
        await ada.toast(await ada.taps("Not true", answer))
        assert (await labels(bot, ada))[1] == ["Not true ✓", "Off topic"]
        update = newest_update(bot.ledger)
        rating = await bot.ledger.votes.by_update(update)
        assert rating is not None
        assert (rating.value, rating.reason) == (-1, "wrong")
        await ada.toast(await ada.taps(UP, answer))
        assert await labels(bot, ada) == [["👍 ✓", "👎", "🔄"]]


async def test_another_answer_keeps_the_mark_of_a_reason(stage: Stage) -> None:
    """After 🔄, the reason for a 👎 on the former answer is still marked."""
    async with stage.bot() as bot, stage.person() as ada:
        answer = await ada.asks(photo=png())

        def shows(label: str) -> bool:
            return button(stage.emulator.world.chats[ada.id].messages[answer["message_id"]], label) is not None

        await ada.taps(DOWN, answer)
        await until(lambda: shows("Not true"))
        await ada.taps("Not true", answer)
        await until(lambda: shows("Not true ✓"))
        await ada.taps("🔄", answer)
        await bot.settled()
        await until(lambda: not shows("🔄"))
        assert shows("👎 ✓") and shows("Not true ✓")


async def test_a_reaction_is_a_vote(stage: Stage) -> None:
    """👍 and 👎 reactions to an answer work like the buttons; other reactions do not count."""
    async with stage.bot() as bot, stage.person() as ada:
        question = await ada.sends(photo=png())
        answer = await ada.answer(rated=True)
        for message, emoji, rating in (
            (answer, "👍", 1),
            (answer, "👎", -1),
            (question, "👍", -1),
            (answer, "🔥", None),
            (answer, "👍", 1),
            (answer, "", None),
        ):
            await ada.reacts(message, emoji)
            await stage.handled(bot)
            assert await bot.ledger.votes.latest(1, ada.id) == rating
            marked = [label for label in (await labels(bot, ada))[0] if "✓" in label]
            assert marked == {1: ["👍 ✓"], -1: ["👎 ✓"], None: []}[rating], "the buttons show what counts"


async def test_in_a_group_all_votes_count(stage: Stage) -> None:
    """Each group member, including the user who asked, has one vote, and the buttons show the totals."""
    async with (
        stage.bot() as bot,
        stage.person(1001) as ada,
        stage.person(1002, "Bob") as bob,
        stage.person(1003, "Cy") as cy,
    ):
        group = stage.emulator.add_group("Friends", [ada.id, bob.id, cy.id], admin=True).id
        await ada.sends(photo=png(), caption="@thumbtune_bot What?", chat=group)
        answer = await ada.answer(rated=True, chat=group)
        await ada.toast(await ada.taps(UP, answer))
        await bob.toast(await bob.taps(UP, answer))
        await cy.toast(await cy.taps(DOWN, answer))
        assert await labels(bot, ada, group) == [["👍 2", "👎 1", "🔄"], ["✍ Suggest a better answer"]]
        (rated,) = await bot.ledger.votes.rated_exchanges()
        assert (rated.exchange.asker, rated.ups, rated.downs) == (ada.id, 2, 1)
        assert rated.raters == (ada.id, bob.id, cy.id)
        await bob.reacts(answer, "👎")
        await cy.toast(await cy.taps(DOWN, answer))
        await stage.handled(bot)
        (rated,) = await bot.ledger.votes.rated_exchanges()
        assert (rated.ups, rated.downs, rated.raters) == (1, 1, (ada.id, bob.id))


async def taught(bot: RunningBot) -> list[tuple[str, bool]]:
    """Return the rated answers available for training and, for each, whether it is a correction."""
    rated = await bot.ledger.votes.rated_exchanges(Trust(admins=frozenset({ADMIN})))
    return [(each.exchange.answer, each.corrected) for each in rated]


async def test_a_correction_teaches_once_it_is_confirmed(stage: Stage) -> None:
    """✍ asks for a correction, a reply suggests one, an admin's 👍 confirms it, and 👎 withdraws it.

    The conversation keeps the original answer.
    """
    async with stage.bot("A dog.", "Yes.") as bot, stage.person() as ada, stage.person(ADMIN, "Root") as root:
        answer = await ada.asks(photo=png(), caption="What is it?")
        await ada.toast(await ada.taps(DOWN, answer))
        await bot.settled()
        await ada.toast(await ada.taps(BETTER, answer))
        asking = await latest(bot, ada)
        assert "What would have been a better answer?" in asking["text"]
        assert asking["reply_to_message"]["message_id"] == answer["message_id"]
        await ada.sends("It is a cat.", reply_to=asking["message_id"])
        offer = await offered(bot, ada)
        assert await labels(bot, ada) == [["👎 Don't learn it"]]
        assert await taught(bot) == [("A dog.", False)]
        asked = await latest(bot, root)
        assert asked["photo"], "an admin sees the picture"
        assert asked["caption"].startswith("Should I learn from this correction by Ada?")
        assert "My answer: A dog.\n\nBetter: It is a cat." in asked["caption"]
        assert await root.toast(await root.taps(UP, asked)) == "Thanks! I'll learn this."
        assert await taught(bot) == [("It is a cat.", True)]
        assert await labels(bot, root) == [["👍 Learn from it ✓", "👎 Don't"]]
        assert await ada.toast(await ada.taps(DOWN, offer)) == "OK, I won't learn this."
        assert await labels(bot, ada) == [["👎 Don't learn it ✓"]]
        assert await taught(bot) == [("A dog.", False)]
        await ada.asks("Sure?")
        assert bot.engine.heard() == ["What is it?", "A dog.", "Sure?"]


async def test_a_long_correction_is_shown_below_the_picture(stage: Stage) -> None:
    """A correction that is too long for a caption is shown in full, in a message of its own below the picture."""
    async with stage.bot("A dog.") as bot, stage.person() as ada, stage.person(ADMIN, "Root") as root:
        answer = await ada.asks(photo=png(), caption="What is it?")
        await ada.toast(await ada.taps(DOWN, answer))
        await ada.sends("🐈" * 600, reply_to=answer["message_id"])
        await offered(bot, ada)
        asked = await latest(bot, root)
        assert asked["text"].endswith("🐈" * 600)
        assert "photo" in (await root.bot_messages())[-2]
        assert await root.toast(await root.taps(UP, asked)) == "Thanks! I'll learn this."


async def test_an_author_cannot_confirm_a_correction_in_a_private_chat(stage: Stage) -> None:
    """An author who sends the data of the button that confirms a correction, which is not shown, is refused."""
    async with stage.bot("A dog.") as bot, stage.person() as ada:
        answer = await ada.asks(photo=png(), caption="What is it?")
        await ada.toast(await ada.taps(DOWN, answer))
        await ada.sends("It is a cat.", reply_to=answer["message_id"])
        await tap_confirm(stage, await offered(bot, ada), ada)
        await bot.settled()
        assert await taught(bot) == [("A dog.", False)]


async def tap_confirm(stage: Stage, offer: Message, person: Person) -> None:
    """Send the data of the button that confirms the correction of `offer`, which only has the other button."""
    withdraw = button(offer, DOWN)
    assert withdraw
    own = (await person.messages())[-1]
    tap = {"id": "1", "from": own["chat"] | {"is_bot": False}, "chat_instance": "1", "message": own}
    stage.emulator.world.updates.add("callback_query", tap | {"data": f"{withdraw[:-1]}1"})


async def test_a_correction_is_not_decided_from_another_chat(stage: Stage) -> None:
    """A user who sends the data of a correction's button from another chat does not confirm it."""
    async with stage.bot("A dog.", "Fine.") as bot, stage.person() as ada, stage.person(8, "Mallory") as mallory:
        answer = await ada.asks(photo=png(), caption="What is it?")
        await ada.toast(await ada.taps(DOWN, answer))
        await bot.settled()
        await ada.toast(await ada.taps(BETTER, answer))
        await ada.sends("It is a cat.", reply_to=(await latest(bot, ada))["message_id"])
        offer = await offered(bot, ada)
        await mallory.asks(photo=png())
        await tap_confirm(stage, offer, mallory)
        await bot.settled()
        assert await taught(bot) == [("A dog.", False)]


async def test_a_reply_to_a_disliked_answer_is_a_correction(stage: Stage) -> None:
    """A reply to an answer is a correction if the user dislikes the answer; otherwise it is a question.

    Editing the reply replaces the correction.
    """
    async with stage.bot("A dog.") as bot, stage.person(ADMIN) as ada:
        answer = await ada.asks(photo=png(), caption="What is it?")
        await ada.sends("Sure?", reply_to=answer["message_id"])
        await ada.answer(rated=True)
        assert len(bot.engine.prompts) == 2
        await ada.toast(await ada.taps(DOWN, answer))
        suggestion = await ada.sends("A cta.", reply_to=answer["message_id"])
        await offered(bot, ada)
        await ada.edits(suggestion, "A cat.")
        await stage.handled(bot)
        await ada.reacts(suggestion, "👍")
        await until(lambda: _demonstrated(bot))
        assert await taught(bot) == [("A cat.", True)]
        assert len(bot.engine.prompts) == 2
        assert len(await ada.bot_messages()) == 3


@pytest.mark.parametrize("question", ["How many are there, then?", "有几个？ "])
async def test_a_reply_that_ends_in_a_question_mark_is_a_question(stage: Stage, question: str) -> None:
    """A reply that ends in a question mark is a question, even if the user dislikes the answer."""
    async with stage.bot("A dog.", "Two.") as bot, stage.person() as ada:
        disliked = await ada.asks(photo=png(), caption="What is it?")
        await ada.toast(await ada.taps(DOWN, disliked))
        await ada.sends(question, reply_to=disliked["message_id"])
        assert (await ada.answer(rated=True))["text"] == "Two."
        assert bot.engine.heard() == ["What is it?", "A dog.", question.strip()]


async def test_a_supposed_correction_can_be_a_question(stage: Stage) -> None:
    """A button turns a supposed correction into a question; its answer replaces the offer to learn from it.

    The button works once; the question can be edited and its answer rated like any other.
    """
    async with stage.bot("A dog.", "Two.", "Grey.") as bot, stage.person() as ada:
        disliked = await ada.asks(photo=png(), caption="What is it?")
        await ada.toast(await ada.taps(DOWN, disliked))
        asked = await ada.sends("count them", reply_to=disliked["message_id"])
        offer = await offered(bot, ada)
        data = button(offer, "That was a question")
        assert data
        await ada.presses(data, offer)
        assert "no longer works" in await ada.toast(await ada.presses(data, offer))
        assert bot.engine.heard() == ["What is it?", "A dog.", "count them"]
        assert [each["text"] for each in await ada.bot_messages()] == ["A dog.", "Two."]
        await ada.reacts(asked, "👍")
        await stage.handled(bot)
        assert not await _demonstrated(bot)
        await ada.edits(asked, "name the colour")
        await stage.handled(bot)
        assert bot.engine.heard() == ["What is it?", "A dog.", "name the colour"]
        assert [each["text"] for each in await ada.bot_messages()] == ["A dog.", "Grey."]
        assert UP in str((await labels(bot, ada))[-1:])


async def _demonstrated(bot: RunningBot) -> bool:
    return any(shown for _, shown in await taught(bot))


async def offered(bot: RunningBot, person: Person, chat: int | None = None) -> Message:
    """Wait for the bot's offer to learn what the user has just suggested, and return the offer's message."""
    await until(lambda: _offers(bot, person, chat))
    return await latest(bot, person, chat)


async def _offers(bot: RunningBot, person: Person, chat: int | None) -> bool:
    shown = str(await labels(bot, person, chat))
    return "Learn from it" in shown or "Don't learn it" in shown


async def test_in_a_group_another_person_confirms(stage: Stage) -> None:
    """Any group member may suggest a correction, and another user's 👍 confirms it.

    The author's own 👍 does not confirm it, but the author may withdraw it.
    """
    async with (
        stage.bot("A dog.") as bot,
        stage.person(1001) as ada,
        stage.person(1002, "Bob") as bob,
        stage.person(ADMIN, "Root") as root,
    ):
        group = stage.emulator.add_group("Friends", [ada.id, bob.id, root.id]).id
        await ada.sends(photo=png(), caption="@thumbtune_bot What?", chat=group)
        answer = await ada.answer(rated=True, chat=group)
        await bob.toast(await bob.taps(DOWN, answer))
        await bot.settled()
        await bob.toast(await bob.taps(BETTER, answer))
        asking = await latest(bot, bob, group)
        await bob.sends("A cat.", reply_to=asking["message_id"], chat=group)
        offer = await offered(bot, bob, group)
        assert "another person" in offer["text"]
        assert "Someone else or an admin" in await bob.toast(await bob.taps(UP, offer))
        assert not await _demonstrated(bot)
        for person in (ada, root):
            await person.toast(await person.taps(UP, offer))
            assert await taught(bot) == [("A cat.", True)]
            assert await bob.toast(await bob.taps(DOWN, offer)) == "OK, I won't learn this."
        assert await taught(bot) == [("A dog.", False)]


async def test_corrections_are_limited_a_day(stage: Stage) -> None:
    """A user's corrections beyond the daily limit are not stored, not even when they are edited."""
    async with stage.bot(limits={"corrections_per_day": 1}) as bot, stage.person() as ada:
        answers = [await ada.asks(photo=png(colour=colour)) for colour in ("red", "blue")]
        for answer in answers:
            await ada.toast(await ada.taps(DOWN, answer))
            suggestion = await ada.sends("Buy at example.org", reply_to=answer["message_id"])
            await stage.handled(bot)
            said = await latest(bot, ada)
        assert said["text"] == "That's the limit: 1 corrections a day. Try again tomorrow."
        first = await bot.ledger.corrections.get(1)
        with pytest.raises(UnknownRecord):
            await bot.ledger.corrections.get(2)
        assert (first.exchange, first.author) == (1, ada.id)
        await ada.edits(suggestion, "Buy at example.com")
        await stage.handled(bot)
        assert not await _demonstrated(bot)


def test_training_takes_a_correction_whatever_the_votes() -> None:
    """Training selects a confirmed correction regardless of its votes, with the corrected text as the target."""

    def shown(number: int, answer: str, ups: int, *, corrected: bool = False) -> RatedExchange:
        made = Exchange(1, 1, 1, number, "What?", (f"{number:064x}",), answer, "base", "", "", 0.8, 0.8, 512, 1, "stop",
                        10, 5, 0, 1, 0.1, 0.2, id=number)  # fmt: skip
        return RatedExchange(made, ups, 0, (1,), (1,), corrected=corrected)

    rated = [shown(1, "A cat.", 1, corrected=True), shown(2, "A dog.", 1), shown(3, "A cow.", 4)]
    chosen = select_pairs(rated, {}, settings(threshold=3).model_copy(update={"min_rated": 1}))
    pairs = chosen.train
    assert sorted(pair.lesson.turns[-1].text for pair in pairs) == ["A cat.", "A cow."]


async def test_deletion_removes_the_persons_corrections(stage: Stage) -> None:
    """Deleting a user's data removes their corrections of answers to other users and restores the originals."""
    async with stage.bot("A dog.") as bot, stage.person(1001) as ada, stage.person(1002, "Bob") as bob:
        group = stage.emulator.add_group("Friends", [ada.id, bob.id]).id
        await ada.sends(photo=png(), caption="@thumbtune_bot What?", chat=group)
        answer = await ada.answer(rated=True, chat=group)
        await ada.toast(await ada.taps(DOWN, answer))
        await bot.settled()
        await bob.toast(await bob.taps(BETTER, answer))
        await bob.sends("A cat.", reply_to=(await latest(bot, bob, group))["message_id"], chat=group)
        offer = await offered(bot, bob, group)
        await ada.toast(await ada.taps(UP, offer))
        run = await bot.ledger.runs.start("admin")
        await bot.ledger.run_selections.freeze(run.id, [(1, "train")])
        await bot.ledger.personal_data.erase(bob.id)
        assert await bot.ledger.runs.cancel_requested(run.id)
        assert await taught(bot) == [("A dog.", False)]
        assert button((await ada.bot_messages(group))[0], UP) == "rate:1:1"
