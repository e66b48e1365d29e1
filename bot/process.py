"""The bot's process: signals and shutdown."""

from __future__ import annotations

import asyncio
import signal
import sys

import structlog

from bot.app import Application
from bot.config import Settings
from bot.log_lines import LogFormat
from bot.redaction import error_text
from bot.shutdown import PROCESS_SECONDS, THREAD_SECONDS, end_process_within

SWITCH_SECONDS = 0.0005

log = structlog.get_logger()


async def run_bot(settings: Settings, log_format: LogFormat) -> None:
    """Run the bot until SIGTERM, Ctrl-C, or an error that no retry can fix. Logging must already be configured.

    With JSON lines, the process logs that error and exits with status 1, so that standard error contains only
    JSON objects.
    """
    shorten_switch_interval()
    try:
        async with Application(settings) as application:
            await until_stopped(application)
    except Exception as error:
        if log_format is not LogFormat.JSON:
            raise
        log.critical("the bot cannot continue", error=error_text(error), exc_info=error)
        raise SystemExit(1) from error
    log.info("stopped")
    end_process_within(THREAD_SECONDS)


async def until_stopped(application: Application) -> None:
    """Wait for SIGTERM or SIGINT, or raise the error that ended the update receiver.

    In either case, the process ends within PROCESS_SECONDS.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    stopping = asyncio.create_task(stop.wait())
    working = asyncio.create_task(application.wait())
    await asyncio.wait((stopping, working), return_when=asyncio.FIRST_COMPLETED)
    end_process_within(PROCESS_SECONDS)
    for task in (stopping, working):
        task.cancel()
    if working.done() and not working.cancelled():
        working.result()


def shorten_switch_interval() -> None:
    """Shorten the interpreter's switch interval, so that threads get the GIL sooner.

    While the event loop is busy, a thread that handles pictures or database commits waits for one switch
    interval whenever it needs the GIL. With the default of 5 ms, pictures queued up
    (https://bugs.python.org/issue7946).
    """
    sys.setswitchinterval(SWITCH_SECONDS)
