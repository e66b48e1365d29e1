"""The chat page in a real Chromium, with the real bot running as a process.

Only the engine is fake: it can pause in the middle of an answer until a test lets it continue. Nearly
every test uses a different user, and no page may show an error.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import pytest
import pytest_asyncio

from bot.cli.demo import GROUP, make_emulator
from telegram_emulator.people_http import NO_LEARNING
from tests.support.chatting import png
from tests.support.children import notes
from tests.support.community import Community
from tests.support.deployments import open_gate
from tests.support.fleets import external_server
from tests.support.person import DOWN, UP

pytest.importorskip(
    "playwright.async_api", reason="no Playwright here: .venv/bin/pip install --no-deps -r requirements/browser.txt"
)

from playwright.async_api import Browser, Locator, expect

from tests.support.browser import CHROMIUM, INSTALL_CHROMIUM, ChatPage, button, chromium

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not CHROMIUM, reason=INSTALL_CHROMIUM),
]

AGAIN, STOP, CHOSEN = "🔄", "⏹", "✓"
RED, BLUE, GREEN = (png(320, 240, colour) for colour in ("red", "blue", "green"))
# What the newest answer has looked like so far.
WATCH = """() => {
  window.seen = [];
  new MutationObserver(() => {
    const text = [...document.querySelectorAll("article:not(.mine) .text")].at(-1);
    const said = [...text?.childNodes ?? []].filter((each) => each.nodeType === Node.TEXT_NODE);
    const words = said.map((each) => each.data);
    if (words.length && words.join("") !== window.seen.at(-1)) window.seen.push(words.join(""));
  }).observe(document.getElementById("messages"), { childList: true, subtree: true });
}"""


@dataclass(frozen=True, slots=True)
class Demo:
    """The running demo: its users, samples and bot, the fake engine's folder, and the browser."""

    community: Community
    engine: Path
    browser: Browser

    def asked(self, words: str) -> dict[str, Any]:
        """Return the newest request to the engine whose question contains `words`."""
        requests: list[dict[str, Any]] = [note["request"] for note in notes(self.engine, "begin")]
        return next(each for each in reversed(requests) if words in _question(each))


def _question(request: dict[str, Any]) -> str:
    content = request["messages"][-1]["content"]
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def pictures(request: dict[str, Any]) -> list[int]:
    """Return the number of pictures in each of the user's turns in a request."""
    asked = [message["content"] for message in request["messages"] if message["role"] == "user"]
    return [0 if isinstance(each, str) else sum(part["type"] == "image_url" for part in each) for each in asked]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def demo(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Demo]:
    folder = tmp_path_factory.mktemp("page")
    async with external_server(folder) as (endpoint, directory):
        made = Community(
            folder, emulator=make_emulator(), inference={"endpoint": endpoint}, chat={"album_seconds": 0.3}
        )
        async with made as community, chromium() as browser:
            await community.bot.start()
            yield Demo(community, directory, browser)


class Opens(Protocol):
    """A callable that opens the page as the user called `name`, creating that user if necessary."""

    def __call__(self, name: str, *, width: int = 1200, height: int = 820) -> AbstractAsyncContextManager[ChatPage]: ...


@pytest.fixture
def opened(demo: Demo) -> Opens:
    """Return a function that opens pages and checks, when each is closed, that it has shown no error.

    The fake engine's gate, which can pause answers, is closed first.
    """
    (demo.engine / "gate").unlink(missing_ok=True)

    @asynccontextmanager
    async def opened(name: str, *, width: int = 1200, height: int = 820) -> AsyncIterator[ChatPage]:
        users = demo.community.emulator.world.users.values()
        if name not in [user.name for user in users]:
            demo.community.emulator.add_person(5000 + len(users), name)
        page = ChatPage(await demo.browser.new_page(viewport={"width": width, "height": height}))
        await page.page.goto(demo.community.url)
        if not await page.page.locator("#open-panel").is_visible():
            await page.becomes(name)
        yield page
        assert page.errors == []
        await page.page.close()

    return opened


def word(place: int) -> re.Pattern[str]:
    """Return a pattern for the fake engine's word at position `place`, followed by a space or the time."""
    return re.compile(rf"/\d+/{place}(\s|\d\d:\d\d)")


async def number(message: Locator) -> int:
    """Return the ID of a message on the page."""
    return int(await message.get_attribute("data-id") or 0)


async def test_an_answer_grows_and_is_voted_on(demo: Demo, opened: Opens) -> None:
    """An answer grows by edits with ⏹ below it, and every press of a thumb is recorded in the ledger."""
    async with opened("Ada") as page, demo.community.ledger() as ledger:
        await page.page.evaluate(WATCH)
        await page.attach(RED)
        await page.says("What is it? words:10 slow:0.1 gate:2")
        await expect(page.answers).to_contain_text(word(1))
        await expect(button(page.answers, STOP)).to_be_visible()
        open_gate(demo.engine)
        await expect(page.rated).to_contain_text(word(9))
        seen = await page.page.evaluate("window.seen")
        assert seen[0] == "Looking at your picture…" and len(seen) > 3
        assert all(later.startswith(earlier) for earlier, later in pairwise(seen[1:]))

        chat = next(u.id for u in demo.community.emulator.world.users.values() if u.name == "Ada")
        exchange = await ledger.exchanges.for_message(chat, await number(page.rated))
        assert exchange is not None and exchange.answer.strip() == seen[-1]
        for thumb, value in ((UP, 1), (DOWN, -1), (DOWN, None)):
            await button(page.rated, thumb).click()
            await expect(page.rated.locator(".keys button", has_text=CHOSEN)).to_have_text(
                [f"{thumb} {CHOSEN}"] if value else []
            )
            assert await ledger.votes.latest(exchange.id, chat) == value


async def test_a_dislike_can_have_a_reason(opened: Opens) -> None:
    """After a 👎, the page offers reasons and marks the chosen one."""
    async with opened("Bea") as page:
        answer = await page.asks("What is it?", RED)
        await button(answer, DOWN).click()
        await button(answer, "Off topic").click()
        await expect(button(answer, "Off topic")).to_contain_text(CHOSEN)


async def test_a_follow_up_keeps_the_picture_in_mind(demo: Demo, opened: Opens) -> None:
    """A follow-up question reaches the engine together with the first question, its picture and its answer."""
    async with opened("Cid") as page:
        await page.asks("Cid's first", RED)
        await page.asks("Cid's second")
        assert pictures(demo.asked("Cid's second")) == [1, 0]


async def test_an_album_is_one_question(demo: Demo, opened: Opens) -> None:
    """Several uploaded pictures, or samples selected with +, are shown together and get one answer."""
    async with opened("Dan") as page:
        await page.asks("Dan's pictures", RED, BLUE, GREEN)
        assert pictures(demo.asked("Dan's pictures")) == [3]
        await page.page.get_by_role("button", name="Select the sample").first.click()
        await page.page.locator(".sample").nth(1).click()
        await expect(page.page.locator(".chip img")).to_have_count(2)
        await page.asks("Dan's samples")
        assert pictures(demo.asked("Dan's samples"))[-1] == 2
        assert [await album.locator("img").count() for album in await page.page.locator(".album").all()] == [3, 2]
        await expect(page.answers).to_have_count(2)
        await page.page.reload()
        await expect(page.page.locator(".album img")).to_have_count(5)


async def test_an_edited_question_is_answered_in_its_place(demo: Demo, opened: Opens) -> None:
    """An edited caption is marked as edited, and the new answer replaces the old one."""
    async with opened("Eve") as page:
        answer = await page.asks("Eve's words:3", RED)
        before = await number(answer)
        await page.acts(page.messages.first, "Edit")
        await page.says("Eve's words:6")
        await expect(page.rated).to_contain_text(word(5))
        await expect(page.messages.first).to_contain_text("edited")
        assert (await page.messages.count(), await number(page.rated)) == (2, before)
        assert pictures(demo.asked("Eve's words:6")) == [1]


async def test_another_answer_stands_below(opened: Opens) -> None:
    """🔄 adds a second answer that can be rated too; only the newest answer has 🔄."""
    async with opened("Fay") as page:
        answer = await page.asks("What is it?", RED)
        await button(answer, AGAIN).click()
        await expect(page.rated).to_have_count(2)
        await expect(button(page.rated.nth(1), AGAIN)).to_be_visible()
        await expect(button(page.rated.nth(0), AGAIN)).to_have_count(0)


async def test_what_was_said_before_a_stop_stays(demo: Demo, opened: Opens) -> None:
    """⏹ stops the engine; the text so far becomes the answer, which can be rated and followed up."""
    async with opened("Gus") as page:
        await page.attach(RED)
        await page.says("Gus's gate:2 words:30")
        await expect(page.answers).to_contain_text(word(1))
        await button(page.answers, STOP).click()
        await expect(page.rated).to_have_count(1)
        await expect(page.rated).to_contain_text(word(1))
        await expect(page.rated).not_to_contain_text(word(2))
        open_gate(demo.engine)
        await page.asks("Gus's second")
        said = demo.asked("Gus's second")["messages"][-2]
        assert said["role"] == "assistant" and str(said["content"]).endswith("/1")


async def test_a_refused_picture_does_not_stay_attached(demo: Demo, opened: Opens) -> None:
    """When a picture is refused, the page shows the error and sends the next message without the picture."""
    async with opened("Max") as page:
        for data, says in ((b"no picture", "can't be opened as a picture"), (png(3000, 10, "red"), "too narrow")):
            await page.attach(data)
            await page.page.locator("#send").click()
            await expect(page.page.locator(".toast.wrong").last).to_contain_text(says)
            await expect(page.page.locator("#chips")).to_be_hidden()
        assert all("400" in each for each in page.errors), "the browser notes the two refusals itself"
        page.errors.clear()
        await page.asks("Max's question", RED)
        assert pictures(demo.asked("Max's question")) == [1]


async def test_a_small_webp_is_a_sticker(demo: Demo, opened: Opens) -> None:
    """A small WebP picture without a caption is sent and shown as a sticker, and gets an answer."""
    async with opened("Hal") as page:
        await page.attach(png(200, 200, "orange", "WEBP"), media_type="image/webp")
        await page.page.locator("#send").click()
        await expect(page.rated).to_have_count(1)
        await expect(page.page.locator("img.sticker")).to_be_visible()
        await page.asks("Hal's question")
        assert pictures(demo.asked("Hal's question")) == [1, 0]


async def test_the_sample_sticker_is_sent_as_one(demo: Demo, opened: Opens) -> None:
    """The sample sticker is sent on its own, shown as a sticker and answered; the draft stays in place."""
    async with opened("Ivy") as page:
        await page.page.locator("#text").fill("Ivy's question")
        await page.page.get_by_role("button", name="Send the sample sticker").click()
        await expect(page.rated).to_have_count(1)
        await expect(page.page.locator("img.sticker")).to_be_visible()
        await expect(page.page.get_by_role("button", name="Select the sample sticker")).to_have_count(0)
        await expect(page.page.locator("#text")).to_have_value("Ivy's question")
        await page.page.locator("#text").press("Enter")
        await expect(page.rated).to_have_count(2)
        assert pictures(demo.asked("Ivy's question")) == [1, 0]


async def test_a_group_shares_the_bot(opened: Opens) -> None:
    """In a group, messages begin with the bot's name; other members see the exchange and can vote."""
    async with opened("小伟") as wei, opened("Tom") as tom:
        for page in (wei, tom):
            await page.becomes(GROUP)
        await wei.sends_sample(0)
        answer = tom.rated
        await expect(answer).to_have_count(1)
        await expect(tom.messages.first).to_contain_text("@thumbtune_bot")
        for page in (wei, tom):
            await button(page.rated, UP).click()
        await expect(button(answer, UP)).to_contain_text("2")
        await tom.becomes("thumbtune")
        await expect(tom.messages).to_have_count(0)


async def test_a_phone_shows_the_chat_alone(opened: Opens) -> None:
    """On a narrow screen, ☰ opens the demo panel, and nothing, not even a quote, is wider than the screen."""
    async with opened("Tom", width=360, height=700) as page:
        await expect(page.page.locator("#panel")).to_be_hidden()
        await page.page.locator("#open-panel").click()
        await page.becomes("Tom")
        await expect(page.page.locator("#panel")).to_be_hidden()
        answer = await page.sends_sample(2)
        await button(answer, DOWN).click()
        await expect(button(answer, "Wrong tone")).to_be_visible()
        await page.acts(answer, "Reply")
        quoting = await page.asks("And what did I quote there?")
        box = await page.page.locator(".mine .bubble", has=page.page.locator(".quote")).bounding_box()
        assert box and box["x"] >= 0, "the quotation of a long answer is cut, not what was written"
        await expect(quoting).to_be_visible()
        for part in ("body", "#messages", "#composer"):
            assert await page.page.locator(part).evaluate("it => it.scrollWidth <= it.clientWidth"), part


async def test_only_the_admin_is_told_to_have_it_learn(opened: Opens, demo: Demo) -> None:
    """After the sample votes, the hint tells the admin to use /retrain and other users to switch to the admin."""

    async def learning() -> dict[str, Any]:
        cast = demo.community.emulator.voters.state["done"] > 0
        return {**NO_LEARNING, "votes": "ready" if cast else ""}

    demo.community.emulator.show_learning(learning)
    async with opened("Jim") as page:
        hint, cast = page.page.locator("#hint"), page.page.locator("#cast")
        await cast.click()
        await expect(cast).to_have_text("Cast more sample votes")
        await expect(hint).to_contain_text("Send a picture")
        answer = await page.asks("What is it?", RED)
        await expect(hint).to_contain_text("Tell it what you like")
        await button(answer, UP).click()
        await expect(hint).to_contain_text("Ask a follow-up question")
        await page.asks("How many?")
        await expect(hint).to_contain_text("choose Mia, the admin, in the demo panel to start a run")
        await page.page.locator("#people .person", has_text="admin").click()
        await expect(hint).to_contain_text("press /retrain")
