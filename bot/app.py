"""The composition root, which creates the bot's parts, connects them, and closes them in reverse order.

`Application` is the whole bot, as used by `thumbtune run`, the demo and the tests.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

import structlog

from bot.admin.alerts import AlertWatch
from bot.admin.blind_comparison import BlindComparison
from bot.admin.canary_trial import Trials
from bot.admin.erasure import Erasure
from bot.admin.judging_engines import JudgingEngines
from bot.admin.model_news import ModelNews
from bot.admin.model_switch import ModelSwitch
from bot.admin.monitoring import Monitoring
from bot.admin.notifications import Notifications
from bot.admin.periodic import repeat
from bot.admin.run_manager import RunManager
from bot.admin.schedule import Schedule
from bot.admin.startup_checks import StartupChecks, refuse_missing_ray, settle_live_model
from bot.admin.teacher_notes import TeacherNotes
from bot.chat.answer_times import AnswerTimes
from bot.chat.conversation import Conversation
from bot.chat.history import History, chat_key
from bot.chat.in_flight import InFlight
from bot.chat.picture_receiver import DECODERS, PictureReceiver
from bot.chat.picture_reencoding import NICENESS, StoredPictures
from bot.chat.responder import Responder
from bot.chat.throttling import Throttle
from bot.config import Settings
from bot.handlers import build_dispatcher
from bot.handlers.menu import announce_commands
from bot.handlers.request import Services
from bot.handlers.unhandled_updates import Apologies
from bot.i18n import Translator
from bot.instance_lock import lock_data_folder
from bot.live_settings import LiveSettings
from bot.redaction import secrets_of
from bot.shutdown import ANSWER_SECONDS, ENGINE_SECONDS, STEP_SECONDS, ShutdownSteps, cancel
from bot.telegram.button_updates import RatingButtons
from bot.telegram.client import DeliveryMiddleware, open_bot
from bot.telegram.rate_limit_notices import WaitNotices
from bot.updates.inbox_processor import InboxProcessor
from bot.updates.receiver import Receiver
from bot.updates.staleness import StaleQuestions
from bot.web.comparison_pages import ComparisonPages
from bot.web.model_changes import ModelChanges
from bot.web.model_pages import ModelPages
from bot.web.pages import Pages
from bot.web.people import PeoplePages
from bot.web.review import ReviewPages
from bot.web.run_pages import RunPages
from bot.web.server import WebServer
from bot.web.settings_pages import SettingsPages
from inference.engines.commands import COMMANDS, PRELOADED, Kind, resolve
from inference.images.decoder import PictureDecoders
from inference.process.warm_python import WarmPython
from inference.serving.deployment import Deployment
from inference.serving.supervisor import State
from storage.integrity import refuse_lost_ledger
from storage.ledger import FILE_NAME, Ledger
from storage.model_store import ModelStore
from storage.picture_files import PictureStore
from training.base_model_check import trainer_missing
from training.launcher import ChildTrainer, warm_python
from training.merged_models import MergedModels
from training.pipeline import Pipeline
from training.run_plan import RunPlanner

_POLL_SECONDS: Final = 0.5

log = structlog.get_logger()


class Application:
    """The whole bot, as an async context manager."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.address = ""
        self.runs: RunManager
        self._steps = ShutdownSteps()
        self._intake: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self._steps.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._steps.aclose()

    async def wait(self) -> None:
        """Wait forever, or raise an error of the update receiver that retrying cannot fix."""
        if self._intake:
            await self._intake
        await asyncio.Event().wait()

    async def _open(self) -> None:  # noqa: PLR0915 one composition, read from top to bottom
        steps = self._steps
        folder = self.settings.storage.dir.resolve()
        base = self.settings.inference.checkpoint().resolve()
        await refuse_missing_ray(self.settings)
        middleware = DeliveryMiddleware(self.settings.telegram)
        bot = open_bot(self.settings.telegram, middleware)  # without a token, no data folder is created
        refuse_lost_ledger(folder / FILE_NAME)
        ledger = Ledger.open(folder)
        steps.add("ledger", ledger.close)
        steps.enter_context(lock_data_folder(folder))
        live_settings = LiveSettings(self.settings, await ledger.setting_changes.in_force())
        settings = live_settings.now
        pictures = PictureStore(folder / "pictures")
        models = ModelStore(folder / "models")
        models.tidy()
        live, unfit = await settle_live_model(ledger, base, folder / "models")

        steps.add("connections to Telegram", bot.session.close)
        translator = Translator.load()
        notices = Notifications(bot, settings, ledger, translator)
        steps.add("notices", notices.stop)

        kind = resolve(settings.inference)
        forks_engine = kind is Kind.CPU or (kind is Kind.LMDEPLOY and settings.training.device != "cpu")
        warm = warm_python(settings.training, folder / "logs", PRELOADED[kind] if forks_engine else ())
        steps.add("preloaded libraries", warm.stop)
        deployment = Deployment(
            settings.inference,
            live.id,
            Path(live.directory),
            logs=folder / "logs",
            command=warm.forking(COMMANDS[kind]) if forks_engine else None,
        )
        steps.add("engine", deployment.stop, ENGINE_SECONDS)
        await deployment.start(wait=False)
        if settings.training.keep_warm:
            steps.run_in_background("preloading", preload(deployment, warm))
        steps.run_in_background("menu", announce_commands(bot, settings.telegram, translator, ledger))

        erasure = Erasure(ledger, lambda session: deployment.forget(chat_key(session)))
        decoders, patient = PictureDecoders(DECODERS), PictureDecoders(1, NICENESS)
        steps.add("picture decoders", decoders.close)
        steps.add("decoder of stored pictures", patient.close)
        decoders.warm()
        stored = StoredPictures(ledger, pictures, patient)
        steps.run_in_background("re-encoding of stored pictures", stored.run())

        trainer = ChildTrainer(settings.training, warm)
        specs = settings.job_specs(None if settings.has_separate_gpus else deployment.first_words)
        merged = MergedModels(ledger, models, ChildTrainer(settings.training, warm), settings.training, specs.paths)
        planner = RunPlanner(ledger, models, specs, settings.trust)
        switch = ModelSwitch(
            ledger, deployment, merged, pause_while_training=settings.training.while_training == "pause"
        )
        engines = JudgingEngines(deployment, switch, settings.inference)
        pipeline = Pipeline(planner, pictures, trainer, stored.finish, engines)
        schedule = Schedule(
            ledger,
            erasure,
            notices,
            planner,
            cron=settings.training.schedule,
            retention_days=settings.storage.retention_days,
        )

        def rebuild(now: Settings) -> None:
            specs = now.job_specs(planner.specs.paths.yield_file)
            pipeline.planner = schedule.planner = replace(planner, specs=specs, trust=now.trust)
            schedule.reschedule(now.training.schedule)

        live_settings.subscribe(rebuild)
        await switch.resume_trial()
        trials = Trials(ledger, switch, deployment.status, notices, live_settings)
        times = AnswerTimes()
        monitoring = Monitoring(
            ledger=ledger,
            deployment=deployment,
            schedule=schedule,
            calls=middleware.numbers,
            last_progress=lambda: trainer.last_progress,
            times=times,
            settings=live_settings,
        )
        history = History(ledger, stored, live_settings)
        conversation = Conversation(ledger, history, deployment, settings.chat)
        runs = RunManager(
            ledger, pipeline, trials, notices, (lambda: None) if settings.training.python else trainer_missing
        )
        self.runs = runs
        buttons = RatingButtons(bot, ledger)
        steps.add("buttons", buttons.stop)
        in_flight = InFlight()
        receiver = PictureReceiver(bot, ledger, pictures, decoders, live_settings)
        responder = Responder(
            bot=bot,
            conversation=conversation,
            pictures=receiver,
            in_flight=in_flight,
            throttle=Throttle(live_settings),
            notices=WaitNotices(middleware.limiter, ledger),
            times=times,
            settings=live_settings,
        )
        services = Services(
            live_settings=live_settings,
            ledger=ledger,
            translator=translator,
            runs=runs,
            trials=trials,
            switch=switch,
            monitoring=monitoring,
            erasure=erasure,
            conversation=conversation,
            pictures=receiver,
            in_flight=in_flight,
            responder=responder,
            stale_questions=StaleQuestions(settings.chat.answer_hours),
            buttons=buttons,
            notices=notices,
        )
        apologies = Apologies(bot, ledger, live_settings, translator, notices)
        inbox = InboxProcessor(
            bot,
            build_dispatcher(services),
            ledger,
            settings,
            on_arrival=in_flight.arrived,
            on_dead_letter=apologies.given_up,
            on_disk_full=apologies.disk_full,
        )
        pages = Pages(translator)
        review = ReviewPages(ledger, pictures, runs, pages, settings.training.threshold)
        people = PeoplePages(ledger, erasure, pages, live_settings)
        changes = ModelChanges()
        steps.add("model changes", changes.stop)
        model_pages = ModelPages(ledger, trials, changes, pages)
        comparison = BlindComparison(ledger, pictures, ChildTrainer(settings.training, warm), live_settings)
        comparison.tidy()
        compare_pages = ComparisonPages(ledger, comparison, changes, pages)
        run_pages = RunPages(
            ledger, runs, lambda: trainer.last_progress, pages, settings.training.threshold, secrets_of(settings)
        )
        settings_pages = SettingsPages(ledger, live_settings, pages)
        parts = (review, people, model_pages, compare_pages, run_pages, settings_pages)
        private = [route for each in parts for route in each.routes()]
        web = WebServer(settings, monitoring, inbox.accept, pages, private)
        self.address = await web.start()
        steps.add("web server", web.stop)
        watch = AlertWatch(
            notices, deployment.status, lambda: trainer.last_progress, ledger, settings.storage.min_free_gigabytes
        )
        await runs.start()
        # Each duty has a loop of its own, because a model change may take minutes.
        serving = {
            "runs": runs.serve,
            "promotions": switch.serve,
            "deletions": erasure.settle,
            "canary": trials.look,
            "model news": ModelNews(bot, ledger, notices, translator).tell,
            "notes": TeacherNotes(bot, ledger, conversation, translator).send,
            "watch": watch.look,
        }
        duties = [asyncio.create_task(repeat(duty, serve, notices)) for duty, serve in serving.items()]
        duties.append(asyncio.create_task(switch.prune()))

        async def end_duties() -> None:
            await asyncio.gather(cancel(*duties), runs.stop())

        steps.add("duties", end_duties)  # in one step, because the total time for shutdown is limited
        schedule.start()  # after an interrupted run has been ended, so that a run that is due can begin
        steps.add("schedule", schedule.stop)
        checks = StartupChecks(ledger, switch, notices, live, unfit)
        steps.run_in_background("startup checks", checks.run())
        steps.add("inbox", lambda: inbox.stop(ANSWER_SECONDS), ANSWER_SECONDS + STEP_SECONDS)
        await buttons.update_recent(translator)
        self._intake = steps.run_in_background(
            "intake", Receiver(bot, inbox, settings.telegram, guests=settings.chat.guests).run()
        )
        log.info("running", model=live.id, web=self.address, mode=settings.telegram.mode)


async def preload(deployment: Deployment, warm: WarmPython) -> None:
    """Start the interpreter for workers once the engine is ready, so that it does not slow down the engine's start."""
    while deployment.status().state is not State.READY:  # noqa: ASYNC110 - the engine may be restarted meanwhile
        await asyncio.sleep(_POLL_SECONDS)
    await warm.start()
