"""What the bot does with each kind of update. One noun a module; collaborators arrive as named parameters.

Filters are coroutines even where they wait for nothing: aiogram takes others to a thread, for each update anew.
"""

from __future__ import annotations

from aiogram import Dispatcher

from bot.admin.erasure import Forgetting
from bot.admin.protocol import AdminActions
from bot.chat.conversation import Conversation
from bot.chat.history import History
from bot.chat.images import Incoming
from bot.chat.in_flight import Steering
from bot.chat.legacy_pictures import StoredPictures
from bot.chat.responder import Answers
from bot.chat.throttling import Limits
from bot.handlers import admin_only as admins_only
from bot.handlers import (
    basics,
    broadcast,
    commands,
    corrections,
    drain,
    fallback,
    feedback,
    model_info,
    models,
    privacy,
    questions,
    runs,
    stats,
    status,
)
from bot.handlers import regenerate as steering_commands
from bot.handlers.access import Door
from bot.handlers.context import People, Replies
from bot.handlers.stray_placeholders import Leftovers
from bot.i18n import Translator
from bot.settings import BotSettings
from bot.telegram.button_updates import Repaints
from bot.telegram.rate_limit import Pace
from bot.telegram.wait_notices import Waiting
from bot.updates.staleness import Lateness
from inference.images.decoder import PictureDecoders
from inference.messages import Engine
from storage.ledger import Ledger
from storage.picture_store import PictureStore


def build_dispatcher(
    *,
    settings: BotSettings,
    ledger: Ledger,
    pictures: PictureStore,
    engine: Engine,
    admin: AdminActions,
    forgetting: Forgetting,
    translator: Translator,
    steering: Steering,
    pace: Pace,
    repaints: Repaints,
    decoders: PictureDecoders,
    stored: StoredPictures,
) -> Dispatcher:
    """Everything between the inbox and the other rooms. Feed it with a `delivery` (`bot.updates.inbox.Delivery`).

    Call `Steering.arrived` with every update as it comes in. `pace` and `repaints` are those of the bot that is fed.
    """
    conversation = Conversation(History(ledger, pictures, settings.chat, stored), engine, settings.chat)
    limits = Limits(settings.limits, settings.telegram.admins)
    dispatcher = Dispatcher(
        disable_fsm=True,
        settings=settings,
        ledger=ledger,
        admin=admin,
        forgetting=forgetting,
        translator=translator,
        incoming=Incoming(ledger, pictures, decoders, settings.chat, settings.limits, admins=settings.telegram.admins),
        conversation=conversation,
        steering=steering,
        lateness=Lateness(settings.chat.answer_hours),
        answers=Answers(conversation, steering, limits, settings.telegram, Waiting(pace, ledger)),
        repaints=repaints,
    )
    dispatcher.update.outer_middleware(Door(settings, ledger, translator))
    dispatcher.update.outer_middleware(People(ledger, translator))
    dispatcher.message.outer_middleware(Leftovers(ledger))
    dispatcher.callback_query.outer_middleware(Leftovers(ledger))
    dispatcher.message.outer_middleware(Replies(ledger))
    dispatcher.edited_message.outer_middleware(Replies(ledger))
    dispatcher.include_routers(
        basics.router(),
        steering_commands.router(),
        model_info.router(),
        privacy.router(),
        admins_only.router(),
        runs.router(),
        status.router(),
        models.router(),
        drain.router(),
        stats.router(),
        broadcast.router(),
        feedback.router(),
        fallback.unknown_commands(),
        commands.captioned(),
        corrections.router(),
        questions.router(),
        fallback.router(),
    )
    return dispatcher
