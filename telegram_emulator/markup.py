"""The three markup languages of the Bot API by their names.

Knows syntax only, through `markup_html` and `markup_markdown`; `entities` cleans and completes what comes out.
"""

from __future__ import annotations

from telegram_emulator.markup_html import Html
from telegram_emulator.markup_markdown import MarkdownV2, legacy_markdown
from telegram_emulator.refusals import Json, refused


def parse(text: str, mode: str) -> tuple[str, list[Json]]:
    """The plain text and its entities. `mode` is html, markdownv2 or markdown. Raises `Refused`."""
    if mode == "html":
        return Html(text).parse()
    if mode == "markdownv2":
        return MarkdownV2(text).parse()
    if mode == "markdown":
        return legacy_markdown(text)
    raise refused("Unsupported parse_mode")
