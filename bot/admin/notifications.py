"""Notify admins: the progress of a run, its end, and problems.

Each admin gets one message for a run, which is edited. Each admin has a queue, so that neither an admin who cannot be
reached nor Telegram holds up the others or the work itself. A notice that cannot be delivered is logged and dropped.
The caller awaits only the notice of a run's end, so that the next start repeats it after a crash.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog
from aiogram import Bot
from aiogram.exceptions import TelegramAPIError
from aiogram.methods import TelegramMethod
from aiogram.types import Chat, FSInputFile, InlineKeyboardMarkup, Message
from cachetools import LRUCache, TTLCache
from pydantic import ValidationError

from bot.admin.progress import MODEL_STATES, run_progress, share_line, taught_by
from bot.i18n import Say, Translator, later
from bot.settings import BotSettings
from bot.telegram.client import DeliveryError, Doubtful, PartialEdit
from bot.telegram.keyboards import CancelRun, approve_button, canary_buttons, cancel_button
from bot.telegram.outbox import Place, Reply
from storage.errors import StorageError
from storage.learning_records import Model, Run, TrainedOn
from storage.ledger import Ledger
from storage.states import RUN_TRANSITIONS, ModelState, RunState
from training.data.selection import beyond_share, cut_off
from training.data.sources import title
from training.gate.report import Report
from training.gate.sheet_words import localised
from training.job import DISLIKED, RATED
from training.number_format import clock, interval, percent, size

CAPTION_LIMIT: Final = 1024
ALERT_SECONDS: Final = 3600.0
RUNS_REMEMBERED: Final = 16
ALERTS_REMEMBERED: Final = 1000
TELL_SECONDS: Final = 0.7
"""How long the bot may take to empty the queues when it stops."""

GAVE_UP: Final = later(
    "⚠ I gave up on update {update} after several attempts. It stays in the ledger. I won't report more of these "
    "for an hour. Reason: {reason}"
)
TRIED: Final = later(
    "It answers a share of the conversations beside the live model, until the votes decide. /models shows how it does."
)
AWAITS: Final = later("It waits until an admin approves it.")
SORRY: Final = later(
    "Sorry, something went wrong and I couldn't answer this. My admins have been notified. Please try again."
)

Tell = Callable[[int, Say], Awaitable[None]]
"""Sends a notice to one admin, in their language."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Shown:
    """The progress message of a run: its id, and what it shows."""

    message: int
    state: RunState
    text: str


@dataclass(slots=True)
class _Notice:
    tell: Tell
    replaces: str
    told: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Notifications:
    """Notifies every admin, each in their language."""

    def __init__(self, bot: Bot, settings: BotSettings, ledger: Ledger, translator: Translator) -> None:
        self._bot = bot
        self._admins = settings.telegram.admins
        self._ledger = ledger
        self._translator = translator
        self._messages: LRUCache[int, dict[int, _Shown]] = LRUCache(RUNS_REMEMBERED)  # run → admin → message
        self._queues: dict[int, deque[_Notice]] = {}
        self._tellers: dict[int, asyncio.Task[None]] = {}
        self._alerts: TTLCache[str, None] = TTLCache(ALERTS_REMEMBERED, ALERT_SECONDS)

    async def settled(self) -> None:
        """Wait until every queued notice has been delivered or dropped."""
        while self._tellers:
            await asyncio.wait(self._tellers.values())

    async def stop(self) -> None:
        """Deliver what can be delivered within TELL_SECONDS, and drop the rest."""
        with suppress(TimeoutError):
            async with asyncio.timeout(TELL_SECONDS):
                await self.settled()
        tellers = list(self._tellers.values())
        for teller in tellers:
            teller.cancel()
        await asyncio.gather(*tellers, return_exceptions=True)

    async def run_changed(self, run: Run) -> None:
        """Show the progress of a run. Steps may be skipped, but changes of its state never are."""

        async def tell(admin: int, say: Say) -> None:
            await self._show(run, admin, say)

        self._all(tell, replaces=f"run {run.id}")

    async def run_finished(
        self,
        run: Run,
        model: Model | None,
        picture: Path | None = None,
        sheet: Path | None = None,
        *,
        approve: bool = False,
    ) -> None:
        """Send how the run ended, with its picture (PNG) and its sheet (HTML) if there are any.

        With `approve` a candidate waits for an admin, and the notice has a button for that. The notice of a canary has
        buttons as well. Returns when the notice has been delivered to every admin, or dropped.
        """

        async def tell(admin: int, say: Say) -> None:
            if admin in self._of(run):
                await self._show(run, admin, say)
            text = outcome(run, model, say)
            markup = None
            if model and model.state is ModelState.CANARY:
                text = f"{text}\n{say(TRIED)}"
                markup = canary_buttons(model.id, say)
            elif model and model.state is ModelState.CANDIDATE and approve:
                text = f"{text}\n{say(AWAITS)}"
                markup = approve_button(model.id, say)
            shown, page = _in(say.language, picture), _in(say.language, sheet)
            name = f"run-{run.id}-{shown.name}" if shown else ""
            if not (shown and await self._shown(admin, FSInputFile(shown, name), text, markup)):
                await self._bot.send_message(admin, text, reply_markup=markup)
            if page:
                await self._bot.send_document(admin, FSInputFile(page, f"run-{run.id}-{page.name}"))

        told = self._all(tell)
        try:
            await asyncio.gather(*told)
        finally:
            for each in told:
                each.cancel()
        self._messages.pop(run.id, None)

    async def _show(self, run: Run, admin: int, say: Say) -> None:
        """Send or edit the progress message of a run."""
        messages = self._of(run)
        text = run_progress(run, say)
        markup = cancel_button(CancelRun(run=run.id), say) if RUN_TRANSITIONS[run.state] else None
        shown = messages.get(admin)
        if shown is None:
            sent = await self._bot.send_message(admin, text, reply_markup=markup)
            messages[admin] = _Shown(sent.message_id, run.state, text)
        elif shown.text == text and shown.state is run.state:
            return
        elif shown.state is not run.state:
            await self._bot.edit_message_text(text, chat_id=admin, message_id=shown.message, reply_markup=markup)
            messages[admin] = _Shown(shown.message, run.state, text)
        else:
            arguments: dict[str, Any] = {
                "chat_id": admin,
                "message_id": shown.message,
                "text": text,
                "reply_markup": markup,
            }
            edit: TelegramMethod[Message | bool] = PartialEdit(**arguments)
            if await self._bot(edit):
                messages[admin] = _Shown(shown.message, run.state, text)

    async def _shown(self, admin: int, picture: FSInputFile, text: str, markup: InlineKeyboardMarkup | None) -> bool:
        """Send a picture. Return False if it may not have arrived, because a second message is better than none."""
        try:
            await self._bot.send_photo(admin, picture, caption=_cut(text, CAPTION_LIMIT), reply_markup=markup)
        except Doubtful as error:
            log.warning("a picture may not have arrived", admin=admin, error=str(error))
            return False
        return True

    async def alert(self, key: str, sentence: str, **values: object) -> bool:
        """Notify the admins of a problem with a translatable message, at most once an hour for the same `key`.

        Returns whether the alert is sent, which may happen after this returns.
        """
        if not self._is_news(key):
            return False

        async def tell(admin: int, say: Say) -> None:
            text = say(sentence, **values)
            await self._bot.send_message(admin, _cut(say("⚠ Problem: {text}", text=text), 4 * CAPTION_LIMIT))

        self._all(tell)
        return True

    async def notify(self, sentence: str, **values: object) -> None:
        """Send a translatable message."""

        async def tell(admin: int, say: Say) -> None:
            await self._bot.send_message(admin, say(sentence, **values))

        self._all(tell)

    async def update_set_aside(self, update: int, reason: str) -> None:
        """Apologise to the sender of a dead letter, and notify the admins at most once an hour."""
        await self._apologise(update)
        if not self._is_news("set aside"):
            return

        async def tell(admin: int, say: Say) -> None:
            text = say(GAVE_UP, update=update, reason=reason)
            await self._bot.send_message(admin, _cut(text, 4 * CAPTION_LIMIT))

        self._all(tell)

    async def _apologise(self, update: int) -> None:
        """Answer a callback query, and apologise in a private chat, to the extent that the update can be read."""
        try:
            payload = json.loads((await self._ledger.inbox.get(update)).payload)
        except (ValueError, StorageError) as error:  # deleted meanwhile, or unreadable; admins are notified anyway
            log.warning("no apology", update=update, error=str(error))
            return
        tap = payload.get("callback_query")
        try:
            if isinstance(tap, dict) and isinstance(tap.get("id"), str):
                await self._bot.answer_callback_query(tap["id"])
        except (DeliveryError, TelegramAPIError) as error:
            log.info("tap not answered", update=update, error=str(error))
        found = _private_chat(payload)
        if found is None:
            return
        chat, language = found
        say = await self._voice(chat, language)
        reply = await Reply.open(self._bot, self._ledger, update, Place(chat))
        try:
            await reply.finish(say(SORRY))
        except (DeliveryError, TelegramAPIError, StorageError) as error:
            log.warning("apology not delivered", chat=chat, error=str(error))

    def _is_news(self, key: str) -> bool:
        """Return whether nothing with this key was sent in the last hour, and count it as sent now."""
        if key in self._alerts:
            return False
        self._alerts[key] = None
        return True

    def _of(self, run: Run) -> dict[int, _Shown]:
        """Return the progress messages of a run by admin."""
        return self._messages.setdefault(run.id, {})

    def _all(self, tell: Tell, replaces: str = "") -> list[asyncio.Future[None]]:
        """Queue a notice for every admin, in place of a waiting one with the same `replaces`.

        Each of the futures is done when the notice has been delivered to its admin, or dropped.
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
            if admin not in self._tellers:
                self._tellers[admin] = asyncio.create_task(self._keep_telling(admin, queue))
        return told

    async def _keep_telling(self, admin: int, queue: deque[_Notice]) -> None:
        """Deliver an admin's notices in order until the queue is empty."""
        try:
            while queue:
                notice = queue.popleft()
                if notice.told.cancelled():
                    continue
                try:
                    await notice.tell(admin, await self._voice(admin))
                except (DeliveryError, TelegramAPIError, StorageError, OSError) as error:
                    log.warning("a notice was not delivered", admin=admin, error=str(error))
                except Exception:
                    log.exception("a notice was not delivered", admin=admin)
                if not notice.told.done():
                    notice.told.set_result(None)
        finally:
            del self._tellers[admin]

    async def _voice(self, user: int, client_language: str | None = None) -> Say:
        person = await self._ledger.people.get(user)
        if person is None:
            return self._translator.to(client_language)
        return self._translator.to(person.language, person.client_language)


def _private_chat(payload: dict[str, Any]) -> tuple[int, str | None] | None:
    """Return the private chat of an update, which may be malformed, and its sender's language."""
    tap = payload.get("callback_query")
    said = tap if isinstance(tap, dict) else payload.get("message") or payload.get("edited_message")
    message = tap.get("message") if isinstance(tap, dict) else said
    if not isinstance(said, dict) or not isinstance(message, dict):
        return None
    try:
        chat = Chat.model_validate(message.get("chat"))
    except ValidationError:
        return None
    sender = said.get("from")
    language = sender.get("language_code") if isinstance(sender, dict) else None
    return (chat.id, language if isinstance(language, str) else None) if chat.type == "private" else None


def _in(language: str, file: Path | None) -> Path | None:
    """Return a run's file in a language, or the file itself if there is none in that language."""
    translated = file.with_name(localised(file.name, language)) if file else None
    return translated if translated and translated.is_file() else file


def outcome(run: Run, model: Model | None, say: Say) -> str:
    """Return how a run ended, and the state of its model."""
    if run.state is RunState.CANCELLED:
        return say("Run {run} was cancelled. Nothing has changed.", run=run.id)
    if run.state is not RunState.DONE or model is None:
        reason = say(run.reason) or say("unknown")
        return say("Run {run} failed; nothing has changed. Reason: {reason}", run=run.id, reason=reason)
    text = say(
        "Run {run} is done. Its model {model} is {state}.",
        run=run.id,
        model=model.id,
        state=say(MODEL_STATES[model.state]),
    )
    verdict = [say(model.reason)] if model.reason else []
    if model.state is ModelState.UNDECIDED:
        verdict.append(say("The live model stays. /promote {model} uses the new one all the same.", model=model.id))
    told = [text, *verdict, *(numbers(model.report, say) if model.report else [])]
    return "\n".join(told)


def numbers(report: str, say: Say) -> list[str]:
    """Return a few lines on what a run learned from, its evaluation and its cost."""
    it = Report.from_json(report)
    return [
        say(
            "Learned from {taught}.",
            taught=taught_by(TrainedOn(it.effort.pairs, it.effort.votes, it.effort.raters), say),
        ),
        *(
            [
                say(
                    "Judged on {answers} rated answers: it agrees with the votes in {agreement} of comparisons.",
                    answers=it.taste.answers,
                    agreement=interval(it.taste.agreement, it.taste.low, it.taste.high),
                )
            ]
            if it.taste.answers
            else []
        ),
        *([say("Skipped as too long: {count}.", count=it.effort.too_long)] if it.effort.too_long else []),
        *([share_line(it.effort.largest_share, say)] if it.effort.raters > 1 and it.effort.largest_share else []),
        *([say("Left out: {reasons}.", reasons=beyond_share(it.effort.over_share))] if it.effort.over_share else []),
        *([f"⚠ {say(limit)}"] if (limit := cut_off(it.effort.cut, it.effort.liked)) else []),
        *_beside(it.effort.taught, say),
        say(
            "Factual questions right: {live} before, {new} now ({questions} questions).",
            live=percent(it.live_correct),
            new=percent(it.correct),
            questions=it.questions,
        ),
        say(
            "Time: training {training}, merging {merging}, evaluating {evaluating}. Peak memory {memory}, adapter "
            "{adapter}.",
            training=clock(it.effort.training_seconds),
            merging=clock(it.effort.merging_seconds),
            evaluating=clock(it.seconds),
            memory=size(it.effort.peak_memory),
            adapter=size(it.effort.adapter_bytes),
        ),
    ]


def _beside(taught: dict[str, int], say: Say) -> list[str]:
    """Return a line with the number of samples from each other source, or no line if there are none."""
    others = {title(path): count for path, count in taught.items() if path not in (RATED, DISLIKED)}
    if not others:
        return []
    listed = ", ".join(f"{name} ({count})" for name, count in others.items())
    return [say("Other sources: {sources}.", sources=listed)]


def _cut(text: str, limit: int) -> str:
    """Cut a text to `limit` characters. Telegram counts UTF-16 units, but these texts are far below its limit."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
