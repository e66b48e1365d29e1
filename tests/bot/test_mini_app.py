"""The review page as a Mini App: who gets in with Telegram's data, and what other sites can do with the session."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest
from pydantic import ValidationError
from yarl import URL

from bot.settings import WebSettings
from storage.review_cards import CardFilter
from tests.bot.test_review import ADA, Desk, at_work, cards, token
from tests.support.mini_app import init_data
from tests.support.whole_bot import ADMIN

PASSWORD = "a-password"
PUBLIC = "https://bot.example.org"
WEB = {"port": 0, "token": PASSWORD, "public_url": PUBLIC}
HTML = {"Accept": "text/html"}
FRAME = {"Sec-Fetch-Dest": "iframe", **HTML}
TELEGRAM = "frame-ancestors https://web.telegram.org"


@dataclass
class Opened:
    """A Mini App in a webview that keeps cookies, and the token of the bot."""

    desk: Desk
    bot_token: str
    webview: aiohttp.ClientSession

    async def enter(self, data: str, *, scheme: str = "dark") -> aiohttp.ClientResponse:
        """Send Telegram's data as the page does, and return the answer."""
        form = {"init_data": data, "scheme": scheme}
        async with self.webview.post("/app", data=form, headers=FRAME, allow_redirects=False) as answer:
            await answer.read()
            return answer

    async def leads(self, path: str) -> str | None:
        """Return where a request for a page is sent, or None if the page is shown."""
        async with self.webview.get(path, headers=FRAME, allow_redirects=False) as answer:
            return answer.headers.get("Location")


async def decisions(desk: Desk) -> list[tuple[int, str]]:
    """Return the answers that have been decided on, with the name of who did."""
    found, _ = await desk.ledger.review_cards.page(CardFilter(), None, 9)
    return [(each.exchange.id, each.reviews[-1].reviewer) for each in found if each.decision]


def webview(url: str) -> aiohttp.ClientSession:
    """Return a browser that treats `url` as an https address, as behind a proxy with TLS."""
    return aiohttp.ClientSession(url, cookie_jar=aiohttp.CookieJar(unsafe=True, treat_as_secure_origin=URL(url)))


@pytest.fixture
async def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Opened]:
    async with at_work(tmp_path, monkeypatch, web=WEB) as desk, webview(desk.url) as browser:
        yield Opened(desk, desk.bot.emulator.token, browser)


async def test_an_admin_reviews_without_a_password(app: Opened) -> None:
    """Telegram's data begin a session whose decisions are recorded under the admin's user ID.

    Only its pages may be framed, only by Telegram's web client, and they have Telegram's color scheme. The
    cookies reach the server from inside that frame, and from no other site's where the browser supports it.
    """
    assert await app.leads("/review") == "/app"
    answer = await app.enter(init_data(app.bot_token, ADMIN))
    assert (answer.status, answer.headers["Location"]) == (303, "/review")
    cookie = answer.headers["Set-Cookie"]
    assert {"HttpOnly", "Secure", "SameSite=None", "Partitioned", "Max-Age=43200"} <= set(cookie.split("; "))
    async with app.webview.get("/review?language=zh", headers=FRAME) as answer:
        page = await answer.text()
        assert answer.headers["Content-Security-Policy"].endswith(TELEGRAM)
        assert "telegram.org/js" not in answer.headers["Content-Security-Policy"]
        assert answer.headers["Set-Cookie"].endswith("SameSite=None; Secure; Partitioned")
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert 'data-scheme="dark"' in page and cards(page) == [6, 5, 4, 3, 2, 1]
    form = {"csrf": token(page), "decision": "drop", "back": "/review"}
    async with app.webview.post("/review/6", data=form) as answer:
        assert answer.status == 200 and 'lang="zh"' in await answer.text()
    assert await decisions(app.desk) == [(6, str(ADMIN))]


async def test_forged_forms_are_refused(app: Opened) -> None:
    """A form of another site, with which an old browser sends the cookie, is refused: it lacks the session's token."""
    await app.enter(init_data(app.bot_token, ADMIN))
    async with webview(app.desk.url) as other:
        async with other.post("/login", data={"token": PASSWORD}) as answer:
            assert answer.status == 200
        async with other.get("/review") as answer:
            foreign = token(await answer.text())
    for csrf in ({}, {"csrf": foreign}):
        async with app.webview.post("/review/6", data={"decision": "drop", **csrf}, headers=FRAME) as answer:
            assert answer.status == 403 and answer.headers["Content-Security-Policy"].endswith(TELEGRAM)
    assert await decisions(app.desk) == []


def damaged(data: str) -> str:
    """Return the data with the last digit of the hash changed."""
    return data[:-1] + ("0" if data[-1] != "0" else "1")


async def test_nobody_else_gets_in(app: Opened) -> None:
    """People who are no admins, and data that are forged, old, broken or another bot's, begin no session."""
    bot = app.bot_token
    stranger = init_data(bot, ADA)
    wrong = [
        damaged(init_data(bot, ADMIN)),
        init_data("1:another-bot", ADMIN),
        stranger.replace(f"%22id%22%3A+{ADA}", f"%22id%22%3A+{ADMIN}"),
        init_data(bot, ADMIN, age=3700),
        init_data(bot, ADMIN, age=-3700),
        init_data(bot, ADMIN, auth_date="soon"),
        init_data(bot, ADMIN, user="{}"),
        init_data(bot, ADMIN, user="{]}"),
        init_data(bot, ADMIN, start_param="x" * 9000),
        f"user={quote(json.dumps({'id': ADMIN}))}&hash=ü",
        "",
        "%",
    ]
    assert wrong[2] != stranger
    for data, words in ((stranger, "Only admins"), *((each, "expired") for each in wrong)):
        answer = await app.enter(data)
        assert answer.status == 403 and "Set-Cookie" not in answer.headers, data
        assert words in await answer.text() and "<script" not in await answer.text()
        assert await app.leads("/review") == "/app"


async def test_data_begin_one_session(app: Opened) -> None:
    """The app can be reloaded while its session lasts; the same data let in nobody else, and nobody after a logout."""
    data = init_data(app.bot_token, ADMIN)
    await app.enter(data)
    again = await app.enter(data)
    assert (again.status, again.headers["Location"]) == (303, "/review") and "Set-Cookie" not in again.headers
    async with webview(app.desk.url) as other:
        assert (await replace(app, webview=other).enter(data)).status == 403
        async with other.post("/login", data={"token": PASSWORD, "name": str(ADMIN)}) as answer:
            assert answer.status == 200
        assert (await replace(app, webview=other).enter(data)).status == 403
    async with app.webview.get("/review") as answer:
        csrf = token(await answer.text())
    kept = {each.key: each.value for each in app.webview.cookie_jar}
    async with app.webview.post("/logout", data={"csrf": csrf}, headers=FRAME, allow_redirects=False) as answer:
        assert answer.headers["Location"] == "/app"
    app.webview.cookie_jar.update_cookies(kept)
    assert await app.leads("/review") == "/app"
    assert (await app.enter(data)).status == 403
    assert (await app.enter(init_data(app.bot_token, ADMIN, query_id="AAF2"))).status == 303


async def test_one_page_loads_telegrams_script(app: Opened) -> None:
    """Only /app may load a script from elsewhere, exactly Telegram's. Pages outside the Mini App are never framed."""
    async with app.webview.get("/app") as answer:
        policy = answer.headers["Content-Security-Policy"]
        assert "script-src https://telegram.org/js/telegram-web-app.js 'sha256-" in policy
        assert policy.endswith(TELEGRAM) and "connect-src 'self'" in policy
    for headers in ({}, {"Authorization": f"Bearer {PASSWORD}"}):
        for path in ("/login", "/health", "/review"):
            async with app.webview.get(path, headers=headers, allow_redirects=False) as answer:
                policy = answer.headers["Content-Security-Policy"]
                assert "telegram" not in policy and policy.endswith("frame-ancestors 'none'")
    async with app.webview.get("/review", headers=HTML, allow_redirects=False) as answer:
        assert answer.headers["Location"].startswith("/login?")


async def test_the_chat_has_a_button(app: Opened) -> None:
    """In private /review has a button for the Mini App instead of the cards; in a group it shows neither."""
    bot = app.desk.bot
    root = await bot.person(ADMIN, "Root", "en")
    await root.sends("/review")
    message = await bot.says(ADMIN)
    assert message["text"] == "Keep, drop or edit rated answers"
    assert message["reply_markup"] == {"inline_keyboard": [[{"text": "Open", "web_app": {"url": f"{PUBLIC}/app"}}]]}
    group = bot.emulator.add_group("Cups", [ADMIN]).id
    await root.sends("/review", chat=group)
    message = await bot.says(group)
    assert "private chat" in message["text"] and "reply_markup" not in message


async def test_without_a_public_address_there_is_no_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Telegram's data let nobody in where `web.public_url` is not set."""
    async with at_work(tmp_path, monkeypatch, web={"port": 0, "token": PASSWORD}) as desk, webview(desk.url) as browser:
        opened = Opened(desk, desk.bot.emulator.token, browser)
        assert (await opened.enter(init_data(opened.bot_token, ADMIN))).status == 404
        assert str(await opened.leads("/review")).startswith("/login?")


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"public_url": PUBLIC}, "needs web.token"),
        ({"public_url": "http://bot.example.org", "token": "a"}, "expected https://"),
        ({"public_url": f"{PUBLIC}/thumbtune", "token": "a"}, "without a path"),
    ],
)
def test_a_public_address_needs_https_and_a_password(section: dict[str, str], words: str) -> None:
    """Pages that a proxy makes public are never without a password, and Telegram opens https only."""
    with pytest.raises(ValidationError, match=words):
        WebSettings.model_validate(section)
