"""The composition root: create the parts, connect them, and close them in reverse order.

`Application` is the whole bot, for `thumbtune run`, the demo and the tests.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from bot.admin.alerts import AlertWatch
from bot.admin.canary import Trials
from bot.admin.erasure import Erasure
from bot.admin.model_switch import ModelSwitch
from bot.admin.monitoring import Monitoring
from bot.admin.notifications import Notifications
from bot.admin.picture_upgrade import NICENESS, PictureUpgrade
from bot.admin.schedule import Schedule
from bot.admin.service import AdminService
from bot.admin.startup_checks import StartupChecks, settle_live_model
from bot.admin.teacher_notes import TeacherNotes
from bot.chat.conversation import Conversation
from bot.chat.history import History, chat_key
from bot.chat.images import DECODERS, PictureReceiver
from bot.chat.in_flight import InFlight
from bot.chat.responder import Responder
from bot.chat.stored_pictures import StoredPictures
from bot.chat.throttling import Throttle
from bot.config import Settings
from bot.handlers import build_dispatcher
from bot.handlers.disk_full import DiskFull
from bot.handlers.menu import announce_commands
from bot.handlers.request import Services
from bot.i18n import Translator
from bot.instance_lock import alone
from bot.shutdown import (
    ANSWER_SECONDS,
    ENGINE_SECONDS,
    PROCESS_SECONDS,
    STEP_SECONDS,
    THREAD_SECONDS,
    closed,
    end_process_within,
)
from bot.telegram.button_updates import RatingButtons
from bot.telegram.client import DeliveryMiddleware, open_bot
from bot.telegram.wait_notices import WaitNotices
from bot.updates.inbox import Inbox
from bot.updates.receiver import Receiver
from bot.updates.staleness import StaleQuestions
from bot.web.server import WebServer
from inference.images.decoder import PictureDecoders
from inference.serving.deployment import Deployment
from storage.integrity import refuse_lost_ledger
from storage.ledger import FILE_NAME, Ledger
from storage.model_store import ModelStore
from storage.picture_store import PictureStore
from training.base_model_check import trainer_missing
from training.launcher import ChildTrainer
from training.merged_models import MergedModels
from training.pipeline import Pipeline

SWITCH_SECONDS = 0.0005

log = structlog.get_logger()


class Application:
    """The whole bot, as an async context manager."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.address = ""
        self._stack = AsyncExitStack()
        self._intake: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def wait(self) -> None:
        """Wait for ever, or raise the update receiver's error if no retry can fix it."""
        if self._intake:
            await self._intake
        await asyncio.Event().wait()

    async def _open(self) -> None:  # noqa: PLR0915 one composition, read from top to bottom
        settings, stack = self.settings, self._stack
        folder = settings.storage.dir.resolve()
        base = settings.inference.checkpoint().resolve()
        refuse_lost_ledger(folder / FILE_NAME)
        ledger = Ledger.open(folder)
        self._at_end("ledger", ledger.close)
        stack.enter_context(alone(folder))
        pictures = PictureStore(folder / "pictures")
        models = ModelStore(folder / "models")
        models.tidy()
        live, unfit = await settle_live_model(ledger, base, folder / "models")

        middleware = DeliveryMiddleware(settings.telegram)
        bot = open_bot(settings.telegram, middleware)
        self._at_end("connections to Telegram", bot.session.close)
        translator = Translator.load()
        notices = Notifications(bot, settings, ledger, translator)
        self._at_end("notices", notices.stop)

        deployment = Deployment(settings.inference, live.id, Path(live.directory), logs=folder / "logs")
        self._at_end("engine", deployment.stop, ENGINE_SECONDS)
        await deployment.start(wait=False)
        nodes = len(deployment.status().nodes)
        menu = asyncio.create_task(announce_commands(bot, settings.telegram, translator, ledger, nodes=nodes))
        stack.callback(menu.cancel)

        forgetting = Erasure(ledger, pictures, folder / "runs", lambda session: deployment.forget(chat_key(session)))
        decoders, patient = PictureDecoders(DECODERS), PictureDecoders(1, NICENESS)
        self._at_end("picture decoders", decoders.close)
        self._at_end("decoder of stored pictures", patient.close)
        decoders.warm()
        stored = StoredPictures(ledger, pictures, patient)
        upgrade = PictureUpgrade(ledger, stored, runs=folder / "runs", sources=folder / "sources")
        upgrade.start()
        self._at_end("re-encoding of stored pictures", upgrade.stop)

        trainer = ChildTrainer(settings.training)
        specs = settings.job_specs(None if on_cards_of_its_own(settings) else deployment.first_words)
        merged = MergedModels(
            ledger,
            models,
            ChildTrainer(settings.training),
            specs.paths,
            keep=settings.training.keep_models,
            spare_bytes=settings.training.min_free_gigabytes * 1e9,
        )
        pipeline = Pipeline(
            ledger=ledger,
            pictures=pictures,
            models=models,
            trainer=trainer,
            specs=specs,
            trust=settings.trust,
            ready=upgrade.finish,
        )
        schedule = Schedule(
            folder,
            ledger,
            forgetting,
            notices.alert,
            pipeline,
            cron=settings.training.schedule,
            retention_days=settings.storage.retention_days,
        )
        changeover = ModelSwitch(
            ledger, deployment, merged, pause_while_training=settings.training.while_training == "pause"
        )
        await changeover.resume_trial()
        trials = Trials(
            ledger,
            changeover,
            deployment.status,
            notices,
            share=settings.training.canary,
            approve=settings.training.approve,
            trust=settings.trust,
        )
        vitals = Monitoring(
            ledger, deployment, schedule, middleware.numbers, lambda: trainer.last_progress, trust=settings.trust
        )
        conversation = Conversation(
            ledger, History(ledger, stored, settings.chat, settings.persona), deployment, settings.chat
        )
        operations = AdminService(
            ledger=ledger,
            pipeline=pipeline,
            trials=trials,
            vitals=vitals,
            notices=notices,
            forgetting=forgetting,
            notes=TeacherNotes(bot, ledger, conversation, translator),
            trainer_missing=(lambda: None) if settings.training.python else trainer_missing,
        )
        buttons = RatingButtons(bot, ledger)
        self._at_end("buttons", buttons.stop)
        in_flight = InFlight()
        receiver = PictureReceiver(bot, ledger, pictures, decoders, settings)
        responder = Responder(
            bot=bot,
            conversation=conversation,
            pictures=receiver,
            in_flight=in_flight,
            throttle=Throttle(settings.limits, settings.telegram.admins),
            notices=WaitNotices(middleware.limiter, ledger),
            settings=settings,
        )
        services = Services(
            settings=settings,
            ledger=ledger,
            translator=translator,
            admin=operations,
            erasure=forgetting,
            conversation=conversation,
            pictures=receiver,
            in_flight=in_flight,
            responder=responder,
            stale_questions=StaleQuestions(settings.chat.answer_hours),
            buttons=buttons,
        )
        inbox = Inbox(
            bot,
            build_dispatcher(services),
            ledger,
            settings,
            on_arrival=in_flight.arrived,
            on_dead_letter=notices.update_set_aside,
            on_disk_full=DiskFull(bot, ledger, settings, translator).answer,
        )
        web = WebServer(settings, vitals, inbox.accept, translator)
        self.address = await web.start()
        self._at_end("web server", web.stop)
        watch = AlertWatch(
            notices, deployment.status, lambda: trainer.last_progress, folder, settings.storage.min_free_gigabytes
        )
        watch.start()
        self._at_end("watch", watch.stop)
        await operations.start()
        self._at_end("operations", operations.stop)
        schedule.start()  # after an interrupted run has been ended, so that a run that is due can begin
        self._at_end("schedule", schedule.stop)
        inspection = StartupChecks(ledger, changeover, notices.alert, live, unfit)
        inspection.start()
        self._at_end("inspection", inspection.stop)
        self._at_end("inbox", lambda: inbox.stop(ANSWER_SECONDS), ANSWER_SECONDS + STEP_SECONDS)
        await buttons.update_recent(translator)
        self._intake = asyncio.create_task(Receiver(bot, inbox, settings.telegram).run())
        self._at_end("intake", self._end_intake)
        log.info("running", model=live.id, web=self.address, mode=settings.telegram.mode)

    def _at_end(self, step: str, close: Callable[[], Awaitable[None]], seconds: float = STEP_SECONDS) -> None:
        self._stack.push_async_callback(closed, step, close, seconds)

    async def _end_intake(self) -> None:
        """Cancel the receiver. If it failed, `wait` has already raised its error."""
        if self._intake:
            self._intake.cancel()
            await asyncio.wait((self._intake,))


def on_cards_of_its_own(settings: Settings) -> bool:
    """Return whether training and engine use different GPUs, so that neither has to yield to the other."""
    training, engine = settings.training.gpus, settings.inference.gpus
    return bool(training and engine) and set(training).isdisjoint(engine)


async def run_bot(settings: Settings) -> None:
    """Run the bot until SIGTERM, Ctrl-C, or an error that no retry can fix."""
    configure_logging()
    share_the_interpreter()
    async with Application(settings) as application:
        await until_stopped(application)
    log.info("stopped")
    end_process_within(THREAD_SECONDS)


async def until_stopped(application: Application) -> None:
    """Return on SIGTERM or SIGINT, or raise the receiver's error. The process then ends within PROCESS_SECONDS."""
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
    """Shorten the interpreter's switch interval, so that threads for pictures and commits get the GIL sooner.

    While the event loop is busy, a thread waits this long whenever it needs the GIL. With the default of 5 ms, pictures
    queued (https://bugs.python.org/issue7946).
    """
    sys.setswitchinterval(SWITCH_SECONDS)


def configure_logging(path: Path | None = None) -> None:
    """Log one line per event, including the libraries' logging, to standard error or to the file at `path`."""
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
