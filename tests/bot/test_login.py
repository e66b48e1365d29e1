"""Logging in to the operator's pages: the form, its session cookie, forged forms, and guessed passwords."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.bot.test_web_attacks import AUTHORISED, TOKEN, exchange, served
from tests.support.whole_bot import whole_bot

PAGE = "/runs/1/loss.png"
"""A private address; 404 means that the request was let in."""

HTML = {"Accept": "text/html,application/xhtml+xml"}


@asynccontextmanager
async def browser(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    """Yield a session that keeps cookies and follows no redirects by itself."""
    async with aiohttp.ClientSession(url, cookie_jar=aiohttp.CookieJar(unsafe=True), headers=HTML) as session:
        yield session


async def log_in(session: aiohttp.ClientSession, token: str = TOKEN, **fields: str) -> aiohttp.ClientResponse:
    """Send the login form and return the answer."""
    headers: dict[str, str] = {
        name: fields.pop(name) for name in ("X-Forwarded-For", "X-Forwarded-Proto") if name in fields
    }
    form: dict[str, Any] = {"token": token, **fields}
    async with session.post("/login", data=form, headers=headers, allow_redirects=False) as answer:
        await answer.read()
        return answer


async def status(session: aiohttp.ClientSession, path: str = PAGE, **headers: str) -> int:
    """Return the status of a page."""
    async with session.get(path, headers=headers, allow_redirects=False) as answer:
        return answer.status


async def test_a_browser_logs_in(tmp_path: Path) -> None:
    """A browser without a session is sent to the form, which leads back to the page that it asked for."""
    async with served(tmp_path, token=TOKEN) as url, browser(url) as session:
        async with session.get(f"{PAGE}?language=zh", allow_redirects=False) as answer:
            assert answer.status == 303
            assert answer.headers["Location"] == "/login?next=/runs/1/loss.png?language%3Dzh"
            to = answer.headers["Location"]
        async with session.get(to) as answer:
            form = await answer.text()
            assert answer.status == 200 and f'name="next" value="{PAGE}?language=zh"' in form
            assert "form-action 'self'" in answer.headers["Content-Security-Policy"]
        answer = await log_in(session, next=PAGE, name="Olga")
        assert (answer.status, answer.headers["Location"]) == (303, PAGE)
        cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "Max-Age=43200" in cookie
        assert "Secure" not in cookie and TOKEN not in cookie
        assert await status(session) == 404


async def test_logging_out_ends_the_session_on_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cookie kept from before the logout opens nothing; each session has its own token for forms."""
    async with whole_bot(tmp_path, monkeypatch) as bot, bot.running(web={"port": 0, "token": TOKEN}) as application:
        url = application.address
        async with browser(url) as session, browser(url) as other:
            tokens = []
            for each in (session, other):
                await log_in(each, name=" Olga\x00 " if each is session else "")
                async with each.get("/review") as answer:
                    tokens.append((await answer.text()).split('name="csrf" value="')[1][:64])
            assert tokens[0] != tokens[1]
            async with session.post("/logout", data={"csrf": tokens[1]}) as answer:
                assert answer.status == 403
            kept = {each.key: each.value for each in session.cookie_jar}
            async with session.post("/logout", data={"csrf": tokens[0]}, allow_redirects=False) as answer:
                assert answer.status == 303
            session.cookie_jar.update_cookies(kept)
            assert await status(session, "/review") == 303
            assert await status(other, "/review") == 200


async def test_behind_https_the_cookie_is_secure(tmp_path: Path) -> None:
    """If the proxy says that the browser came by https, the cookie is never sent without it."""
    async with served(tmp_path, token=TOKEN) as url, browser(url) as session:
        answer = await log_in(session, **{"X-Forwarded-Proto": "https"})
        assert "Secure" in answer.headers["Set-Cookie"]


@pytest.mark.parametrize("next", ["//evil.example.org", "/\\evil", "https://evil.example.org", "", "/a\r\nb", "/ü"])
async def test_the_form_leads_nowhere_else(tmp_path: Path, next: str) -> None:
    """After the login a browser is sent only to a path on this server."""
    async with served(tmp_path, token=TOKEN) as url, browser(url) as session:
        assert (await log_in(session, next=next)).headers["Location"] == "/"


async def test_guessing_is_slowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After five wrong passwords from an address none is checked for a while, in the form or in a header.

    Sessions and other addresses are not affected.
    """
    monkeypatch.setattr("bot.web.login.WAIT_SECONDS", 1.5)
    async with served(tmp_path, token=TOKEN) as url, browser(url) as session, browser(url) as friend:
        await log_in(friend)
        for number in range(5):
            if number % 2:
                assert await status(session, Authorization=f"Bearer wrong-{number}") == 401
            else:
                answer = await log_in(session, f"wrong-{number}")
                assert answer.status == 401 and "Set-Cookie" not in answer.headers
        answer = await log_in(session)
        assert answer.status == 429 and "Set-Cookie" not in answer.headers
        refused, _ = await exchange(url, b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\n\r\n"
                                    % (PAGE.encode(), AUTHORISED))  # fmt: skip
        assert refused == 429
        assert await status(friend) == 404
        assert (await log_in(session, **{"X-Forwarded-For": "203.0.113.9"})).status == 303
        async with asyncio.timeout(30), browser(url) as later:
            while (await log_in(later)).status == 429:
                await asyncio.sleep(0.05)
            assert await status(later) == 404


@pytest.mark.parametrize("cookie", ["", "x", "0" * 43, "ü"])
async def test_no_made_up_session_is_served(tmp_path: Path, cookie: str) -> None:
    """A cookie that the server did not set opens nothing."""
    async with served(tmp_path, token=TOKEN) as url:
        request = f"GET {PAGE} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nCookie: thumbtune={cookie}\r\n\r\n"
        assert (await exchange(url, request.encode()))[0] == 401


async def test_without_a_token_there_is_no_form(tmp_path: Path) -> None:
    """Without `web.token` nobody can log in: no password is right, and the form leads to the operator page."""
    async with served(tmp_path) as url, browser(url) as session:
        assert await status(session, "/login") == 303
        answer = await log_in(session, "")
        assert answer.status == 401 and "Set-Cookie" not in answer.headers


async def test_errors_are_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator's browser gets an error as a page with the navigation, in its language; others get the text."""
    async with (
        whole_bot(tmp_path, monkeypatch) as bot,
        bot.running(web={"port": 0, "token": TOKEN}) as application,
        browser(application.address) as session,
    ):
        for path in ("/nothing", "/runs/99", "/people/1002"):
            async with session.get(path, allow_redirects=False) as answer:
                assert "<nav" not in await answer.text(), "nothing is shown before the login"
        await log_in(session)
        for path, language, words in (
            ("/nothing", "en", "There is nothing at this address."),
            ("/runs/99", "en", "The database has no run 99: see the list of runs."),
            ("/runs/99", "zh", "数据库里没有第 99 次训练，请查看训练列表。"),
            ("/runs/99/sheet.html", "zh", "数据库里没有第 99 次训练，请查看训练列表。"),
            ("/people/1002", "zh", "没有保存与 1002 有关的数据。"),
            ("/models/run-9/delete", "en", "There is no model run-9: see the list of models."),
        ):
            async with session.get(f"{path}?language={language}") as answer:
                page = await answer.text()
                assert answer.status == 404 and words in page and '<a href="/models"' in page
                assert "form-action 'self'" in answer.headers["Content-Security-Policy"]
        async with session.post("/people/7/block", data={"csrf": "forged"}) as answer:
            page = await answer.text()
            assert answer.status == 403 and "This form is out of date." in page and 'href="/?language=zh"' in page
        async with session.get("/runs/99?language=en", headers={"Accept": "*/*"}) as answer:
            assert await answer.text() == "The database has no run 99: see the list of runs."
