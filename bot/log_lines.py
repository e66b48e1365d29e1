"""Human-readable or JSON log lines from this package and from libraries, without the bot's token."""

from __future__ import annotations

import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import Final

import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, Processor, WrappedLogger

from bot.redaction import error_trace

HIDDEN: Final = "<token>"


class LogFormat(StrEnum):
    """The formats of log lines."""

    TEXT = "text"
    JSON = "json"


def configure_logging(path: Path | None = None, form: LogFormat = LogFormat.TEXT, *, token: str = "") -> None:
    """Log one line per event to standard error, or to the file at `path`.

    Events and warnings from libraries are included. Exceptions are logged with their traceback, in JSON as the
    value of `exception`.

    Args:
        path: The file to append to.
        form: The format of the lines.
        token: The bot's token, which libraries quote as part of addresses. It is masked in the lines.
    """
    stream = path.open("a", encoding="utf-8") if path else sys.stderr

    def without_token(_: WrappedLogger, __: str, line: str) -> str:
        return line.replace(token, HIDDEN) if token else line

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _with_traceback,
    ]
    render: list[Processor] = [
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if form is LogFormat.JSON
        else structlog.dev.ConsoleRenderer(colors=stream.isatty()),
        without_token,  # type: ignore[list-item]  # it gets the rendered line
    ]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(stream),
    )


def _with_traceback(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Replace `exc_info` with the redacted traceback."""
    found = event.pop("exc_info", None)
    if found is True:
        found = sys.exc_info()
    error = found[1] if isinstance(found, tuple) else found
    if isinstance(error, BaseException):
        event["exception"] = error_trace(error)
    return event
