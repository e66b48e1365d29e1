"""The chat page in a real Chromium, for tests and for the README's screenshots.

Requires Playwright (requirements/browser.txt) and an installed Chromium; no browser is downloaded.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from playwright.async_api import Browser, ConsoleMessage, FilePayload, Locator, Page, Response, async_playwright, expect

from tests.support.person import UP

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
INSTALL_CHROMIUM = "no Chromium here: apt-get install chromium fonts-noto-color-emoji fonts-noto-cjk"
MINUTE = 60_000.0


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Start the installed Chromium.

    The sandbox is disabled, because Chromium otherwise refuses to run as root.
    """
    expect.set_options(timeout=MINUTE)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()


def button(message: Locator, label: str) -> Locator:
    """Return the inline button labelled `label` under a message."""
    return message.locator(".keys").get_by_role("button", name=label)


class ChatPage:
    """A chat page in the browser, with the errors that it has reported."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.messages = page.locator("article")
        self.answers = page.locator("article:not(.mine)")
        self.rated = page.locator("article:not(.mine)", has=page.locator(".keys", has_text=UP))
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("response", self._response)

    def _console(self, said: ConsoleMessage) -> None:
        if said.type in ("error", "warning"):
            self.errors.append(f"{said.text} ({said.location['url']})")

    def _response(self, answer: Response) -> None:
        if answer.status >= 400:
            self.errors.append(f"{answer.status} {answer.url}")

    async def becomes(self, name: str) -> None:
        """Switch to the user or open the group called `name`, closing any open demo panel."""
        await self.page.get_by_role("radio", name=name).click()
        await expect(self.page.get_by_role("radio", name=name, include_hidden=True)).to_be_checked()

    async def attach(self, *pictures: bytes, media_type: str = "image/png") -> None:
        """Attach pictures to the draft."""
        files: Sequence[FilePayload] = [
            {"name": f"picture-{number}", "mimeType": media_type, "buffer": data}
            for number, data in enumerate(pictures)
        ]
        await self.page.locator("#file").set_input_files(files)
        await expect(self.page.locator(".chip img")).to_have_count(len(pictures))

    async def says(self, text: str) -> None:
        """Send a text message."""
        await self.page.locator("#text").fill(text)
        await self.page.locator("#text").press("Enter")

    async def asks(self, text: str, *pictures: bytes) -> Locator:
        """Send a question, with or without pictures, and return its answer."""
        before = await self.rated.count()
        if pictures:
            await self.attach(*pictures)
        await self.says(text)
        await expect(self.rated).to_have_count(before + 1)
        return self.rated.last

    async def sends_sample(self, number: int) -> Locator:
        """Send sample picture `number` and return the answer."""
        before = await self.rated.count()
        await self.page.locator(".sample").nth(number).click()
        await expect(self.rated).to_have_count(before + 1)
        return self.rated.last

    async def acts(self, message: Locator, label: str) -> None:
        """Choose an action on a message: Reply, Edit or React with 👍."""
        await message.locator(".bubble").hover()
        await message.get_by_role("button", name=label, exact=True).click()
