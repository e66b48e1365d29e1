"""Make the pictures of the README from the running product: `make pictures`.

Starts `thumbtune demo` on free ports, does in a real browser what a newcomer does (sends a sample picture, asks on,
casts the sample votes, retrains as the admin), and writes `docs/pictures/*.png`.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.async_api import Browser, Page, async_playwright, expect

from inference.worker import free_port

PICTURES = Path(__file__).parent / "pictures"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
MINUTE = 60_000.0


async def main() -> None:
    """Start the demo, take the pictures, end the demo."""
    if not CHROMIUM:
        raise SystemExit("no Chromium here: apt-get install chromium fonts-noto-color-emoji fonts-noto-cjk")
    PICTURES.mkdir(exist_ok=True)
    expect.set_options(timeout=MINUTE)
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        demo = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bot", "demo", "--port", str(port), "--keep", folder),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            operator = await _operator_address(demo)
            async with async_playwright() as playwright:
                browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
                await _photograph(browser, f"http://127.0.0.1:{port}", operator)
                await browser.close()
            shutil.copy(next(Path(folder).glob("runs/*/sheet.png")), PICTURES / "sheet.png")
        finally:
            demo.terminate()
            await demo.wait()


async def _operator_address(demo: asyncio.subprocess.Process) -> str:
    assert demo.stdout is not None
    async for line in demo.stdout:
        if found := re.search(r"operator page\s+(http://[\w.:]+)", line.decode()):
            return found[1]
    raise SystemExit("the demo ended before it was ready")


async def _photograph(browser: Browser, chat: str, operator: str) -> None:
    page = await browser.new_page(viewport={"width": 1200, "height": 820}, device_scale_factor=1.5)
    await page.goto(chat)
    await _send_sample(page, 0)
    await _ask(page, "How many are there?")
    await page.locator(".keys").last.get_by_role("button", name="👍").click()
    await expect(page.locator(".keys").last).to_contain_text("✓")
    await page.screenshot(path=PICTURES / "chat.png")

    await page.get_by_role("button", name="Cast 60 sample votes").click()
    await expect(page.locator("#cast")).to_be_disabled()
    await expect(page.locator("#cast")).to_be_enabled(timeout=5 * MINUTE)
    await page.locator("#admin-commands").get_by_role("button", name="/retrain").click()
    await expect(page.locator("#messages")).to_contain_text("▓▓▓", timeout=3 * MINUTE)
    await page.screenshot(path=PICTURES / "retrain.png")
    await expect(page.locator("#messages")).to_contain_text("is done. Its model", timeout=5 * MINUTE)
    await _send_sample(page, 1)
    await page.screenshot(path=PICTURES / "taught.png")

    narrow = await browser.new_page(viewport={"width": 390, "height": 780}, device_scale_factor=2)
    await narrow.goto(chat)
    await narrow.locator("article .keys").last.wait_for()
    await _send_sample(narrow, 2)
    await narrow.screenshot(path=PICTURES / "chat-narrow.png")

    await page.goto(operator)
    await page.screenshot(path=PICTURES / "operator.png", full_page=True)


async def _send_sample(page: Page, number: int) -> None:
    answers = page.locator("article:not(.mine) .keys", has_text="👍")
    before = await answers.count()
    await page.locator("#samples button").nth(number).click()
    if await page.locator("#chips button").count():
        await page.locator("#send").click()
    await expect(answers).to_have_count(before + 1)


async def _ask(page: Page, text: str) -> None:
    answers = page.locator("article:not(.mine) .keys", has_text="👍")
    before = await answers.count()
    await page.locator("#text").fill(text)
    await page.locator("#text").press("Enter")
    await expect(answers).to_have_count(before + 1)


if __name__ == "__main__":
    asyncio.run(main())
