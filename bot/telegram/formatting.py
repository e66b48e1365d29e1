"""Conversion of a model's Markdown to plain text with entities, split into messages of permitted length.

The entities are computed here rather than parsed by Telegram, so Telegram cannot refuse an answer
because of its markup. Lengths are in UTF-16 code units, as in the Bot API
(https://core.telegram.org/bots/api#messageentity).
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import structlog
import telegramify_markdown
from aiogram.types import MessageEntity
from telegramify_markdown import RenderConfig, utf16_len

LIMIT: Final = 4096
"""The longest message, in UTF-16 code units."""

# The places where a text may be split, best first. The split comes after the match.
_CUTS: Final = tuple(
    re.compile(pattern) for pattern in (r"\n\n", r"\n", r"[.!?…] |[。！？]", r"[,;:] |[，；：、]", r"\s")
)
_WORTH_FILLING: Final = 0.5
_WEB: Final = ("http://", "https://")
_INVISIBLE: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Page:
    """The content of one message."""

    text: str
    entities: tuple[MessageEntity, ...] = ()


def plain_pages(text: str, limit: int = LIMIT) -> tuple[Page, ...]:
    """Return `text` without formatting, split into pages of at most `limit` UTF-16 code units.

    If the text is blank, there are no pages.
    """
    return tuple(_paged(_INVISIBLE.sub("", text), (), limit))


def markdown_pages(markdown: str, limit: int = LIMIT) -> tuple[Page, ...]:
    """Return `markdown` as formatted text, split into pages of at most `limit` UTF-16 code units.

    If the text is blank, there are no pages. If the converter fails, or would leave nothing (as with a
    lone HTML tag), the text stays unformatted.
    """
    markdown = _INVISIBLE.sub("", markdown)
    try:
        text, found = telegramify_markdown.convert(markdown, config=_rendering())
        entities = tuple(MessageEntity.model_validate(each.to_dict()) for each in found)
    except Exception as error:  # noqa: BLE001 - a failed conversion must not prevent the answer
        # The converter's message may quote the answer, so it is not logged.
        place = "".join(traceback.format_tb(error.__traceback__))
        log.warning("markdown not converted", error=type(error).__name__, place=place)
        return plain_pages(markdown, limit)
    if not text.strip():
        return plain_pages(markdown, limit)
    safe = tuple(each for each in entities if each.url is None or each.url.startswith(_WEB))
    return tuple(_paged(text, safe, limit))


def _rendering() -> RenderConfig:
    config = RenderConfig.isolated()
    symbols = config.markdown_symbol
    symbols.heading_level_1 = symbols.heading_level_2 = symbols.heading_level_3 = symbols.heading_level_4 = ""
    symbols.image = symbols.link = ""
    symbols.unordered_list_item = "•"
    symbols.task_completed, symbols.task_uncompleted = "☑", "☐"
    return config


def _paged(text: str, entities: tuple[MessageEntity, ...], limit: int) -> Iterator[Page]:
    start = 0
    offset = 0
    while start < len(text):
        end = _cut(text, start, limit)
        whole = text[start:end]
        shown = whole.strip() if start else whole.rstrip()
        skipped = utf16_len(whole[: len(whole) - len(whole.lstrip())]) if start else 0
        if shown.strip():
            first = offset + skipped
            yield Page(shown, tuple(_clipped(entities, first, first + utf16_len(shown))))
        offset += utf16_len(whole)
        start = end


def _cut(text: str, start: int, limit: int) -> int:
    """Return the end of the page that begins at `start`.

    The page ends at the last good place to split the text or, if there is none, where the page is full.
    """
    units = 0
    full = start
    while full < len(text):
        units += 1 + (ord(text[full]) > 0xFFFF)
        if units > limit:
            break
        full += 1
    else:
        return full
    for cut in _CUTS:
        ends = [found.end() for found in cut.finditer(text, start, full)]
        if ends and ends[-1] - start >= _WORTH_FILLING * (full - start):
            return ends[-1]
    return full


def _clipped(entities: tuple[MessageEntity, ...], first: int, last: int) -> Iterator[MessageEntity]:
    """Yield the entities between UTF-16 offsets `first` and `last`, with offsets relative to `first`."""
    for each in entities:
        begin, end = max(each.offset, first), min(each.offset + each.length, last)
        if begin < end:
            yield each.model_copy(update={"offset": begin - first, "length": end - begin})
