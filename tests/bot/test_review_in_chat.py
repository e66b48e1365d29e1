"""/review: an admin keeps, drops and edits answers one by one in a private chat, through the emulator."""

from __future__ import annotations

import asyncio
from typing import Any

from storage.chat_records import Chat
from storage.chat_records import Person as Known
from storage.learning_records import Rating, ReviewDecision
from storage.review_cards import CardFilter
from tests.support.chatting import ADMIN, Stage, final_reply, png
from tests.support.ledgers import exchange, picture
from tests.support.person import Person

ADA = 11


async def rated(bot: Any, *answers: str) -> list[int]:
    """Record Ada's exchanges with `answers`, the newest with a picture, each with a 👍; return their IDs."""
    await bot.ledger.people.save(Known(ADA, "Ada"), Chat(ADA))
    session = await bot.ledger.sessions.open(ADA, ADA)
    shown = picture(await bot.pictures.put(png()))
    await bot.ledger.pictures.add(shown)
    ids = []
    for number, answer in enumerate(answers, 1):
        pictures = (shown.sha256,) if number == len(answers) else ()
        said = exchange(session, -number, chat=ADA, asker=ADA, answer=answer, pictures=pictures)
        ids.append((await bot.ledger.exchanges.record(said)).id)
        await bot.ledger.votes.cast(Rating(ids[-1], ADA, 1, -number))
    return ids


def said(message: dict[str, Any]) -> str:
    """Return the text or the caption of a message."""
    return str(message.get("caption") or message.get("text"))


async def newest(root: Person, part: str, chat: int | None = None) -> dict[str, Any]:
    """Return the bot's newest message once it contains `part`."""
    async with asyncio.timeout(20):
        while True:
            messages = await root.bot_messages(chat)
            if messages and part in said(messages[-1]):
                return messages[-1]
            await asyncio.sleep(0.02)


async def test_answers_are_reviewed_one_by_one(stage: Stage) -> None:
    """The newest answer comes first, with its picture; each decision is recorded, marked, and followed by the next."""
    async with stage.bot() as bot, stage.person(ADMIN, "Root") as root:
        first, second, third = await rated(bot, "One.", "Two.", "Three!")
        await root.sends("/review")
        card = await newest(root, "Three!")
        assert "Ada: " in said(card) and "👍 1" in said(card) and card["photo"]
        assert (
            await root.toast(await root.taps("✖ Drop", card)) == "Dropped: no run uses it for training or evaluation."
        )
        card = await newest(root, "Two.")
        assert "photo" not in card
        await root.sends("Two, and funny!", reply_to=card["message_id"])
        await newest(root, "Edited: this text replaces the answer in training.")
        assert await root.toast(await root.taps("Next ›", card)) == ""
        card = await newest(root, "One.")
        await root.toast(await root.taps("✓ Keep", card))
        await newest(root, "nothing left to review")
        cards, _ = await bot.ledger.review_cards.page(CardFilter(), None, 9)
        decided = {each.exchange.id: each.reviews[-1] for each in cards if each.reviews}
        dropped = next(each for each in await root.bot_messages() if "Three!" in said(each))
        assert "✖ Drop ✓" in str(dropped["reply_markup"])
    assert {number: each.decision for number, each in decided.items()} == {
        first: ReviewDecision.KEEP,
        second: ReviewDecision.EDIT,
        third: ReviewDecision.DROP,
    }
    assert {each.reviewer for each in decided.values()} == {"Root"}
    assert decided[second].text == "Two, and funny!"


async def test_a_decision_is_undone_by_its_button(stage: Stage) -> None:
    """After a decision or an edit the card has a button that undoes it; the card then is as before."""
    async with stage.bot() as bot, stage.person(ADMIN, "Root") as root:
        first, second = await rated(bot, "One.", "Two!")
        await root.sends("/review")
        dropped = await newest(root, "Two!")
        assert "Undo" not in str(dropped["reply_markup"])
        await root.toast(await root.taps("✖ Drop", dropped))
        edited = await newest(root, "One.")
        await root.sends("One, and funny!", reply_to=edited["message_id"])
        await newest(root, "Edited: this text replaces the answer in training.")
        for card in (dropped, edited):
            await root.toast(await root.taps("↶ Undo", await redrawn(root, card, "Undo")))
            assert (await redrawn(root, card, "Next"))["reply_markup"] == card["reply_markup"]
        cards, _ = await bot.ledger.review_cards.page(CardFilter(unreviewed=True), None, 9)
        assert {each.exchange.id: [review.decision for review in each.reviews] for each in cards} == {
            first: [ReviewDecision.EDIT, ReviewDecision.UNDO],
            second: [ReviewDecision.DROP, ReviewDecision.UNDO],
        }


async def redrawn(root: Person, card: dict[str, Any], last: str) -> dict[str, Any]:
    """Return the present version of the message `card` once its last button contains `last`."""
    async with asyncio.timeout(20):
        while True:
            found = next(each for each in await root.bot_messages() if each["message_id"] == card["message_id"])
            if last in found["reply_markup"]["inline_keyboard"][-1][-1]["text"]:
                return found
            await asyncio.sleep(0.02)


async def test_only_admins_review_and_only_in_private(stage: Stage) -> None:
    """Others are refused, and a group is never shown other people's answers."""
    async with stage.bot() as bot, stage.person(ADMIN, "Root") as root, stage.person() as ada:
        await rated(bot, "Secret.")
        group = stage.emulator.add_group("Cups", [ADMIN]).id
        assert "Only admins" in (await final_reply(ada, "/review"))["text"]
        await root.sends("/review", chat=group)
        await newest(root, "private chat", group)
        assert "Secret" not in await root.chat_so_far(group)
