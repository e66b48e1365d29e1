"""After an error, users' content stays out of logs, the ledger's reasons and messages to admins."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from bot.redaction import error_text, error_trace
from bot.telegram.client import open_bot
from bot.telegram.formatting import markdown_pages
from tests.support.chatting import ADMIN, Stage, final_reply, settings, until

SECRET = "my diary"


async def test_an_unreadable_update_is_not_quoted(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log, the ledger and the alert say where and how an update is invalid, without quoting its content."""
    monkeypatch.setattr("bot.updates.inbox_processor.PAUSES", (0.0,))
    with capture_logs() as logs:
        async with stage.person(ADMIN, "Root") as root, stage.bot() as bot:
            message = {"message_id": SECRET, "text": [SECRET], "chat": {"id": 1001, "type": "private"}, "date": 1}
            await bot.inbox.store([{"update_id": 5, "message": message}])
            alert = (await final_reply(root, after=0))["text"]
            await bot.settled()
            kept = await bot.ledger.inbox.get(5)
    assert SECRET in kept.payload
    wrong = "message.message_id: Input should be a valid integer, unable to parse string as an integer"
    for said in (alert, kept.error, str([each for each in logs if each["event"] == "update failed"])):
        assert wrong in said
        assert "message.text: Input should be a valid string" in said
    assert SECRET not in f"{logs} {alert} {kept.error}"


async def test_a_truncated_response_of_telegram_is_not_quoted(stage: Stage) -> None:
    """A truncated response from Telegram is logged without its content, which includes the message's text."""
    with capture_logs() as logs:
        async with stage.bot() as bot, stage.person() as ada:
            group = stage.emulator.add_group("Friends", [ada.id], admin=True).id
            stage.emulator.faults.plan("cut_off", methods=["sendmessage"])
            await ada.sends(f"@thumbtune_bot {SECRET}", chat=group)
            await until(lambda: stage.emulator.faults.struck == 1)
            await stage.handled(bot)
    broken = [each for each in logs if "may have arrived" in each["event"]]
    assert "sendMessage: Failed to decode object (JSONDecodeError" in broken[0]["error"]
    assert SECRET not in str(logs)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda _: web.Response(status=404), "HTTP 404 Not Found"),
        (
            lambda at: web.Response(status=302, headers={"Location": f"ftp://elsewhere{at.path}"}),
            "redirected to an address that cannot be requested",
        ),
    ],
    ids=["refused", "redirected"],
)
async def test_a_failed_download_does_not_reveal_the_token(
    answer: Callable[[web.Request], web.Response], told: str
) -> None:
    """A failed download is reported without the file's address, which contains the bot's token."""

    async def gone(asked: web.Request) -> web.StreamResponse:
        return answer(asked)

    app = web.Application()
    app.router.add_get("/{path:.*}", gone)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    bot = open_bot(settings(f"http://127.0.0.1:{runner.addresses[0][1]}", "4242:hidden").telegram)
    try:
        with pytest.raises(Exception, match="hidden") as raised:
            await bot.download_file("photos/1.jpg")
        assert error_text(raised.value) == told
        assert "hidden" not in error_trace(raised.value)
    finally:
        await bot.session.close()
        await runner.cleanup()


def test_an_answer_that_the_converter_cannot_read_is_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that the Markdown converter cannot read is shown unformatted.

    The log says where the converter failed, without quoting the answer.
    """

    def fails(text: str, **_: object) -> None:
        raise ValueError(f"can't open {text}")

    monkeypatch.setattr("bot.telegram.formatting.telegramify_markdown.convert", fails)
    with capture_logs() as logs:
        assert markdown_pages(SECRET)[0].text == SECRET
    assert "in fails" in logs[0]["place"]
    assert SECRET not in str(logs)
