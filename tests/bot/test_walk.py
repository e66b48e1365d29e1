"""Every command and every button of the whole bot works in English and in Chinese.

The commands are read from the handlers, the buttons from the keyboards and the messages, so the test
fails if a new command or button is not used here.
"""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from aiogram import Router
from aiogram.filters import Command
from aiogram.filters.callback_data import CallbackData

import bot.handlers.access
from bot.handlers.menu import ADMINS, EVERYBODY
from bot.i18n import SOURCE_LANGUAGE, Say, Translator
from bot.telegram import callback_data
from bot.updates.ordering import command_of
from tests.support.person import Message, Person, button
from tests.support.speech import foreign
from tests.support.whole_bot import ADMIN, WholeBot, picture, whole_bot, words

BOT: Final = "@thumbtune_bot"
MODULES: Final = [
    importlib.import_module(f"bot.handlers.{each.name}") for each in pkgutil.iter_modules(bot.handlers.__path__)
]
BUTTONS: Final[dict[str, type[CallbackData]]] = {
    each.__prefix__: each for each in CallbackData.__subclasses__() if each.__module__.startswith("bot.")
}
ABOUT: Final = frozenset({"exchange", "correction", "update", "run", "model", "live", "node", "duel"})
"""Fields of callback data that name the object of a button; the others name its action."""

NAMED_IN_THEMSELVES: Final = frozenset({"English", "English ✓", "中文", "中文 ✓"})
STOPPED: Final = "{model} was stopped; the live model answers everyone again."
IN_FLIGHT: Final = "gate:1 words:3"
"""A question whose answer stops at its first word until it is released."""


def commands() -> set[str]:
    """Return the commands of all handlers except those that refuse commands.

    The refusing handlers take their commands from the menu.
    """
    router = Router()
    for module in MODULES:
        if hasattr(module, "register") and module not in (bot.handlers.access, bot.handlers.commands):
            module.register(router)
    filters = [part.callback for handler in router.message.handlers for part in handler.filters or ()]
    return {str(name) for each in filters if isinstance(each, Command) for name in each.commands}


def kind(data: str) -> str:
    """Return a button's action without its object: `rate:1` for `rate:17:1`, `promote` for `promote:run-3`."""
    prefix = data.partition(":")[0]
    choices = [str(value) for name, value in BUTTONS[prefix].unpack(data) if name not in ABOUT]
    return ":".join([prefix, *choices])


def keys(message: Message) -> Iterator[dict[str, Any]]:
    """Yield the inline buttons of a message."""
    for row in message.get("reply_markup", {}).get("inline_keyboard", []):
        yield from row


@dataclass
class Walk:
    """A driver that sends messages and presses buttons, and records the commands and buttons used."""

    whole: WholeBot
    say: Say
    sent: set[str] = field(default_factory=set)
    pressed: set[str] = field(default_factory=set)

    async def sends(self, person: Person, text: str | None = None, *, chat: int | None = None, **what: Any) -> Message:
        """Send a message and return the bot's final reply."""
        self.sent.add(command_of(text))
        asked = await person.sends(text, chat=chat, **what)
        return await self.whole.says(chat or person.id, after=asked["message_id"])

    async def presses(self, person: Person, what: str, message: Message) -> str:
        """Press the button of kind `what` under `message` as soon as it is shown, and return the toast."""
        messages = self.whole.emulator.world.chats[message["chat"]["id"]].messages
        async with person.time_limit(20, f"the button {what}"):
            data = None
            while data is None:
                now = messages[message["message_id"]]
                data = next((key["callback_data"] for key in keys(now) if kind(key["callback_data"]) == what), None)
                await asyncio.sleep(0.005)
        self.pressed.add(what)
        toast = await person.toast(await person.presses(data, message))
        assert toast != self.say("This button no longer works."), what
        return toast

    async def shown(self, person: Person, asked: Message, label: str) -> Message:
        """Wait for a message after `asked` that has a button labelled `label`, and return the message."""
        messages = self.whole.emulator.world.chats[person.id].messages
        async with person.time_limit(20, f"the button {label}"):
            while True:
                for number, message in messages.items():
                    if number > asked["message_id"] and button(message, label):
                        return dict(message)
                await asyncio.sleep(0.005)

    async def hears(self, person: Person, sentence: str, **values: object) -> Message:
        """Wait for a message from the bot that begins with the translated `sentence`, and return it."""
        expected = self.say(sentence, **values)
        return await self.whole.says(person.id, lambda message: words(message).startswith(expected))

    async def asks(self, person: Person, text: str | None = None, **what: Any) -> Message:
        """Ask a question, check that the answer can be rated, and return the answer."""
        answer = await self.sends(person, text, **what)
        assert button(answer, "👍"), words(answer)
        return answer


async def before_anything(walk: Walk, ada: Person) -> None:
    """Before the first picture, send commands, a question and unreadable files, and press /privacy buttons."""
    for command in ("/start", "/help", "/model", "/new", "/retry", "/stop", "/dance"):
        await walk.sends(ada, command)
    await walk.sends(ada, "?")
    await walk.sends(ada, document=b"%PDF-1.4", file_name="a.pdf", media_type="application/pdf")
    await walk.sends(ada, document=b"\x89PNG\r\n\x1a\n", file_name="a.png", media_type="image/png")
    privacy = await walk.sends(ada, "/privacy")
    await walk.presses(ada, "learn:0", privacy)
    await walk.presses(ada, "learn:1", privacy)
    await walk.presses(ada, "notes:1", privacy)
    await walk.presses(ada, "notes:0", privacy)
    await walk.presses(ada, "learn_as_guest:1", privacy)
    await walk.presses(ada, "learn_as_guest:0", privacy)


async def chatting(walk: Walk, ada: Person) -> None:
    """Rate, correct, regenerate and stop answers."""
    answer = await walk.asks(ada, photo=picture(1))
    for _ in range(2):
        await walk.presses(ada, "rate:1", answer)
    await walk.presses(ada, "rate:-1", answer)
    for reason in callback_data.DislikeReason:
        await walk.presses(ada, f"because:{reason}", answer)
    before = (await ada.bot_messages())[-1]["message_id"]
    await walk.presses(ada, "better", answer)
    asking = await walk.whole.says(ada.id, after=before)
    offer = await walk.sends(ada, "🐈", reply_to=asking["message_id"])
    await walk.presses(ada, "teach:0", offer)
    offer = await walk.sends(ada, "🐈🐈", reply_to=answer["message_id"])
    await walk.presses(ada, "asks", offer)
    await walk.whole.says(ada.id, lambda message: bool(button(message, "🔄")), after=offer["message_id"] - 1)
    await walk.presses(ada, "again", answer)
    await walk.whole.says(ada.id, lambda message: bool(button(message, "👍")), after=offer["message_id"])
    assert button(await walk.sends(ada, "/retry"), "👍")
    asked = await ada.sends(IN_FLIGHT)
    streaming = await walk.shown(ada, asked, "⏹")
    await walk.presses(ada, "stop", streaming)
    await walk.whole.says(ada.id, after=asked["message_id"])
    asked = await ada.sends(IN_FLIGHT)
    streaming = await walk.shown(ada, asked, "⏹")
    await walk.sends(ada, "/stop")


async def in_a_group(walk: Walk, ada: Person, bob: Person) -> None:
    """Send the commands in a group, and press the buttons under another user's answer."""
    group = walk.whole.emulator.add_group("🎈", [ada.id, bob.id], admin=True).id
    walk.whole.emulator.world.knows_ephemeral = False  # so that everything said is in the chat
    for command in EVERYBODY:
        await walk.sends(bob, f"/{command}{BOT}", chat=group)
    answer = await walk.asks(bob, photo=picture(2), caption=BOT, chat=group)
    await walk.presses(bob, "rate:-1", answer)
    await walk.presses(ada, "again", answer)
    before = answer["message_id"]
    await walk.presses(ada, "better", answer)
    asking = await walk.whole.says(group, after=before)
    offer = await walk.sends(ada, "🐕", reply_to=asking["message_id"], chat=group)
    await walk.presses(ada, "teach:1", offer)


async def changing_the_language(walk: Walk, eve: Person, language: str, other: str) -> None:
    """Choose each language, and check that the toast and the /help text are in the chosen language."""
    offer = await walk.sends(eve, "/language")
    assert foreign(words(offer), other) == []
    for code in (language, other, language):
        assert foreign(await walk.presses(eve, f"language:{code}", offer), code) == []
        helped = await walk.sends(eve, "/help")
        assert foreign(words(helped), code) == []


async def administrating(walk: Walk, root: Person, ada: Person) -> None:
    """Use the admin commands that change no model, and check that other users are refused."""
    for command in ADMINS:
        assert "/help" in words(await walk.sends(ada, f"/{command} base"))
    for command in (
        *("/start", "/help", "/status", "/schedule", "/stats", "/stats x", "/models", "/promote", "/promote run-9"),
        *("/rollback", "/cancel", "/broadcast", "/broadcast 🎉", "/retrain x", "/retrain dry", "/retrain"),
    ):
        await walk.sends(root, command)
    await walk.whole.says(ada.id, lambda message: words(message) == "🎉")
    walk.whole.emulator.faults.plan("flood", 99, methods=["sendMessage"], chat=ada.id)
    asked = await root.sends("/broadcast 🎈")
    await walk.presses(root, "cancel_broadcast", await walk.shown(root, asked, "✖"))
    walk.whole.emulator.faults.clear()
    await walk.whole.says(root.id, lambda message: not any(keys(message)), after=asked["message_id"])
    card = await walk.sends(root, "/review")
    await walk.sends(root, "A cup!", reply_to=card["message_id"])
    for verdict in ("next", "drop", "keep", "undo"):
        await walk.presses(root, f"review:{verdict}", card)


async def training(walk: Walk, root: Person, ada: Person) -> None:
    """Start, follow and cancel runs, some yielding worse models and some better, and use those models."""
    for seed in range(10, 15):
        await walk.presses(ada, "rate:1", await walk.asks(ada, photo=picture(seed)))
    await walk.sends(root, "/retrain dry")
    walk.whole.cue("hang")
    for number in (1, 2):
        begun = await walk.sends(root, "/retrain")
        shown = await walk.whole.says(root.id, lambda message: "▓" in words(message), after=begun["message_id"])
        await walk.sends(root, "/status")
        await walk.sends(root, "/retrain")
        if number == 1:
            await walk.presses(root, "cancel", shown)
        else:
            await walk.sends(root, "/cancel")
        await walk.hears(root, "Run {run} was cancelled. Nothing has changed.", run=number)
    done = "Run {run} is done. Model {model}: {state}."
    for number, cue, state in ((3, "worse", "rejected"), (4, "good", "candidate"), (5, "good", "candidate")):
        walk.whole.cue(cue)
        begun = await walk.sends(root, "/retrain")
        if number > 3:
            await walk.presses(root, "train_again", begun)
        ended = await walk.hears(root, done, run=number, model=f"run-{number}", state=walk.say(state))
        if state == "candidate":
            await walk.presses(root, "approve", ended)
            tried = await walk.shown(root, ended, walk.say("✖ Stop"))
            for command in ("/status", "/models"):
                await walk.sends(root, command)
            for choice in (0, 1, 2) if number == 5 else ():
                answer = await walk.asks(root, photo=picture(10 * number + choice))
                await walk.presses(root, "again", answer)
                await walk.presses(root, f"prefer:{choice}", await walk.shown(root, answer, "1️⃣"))
            await walk.presses(root, "promote" if number == 4 else "stop_canary", tried)
            settled = "{model} now answers everyone." if number == 4 else STOPPED
            await walk.hears(root, settled, model=f"run-{number}")
    for command in ("/status", "/schedule"):
        await walk.sends(root, command)
    doubted = await walk.sends(root, "/promote run-3")
    await walk.presses(root, "overrule:0", doubted)
    await walk.whole.says(root.id, after=doubted["message_id"])
    await walk.sends(ada, "/model")
    earlier = await walk.sends(root, "/models")
    for what in ("rollback", "promote"):
        models = await walk.sends(root, "/models")
        await walk.presses(root, what, models)
        await walk.whole.says(root.id, after=models["message_id"])
    await walk.sends(root, "/rollback")
    assert await walk.presses(root, "rollback", earlier), "another model answers meanwhile"


async def leaving(walk: Walk, ada: Person) -> None:
    """Ask twice to delete the user's data, declining the first time and confirming the second."""
    for decision in ("delete:0", "delete:1"):
        question = await walk.sends(ada, "/delete_my_data")
        await walk.presses(ada, decision, question)
        async with ada.time_limit(20, "the question to be settled"):
            while any(keys(walk.whole.emulator.world.chats[ada.id].messages[question["message_id"]])):
                await asyncio.sleep(0.005)


async def everything_said(whole: WholeBot, spoken: str, but: int) -> AsyncIterator[tuple[str, str]]:
    """Yield the menu texts in the language `spoken` and every text outside the chat `but`.

    Edits and toasts are included. Each text comes with its callback data, which is empty unless the text
    belongs to a button.
    """
    last = whole.emulator.world.events.last
    for (*_, language), menu in whole.emulator.world.commands.items():
        if (language or SOURCE_LANGUAGE) == spoken:
            for command in menu:
                yield command["description"], ""
    async for event in whole.emulator.world.events.follow(0, lambda event: True):
        if event["chat"] != but:
            message = event.get("message") or {}
            if message.get("from", {}).get("is_bot"):
                yield words(message), ""
                for key in keys(message):
                    yield key["text"], key["callback_data"]
            elif event["kind"] == "toast":
                yield event["text"], ""
        if event["id"] == last:
            return


async def test_every_command_is_in_the_menu() -> None:
    """The command menu lists exactly the commands that the handlers take."""
    assert commands() == EVERYBODY.keys() | ADMINS.keys()


@pytest.mark.parametrize(("language", "other"), [("en", "zh"), ("zh", "en")])
async def test_every_command_and_button(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: str, other: str
) -> None:
    """Users of either language can use every command and button, and get every text in their language."""
    async with whole_bot(tmp_path, monkeypatch) as whole:
        walk = Walk(whole, Translator.load().to(language))
        root = await whole.person(ADMIN, "Root", language)
        ada = await whole.person(1001, "Ada", language)
        bob = await whole.person(1002, "Bob", language)
        eve = await whole.person(1003, "Eve", other)
        async with whole.running(
            inference={"gpus": [0, 1]}, training={"canary": 0.5, "approve": True}, chat={"guests": True}
        ):
            await before_anything(walk, ada)
            await walk.sends(root, "/start")  # an admin's language is known once they have written
            await chatting(walk, ada)
            await in_a_group(walk, ada, bob)
            await changing_the_language(walk, eve, language, other)
            await administrating(walk, root, ada)
            await training(walk, root, ada)
            await leaving(walk, ada)
        assert walk.sent - {""} >= commands()
        seen = set[str]()
        strange: dict[str, list[str]] = {}
        async for said, label in everything_said(whole, language, eve.id):
            if label:
                seen.add(kind(label))
            if said not in NAMED_IN_THEMSELVES and (found := foreign(said, language)):
                strange[said] = found
        assert strange == {}
        assert seen <= walk.pressed, "buttons that were not pressed"
        assert {each.partition(":")[0] for each in walk.pressed} == BUTTONS.keys(), "buttons that were not shown"
