"""Make the README's screenshots from the running product: `make pictures`.

The script starts `thumbtune demo` on free ports and uses it like a new user in a real browser: it sends a
sample picture, asks a question, casts the sample votes, retrains as the admin, sends an album, and chats in
the group. The WebP files in `docs/pictures` take up a fifth of the space that PNG files would need.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.async_api import Browser, Page, expect

from bot.cli.demo import GROUP
from inference.serving.engine_launch import free_port
from tests.support.browser import CHROMIUM, INSTALL_CHROMIUM, MINUTE, ChatPage, button, chromium

PICTURES = Path(__file__).parent / "pictures"


async def main() -> None:
    """Start the demo, take the screenshots and stop the demo."""
    if not CHROMIUM:
        raise SystemExit(INSTALL_CHROMIUM)
    PICTURES.mkdir(exist_ok=True)
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        demo = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bot.cli.main", "demo", "--port", str(port), "--keep", folder),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            operator = await _operator_address(demo)
            async with chromium() as browser:
                await _photograph(browser, f"http://127.0.0.1:{port}", operator)
            _keep(next(Path(folder).glob("runs/*/sheet.png")).read_bytes(), "sheet")
        finally:
            demo.terminate()
            await demo.wait()


async def _operator_address(demo: asyncio.subprocess.Process) -> str:
    assert demo.stdout is not None
    async for line in demo.stdout:
        if found := re.search(r"operator page\s+(http://[\w.:]+)", line.decode()):
            return found[1]
    raise SystemExit("the demo ended before it was ready")


async def _photograph(browser: Browser, address: str, operator: str) -> None:
    page = await browser.new_page(viewport={"width": 1200, "height": 860}, device_scale_factor=1.5)
    await page.goto(address)
    chat = ChatPage(page)
    await chat.sends_sample(0)
    answer = await chat.asks("How many are there?")
    await button(answer, "👍").click()
    await expect(answer.locator(".keys")).to_contain_text("✓")
    await _shoot(page, "chat")

    await page.locator("#cast").click()
    await expect(page.locator("#cast")).to_be_disabled()
    await expect(page.locator("#cast")).to_be_enabled(timeout=5 * MINUTE)
    await page.locator("#retrain").click()
    await expect(page.locator("#messages")).to_contain_text("▓▓▓", timeout=3 * MINUTE)
    await _shoot(page, "retrain")
    await expect(page.locator("#messages")).to_contain_text("is done. Model", timeout=5 * MINUTE)
    await chat.sends_sample(4)
    await _shoot(page, "taught")

    phones = [await _phone(browser, address) for _ in range(2)]
    for phone, name in zip(phones, ("Tom", "Mia"), strict=True):
        await phone.page.locator("#open-panel").click()
        await phone.becomes(name)
    tom, mia = phones
    for sample in (2, 3, 6):
        await tom.page.locator(".collect").nth(sample).click()
    answer = await tom.asks("Which colours?")
    await button(answer, "👎").click()
    await button(answer, "Wrong tone").click()
    await expect(answer.locator(".keys")).to_contain_text("Wrong tone ✓")
    await _shoot(tom.page, "album")
    for phone in phones:
        await phone.page.locator("#open-panel").click()
        await phone.becomes(GROUP)
    await mia.sends_sample(0)
    for phone in phones:
        await button(phone.rated, "👍").click()
    await expect(mia.rated).to_contain_text("👍 2")
    await tom.acts(tom.messages.last, "Reply")
    await tom.asks("What shape are they?")
    await _shoot(mia.page, "group")

    await page.goto(operator)
    await _shoot(page, "operator", full_page=True)
    await page.goto(f"{operator}/review?thumb=up")
    await page.keyboard.press("j")
    await page.keyboard.press("e")
    await _shoot(page, "review")
    await page.goto(f"{operator}/settings")
    question = page.get_by_role("textbox", name="default_question")
    await question.fill("Which shapes are in this picture?")
    await question.press("Enter")
    await expect(page.locator("[id='chat.default_question']")).to_contain_text("Changed here")
    await page.locator("#chat").scroll_into_view_if_needed()
    await _shoot(page, "settings")


async def _phone(browser: Browser, address: str) -> ChatPage:
    page = await browser.new_page(
        viewport={"width": 390, "height": 780}, device_scale_factor=2, reduced_motion="reduce"
    )
    await page.goto(address)
    return ChatPage(page)


async def _shoot(page: Page, name: str, *, full_page: bool = False) -> None:
    await expect(page.locator(".toast")).to_have_count(0)
    await page.mouse.move(0, 0)
    _keep(await page.screenshot(full_page=full_page), name)


def _keep(png: bytes, name: str) -> None:
    with Image.open(BytesIO(png)) as picture:
        picture.convert("RGB").save(PICTURES / f"{name}.webp", quality=85, method=6)


if __name__ == "__main__":
    asyncio.run(main())
