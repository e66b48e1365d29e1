"""The dispatcher of Telegram updates, and a module of handlers for each subject.

Handlers are called with the event and a `Request`. Filters are coroutines even if they await nothing,
because aiogram runs plain functions in a thread.
"""

from __future__ import annotations

from aiogram import Dispatcher

from bot.handlers import (
    access,
    basics,
    broadcast,
    commands,
    corrections,
    fallback,
    feedback,
    guests,
    models,
    privacy,
    questions,
    regenerate,
    review,
    runs,
    status,
)
from bot.handlers.access import Access
from bot.handlers.button_taps import answer_refused
from bot.handlers.request import RequestContext, SenderRecords, Services
from bot.handlers.stray_placeholders import delete_stray_placeholder


def build_dispatcher(services: Services) -> Dispatcher:
    """Return the dispatcher for all updates.

    Each update must be fed to it with a keyword argument `delivery` (`bot.updates.inbox_processor.Delivery`).
    """
    dispatcher = Dispatcher(disable_fsm=True)
    for middleware in (RequestContext(services), Access(), SenderRecords(), delete_stray_placeholder):
        dispatcher.update.outer_middleware(middleware)
    dispatcher.callback_query.middleware(answer_refused)
    for subject in (
        basics,
        regenerate,
        privacy,
        access,
        runs,
        status,
        models,
        review,
        broadcast,
        feedback,
        commands,
        corrections,
        questions,
        guests,
        fallback,
    ):
        subject.register(dispatcher)
    return dispatcher
