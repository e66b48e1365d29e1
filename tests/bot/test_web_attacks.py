"""Attacks on the bot's web server through real sockets.

No attack gets a 500 response, a page that it is not authorized to see, or a connection that stays open.
"""

from __future__ import annotations

import asyncio
import json
import socket
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings, strategies
from pydantic import SecretStr

from bot.admin.monitoring import Monitoring
from bot.chat.answer_times import AnswerTimes
from bot.config import Settings
from bot.i18n import Translator
from bot.live_settings import LiveSettings
from bot.settings import TelegramSettings, WebhookSettings, WebSettings
from bot.web.pages import Pages
from bot.web.server import SECRET_HEADER, WEBHOOK_PATH, WebServer
from storage.ledger import Ledger
from tests.support.chatting import Stage
from tests.support.whole_bot import whole_bot

SECRET = "a-secret-of-the-webhook"
TOKEN = "a-password"
AUTHORISED = f"Authorization: Basic {b64encode(f'operator:{TOKEN}'.encode()).decode()}".encode()
AS_TELEGRAM = f"{SECRET_HEADER}: {SECRET}".encode()


async def nothing(_: Any) -> None:
    """Accept an update and discard it."""


async def exchange(url: str, request: bytes) -> tuple[int, bytes]:
    """Send `request` to the server at `url` and return the response's status code and raw bytes.

    The status code is 0 if the connection closes without a response.
    """
    place = urlsplit(url)
    async with asyncio.timeout(30):
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        try:
            writer.write(request)
            answer = await reader.read()
        except ConnectionError:
            return 0, b""
        finally:
            writer.close()
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/") else 0, answer


def get(path: str, *headers: bytes, host: bytes = b"127.0.0.1") -> bytes:
    """Return a GET request for `path` as a browser would send it."""
    return b"\r\n".join((f"GET {path} HTTP/1.1".encode(), b"Host: " + host, b"Connection: close", *headers, b"", b""))


def post(body: bytes, *headers: bytes) -> bytes:
    """Return a POST request to the webhook with `body` and the given headers."""
    length = f"Content-Length: {len(body)}".encode()
    head = (f"POST {WEBHOOK_PATH} HTTP/1.1".encode(), b"Host: x", b"Connection: close", length, *headers, b"", body)
    return b"\r\n".join(head)


@asynccontextmanager
async def served(
    folder: Path, *, token: str = "", accept: Callable[[Any], Awaitable[None]] = nothing
) -> AsyncIterator[str]:
    """Run the web server in webhook mode with an empty ledger, and yield its URL."""
    values = Settings(
        telegram=TelegramSettings(
            mode="webhook", webhook=WebhookSettings(url="https://bot.example.org/telegram", secret=SecretStr(SECRET))
        ),
        web=WebSettings(port=0, token=SecretStr(token)),
    )
    async with Ledger.open(folder) as ledger:
        vitals = Monitoring(
            ledger, cast(Any, None), cast(Any, None), dict, lambda: None, AnswerTimes(), LiveSettings(values)
        )
        server = WebServer(values, vitals, accept, Pages(Translator.load()))
        try:
            yield await server.start()
        finally:
            await server.stop()


@pytest.mark.parametrize(
    "authorization",
    [b"Basic \xff\xfe", "Basic ü".encode(), b"Bearer \xff", b"Bearer", b"Basic", b"Basic ====", b"\xff", b"Basic /w=="],
)
async def test_no_authorization_is_an_error_of_ours(tmp_path: Path, authorization: bytes) -> None:
    """A malformed Authorization header is refused with 401 and causes no server error."""
    async with served(tmp_path, token=TOKEN) as url:
        status, _ = await exchange(url, get("/", b"Authorization: " + authorization))
    assert status == 401


@pytest.mark.parametrize("secret", [b"\xff\xfe", "ü".encode(), b"", SECRET.encode()[:-1], SECRET.encode() + b"\xff"])
async def test_no_secret_is_an_error_of_ours(tmp_path: Path, secret: bytes) -> None:
    """A webhook call with a wrong secret is refused with 403, even if the secret is not valid text."""
    async with served(tmp_path) as url:
        status, _ = await exchange(url, post(b"{}", f"{SECRET_HEADER}: ".encode() + secret))
    assert status == 403


async def test_a_password_may_have_any_letters(tmp_path: Path) -> None:
    """Non-ASCII passwords work in UTF-8, both with basic authentication and as bearer tokens."""
    async with served(tmp_path, token="grüß dich") as url:
        basic = b64encode("operator:grüß dich".encode())
        for authorization in (b"Basic " + basic, "Bearer grüß dich".encode()):
            status, _ = await exchange(url, get("/runs/1/loss.png", b"Authorization: " + authorization))
            assert status == 404


@pytest.mark.parametrize("run", ["9" * 19, "9" * 40, "9" * 5000, "9" * 18, "-1", "1e3", "٣", "%D9%A3", "1%00"])
async def test_no_run_is_too_large_to_be_missing(tmp_path: Path, run: str) -> None:
    """A request for a run whose number is invalid or out of range is answered with 404."""
    async with served(tmp_path, token=TOKEN) as url:
        for name in ("loss.png", "sheet.html", "sheet.png"):
            status, _ = await exchange(url, get(f"/runs/{run}/{name}", AUTHORISED))
            assert status in (404, 400 if run == "٣" else 404)


@pytest.mark.parametrize(
    "body",
    [
        b'{"update_id": "1"}',
        b'{"update_id": 1.0}',
        b'{"update_id": true}',
        b'{"update_id": -1}',
        b'{"update_id": 9223372036854775808}',
        b'{"update_id": ' + b"9" * 5000 + b"}",
        b"[" * 100_000 + b"]" * 100_000,
        b'{"update_id": 1, "message": ' + b"[" * 400 + b"]" * 400 + b"}",
        b'{"update_id": 1, "message": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        b"[]",
        b"1",
        b"null",
        b"",
        b"\xff\xfe",
        b"{",
    ],
)
async def test_what_is_no_update_is_a_bad_request(tmp_path: Path, stage: Stage, body: bytes) -> None:
    """A webhook call with the right secret is answered with 400 if the ledger cannot store its body."""
    async with stage.bot() as running, served(tmp_path / "web", accept=running.inbox.accept) as url:
        status, _ = await exchange(url, post(body, AS_TELEGRAM))
        assert status == 400


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"{}", (b"Content-Type: application/json; charset=nonsense",)),
        (b"no gzip", (b"Content-Encoding: gzip",)),
        (b"{}", (b"Content-Encoding: nonsense",)),
    ],
)
async def test_no_encoding_is_an_error_of_ours(tmp_path: Path, body: bytes, headers: tuple[bytes, ...]) -> None:
    """The server reads a webhook body as JSON in UTF-8, whatever encoding its headers claim."""
    async with served(tmp_path) as url:
        status, _ = await exchange(url, post(body, AS_TELEGRAM, *headers))
    assert status in (200, 400)


async def test_half_open_requests_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that sends nothing, or only part of the headers or body, is closed after a timeout."""
    monkeypatch.setattr("bot.web.server.HEADER_SECONDS", 2)
    monkeypatch.setattr("bot.web.security.BODY_SECONDS", 2)
    whole = post(b'{"update_id": 1}', AS_TELEGRAM)
    halves = [
        b"",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        get("/health")[:-2],
        whole[:-3],
        whole.replace(SECRET.encode(), b"wrong")[:-3],
        b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf",
        b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n",
    ]
    async with served(tmp_path) as url:
        answers = await asyncio.gather(*(exchange(url, half) for half in halves * 20))
    assert [status for status, _ in answers[: len(halves)]] == [0, 0, 0, 408, 403, 404, 404]


@pytest.mark.parametrize("host", ["evil.example.org", "127.0.0.1.evil.example.org", "[", "", "203.0.113.9", "\xff"])
async def test_without_a_token_no_foreign_name_is_served(tmp_path: Path, host: str) -> None:
    """Without a token, a request for a foreign host name is refused, as protection against DNS rebinding."""
    async with served(tmp_path) as url:
        status, _ = await exchange(url, get("/runs/1/loss.png", host=host.encode("latin-1")))
        assert status == 403 or (not host and status == 400)


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "LOCALHOST:8080", "[::1]:8080", "127.0.0.2"])
async def test_without_a_token_this_machine_is_served(tmp_path: Path, host: str) -> None:
    """Without a token, requests for any local host name or address are served."""
    async with served(tmp_path) as url:
        status, _ = await exchange(url, get("/runs/1/loss.png", host=host.encode()))
        assert status == 404


async def test_every_answer_has_its_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Response headers forbid framing, MIME sniffing, caching, referrers, and all styles but the page's own."""
    async with whole_bot(tmp_path, monkeypatch) as bot, bot.running() as application:
        pages = {path: await exchange(application.address, get(path)) for path in ("/", "/health", "/metrics", "/none")}
    for status, answer in pages.values():
        head = answer.partition(b"\r\n\r\n")[0].decode().lower()
        assert status in (200, 404, 503)
        assert "default-src 'none'" in head and "frame-ancestors 'none'" in head and "unsafe-inline" not in head
        assert "x-content-type-options: nosniff" in head and "referrer-policy: no-referrer" in head
        assert "cache-control: no-store" in head
    status, page = pages["/"]
    assert status == 200 and b"style-src 'sha256-" in page
    assert b"style=" not in page.partition(b"<body>")[2]


async def test_a_stranger_learns_only_whether_all_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/health shows only the overall status to callers without the token or with a foreign host name."""
    async with whole_bot(tmp_path, monkeypatch) as bot:
        async with bot.running(web={"port": 0, "token": TOKEN}) as application:
            _, answer = await exchange(application.address, get("/health"))
            assert set(json.loads(answer.partition(b"\r\n\r\n")[2])) == {"status"}
            _, answer = await exchange(application.address, get("/health", AUTHORISED))
            assert set(json.loads(answer.partition(b"\r\n\r\n")[2])["services"]) == {"ledger", "engine"}
        async with bot.running() as application:
            _, answer = await exchange(application.address, get("/health", host=b"evil.example.org"))
            assert set(json.loads(answer.partition(b"\r\n\r\n")[2])) == {"status"}


header_values = strategies.binary(max_size=40).map(lambda raw: raw.translate(None, b"\r\n\0"))
bodies = strategies.one_of(
    strategies.binary(max_size=200),
    strategies.recursive(
        strategies.none() | strategies.booleans() | strategies.integers() | strategies.floats() | strategies.text(),
        lambda inner: strategies.lists(inner) | strategies.dictionaries(strategies.text(), inner),
        max_leaves=10,
    ).map(lambda value: json.dumps(value).encode()),
)


async def test_no_body_and_no_header_is_an_error_of_ours(tmp_path: Path, stage: Stage) -> None:
    """Arbitrary requests, with or without the right secret, never cause a server error."""
    async with (
        stage.bot() as running,
        served(tmp_path / "web", token=TOKEN, accept=running.inbox.accept) as url,
    ):
        place = urlsplit(url)

        def ask(request: bytes) -> bytes:
            with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
                connection.sendall(request)
                answer = b""
                while part := connection.recv(65536):
                    answer += part
            return answer

        @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
        @given(bodies, header_values, strategies.lists(header_values, max_size=3), strategies.booleans())
        def attack(body: bytes, secret: bytes, others: list[bytes], trusted: bool) -> None:
            names = (b"Content-Type: ", b"Authorization: ", b"X-Forwarded-For: ")
            extra = [name + value for name, value in zip(names, others, strict=False)]
            key = AS_TELEGRAM if trusted else f"{SECRET_HEADER}: ".encode() + secret
            assert b" 500 " not in ask(post(body, key, *extra)).partition(b"\r\n")[0]
            assert b" 500 " not in ask(get("/", key, *extra)).partition(b"\r\n")[0]

        await asyncio.to_thread(attack)
