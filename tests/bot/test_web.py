"""The bot's web server: access control, the webhook and the operator page."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from ipaddress import ip_network
from pathlib import Path
from typing import cast

import aiohttp
import pytest
from pydantic import SecretStr

from bot.admin.monitoring import Monitoring
from bot.config import Settings
from bot.i18n import Translator
from bot.settings import TelegramSettings, WebhookSettings, WebSettings
from bot.web.pages import Pages
from bot.web.server import SECRET_HEADER, WEBHOOK_PATH, WebServer
from inference.serving.engine_launch import free_port
from storage.errors import NotSaved
from tests.support.community import Community, questions
from tests.support.whole_bot import whole_bot

SECRET = "a-secret-of-the-webhook"
TOKEN = "a-password"


async def test_a_webhook_bot_answers_and_keeps_strangers_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_python: str
) -> None:
    """The bot answers webhook updates that carry the secret.

    Requests without the secret, or without the operator's password, are refused.
    """
    async with Community(tmp_path, python=warm_python, telegram={"mode": "webhook"}, web={"token": TOKEN}) as community:
        monkeypatch.setenv("THUMBTUNE_TELEGRAM__WEBHOOK__URL", community.web + WEBHOOK_PATH)
        monkeypatch.setenv("THUMBTUNE_TELEGRAM__WEBHOOK__SECRET", SECRET)
        await community.bot.start()
        person = await community.person()
        (question,) = questions("webhook", 1)
        answer = await person.asks(photo=question.picture, caption=question.text)
        assert answer["text"]
        async with aiohttp.ClientSession(community.web) as session:
            async with session.post(WEBHOOK_PATH, json={"update_id": 1}) as refused:
                assert refused.status == 403
            async with session.post(WEBHOOK_PATH, data=b"[", headers={SECRET_HEADER: SECRET}) as refused:
                assert refused.status == 400
            for path in ("/", "/metrics", "/runs/1/loss.png", "/runs/1/sheet.html", "/runs/1/sheet.png"):
                async with session.get(path) as refused:
                    assert refused.status == 401
            headers = {"Authorization": f"Basic {b64encode(f'operator:{TOKEN}'.encode()).decode()}"}
            async with session.get("/", headers=headers) as page:
                assert page.status == 200
                assert "base" in await page.text()
            for path in ("/runs/1/loss.png", "/runs/1/sheet.html", "/runs/1/sheet.png", "/runs/1/report.json"):
                async with session.get(path, headers=headers) as missing:
                    assert missing.status == 404
            async with session.get("/health", headers=headers) as health:
                assert (await health.json())["services"] == {"ledger": "ok", "engine": "ok"}
        assert await community.bot.stop() == 0


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"X-Forwarded-For": "149.154.167.197"}, 200),
        ({"X-Forwarded-For": "149.154.167.197, 127.0.0.1"}, 200),
        ({"X-Forwarded-For": "149.154.167.197, 203.0.113.9"}, 403),
        ({"X-Forwarded-For": "nonsense"}, 403),
    ],
)
async def test_only_the_networks_of_the_settings_may_call(headers: dict[str, str], status: int) -> None:
    """A webhook call is accepted only if the caller's address is in a configured network.

    The caller is the last address in X-Forwarded-For that is not a local proxy; earlier ones are untrusted.
    """
    taken: list[dict[str, object]] = []

    async def accept(update: dict[str, object]) -> None:
        taken.append(update)

    settings = Settings(
        telegram=TelegramSettings(
            mode="webhook",
            webhook=WebhookSettings(
                url="https://bot.example.org/telegram",
                secret=SecretStr(SECRET),
                networks=(ip_network("149.154.160.0/20"), ip_network("91.108.4.0/22")),
            ),
        ),
        web=WebSettings(port=free_port()),
    )
    server = WebServer(settings, cast(Monitoring, None), accept, Pages(Translator.load()))
    try:
        async with aiohttp.ClientSession(await server.start()) as session:
            headers = {SECRET_HEADER: SECRET, **headers}
            async with session.post(WEBHOOK_PATH, json={"update_id": 1}, headers=headers) as answer:
                assert answer.status == status
    finally:
        await server.stop()
    assert bool(taken) == (status == 200)


async def test_what_cannot_be_stored_is_not_acknowledged() -> None:
    """If the disk is full, the webhook answers with 503, so that Telegram sends the update again."""

    async def accept(_: dict[str, object]) -> None:
        raise NotSaved("The disk is full.")

    webhook = WebhookSettings(url="https://bot.example.org/telegram", secret=SecretStr(SECRET))
    settings = Settings(telegram=TelegramSettings(mode="webhook", webhook=webhook), web=WebSettings(port=free_port()))
    server = WebServer(settings, cast(Monitoring, None), accept, Pages(Translator.load()))
    try:
        async with aiohttp.ClientSession(await server.start()) as session:
            headers = {SECRET_HEADER: SECRET}
            async with session.post(WEBHOOK_PATH, json={"update_id": 1}, headers=headers) as answer:
                assert answer.status == 503
    finally:
        await server.stop()


async def test_each_node_is_on_the_page_and_in_the_metrics(tmp_path: Path, warm_python: str) -> None:
    """With two engines, the operator page shows both, and the metrics label each one with its name."""
    async with Community(tmp_path, python=warm_python, inference={"gpus": [0, 1]}) as community:
        await community.bot.start()
        person = await community.person()
        (question,) = questions("nodes", 1)
        assert (await person.asks(photo=question.picture, caption=question.text))["text"]
        async with aiohttp.ClientSession(community.web) as session:
            async with session.get("/") as page:
                shown = await page.text()
            measured = ""
            async with asyncio.timeout(30):  # an engine that does not tell within a second is left out
                while measured.count("thumbtune_node_engine_waiting{") < 2:
                    async with session.get("/metrics") as page:
                        measured = await page.text()
        for node in ("gpu0", "gpu1"):
            assert f"<td>{node}</td>" in shown
            for name in ("ready", "waiting", "engine_waiting", "cache_bytes"):
                assert f'thumbtune_node_{name}{{node="{node}"}} ' in measured
        assert "thumbtune_telegram_calls_per_second_allowed " in measured
        assert "prompts cached" in shown
        for name in ("chats", "answered_total"):
            lines = [line for line in measured.splitlines() if line.startswith(f"thumbtune_node_{name}{{")]
            assert sum(float(line.split()[-1]) for line in lines) == 1
        assert await community.bot.stop() == 0


@pytest.mark.parametrize(
    ("path", "accepted", "language", "words"),
    [
        ("/", "", "en", "next scheduled run"),
        ("/", "zh-CN,zh;q=0.9,en;q=0.8", "zh", "下次定时训练"),
        ("/", "fr, en;q=0.5, zh;q=0.9", "zh", "下次定时训练"),
        ("/", "zh;q=nonsense, \xff", "en", "next scheduled run"),
        ("/?language=zh", "en", "zh", "下次定时训练"),
        ("/?language=en", "zh", "en", "next scheduled run"),
    ],
)
async def test_the_page_speaks_the_operators_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, accepted: str, language: str, words: str
) -> None:
    """The operator page is in the browser's language, unless a link on the page selects another one."""
    async with whole_bot(tmp_path, monkeypatch) as bot, bot.running() as application:
        headers = {"Accept-Language": accepted}
        async with aiohttp.ClientSession(application.address) as session, session.get(path, headers=headers) as page:
            shown = await page.text()
    assert f'<html lang="{language}">' in shown and words in shown
    assert '<a href="/?language=en"' in shown or '<a href="/?language=zh"' in shown
