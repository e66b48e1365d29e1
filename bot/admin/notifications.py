"""Notices to admins about the progress of a run, its end, and problems.

For each run, an admin gets one progress message, which is edited as the run proceeds. Every admin has a
separate queue, so that neither an unreachable admin nor slow delivery by Telegram holds up the other
admins' notices or the bot's work. A notice that cannot be delivered is logged and dropped. Callers wait
only for the notice of a run's end; if the bot crashes before that notice has been sent, it is sent the
next time the bot starts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog
from aiogram import Bot
from aiogram.methods import EditMessageText, TelegramMethod
from aiogram.types import FSInputFile, InlineKeyboardMarkup, Message
from cachetools import LRUCache, TTLCache

from bot.admin.progress import run_progress
from bot.admin.run_outcome import outcome
from bot.config import Settings
from bot.i18n import Say, Translator, later
from bot.telegram.callback_data import CancelRun
from bot.telegram.errors import CALL_ERRORS, Doubtful
from bot.telegram.formatting import LIMIT
from bot.telegram.keyboards import approve_button, canary_buttons, one_button
from bot.telegram.methods import PartialEdit
from storage.errors import StorageError
from storage.learning_records import Model, Run
from storage.ledger import Ledger
from storage.state_machines import RUN_TRANSITIONS, ModelState, RunState
from storage.translatable_reason import Reason
from training.gate.comparison_sheet_translations import localized

CAPTION_LIMIT: Final = 1024
ALERT_SECONDS: Final = 3600.0
RUNS_REMEMBERED: Final = 16
ALERTS_REMEMBERED: Final = 1000
NOTICE_SECONDS: Final = 0.7
"""How long undelivered notices may delay the bot's shutdown, in seconds."""

PROBLEM: Final = later("⚠ Problem: {text}")
TRIED: Final = later(
    "It answers in a share of the conversations, alongside the live model, until the votes decide. /models shows how "
    "it's doing."
)
AWAITS: Final = later(
    "It is waiting for an admin's approval. Once approved, it goes live at once and answers everyone."
)
AWAITS_TRIAL: Final = later(
    "It is waiting for an admin's approval. Once approved, it becomes a canary: it first answers in a share of the "
    "conversations, until the votes decide."
)

Tell = Callable[[int, Say], Awaitable[None]]
"""Sends a notice to one admin, in their language."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Shown:
    """The progress message of a run in an admin's chat: the message ID, the run's state, and the text."""

    message: int
    state: RunState
    text: str


@dataclass(slots=True)
class _Notice:
    tell: Tell
    replaces: str
    told: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Notifications:
    """Sends notices to every admin, in the admin's own language."""

    def __init__(self, bot: Bot, settings: Settings, ledger: Ledger, translator: Translator) -> None:
        self._bot = bot
        self._admins = settings.telegram.admins
        self._ledger = ledger
        self._translator = translator
        self._messages: LRUCache[int, dict[int, _Shown]] = LRUCache(RUNS_REMEMBERED)  # run → admin → message
        self._queues: dict[int, deque[_Notice]] = {}
        self._deliveries: dict[int, asyncio.Task[None]] = {}
        self._alerts: TTLCache[str, None] = TTLCache(ALERTS_REMEMBERED, ALERT_SECONDS)

    async def settled(self) -> None:
        """Wait until every queued notice has been delivered or dropped."""
        while self._deliveries:
            await asyncio.wait(self._deliveries.values())

    async def stop(self) -> None:
        """Deliver queued notices for up to `NOTICE_SECONDS`, then drop the rest."""
        with suppress(TimeoutError):
            async with asyncio.timeout(NOTICE_SECONDS):
                await self.settled()
        deliveries = list(self._deliveries.values())
        for delivery in deliveries:
            delivery.cancel()
        await asyncio.gather(*deliveries, return_exceptions=True)

    async def run_changed(self, run: Run) -> None:
        """Show every admin the current progress of a run.

        Individual training steps may be skipped, but a change of the run's state is always shown.
        """

        async def tell(admin: int, say: Say) -> None:
            await self._show(run, admin, say)

        self._queue_for_all(tell, replaces=f"run {run.id}")

    async def run_finished(
        self, run: Run, model: Model | None, picture: Path | None = None, sheet: Path | None = None, *, awaits: str = ""
    ) -> None:
        """Notify every admin of how a run ended, with its `picture` (PNG) and comparison `sheet` (HTML), if any.

        With `awaits`, which says what an approval does, the notice about a candidate has a button for approving it.
        The notice about a canary always has buttons. The method returns when the notice has been delivered to every
        admin or dropped.
        """

        async def tell(admin: int, say: Say) -> None:
            if admin in self._messages.get(run.id, {}):
                await self._show(run, admin, say)
            ended = text = outcome(run, model, say)
            markup = None
            if model and model.state is ModelState.CANARY:
                text = f"{ended}\n{say(TRIED)}"
                markup = canary_buttons(model.id, say)
            elif model and model.state is ModelState.CANDIDATE and awaits:
                text = f"{ended}\n{say(awaits)}"
                markup = approve_button(model.id, say)
            shown, page = _in_language(say.language, picture), _in_language(say.language, sheet)
            name = f"run-{run.id}-{shown.name}" if shown else ""
            sent = await self._send_picture(admin, FSInputFile(shown, name), text, markup) if shown else None
            sent = sent or await self._bot.send_message(admin, text, reply_markup=markup)
            if model and markup:
                await self._remember_buttons(sent, model, ended)
            if page:
                await self._bot.send_document(admin, FSInputFile(page, f"run-{run.id}-{page.name}"))

        told = self._queue_for_all(tell)
        try:
            await asyncio.gather(*told)
        finally:
            for each in told:
                each.cancel()
        self._messages.pop(run.id, None)

    async def _show(self, run: Run, admin: int, say: Say) -> None:
        """Send an admin the progress message of a run, or edit the message sent earlier."""
        messages = self._messages.setdefault(run.id, {})
        text = run_progress(run, say)
        markup = one_button(say("✖ Cancel"), CancelRun(run=run.id)) if RUN_TRANSITIONS[run.state] else None
        shown = messages.get(admin)
        if shown is None:
            sent = await self._bot.send_message(admin, text, reply_markup=markup)
            messages[admin] = _Shown(sent.message_id, run.state, text)
        elif (shown.state, shown.text) != (run.state, text):
            kind = PartialEdit if shown.state is run.state else EditMessageText
            content: dict[str, Any] = {"chat_id": admin, "message_id": shown.message, "text": text}
            edit: TelegramMethod[Message | bool] = kind(**content, reply_markup=markup)
            if await self._bot(edit):
                messages[admin] = _Shown(shown.message, run.state, text)

    async def _send_picture(
        self, admin: int, picture: FSInputFile, text: str, markup: InlineKeyboardMarkup | None
    ) -> Message | None:
        """Send a picture with `text` as its caption, and return the message, or None if it may not have arrived.

        In that case the caller sends the text as well: a duplicate is better than no message.
        """
        try:
            return await self._bot.send_photo(admin, picture, caption=cut(text, CAPTION_LIMIT), reply_markup=markup)
        except Doubtful as error:
            log.warning("a picture may not have arrived", admin=admin, error=str(error))
            return None

    async def _remember_buttons(self, message: Message, model: Model, text: str) -> None:
        caption = message.caption is not None
        with suppress(StorageError):  # a tap on an outdated button says what happened to the model
            await self._ledger.model_buttons.add(message.chat.id, message.message_id, model, text, caption=caption)

    def model_changed(self, model: Model, sentence: str, by: int | None = None) -> list[asyncio.Future[None]]:
        """Queue a translatable message about a model change for every admin but the one who made it, `by`.

        If the model is a canary now, the message has the buttons that promote or stop it.

        Returns:
            A future for each admin, done when the message has been delivered or dropped.
        """

        async def tell(admin: int, say: Say) -> None:
            if admin == by:
                return
            text = say(sentence)
            markup = canary_buttons(model.id, say) if model.state is ModelState.CANARY else None
            sent = await self._bot.send_message(admin, text, reply_markup=markup)
            if markup:
                await self._remember_buttons(sent, model, text)

        return self._queue_for_all(tell)

    async def alert(self, key: str, sentence: str, **values: object) -> bool:
        """Send the admins a translatable message about a problem, at most once an hour for each `key`.

        Returns:
            Whether the alert has been queued. Delivery may happen after the method returns.
        """
        if not self.is_news(key):
            return False
        await self.notify(PROBLEM, text=sentence if isinstance(sentence, Reason) else Reason(sentence, **values))
        return True

    async def notify(self, sentence: str, **values: object) -> None:
        """Queue a translatable message for every admin."""

        async def tell(admin: int, say: Say) -> None:
            await self._bot.send_message(admin, cut(say(sentence, **values), LIMIT))

        self._queue_for_all(tell)

    def is_news(self, key: str) -> bool:
        """Return whether no notice with `key` was sent in the last hour; if so, record one as sent now."""
        if key in self._alerts:
            return False
        self._alerts[key] = None
        return True

    def _queue_for_all(self, tell: Tell, replaces: str = "") -> list[asyncio.Future[None]]:
        """Queue a notice for every admin, replacing a queued notice with the same `replaces`.

        With an empty `replaces`, no queued notice is replaced.

        Returns:
            A future for each admin, done when the notice has been delivered or dropped.
        """
        told = []
        for admin in self._admins:
            queue = self._queues.setdefault(admin, deque())
            for waiting in [each for each in queue if replaces and each.replaces == replaces]:
                queue.remove(waiting)
                waiting.told.cancel()
            notice = _Notice(tell, replaces)
            queue.append(notice)
            told.append(notice.told)
            if admin not in self._deliveries:
                self._deliveries[admin] = asyncio.create_task(self._deliver_all(admin, queue))
        return told

    async def _deliver_all(self, admin: int, queue: deque[_Notice]) -> None:
        """Deliver an admin's notices in order until the queue is empty."""
        try:
            while queue:
                notice = queue.popleft()
                if notice.told.cancelled():
                    continue
                try:
                    await notice.tell(admin, self._translator.for_person(await self._ledger.people.get(admin)))
                except (*CALL_ERRORS, StorageError, OSError) as error:
                    log.warning("a notice was not delivered", admin=admin, error=str(error))
                except Exception:
                    log.exception("a notice was not delivered", admin=admin)
                if not notice.told.done():
                    notice.told.set_result(None)
        finally:
            del self._deliveries[admin]


def _in_language(language: str, file: Path | None) -> Path | None:
    """Return the version of a run's file in `language`, or `file` itself if there is no such version."""
    translated = file.with_name(localized(file.name, language)) if file else None
    return translated if translated and translated.is_file() else file


def cut(text: str, limit: int) -> str:
    """Truncate a text to `limit` characters.

    Telegram counts UTF-16 code units instead, but the texts of notices stay far below Telegram's limit.
    """
    return text if len(text) <= limit else text[: limit - 1] + "…"
