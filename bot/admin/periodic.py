"""Background loops, each of which runs one task repeatedly.

One such task is carrying out the requests that other processes leave in the ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from bot.admin.notifications import Notifications
from bot.i18n import later
from storage.errors import NotSaved

PAUSE_SECONDS = 1.0
BACKOFF_SECONDS: Final = 30.0
"""The longest pause after errors; the first pauses are shorter."""

FAILS: Final = later(
    "A background task is failing ({duty}). I'll keep retrying, less and less often; see my log for details. {reason}"
)

log = structlog.get_logger()


def pause_after(failures: int) -> float:
    """Return how many seconds a background loop pauses after `failures` consecutive failures."""
    return min(PAUSE_SECONDS * 2.0 ** min(failures, 10), max(BACKOFF_SECONDS, PAUSE_SECONDS))


async def repeat(duty: str, serve: Callable[[], Awaitable[None]], notices: Notifications) -> None:
    """Call `serve` forever, backing off after errors; log and report an error only once while it persists.

    `duty` names the loop in logs and alerts.
    """
    failures, known = 0, ""
    while True:
        try:
            await serve()
            failures, known = 0, ""
        except Exception as error:  # keep serving later requests
            failures += 1
            if (found := f"{type(error).__name__}: {error}") != known:
                known = found
                log.exception("background loop failed", duty=duty)
                if not isinstance(error, NotSaved):  # `AlertWatch` reports it
                    await notices.alert(f"mailbox:{duty}", FAILS, duty=duty, reason=str(error))
        await asyncio.sleep(pause_after(failures))
