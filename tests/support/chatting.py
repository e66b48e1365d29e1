"""The bot connected to the Telegram emulator, for tests of the chat.

Only two parts are replaced: the engine, which plays scripts, and the admin actions, which are recorded.
HTTP, the ledger, the picture folder and the inbox are real.
"""

from __future__ import annotations

import asyncio
import atexit
import io
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import structlog
from aiogram import Bot, Dispatcher
from PIL import Image
from pydantic import SecretStr

from bot.admin.canary_standing import Standing
from bot.admin.erasure import Erasure
from bot.admin.notifications import Notifications
from bot.admin.refusals import NothingNew, RejectedModel
from bot.chat.answer_times import AnswerTimes
from bot.chat.conversation import Conversation
from bot.chat.history import History
from bot.chat.in_flight import InFlight
from bot.chat.picture_receiver import PictureReceiver
from bot.chat.picture_reencoding import StoredPictures
from bot.chat.responder import Responder
from bot.chat.throttling import Throttle
from bot.config import Settings
from bot.handlers import build_dispatcher
from bot.handlers.request import Services
from bot.handlers.unhandled_updates import Apologies
from bot.i18n import Translator
from bot.live_settings import LiveSettings
from bot.settings import ChatSettings, LimitsSettings, StorageSettings, TelegramSettings
from bot.telegram.button_updates import RatingButtons
from bot.telegram.client import DeliveryMiddleware, open_bot
from bot.telegram.rate_limit_notices import WaitNotices
from bot.updates.inbox_processor import InboxProcessor
from bot.updates.receiver import Receiver
from bot.updates.staleness import StaleQuestions
from inference.engines.commands import Kind
from inference.images.decoder import PictureDecoders
from inference.messages import Answer, Delta, Prompt, Usage
from inference.serving.deployment_status import Counters, NodeStatus, Status
from inference.serving.engine_stats import EngineStats
from inference.serving.supervisor import State
from storage.learning_records import Actor, Model, Newcomers, Run
from storage.ledger import Ledger
from storage.picture_files import PictureStore
from storage.state_machines import ModelState
from storage.translatable_reason import Reason as StoredReason
from telegram_emulator import Emulator
from tests.support.lessons import rated
from tests.support.person import UP, Message, Person, button
from training.data.llava import lesson
from training.data.prequential_blocks import Block
from training.data.rated_lessons import Pair
from training.data.selection import Selection
from training.data.selection_counts import SelectionCounts
from training.job import Progress, ignore
from training.launcher import LastProgress
from training.run_plan import RunPlan
from training.settings import Source
from training.xtuner.recipes import Recipe

ADMIN = 7

DECODERS = PictureDecoders(2)
"""Decoders shared by all bots in a test process, because starting a decoder takes a tenth of a second."""
atexit.register(DECODERS.shut_down)

Result = TypeVar("Result")

Step = str | float | Delta | Exception | asyncio.Event
"""A step of a scripted answer: text, a pause in seconds, a delta, an error, or an event to wait for."""

Script = str | Iterable[Step]


def png(width: int = 40, height: int = 30, colour: str = "teal", form: str = "PNG", **options: Any) -> bytes:
    """Return a small picture of one colour."""
    written = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(written, form, **options)
    return written.getvalue()


class ScriptedEngine:
    """An `Engine` that plays its scripts and then answers `Answer N`; it records every prompt."""

    def __init__(self, *scripts: Script, otherwise: Callable[[Prompt, int], Script] | None = None) -> None:
        self.scripts = list(scripts)
        self.otherwise = otherwise or (lambda _, number: f"Answer {number}")
        self.prompts: list[Prompt] = []
        self.ended = 0

    def heard(self) -> list[str]:
        """Return the texts of the newest prompt: questions and the answers between them."""
        return [turn.text for turn in self.prompts[-1].turns]

    async def answer(self, prompt: Prompt) -> AsyncGenerator[Delta, None]:
        """Stream the next script as the answer to `prompt`."""
        self.prompts.append(prompt)
        script = self.scripts.pop(0) if self.scripts else self.otherwise(prompt, len(self.prompts))
        text = ""
        try:
            for step in [script] if isinstance(script, str) else script:
                match step:
                    case str():
                        text += step
                        yield Delta(text=step, model="scripted")
                    case float():
                        await asyncio.sleep(step)
                    case asyncio.Event():
                        await step.wait()
                    case Delta():
                        text = "" if step.restarted else text
                        yield step
                    case Exception():
                        raise step
            yield Delta(answer=Answer(text, "scripted", "stop", Usage(11, 3, 0, 1), 0.01, 0.02))
        finally:
            self.ended += 1


@dataclass
class Notebook:
    """A stub for all the admin services that handlers call; it records the calls."""

    asked: list[tuple[object, ...]] = field(default_factory=list)
    refusal: Exception | None = None
    run: Run = field(default_factory=lambda: Run(3, "due", "admin", ADMIN, 1.0, 1.0))  # type: ignore[arg-type]
    live: str = "run-2"
    canary: Standing | None = None
    runs: list[Run] = field(default_factory=list)
    held_back: dict[str, Model] = field(default_factory=dict)
    doubted: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: {"exchanges": 12, "ups": 5, "downs": 2})
    next_run: datetime | None = None
    schedule: str = ""
    changed: dict[str, Any] = field(default_factory=dict)
    last_progress: LastProgress | None = None
    recipe: Recipe | Path = field(default_factory=Recipe)
    same: Run | None = None
    judged: int = 5
    liked_of_shown: int = 40

    async def retrain(self, by: int, *, confirmed: bool = False) -> Run:
        if self.same is not None and not confirmed:
            raise NothingNew(self.same, self._selection().futile)
        return self._noted(self.run, "retrain", by)

    async def unchanged_since(self) -> Run | None:
        return self.same

    def futile(self, run: Run) -> StoredReason | None:
        return self._selection().futile

    async def plan(self) -> RunPlan:
        sources = (Source(path=Path("/data/food")),)
        return self._noted(RunPlan(self._selection(), sources, self.recipe, Settings().job_specs()), "plan")

    def _selection(self) -> Selection:
        left_out = {"disliked": 4, "unfinished": 1, "too_long": 2, "duplicates": 3, "over_share": 12}
        counts = SelectionCounts(rated=72, selected=50, raters=6, newcomers=Newcomers(2, 0.0, 7200.0), **left_out)
        corrected = Pair(replace(rated(2), corrected=True), lesson(rated(2)), rater=2)
        liked = Pair(rated(1), lesson(rated(1)), rater=1)
        blocks = (Block(20, (liked,) * self.judged),) if self.judged else ()
        train = (corrected,) * 9 + (liked,) * 36
        return Selection(train, blocks, counts, shown=60, liked_of_shown=self.liked_of_shown)

    async def cancel(self, by: int) -> Run | None:
        return self._noted(self.run, "cancel", by)

    async def overview(self) -> Notebook:
        return self._noted(self, "overview")

    async def promote(
        self, model: str, by: Actor, on_progress: Callable[[Progress], None] = ignore, *, confirmed: bool = False
    ) -> Model:
        self._doubt(model, confirmed)
        return self._noted(Model(model, f"/m/{model}", ModelState.LIVE, None, 1.0), "promote", model, by.user)

    async def rollback(
        self, by: Actor, on_progress: Callable[[Progress], None] = ignore, *, confirmed: bool = False
    ) -> Model:
        self._doubt("base", confirmed)
        return self._noted(Model("base", "/m/base", ModelState.LIVE, None, 1.0), "rollback", by.user)

    async def standing(self) -> Standing | None:
        return self.canary

    async def approve(self, model: str, by: Actor) -> Model:
        return self._noted(Model(model, f"/m/{model}", ModelState.LIVE, None, 1.0), "approve", model, by.user)

    async def stop(self, model: str, by: Actor) -> Model:
        return self._noted(Model(model, f"/m/{model}", ModelState.REJECTED, None, 1.0), "stop_canary", model, by.user)

    @property
    def engine(self) -> Status:
        stats = EngineStats(2, 1000, 400, 24, 13, 0.05, 1.5)
        nodes = (
            NodeStatus("http://a:1", "http://a:1/v1", "run-2", State.READY, False, 1, 4, "an old story", 2, stats),
            NodeStatus(
                "http://b:1",
                "http://b:1/v1",
                "run-1",
                State.FAILING,
                True,
                0,
                0,
                "gone for good\nin detail",
            ),
        )
        return Status(
            Kind.EXTERNAL, "run-2", State.READY, False, 1, (1,), 5.0, 0, 1, 2, None, "", Counters(), nodes, stats
        )

    def _doubt(self, model: str, confirmed: bool) -> None:
        if model in self.doubted and not confirmed:
            raise RejectedModel(Model(model, f"/m/{model}", ModelState.REJECTED, None, 1.0, reason=self.doubted[model]))

    def _noted(self, result: Result, *request: object) -> Result:
        self.asked.append(request)
        if self.refusal:
            raise self.refusal
        return result


def settings(
    url: str,
    token: str,
    telegram: dict[str, Any] | None = None,
    chat: dict[str, Any] | None = None,
    limits: dict[str, Any] | None = None,
    storage: dict[str, Any] | None = None,
) -> Settings:
    """Return settings for a bot on the emulator at `url`, without Telegram's rate limits."""
    quick: dict[str, Any] = {
        "token": SecretStr(token),
        "api_base": url,
        "admins": (ADMIN,),
        "poll_seconds": 5,
        "edit_seconds": 0.05,
        "calls_per_second": 10_000,
        "group_calls_per_minute": 600_000,
    }
    return Settings(
        telegram=TelegramSettings(**(quick | (telegram or {}))),
        chat=ChatSettings(**({"album_seconds": 0.3} | (chat or {}))),
        limits=LimitsSettings(**(limits or {})),
        storage=StorageSettings(**(storage or {})),
    )


class RunningBot:
    """A bot in the test process, with its parts as attributes; `start` and `stop` control it."""

    def __init__(self, settings: Settings, directory: Path, engine: ScriptedEngine, admin: Notebook) -> None:
        self.settings = settings
        self.engine = engine
        self.admin = admin
        self.ledger = Ledger.open(directory)
        self.pictures = PictureStore(directory / "pictures")
        middleware = DeliveryMiddleware(settings.telegram)
        self.bot: Bot = open_bot(settings.telegram, middleware)
        self.buttons = RatingButtons(self.bot, self.ledger)
        self.translator = Translator.load()
        self.in_flight = InFlight()
        stored = StoredPictures(self.ledger, self.pictures, DECODERS)
        live_settings = LiveSettings(settings)
        history = History(self.ledger, stored, live_settings)
        conversation = Conversation(self.ledger, history, engine, settings.chat)
        receiver = PictureReceiver(self.bot, self.ledger, self.pictures, DECODERS, live_settings)
        responder = Responder(
            bot=self.bot,
            conversation=conversation,
            pictures=receiver,
            in_flight=self.in_flight,
            throttle=Throttle(live_settings),
            notices=WaitNotices(middleware.limiter, self.ledger),
            times=AnswerTimes(),
            settings=live_settings,
        )
        self.notices = Notifications(self.bot, settings, self.ledger, self.translator)
        recorded: Any = admin
        services = Services(
            live_settings=live_settings,
            ledger=self.ledger,
            translator=self.translator,
            runs=recorded,
            trials=recorded,
            switch=recorded,
            monitoring=recorded,
            erasure=Erasure(self.ledger),
            conversation=conversation,
            pictures=receiver,
            in_flight=self.in_flight,
            responder=responder,
            stale_questions=StaleQuestions(settings.chat.answer_hours),
            buttons=self.buttons,
            notices=self.notices,
        )
        self.dispatcher: Dispatcher = build_dispatcher(services)
        self.apologies = Apologies(self.bot, self.ledger, live_settings, self.translator, self.notices)
        self.inbox = InboxProcessor(
            self.bot,
            self.dispatcher,
            self.ledger,
            settings,
            on_arrival=self.in_flight.arrived,
            on_dead_letter=self.apologies.given_up,
            on_disk_full=self.apologies.disk_full,
        )
        self.intake = Receiver(self.bot, self.inbox, settings.telegram, guests=settings.chat.guests)
        self._fetching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start polling for updates."""
        self._fetching = asyncio.create_task(self.intake.run())

    async def stop(self, grace: float = 5.0) -> None:
        """Stop the bot, giving work in flight `grace` seconds to finish; 0 interrupts it at once."""
        if self._fetching:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)
        await self.inbox.stop(grace)
        await self.buttons.stop()
        await self.notices.stop()
        await self.bot.session.close()
        await self.ledger.close()

    async def settled(self) -> None:
        """Wait until every update received so far, including before a restart, has been handled."""
        await until(self.idle)

    async def idle(self) -> bool:
        return not self.inbox.pending and not await self.ledger.inbox.pending()


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 20) -> None:
    """Wait until `condition` holds; raise TimeoutError after `seconds` seconds."""
    async with asyncio.timeout(seconds):
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.01)


async def shows(person: Person, text: str, chat: int | None = None) -> Message:
    """Wait until the bot's last message has the text `text`, and return the message."""
    async with asyncio.timeout(20):
        while True:
            messages = await person.bot_messages(chat)
            if messages and messages[-1]["text"] == text:
                return messages[-1]
            await asyncio.sleep(0.02)


async def final_reply(person: Person, text: str | None = None, *, after: int | None = None, **what: Any) -> Message:
    """Send a message, if one is given, and return the bot's final reply, which must have no rating buttons.

    If neither `text` nor `what` is given, nothing is sent, and the reply is to an earlier message. A
    placeholder, which may stay for a while on a busy machine, is not a final reply.
    """
    if text is not None or what:
        await person.sends(text, **what)
    async with asyncio.timeout(30):
        while True:
            answer = await person.answer(rated=False, quiet=0.2, after=after)
            if answer["text"][-1] != "…":
                assert button(answer, UP) is None
                return answer


class Stage:
    """An emulator and a data folder, used by any number of bots one after another."""

    def __init__(self, emulator: Emulator, url: str, directory: Path) -> None:
        self.emulator = emulator
        self.url = url
        self.directory = directory

    @asynccontextmanager
    async def bot(
        self,
        *scripts: Script,
        engine: ScriptedEngine | None = None,
        admin: Notebook | None = None,
        telegram: dict[str, Any] | None = None,
        chat: dict[str, Any] | None = None,
        limits: dict[str, Any] | None = None,
        storage: dict[str, Any] | None = None,
    ) -> AsyncIterator[RunningBot]:
        """Run a bot that polls for updates and answers with `scripts`."""
        made = settings(self.url, self.emulator.token, telegram, chat, limits, storage)
        running = RunningBot(made, self.directory, engine or ScriptedEngine(*scripts), admin or Notebook())
        running.start()
        try:
            yield running
        finally:
            await running.stop()

    async def handled(self, bot: RunningBot) -> None:
        """Wait until the bot has fetched and handled every update so far."""
        await until(lambda: not len(self.emulator.world.updates))
        await bot.settled()

    @asynccontextmanager
    async def person(self, user_id: int = 1001, name: str = "Ada", language: str = "en") -> AsyncIterator[Person]:
        """Yield a user who has already pressed Start, as Telegram requires."""
        async with Person(self.url, user_id, name, language) as person:
            self.emulator.world.users[user_id].started = True
            yield person


def live(url: str, token: str, directory: str, seconds: float = 0.05) -> None:
    """Run a bot, which may be a guest, in a process that a test can kill; its answers slowly repeat the question."""

    def slowly(prompt: Prompt, _: int) -> Script:
        return [seconds, "About ", seconds, prompt.turns[-1].text, seconds, ": all is well."]

    async def for_ever() -> None:
        made = settings(url, token, chat={"guests": True})
        running = RunningBot(made, Path(directory), ScriptedEngine(otherwise=slowly), Notebook())
        running.start()
        await asyncio.Event().wait()

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with patch("bot.updates.receiver.PAUSES", (0.1,)):
        asyncio.run(for_ever())
