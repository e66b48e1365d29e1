"""The parts of the demo page around the chat, in a real Chromium: the panel, the hint and both languages.

No bot runs; the tests make the bot's calls to the Bot API.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from bot.cli.demo import ADMIN, SHAPES_ONLY, make_emulator
from telegram_emulator import Emulator

pytest.importorskip(
    "playwright.async_api", reason="no Playwright here: .venv/bin/pip install --no-deps -r requirements/browser.txt"
)

from playwright.async_api import expect

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


async def test_the_next_step_follows_the_run() -> None:
    """The admin's hint changes when a run starts and when it ends; other users' hints do not."""
    emulator = make_emulator()
    async with opened(emulator, width=1200) as page:
        hint = page.page.locator("#hint")
        await page.page.locator("#text").fill("/retrain")
        await page.page.locator("#text").press("Enter")
        for text in ("Not enough yet.", "Another message", "And one more"):
            await call(page, emulator, "sendMessage", chat_id=ADMIN, text=text)
        await expect(page.answers).to_have_count(3)
        await expect(hint).to_contain_text("Send a picture")
        cancel = {"inline_keyboard": [[{"text": "✖ Cancel", "callback_data": "cancel:3"}]]}
        run = await call(page, emulator, "sendMessage", chat_id=ADMIN, text="Run 3", reply_markup=cancel)
        await expect(hint).to_contain_text("Keep chatting while it learns")
        await page.becomes("Tom")
        await call(page, emulator, "sendMessage", chat_id=TOM, text="Hello")
        await expect(hint).to_contain_text("Send a picture")
        await page.becomes("Mia")
        await expect(hint).to_contain_text("Keep chatting while it learns")
        await call(page, emulator, "editMessageText", chat_id=ADMIN, message_id=run, text="Run 3: failed")
        await expect(hint).to_contain_text("That run has ended")
        await page.page.locator(".sample").first.click()
        await expect(hint).to_contain_text("Watch the answer stream in")


async def test_only_new_votes_are_to_be_learned_from() -> None:
    """After a run the admin's hint asks for another one only once sample votes were cast since the run began."""
    emulator = make_emulator()
    async with opened(emulator, width=1200) as page:
        hint, state = page.page.locator("#hint"), {"running": False, "total": 60, "ups": 30, "downs": 30, "error": ""}
        await call(page, emulator, "sendMessage", chat_id=ADMIN, text="Hello")
        await expect(page.answers).to_have_count(1)
        emulator.world.events.publish("votes", None, done=60, cast=60, **state)
        await expect(hint).to_contain_text("It has votes to learn from")
        cancel = {"inline_keyboard": [[{"text": "✖ Cancel", "callback_data": "cancel:3"}]]}
        run = await call(page, emulator, "sendMessage", chat_id=ADMIN, text="Run 3", reply_markup=cancel)
        await expect(hint).to_contain_text("Keep chatting while it learns")
        await call(page, emulator, "editMessageText", chat_id=ADMIN, message_id=run, text="Run 3: done")
        await expect(hint).to_contain_text("That run has ended")
        await page.page.locator(".sample").first.click()
        await expect(hint).to_contain_text("Watch the answer stream in")
        emulator.world.events.publish("votes", None, done=60, cast=120, **state)
        await expect(hint).to_contain_text("It has votes to learn from")


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

    Only names and commands stay in English.
    """
    async with opened(make_emulator(), width=1200, locale="zh-CN") as page:
        html, badge = page.page.locator("html"), page.page.locator("#me-badge")
        await expect(html).to_have_attribute("lang", "zh")
        await expect(badge).to_have_text("您是 小伟")
        await expect(page.page.locator("#cast")).to_have_text("投 60 个示例评价")
        await page.page.locator("#language").select_option("en")
        await expect(badge).to_have_text("you are 小伟")
        await page.page.locator("#language").select_option("zh")
        await expect(badge).to_have_text("您是 小伟")
        await expect(page.page.locator(".welcome button")).to_have_text("开始")
        await page.becomes("Tom")
        await expect(html).to_have_attribute("lang", "en")
        await expect(page.page.locator("#hint")).to_contain_text("Send a picture")
