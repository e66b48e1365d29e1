"""The bot as a process of its own: logging, signals and shutdown."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path

import structlog

from bot.app import Application
from bot.config import Settings
from bot.shutdown import PROCESS_SECONDS, THREAD_SECONDS, end_process_within

SWITCH_SECONDS = 0.0005

log = structlog.get_logger()


async def run_bot(settings: Settings) -> None:
    """Run the bot until SIGTERM, Ctrl-C, or an error that no retry can fix."""
    configure_logging()
    share_the_interpreter()
    async with Application(settings) as application:
        await until_stopped(application)
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
        if not task.done():
            task.cancel()
    if working.done() and not working.cancelled():
        working.result()


def share_the_interpreter() -> None:
    """Shorten the interpreter's switch interval, so that threads get the GIL sooner.

    While the event loop is busy, a thread that handles pictures or database commits waits for one switch
    interval whenever it needs the GIL. With the default of 5 ms, pictures queued up
    (https://bugs.python.org/issue7946).
    """
    sys.setswitchinterval(SWITCH_SECONDS)


def configure_logging(path: Path | None = None) -> None:
    """Log one line per event to standard error, or to the file at `path`.

    Events that libraries log are included.
    """
    stream = path.open("a", encoding="utf-8") if path else sys.stderr
    logging.basicConfig(stream=stream, level=logging.WARNING, format="%(levelname)s %(name)s %(message)s", force=True)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(stream),
    )
