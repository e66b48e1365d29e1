"""The handlers of each kind of update: the dispatcher, and a module of handlers for each subject.

Handlers are called with the event and a `Request`. Filters are coroutines even if they await nothing, because
aiogram runs plain functions in a thread.
"""

from __future__ import annotations

from aiogram import Dispatcher

from bot.handlers import (
    admin_only,
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
    regenerate,
    runs,
    stats,
    status,
)
from bot.handlers.access import Access
from bot.handlers.request import RequestContext, SenderRecords, Services
from bot.handlers.stray_placeholders import StrayPlaceholders


def build_dispatcher(services: Services) -> Dispatcher:
    """Return the dispatcher of all updates. Feed it with a `delivery` (`bot.updates.inbox.Delivery`)."""
    dispatcher = Dispatcher(disable_fsm=True)
    for middleware in (RequestContext(services), Access(), SenderRecords(), StrayPlaceholders()):
        dispatcher.update.outer_middleware(middleware)
    dispatcher.include_routers(
        basics.router(),
        regenerate.router(),
        model_info.router(),
        privacy.router(),
        admin_only.router(),
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
