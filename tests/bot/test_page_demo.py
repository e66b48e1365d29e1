"""The parts of the demo page around the chat, in a real Chromium: the panel, the hint and both languages.

No bot runs; the tests make the bot's calls to the Bot API.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from bot.cli.demo import ADMIN, SHAPES_ONLY, make_emulator
from inference.internvl2.tiny.samples import sample_pictures
from telegram_emulator import Emulator
from telegram_emulator.people_http import NO_LEARNING
from telegram_emulator.person_actions import Attachment

pytest.importorskip(
    "playwright.async_api", reason="no Playwright here: .venv/bin/pip install --no-deps -r requirements/browser.txt"
)

from playwright.async_api import Route, expect

from tests.support.browser import CHROMIUM, INSTALL_CHROMIUM, ChatPage, chromium

pytestmark = pytest.mark.skipif(not CHROMIUM, reason=INSTALL_CHROMIUM)

TOM = 1003


@asynccontextmanager
async def opened(emulator: Emulator, *, width: int = 390, locale: str = "en-GB") -> AsyncIterator[ChatPage]:
    """Yield the page, by default on a phone's screen, and check at the end that it has shown no error."""
    url = await emulator.start()
    for user in emulator.world.users.values():
        user.started = True
    try:
        async with chromium() as browser:
            page = ChatPage(await browser.new_page(viewport={"width": width, "height": 844}, locale=locale))
            await page.page.goto(url)
            yield page
            assert page.errors == []
            await page.page.close()
    finally:
        await emulator.stop()


async def call(page: ChatPage, emulator: Emulator, method: str, **arguments: Any) -> int:
    """Call a method of the Bot API and return the ID of the resulting message."""
    address = f"{page.page.url.rstrip('/')}/bot{emulator.token}/{method}"
    form = {name: value if isinstance(value, str) else json.dumps(value) for name, value in arguments.items()}
    async with aiohttp.ClientSession() as session, session.post(address, data=form) as answer:
        return int((await answer.json())["result"]["message_id"])


async def test_the_panel_of_a_phone_closes() -> None:
    """On a phone, Esc, ✕ or a press outside closes the panel; the focus moves into the panel and back."""
    async with opened(make_emulator()) as page:
        panel, opener = page.page.locator("#panel"), page.page.locator("#open-panel")
        await expect(page.page.locator("#me-badge")).to_be_visible()
        for way in ("tap", "Escape", "✕"):
            await opener.click()
            await expect(panel).to_be_visible()
            await expect(panel).to_be_focused()
            await expect(opener).to_have_attribute("aria-expanded", "true")
            if way == "tap":
                await page.page.mouse.click(380, 400)
            elif way == "✕":
                await page.page.locator("#close-panel").click()
            else:
                await page.page.keyboard.press(way)
            await expect(panel).to_be_hidden()
            await expect(opener).to_be_focused()
            await expect(opener).to_have_attribute("aria-expanded", "false")
        for part in ("body", ".top"):
            assert await page.page.locator(part).evaluate("it => it.scrollWidth <= it.clientWidth"), part


@dataclass
class Bot:
    """A stub of the bot's learning, which the page asks for."""

    stands: dict[str, Any] = field(default_factory=lambda: dict(NO_LEARNING))

    async def learning(self) -> dict[str, Any]:
        return self.stands


@asynccontextmanager
async def learning_page(bot: Bot) -> AsyncIterator[tuple[ChatPage, Emulator]]:
    """Yield the page of a demo whose learning stands as `bot` says, and the demo's emulator."""
    emulator = make_emulator()
    emulator.show_learning(bot.learning)
    async with opened(emulator, width=1200) as page:
        yield page, emulator


@pytest.mark.parametrize(
    ("run", "text"),
    [
        ("waiting", "press ✔ Approve under the run's result, or open the Models page"),
        ("starting", "The new model is starting"),
        ("live", "see how it answers now"),
        ("kept", "The bot keeps its old model; the run's message says why and what to do next"),
        ("failed", "The bot keeps its old model; the run's message says why and what to do next"),
        ("cancelled", "That run was cancelled, and the bot keeps its old model"),
    ],
)
async def test_the_next_step_follows_the_run(run: str, text: str) -> None:
    """The admin's hint says what to do after a run, as its end demands, in each tab; other users' hints do not.

    The end of a run is news until a picture is sent or sample votes are cast, but a model waits until it is approved,
    and the first answers of a new model are what it is about.
    """
    bot = Bot()
    async with learning_page(bot) as (page, emulator):
        hint = page.page.locator("#hint")
        await expect(hint).to_contain_text("Send a picture")
        bot.stands["run"] = "running"
        await call(page, emulator, "sendMessage", chat_id=ADMIN, text="Run 3")
        await expect(hint).to_contain_text("Keep chatting while it learns")
        await page.becomes("Tom")
        await expect(hint).to_contain_text("Send a picture")
        await page.becomes("Mia")
        bot.stands |= {"run": run, "ended": time.time()}
        await expect(hint).to_contain_text(text)
        assert page.page.context.browser is not None
        tab = await page.page.context.browser.new_page()
        await tab.goto(page.page.url)
        await expect(tab.locator("#hint")).to_contain_text(text)
        await tab.close()
        await page.page.locator(".sample").first.click()
        await expect(hint).to_contain_text(
            text if run in ("waiting", "starting", "live") else "Watch the answer stream in"
        )
        bot.stands |= {"run": "", "ended": 0.0}  # the demo was started over
        await expect(page.page.locator("article.mine")).to_have_count(1)
        await page.page.reload()
        await expect(hint).to_contain_text("Watch the answer stream in")


async def test_the_hint_says_what_the_votes_are_good_for() -> None:
    """The admin's hint asks for a run if votes can be learned from, and for other votes if all answers are liked."""
    bot = Bot({**NO_LEARNING, "run": "live", "ended": time.time()})
    async with learning_page(bot) as (page, emulator):
        hint = page.page.locator("#hint")
        state = {"running": False, "done": 60, "total": 60, "ups": 60, "downs": 0, "error": ""}
        await expect(hint).to_contain_text("It has learned: ask again")
        bot.stands["votes"] = "ready"
        emulator.world.events.publish("votes", None, last=time.time() + 1, **state)
        await expect(hint).to_contain_text("It has votes to learn from: press /retrain")
        bot.stands["votes"] = "alike"
        emulator.world.events.publish("votes", None, last=time.time() + 1, **state)
        await expect(hint).to_contain_text("Nearly all answers are liked")
        await expect(hint).not_to_contain_text("/rollback")
        bot.stands["back"] = True
        emulator.world.events.publish("votes", None, last=time.time() + 1, **state)
        await expect(hint).to_contain_text("Nearly all answers are liked")
        await expect(hint).to_contain_text("/rollback")


async def test_the_first_answers_of_a_new_model() -> None:
    """The hint sends the admin to the new model for four questions; after /delete_my_data all begins from the start."""
    bot = Bot({**NO_LEARNING, "run": "live", "ended": time.time() - 60})
    async with learning_page(bot) as (page, emulator):
        hint = page.page.locator("#hint")
        for number in range(4):
            await expect(hint).to_contain_text("It has learned: ask again and see how it answers now.")
            await page.says(f"And {number}?")
        await expect(hint).to_contain_text("Send a picture")
        await page.page.locator(".sample").first.click()
        vote = {"text": "👍 ✓", "callback_data": "vote"}
        await call(
            page, emulator, "sendMessage", chat_id=ADMIN, text="Red.", reply_markup={"inline_keyboard": [[vote]]}
        )
        await expect(hint).to_contain_text("Rate a few more, or press Cast 60 sample votes in the demo panel.")
        await page.says("/delete_my_data")
        await expect(hint).to_contain_text("Send a picture")


async def test_what_waits_is_seen_in_the_buttons() -> None:
    """Beside a bot that does not say how it learns, the admin's hint follows the buttons that the bot shows."""
    emulator = Emulator(token="1:a")
    emulator.add_person(ADMIN, "Mia", "en", admin=True)
    async with opened(emulator, width=1200) as page:
        hint = page.page.locator("#hint")
        await expect(hint).to_contain_text("Send a picture")
        for label, text in (
            ("✔ Approve", "waiting for approval"),
            ("✔ 批准", "press ✔ Approve under the run's result"),
        ):
            keys = {"inline_keyboard": [[{"text": label, "callback_data": "run"}]]}
            message = await call(page, emulator, "sendMessage", chat_id=ADMIN, text="Run 1", reply_markup=keys)
            await expect(hint).to_contain_text(text)
            await call(page, emulator, "editMessageText", chat_id=ADMIN, message_id=message, text="Run 1 is over")
            await expect(hint).to_contain_text("Send a picture")


async def test_captions_are_questions_too() -> None:
    """If all of a user's questions are captions, the hint suggests a follow-up question only after the first one."""
    emulator = Emulator(token="1:a")
    emulator.add_person(TOM, "Tom", "en")
    async with opened(emulator, width=1200) as page:
        hint, pictures = page.page.locator("#hint"), list(sample_pictures().values())
        for number, text in ((0, re.compile("Ask a follow-up question")), (1, re.compile("^$"))):
            await page.attach(pictures[number])
            await page.says("What is it?")
            keys = {"inline_keyboard": [[{"text": "👍 ✓", "callback_data": "vote"}]]}
            await call(page, emulator, "sendMessage", chat_id=TOM, text="Red.", reply_markup=keys)
            await expect(hint).to_have_text(text)


async def test_what_is_typed_while_a_message_is_sent_stays() -> None:
    """A text typed before the server has taken the one before stays in the draft; what was sent is removed from it."""
    async with opened(make_emulator(), width=1200) as page:
        text, taken = page.page.locator("#text"), asyncio.Event()

        async def late(route: Route) -> None:
            await taken.wait()
            await route.continue_()

        await expect(page.page.locator("#me-badge")).to_be_visible()
        await page.page.route("**/messages", late)
        await page.says("One?")
        await text.fill("Two?")
        async with page.page.expect_response("**/messages"):
            taken.set()
        await expect(page.messages).to_have_text([re.compile("One")])
        await expect(text).to_have_value("Two?")
        await text.press("Enter")
        await expect(text).to_have_value("")
        await expect(page.messages).to_have_count(2)


async def test_the_panel_says_who_sends_the_admins_commands() -> None:
    """The panel names the admin whose commands it sends, and the page says so if it switches to the admin.

    Only a page with sample votes has a step before them, and only one with a sticker offers it.
    """
    async with opened(make_emulator(), width=1200) as page:
        await expect(page.page.locator("#admin-title")).to_have_text("Then, as Mia, the admin")
        await expect(page.page.locator("#votes-state")).to_have_text("no sample votes yet")
        await expect(page.page.locator("#tray")).to_contain_text("or the sticker")
        await page.page.locator("#retrain").click()
        await expect(page.page.locator("article.mine")).to_have_count(1)
        await expect(page.page.locator(".toast")).to_have_count(0)
        await page.becomes("Tom")
        await page.page.locator("#retrain").click()
        await expect(page.page.locator(".toast")).to_have_text("You are Mia now, the admin.")
        await expect(page.page.locator("#me-badge")).to_have_text("you are Mia")
        await expect(page.page.locator("article.mine")).to_have_count(2)
    emulator = Emulator(token="1:a", samples=sample_pictures())
    emulator.add_person(ADMIN, "Mia", "en", admin=True)
    async with opened(emulator, width=1200) as page:
        await expect(page.page.locator("#admin-title")).to_have_text("As Mia, the admin")
        await expect(page.page.locator("#tray")).to_contain_text("Send a sample picture, or select several with +")
        await expect(page.page.locator("#tray-sticker")).to_be_hidden()


async def test_only_answers_can_be_reacted_to() -> None:
    """Beside an answer with thumbs are a reply and two reactions, which cover no text; a prompt has only the reply."""
    emulator, thumb = make_emulator(), {"text": "👍", "callback_data": "up"}
    async with opened(emulator, width=1280) as page:
        await call(page, emulator, "sendMessage", chat_id=ADMIN, text="Delete it?")
        await call(
            page, emulator, "sendMessage", chat_id=ADMIN, text="Red.", reply_markup={"inline_keyboard": [[thumb]]}
        )
        prompt, answer = page.answers.first, page.answers.last
        await expect(prompt.locator(".acts button")).to_have_count(1)
        await expect(answer.locator(".acts button")).to_have_count(3)
        await answer.hover()
        text, acts = await answer.locator(".bubble").bounding_box(), await answer.locator(".acts").bounding_box()
        assert text and acts and acts["x"] >= text["x"] + text["width"]


async def test_without_sample_votes() -> None:
    """A page without sample votes and admins offers neither."""
    emulator = Emulator(token="1:a")
    emulator.add_person(ADMIN, "Mia", "en")
    async with opened(emulator, width=1280) as page:
        await expect(page.page.locator("#me-badge")).to_have_text("you are Mia")
        await expect(page.page.locator("#demo")).to_be_hidden()
        await page.attach(next(iter(sample_pictures().values())))
        await page.says("What is it?")
        vote = {"text": "👍 ✓", "callback_data": "vote"}
        await call(
            page, emulator, "sendMessage", chat_id=ADMIN, text="Red.", reply_markup={"inline_keyboard": [[vote]]}
        )
        await page.says("And how many?")
        await expect(page.page.locator("#hint")).to_be_empty()


@pytest.mark.parametrize("width", [390, 1280])
async def test_a_chat_opens_at_its_end(width: int) -> None:
    """A chat opens at its newest message even though the pictures above it load later."""
    emulator = make_emulator()
    async with opened(emulator, width=width) as page:
        picture = Attachment(next(iter(sample_pictures().values())))
        for number in range(12):
            await emulator.people.sends(ADMIN, [picture], f"What is in picture {number}?")
            await call(page, emulator, "sendMessage", chat_id=ADMIN, text=f"Answer {number}")
        await page.page.reload()
        await expect(page.answers).to_have_count(12)
        await expect(page.page.locator("#tray")).to_be_visible()
        await page.page.wait_for_function("() => [...document.images].every((image) => image.complete)")
        await page.page.wait_for_function("() => new Promise((done) => setTimeout(() => done(true), 300))")
        await expect(page.answers.last).to_be_in_viewport(ratio=1)
        await expect(page.page.locator("#to-end")).to_be_hidden()


async def test_the_demo_says_what_its_model_knows() -> None:
    """The demo's invitation to send a picture notes that its tiny model only knows coloured shapes.

    With another model, the note is absent.
    """
    async with opened(make_emulator()) as page:
        for part in ("#hint", ".welcome"):
            await expect(page.page.locator(part)).to_contain_text(SHAPES_ONLY)
            await expect(page.page.locator(part)).not_to_contain_text("drop")
    async with opened(make_emulator("/models/InternVL2-2B")) as page:
        await expect(page.page.locator(".welcome")).to_contain_text("your own picture")
        assert "coloured shapes" not in await page.page.locator("body").inner_text()


async def test_the_page_speaks_chinese() -> None:
    """The page is in Chinese in a Chinese browser and for a user who has chosen Chinese.

    Only names and commands stay in English. The admin begins with the browser's language, and keeps another choice.
    """
    async with opened(make_emulator(), width=1200, locale="zh-CN") as page:
        html, badge = page.page.locator("html"), page.page.locator("#me-badge")
        await expect(html).to_have_attribute("lang", "zh")
        await expect(badge).to_have_text("您是 Mia")
        await expect(page.page.locator("#cast")).to_have_text("给出 60 个示例评价")
        await page.page.locator("#language").select_option("en")
        await expect(badge).to_have_text("you are Mia")
        await page.page.locator("#language").select_option("zh")
        await expect(badge).to_have_text("您是 Mia")
        await expect(page.page.locator(".welcome button")).to_have_text("开始")
        await page.becomes("Tom")
        await expect(html).to_have_attribute("lang", "en")
        await expect(page.page.locator("#hint")).to_contain_text("Send a picture")
        await page.page.locator("#retrain").click()
        await expect(badge).to_have_text("您是 Mia")
        await expect(page.page.locator("#admin-title")).to_have_text("然后，以管理员 Mia 的身份")
        await page.page.locator("#language").select_option("en")
        await expect(badge).to_have_text("you are Mia")
        await page.page.evaluate("() => sessionStorage.clear()")
        await page.page.reload()
        await expect(badge).to_have_text("you are Mia")
