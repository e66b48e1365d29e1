"""Replies in chats where the bot is a guest: single messages, which Telegram identifies by strings.

Telegram accepts a single answer to a guest query, and edits to that answer. The bot cannot find out whether Telegram
received a call that failed, so it repeats the call, and gives up if Telegram then refuses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from aiogram.exceptions import TelegramBadRequest
from aiogram.methods import AnswerGuestQuery, SendMessage
from aiogram.types import (
    ForceReply,
    InlineKeyboardMarkup,
    InlineQueryResultArticle,
    InputTextMessageContent,
    SentGuestMessage,
)
from telegramify_markdown import utf16_len

from bot.telegram.errors import Unreachable
from bot.telegram.formatting import LIMIT, Page, plain_pages
from bot.telegram.place import Place
from bot.telegram.recorded_messages import NO_PREVIEW
from bot.telegram.reply import Reply


class GuestReply(Reply):
    """The reply to a guest query, of which only the first page is shown."""

    async def show_partial(self, pages: Sequence[Page] | str, markup: InlineKeyboardMarkup | None = None) -> bool:
        """Show as much of an unfinished answer as fits into one message."""
        return await super().show_partial(_first(pages), markup)

    async def finish(self, pages: Sequence[Page] | str, markup: InlineKeyboardMarkup | None = None) -> None:
        """Show as much of the final answer as fits into one message."""
        await super().finish(_first(pages), markup)

    async def typing(self) -> None:
        """Do nothing, because a guest cannot show the "typing" status."""

    async def _call_send(
        self, slot: int, page: Page, markup: InlineKeyboardMarkup | ForceReply | None, kind: type[SendMessage]
    ) -> int | str | None:
        content = InputTextMessageContent(
            message_text=page.text, entities=list(page.entities), link_preview_options=NO_PREVIEW
        )
        buttons = markup if isinstance(markup, InlineKeyboardMarkup) else None
        answer = InlineQueryResultArticle(id="0", title="…", input_message_content=content, reply_markup=buttons)
        try:
            sent: SentGuestMessage = await self._bot(AnswerGuestQuery(guest_query_id=self.place.guest, result=answer))
        except TelegramBadRequest as error:  # too old, or answered by a call whose response was lost
            raise Unreachable(error.message) from error
        return sent.inline_message_id

    async def _delete(self, slot: int) -> None:
        """Leave the message in place, because a guest cannot delete it."""


def reply_type(place: Place) -> type[Reply]:
    """Return the class of replies that are sent to `place`."""
    return GuestReply if place.guest else Reply


def _first(pages: Sequence[Page] | str) -> Sequence[Page]:
    """Return the first of `pages`, with an ellipsis if there are more pages and there is room for it."""
    if isinstance(pages, str):
        pages = plain_pages(pages)
    page = pages[0]
    return [replace(page, text=f"{page.text} …") if len(pages) > 1 and utf16_len(page.text) < LIMIT - 1 else page]
