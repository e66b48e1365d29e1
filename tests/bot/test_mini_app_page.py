"""The Mini App in a real Chromium, as the native clients and as Telegram's web client show it.

Telegram's script and web client are stubs: the browser gets them from the test instead of the network.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bot.test_mini_app import WEB
from tests.bot.test_review import Desk, at_work
from tests.support.mini_app import init_data
from tests.support.whole_bot import ADMIN

pytest.importorskip(
    "playwright.async_api", reason="no Playwright here: .venv/bin/pip install --no-deps -r requirements/browser.txt"
)

from playwright.async_api import Frame, Page, expect

from tests.support.browser import CHROMIUM, INSTALL_CHROMIUM, chromium

pytestmark = pytest.mark.skipif(not CHROMIUM, reason=INSTALL_CHROMIUM)


async def routed(page: Page, desk: Desk, *, scheme: str) -> list[str]:
    """Give the page Telegram's script with an admin's data, and return the errors that it will report."""
    app = {"initData": init_data(desk.bot.emulator.token, ADMIN), "colorScheme": scheme}
    script = f"window.Telegram = {{WebApp: {{...{json.dumps(app)}, ready() {{}}, expand() {{}}}}}};"
    await page.route(
        "https://telegram.org/js/telegram-web-app.js",
        lambda route: route.fulfill(content_type="text/javascript", body=script),
    )
    frame = f'<iframe src="{desk.url}/app" width="390" height="800" allow="local-network-access"></iframe>'
    for client in ("https://web.telegram.org/", "https://evil.example.org/"):
        await page.route(client, lambda route: route.fulfill(content_type="text/html", body=frame))
    errors: list[str] = []
    page.on("console", lambda said: errors.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    return errors


async def reviews(page: Page | Frame, *, scheme: str) -> None:
    """Check that the review page fits and has Telegram's color scheme; drop the newest answer on it, and undo that."""
    await expect(page.locator(".lesson")).to_have_count(6)
    await expect(page.locator("html")).to_have_css("color-scheme", scheme)
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    await page.locator("#exchange-6").get_by_role("button", name="Drop").click()
    await expect(page.locator("#exchange-6")).to_contain_text(f"dropped by {ADMIN}")
    await page.locator("#exchange-6").get_by_role("button", name="Undo").click()
    await expect(page.locator("#exchange-6")).to_contain_text(f"undone by {ADMIN}")


async def test_a_native_client_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The app opens the review page, in Telegram's color scheme; after logging out it says how to come back."""
    async with at_work(tmp_path, monkeypatch, web=WEB) as desk, chromium() as browser:
        page = await browser.new_page(viewport={"width": 390, "height": 844}, locale="en-GB", color_scheme="light")
        errors = await routed(page, desk, scheme="dark")
        await page.goto(f"{desk.url}/app")
        await reviews(page, scheme="dark")
        assert errors == []
        await page.get_by_role("button", name="Log out").click()
        await expect(page.get_by_role("alert")).to_contain_text("send /review again")


async def test_the_web_client_frames_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session works in the frame of Telegram's web client, and in no other site's; no other site frames the app."""
    async with at_work(tmp_path, monkeypatch, web=WEB) as desk, chromium() as browser:
        page = await browser.new_page(viewport={"width": 450, "height": 844}, locale="en-GB", color_scheme="dark")
        await page.context.grant_permissions(["local-network-access"])
        errors = await routed(page, desk, scheme="light")
        await page.goto("https://web.telegram.org/")
        await reviews(page.frames[1], scheme="light")
        assert [each for each in errors if "Mixed Content" not in each] == []  # here the bot is not behind TLS
        assert [each["partitionKey"] for each in await page.context.cookies()] == ["https://telegram.org"]
        async with page.expect_console_message(lambda said: "frame-ancestors" in said.text):
            await page.goto("https://evil.example.org/")


async def test_a_browser_outside_telegram_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Telegram's data the page says where to find the button."""
    async with at_work(tmp_path, monkeypatch, web=WEB) as desk, chromium() as browser:
        page = await browser.new_page(locale="en-GB")
        await page.route("https://telegram.org/js/telegram-web-app.js", lambda route: route.abort())
        await page.goto(f"{desk.url}/app")
        await expect(page.get_by_role("alert")).to_contain_text("send /review and tap the button")
