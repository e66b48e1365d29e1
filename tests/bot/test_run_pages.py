"""The page of a run over HTTP with the whole bot: live progress, cost, log, sheet, and its Cancel button."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from pydantic import SecretStr

from bot.config import Settings
from bot.i18n import Translator
from bot.redaction import secrets_of, without_secrets
from bot.web.run_pages import LOG_BYTES, LOG_LINES, log_tail, rest_of_time
from storage.learning_records import Run
from storage.state_machines import RunState
from tests.bot.test_review import BEN, Desk, at_work
from training.gate.report import Decision, Effort, Report
from training.job import Progress

SHEET = "<!doctype html><title>Sheet</title><style>p { color: red }</style><p>Before and after</p>"


@pytest.fixture
async def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    monkeypatch.setattr("bot.web.run_pages.LOOK_SECONDS", 0.02)
    async with at_work(tmp_path, monkeypatch) as made:
        yield made


async def hanging(desk: Desk) -> None:
    """Start run 1, which reports progress and then waits forever, and wait for its progress."""
    desk.bot.cue("hang")
    await desk.post("/review/train")
    async with asyncio.timeout(30):
        while (await desk.ledger.runs.get(1)).step < 3:
            await asyncio.sleep(0.02)


async def event(stream: aiohttp.ClientResponse) -> tuple[str, str]:
    """Return the name and the data of the next event; comments are ignored."""
    name = ""
    data: list[str] = []
    async with asyncio.timeout(30):
        while line := (await stream.content.readline()).decode():
            if line == "\n" and name:
                return name, "\n".join(data)
            field, _, value = line.rstrip("\n").partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                data.append(value)
    raise AssertionError("the stream has ended")


async def test_progress_is_live_until_the_end(desk: Desk) -> None:
    """The stream sends the progress when it changes, then that the run is being cancelled, then that it is over."""
    await hanging(desk)
    page = await desk.get("/runs/1")
    assert 'data-events="/runs/1/events"' in page and "3 of 3 training steps" in page and "✖ Cancel" in page
    assert '<noscript><meta http-equiv="refresh"' in page
    assert "What it learns from (" in page and "What it is judged on (" in page
    async with desk.session.get("/runs/1/events") as stream:
        assert (stream.status, stream.content_type) == (200, "text/event-stream")
        name, text = await event(stream)
        assert name == "message" and '<progress max="3" value="3">' in text and "<html" not in text
        await desk.post("/runs/1/cancel", csrf="forged", status=403)
        assert await desk.post("/runs/1/cancel") == "/runs/1"
        seen = []
        while (found := await event(stream))[0] != "over":
            seen.append(found[1])
        assert '<span class="cancelled">' in seen[-1]
        assert await stream.content.read() == b""
    assert (await desk.ledger.runs.get(1)).state is RunState.CANCELLED
    page = await desk.get("/runs/1")
    assert "What it learned from (" in page and "What it was judged on (" in page
    assert "data-events" not in page and "http-equiv" not in page and "✖ Cancel" not in page
    assert "Run 1 has already ended." in await desk.post("/runs/1/cancel", status=409)
    async with desk.session.get("/runs/1/events") as stream:
        assert [(await event(stream))[0], (await event(stream))[0]] == ["message", "over"]
    async with desk.session.get("/runs/2/events") as stream:
        assert stream.status == 404
    await desk.post("/runs/2/cancel", status=404)


async def test_an_open_stream_does_not_keep_the_bot_from_stopping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that a browser still reads ends when the bot stops; one that it has left ends by itself."""
    monkeypatch.setattr("bot.web.run_pages.LOOK_SECONDS", 0.02)
    async with aiohttp.ClientSession() as browser:
        async with at_work(tmp_path, monkeypatch) as desk:
            await hanging(desk)
            async with browser.get(f"{desk.url}/runs/1/events") as left:
                await event(left)
            stream = await browser.get(f"{desk.url}/runs/1/events")
            await event(stream)
        with suppress(aiohttp.ClientError):
            await stream.content.read()
        assert stream.content.at_eof() or stream.content.exception() is not None


async def test_outcome_cost_and_sheet(desk: Desk) -> None:
    """The page of a finished run has its verdict, cost, loss and sheet, which only this server's pages may frame."""
    desk.bot.cue("worse")
    await desk.post("/review/train")
    run = await desk.bot.ended(1)
    page = await desk.get("/runs/1")
    assert "no difference was found between the answers that people liked" in page and 'href="/models#run-1"' in page
    assert "Learned from 4 liked answers" in page and "Factual questions answered correctly: 90.0 % before" in page
    assert "<span>time</span>" in page and "<span>disk</span>" in page
    assert "<iframe" not in page and "<svg role" not in page
    folder = Path(run.directory)
    (folder / "sheet.html").write_text(SHEET)
    (folder / "losses.json").write_text('{"step": 1, "loss": 3.5}\n{"step": 2, "loss": 1.5}\n{"st')
    page = await desk.get("/runs/1")
    assert '<iframe src="/runs/1/sheet.html?language=en" sandbox' in page
    assert 'aria-label="Loss of run 1"' in page and "3.50" in page and "step 2" in page
    async with desk.session.get("/runs/1/sheet.html?language=en") as sheet:
        policy = sheet.headers["Content-Security-Policy"]
        assert "frame-ancestors 'self'" in policy and "script-src 'none'" in policy
    async with desk.session.get("/runs/1") as answer:
        policy = answer.headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in policy and "frame-src 'self'" in policy and "connect-src 'self'" in policy
    assert "结果" in await desk.get("/runs/1?language=zh")


async def test_the_admin_who_started_a_run_is_named(desk: Desk) -> None:
    """The page names the admin who sent /retrain, as long as the ledger knows the name."""
    run = await desk.ledger.runs.start("admin", BEN)
    assert "started by: admin (Ben)</p>" in await desk.get(f"/runs/{run.id}")
    await desk.ledger.personal_data.erase(BEN)
    assert "started by: admin</p>" in await desk.get(f"/runs/{run.id}")


def test_the_stages_and_the_rest_add_up() -> None:
    """The time that the stages of a run did not take is named, unless it rounds to nothing."""
    report = Report(Decision.ACCEPTED, effort=Effort(training_seconds=30.0, merging_seconds=3.0), seconds=255.0)
    say = Translator.load().to("en")
    run = Run(1, RunState.DONE, "admin", None, created=1000.0, updated=1365.0)
    assert rest_of_time(run, report, say) == ["Waiting, selecting data and starting processes: 1:17."]
    assert rest_of_time(replace(run, updated=1288.4), report, say) == []


async def test_the_log_is_shown_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page shows the last lines of the newest log, escaped, without progress reports and secrets."""
    token = "a-password"
    async with at_work(tmp_path, monkeypatch, web={"port": 0, "token": token}) as desk:
        async with desk.session.post("/login", data={"token": token}) as answer:
            assert answer.status == 200
        await desk.post("/review/train")
        run = await desk.bot.ended(1)
        log = Path(run.directory) / "evaluate.log"
        with log.open("a") as file:
            file.write(f"2026-01-01 00:00:00,000 a <b>line</b> with {token} and {desk.bot.emulator.token}\n")
            file.write(f"2026-01-01 00:00:01,000 {Progress('evaluating', 1, 2).to_json()}\n")
        page = await desk.get("/runs/1")
        assert "The last lines of evaluate.log" in page
        assert "a &lt;b&gt;line&lt;/b&gt; with [secret] and [secret]</pre>" in page
        assert token not in page and desk.bot.emulator.token not in page and "seconds_left" not in page
        desk.session.cookie_jar.clear()
        await desk.get("/runs/1", status=401)
        await desk.get("/runs/1/events", status=401)
        async with desk.session.post("/runs/1/cancel", data={}) as refused:
            assert refused.status == 401


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    """The newest of the logs counts; a long one is cut to its last lines; a folder without logs has none."""
    assert log_tail("", []) == log_tail(str(tmp_path), []) == ("", "")
    (tmp_path / "finetune.log").write_bytes(b"\xff\xfe" * LOG_BYTES + b"\n" + b"".join(b"%d\n" % n for n in range(100)))
    name, text = log_tail(str(tmp_path), ["98"])
    assert name == "finetune.log"
    assert text.splitlines() == [*map(str, range(100 - LOG_LINES, 98)), "[secret]", "99"]


def test_every_secret_setting_is_known() -> None:
    """Secrets are found in every section; a secret that contains another one is replaced as a whole."""
    settings = Settings.model_validate(
        {
            "telegram": {"token": "1:abc", "webhook": {"secret": "hush"}},
            "web": {"token": "1:abcd"},
            "inference": {"api_key": SecretStr("key")},
        }
    )
    assert sorted(secrets_of(settings)) == ["1:abc", "1:abcd", "hush", "key"]
    assert without_secrets("1:abcd 1:abc hush", secrets_of(settings)) == "[secret] [secret] [secret]"
