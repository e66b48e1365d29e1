"""The operator's pages in a real Chromium: they fit desktop and phone, in both languages.

The review page works with the keyboard, and the page of a run shows its progress without being reloaded.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from storage.comparisons import Comparison
from storage.learning_records import Review, ReviewDecision
from tests.bot.test_review import ADA, Desk, at_work
from training.gate.comparison_sheet import Row, Sheet
from training.run_folder import LOSSES, SHEET

pytest.importorskip(
    "playwright.async_api", reason="no Playwright here: .venv/bin/pip install --no-deps -r requirements/browser.txt"
)

from playwright.async_api import Page, expect

from tests.support.browser import CHROMIUM, INSTALL_CHROMIUM, chromium

pytestmark = pytest.mark.skipif(not CHROMIUM, reason=INSTALL_CHROMIUM)

TOKEN = "a-password"
REFUSED = "Failed to load resource: the server responded with a status of 400 (Bad Request)"
WORDS = {"en": ("Train on these 4", "Their conversations and votes"), "zh": ("用这 4 条回答训练", "此人的对话和评价")}


@asynccontextmanager
async def opened(desk: Desk, width: int, locale: str, *, expected: Sequence[str] = ()) -> AsyncIterator[Page]:
    """Yield a page of the logged-in operator, and check at the end that no page has reported an unexpected error."""
    errors: list[str] = []
    async with chromium() as browser:
        page = await browser.new_page(viewport={"width": width, "height": 844}, locale=locale)
        page.on("console", lambda said: errors.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        await page.goto(f"{desk.url}/review")
        await page.locator("[name=token]").fill(TOKEN)
        await page.locator("[name=token]").press("Enter")
        await expect(page.locator(".lesson")).to_have_count(6)
        yield page
        assert errors == [*expected]


async def fits(page: Page) -> None:
    """Check that nothing on the page is wider than the window, and that every picture is shown."""
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), page.url
    for image in await page.locator(".lesson img").all():
        await image.scroll_into_view_if_needed()
        await expect(image).to_have_js_property("complete", value=True)
        assert await image.evaluate("it => it.naturalWidth > 0 && it.width <= it.closest('.pictures').clientWidth")


async def heights(page: Page, selector: str) -> list[float]:
    """Return the heights of the visible elements that match a selector, in CSS pixels."""
    boxes = [await each.bounding_box() for each in await page.locator(selector).all() if await each.is_visible()]
    return [box["height"] for box in boxes if box]


async def test_a_phone_has_room_to_tap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a phone buttons and fields are as high as a fingertip, links stay on one line, and a card's buttons align."""
    async with (
        at_work(tmp_path, monkeypatch, web={"port": 0, "token": TOKEN}) as desk,
        opened(desk, 390, "en-GB") as page,
    ):
        for path in ("/review", "/models", "/settings", "/"):
            await page.goto(f"{desk.url}{path}")
            links = await heights(page, "header nav a, header nav button")
            assert len(links) == 7 and min(links) > 32 and max(links) < 44, path
            assert all(each >= 44 for each in await heights(page, "main button, main input, main select")), path
        await page.goto(f"{desk.url}/review")
        card = page.locator(".lesson").first
        for name in (".lesson footer a", ".filters a"):
            assert min(await heights(page, name)) > 32
        for editing in (False, True):
            await expect(card.locator("textarea")).to_be_visible(visible=editing)
            boxes = [await each.bounding_box() for each in await card.locator("form > button, form summary").all()]
            assert len({(box["y"], box["height"]) for box in boxes if box}) == 1 and len(boxes) == 3
            await card.locator("form summary").click()
        await expect(card.locator(".pictures img")).to_have_css("object-fit", "contain")
        date = await page.locator("[name=until]").bounding_box()
        assert date and date["x"] + date["width"] <= 390 - 16


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("language", ["en", "zh"])
async def test_the_pages_fit_and_speak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, language: str
) -> None:
    """On a desktop and on a phone, in the browser's language, each page fits, with its pictures and its style."""
    train, left = WORDS[language]
    async with at_work(tmp_path, monkeypatch, web={"port": 0, "token": TOKEN}) as desk:
        await desk.ledger.reviews.add(Review(5, ReviewDecision.EDIT, "Olga", "Long" * 60))
        await desk.ledger.reviews.add(Review(4, ReviewDecision.DROP, "Olga"))
        async with opened(desk, width, {"en": "en-GB", "zh": "zh-CN"}[language]) as page:
            await expect(page.locator("html")).to_have_attribute("lang", language)
            await expect(page.get_by_role("button", name=train)).to_be_enabled()
            await expect(page.locator(".lesson").first).to_have_css("display", "grid")
            await fits(page)
            desk.bot.cue("worse")
            await page.get_by_role("button", name=train).click()
            folder = Path((await desk.bot.ended(1)).directory)
            Sheet("A" * 80, ("base", "run-1"), (Row("Why?", ("Long" * 60, "Because.")),)).write(folder / SHEET)
            (folder / LOSSES).write_text('{"step": 1, "loss": 3.5}\n{"step": 2, "loss": 1.5}\n')
            answers = ("Long" * 60, "Because.")
            await desk.ledger.comparisons.add([Comparison(0, 3, "base", "run-1", *answers, swapped=True)])
            compared = "/compare?first=base&second=run-1"
            paths = (
                f"/people/{ADA}",
                f"/people/{ADA}/erase",
                "/models",
                "/models/run-1/delete",
                "/runs/1",
                compared,
                "/people",
                "/settings",
                "/",
            )
            for path in paths:
                await page.goto(f"{desk.url}{path}")
                for details in await page.locator("section details").all():
                    await details.evaluate("it => it.open = true")
                await fits(page)
                if path == f"/people/{ADA}":
                    await expect(page.get_by_role("heading", name=left)).to_be_visible()
                if path == "/runs/1":
                    await page.locator("iframe").scroll_into_view_if_needed()
                    await expect(page.frame_locator("iframe").locator(".answers")).to_have_css("display", "grid")


async def test_a_setting_is_changed_and_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a phone, an invalid value is focused beside the reason; a valid one is kept until Undo is pressed."""
    async with (
        at_work(tmp_path, monkeypatch, web={"port": 0, "token": TOKEN}) as desk,
        opened(desk, 390, "en", expected=[REFUSED]) as page,
    ):
        await page.get_by_role("link", name="Settings").click()
        field = page.get_by_role("textbox", name="min_rated")
        await expect(field).to_have_value("4")
        await expect(field).to_have_accessible_description(re.compile("The minimum number of liked answers"))
        await field.fill("1")
        await page.get_by_role("button", name="Save training.min_rated").click()
        await expect(page.locator("[id='training.min_rated'] .failed")).to_have_text("This must be at least 2.")
        await expect(field).to_have_value("1")
        await expect(field).to_be_focused()
        await expect(field).to_be_in_viewport()
        await field.fill("6")
        await field.press("Enter")
        await expect(page.locator("[id='training.min_rated']")).to_contain_text("Changed here by an operator")
        await expect(field).to_have_value("6")
        await page.get_by_role("button", name="Undo training.min_rated").click()
        await expect(field).to_have_value("4")
        await expect(page.locator("table td", has_text="undone")).to_be_visible()


async def test_progress_without_a_reload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The progress of a run appears on a page that stays the same; its end reloads the page, without the button."""
    monkeypatch.setattr("bot.web.run_pages.LOOK_SECONDS", 0.02)
    async with (
        at_work(tmp_path, monkeypatch, web={"port": 0, "token": TOKEN}) as desk,
        opened(desk, 390, "en") as page,
    ):
        desk.bot.cue("hang")
        await page.get_by_role("button", name="Train on these 4").click()
        await expect(page.locator("h1")).to_have_text("Run 1")
        await page.evaluate("window.same = true")
        await expect(page.locator("#progress progress")).to_have_attribute("value", "3")
        assert await page.evaluate("window.same")
        await page.get_by_role("button", name="Cancel").click()
        await expect(page.locator("#progress .cancelled")).to_have_text("cancelled")
        await expect(page.get_by_role("button", name="Cancel")).to_have_count(0)


async def test_the_keyboard_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of the help line move between cards and decide on them; after a decision the card is focused again."""
    async with (
        at_work(tmp_path, monkeypatch, web={"port": 0, "token": TOKEN}) as desk,
        opened(desk, 1280, "en") as page,
    ):
        for key, focused in (("j", 6), ("j", 5), ("k", 6), ("k", 6), ("j", 5)):
            await page.keyboard.press(key)
            await expect(page.locator(f"#exchange-{focused}")).to_be_focused()
        await page.keyboard.press("d")
        card = page.locator("#exchange-5")
        await expect(card).to_contain_text("dropped by an operator")
        await expect(card).to_be_focused()
        await page.keyboard.press("u")
        await expect(card).to_contain_text("undone by an operator")
        await expect(card).to_be_focused()
        await expect(card.get_by_role("button", name="Undo")).to_have_count(0)
        await page.keyboard.press("u")
        await page.keyboard.press("y")
        await expect(card).to_contain_text("kept by an operator")
        await page.keyboard.press("e")
        text = card.locator("textarea")
        await expect(text).to_be_focused()
        await page.keyboard.type(" Really, jkdye.")
        await page.keyboard.press("Escape")
        await expect(text).to_be_hidden()
        await expect(card).to_be_focused()
        await page.keyboard.press("e")
        await page.keyboard.press("Control+Enter")
        await expect(card.locator(".better")).to_have_text("Edited: It is purple. Really, jkdye.")
        taught = {each.exchange.id: each.exchange.answer for each in await desk.ledger.votes.rated_exchanges()}
        assert taught[5] == "It is purple. Really, jkdye."
