"""Text with entities: measured in UTF-16 units, cleaned, checked and completed as Telegram does it.

Entities are Bot API `MessageEntity` objects as dicts. Some come from the bot; Telegram itself finds the others:
commands, mentions, links and hashtags. The markup languages of `parse_mode` are not implemented.
"""

from __future__ import annotations

import re
from typing import Any

from telegram_emulator.api_errors import Json, api_error

MAX_TEXT = 4096  # UTF-16 units (core.telegram.org/bots/api#sendmessage)
MAX_CAPTION = 1024
MAX_ENTITIES = 100
_MAX_BYTES = 2**15  # the Bot API server refuses longer texts outright

_FOUND_BY_TELEGRAM = {
    "mention", "hashtag", "cashtag", "bot_command", "url", "email", "phone_number", "bank_card_number",
}  # fmt: skip
_GIVEN_BY_BOTS = {
    "bold", "italic", "underline", "strikethrough", "spoiler", "blockquote", "expandable_blockquote",
    "code", "pre", "text_link", "text_mention", "custom_emoji",
}  # fmt: skip
_FINDERS = [
    ("url", re.compile(r"https?://[^\s<>\"]*[^\s<>\".,;:!?)\]]")),
    ("bot_command", re.compile(r"(?<![\w/<>@.])/[A-Za-z0-9_]{1,64}(?:@[A-Za-z0-9_]{3,32})?\b")),
    ("mention", re.compile(r"(?<![\w@./])@[A-Za-z0-9_]{4,32}\b")),
    ("hashtag", re.compile(r"(?<![\w#])#\w*[^\W\d]\w*")),
]
_CONTROL = re.compile(r"[\x00-\x09\x0b\x0c\x0e-\x1f]")
_REMOVED = re.compile("[\r\u2028-\u202e\u0333\u033f\u030a]")


def units(text: str) -> int:
    """Return the length of `text` in UTF-16 code units, as Telegram counts it."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2


def formatted(text: str, entities: Any = None) -> tuple[str, list[Json]]:
    """Return the text and entities that a message keeps of those given. The resulting text may be empty.

    Raises `BotApiError` for entities that are malformed or outside the text.
    """
    if len(text.encode()) > _MAX_BYTES:
        raise api_error("Text is too long")
    given = [_checked(entity) for entity in entities] if isinstance(entities, list) else []
    return _complete(*_cleaned(text, [entity for entity in given if entity is not None]))


def _checked(entity: Any) -> Json | None:
    """Check a bot's `MessageEntity`; return None for the kinds that Telegram finds itself."""
    unparsable = "can't parse MessageEntity: "
    if not isinstance(entity, dict):
        raise api_error(unparsable + "expected an Object")
    for name in ("offset", "length", "type"):
        if name not in entity:
            raise api_error(f'{unparsable}Can\'t find field "{name}"')
    kind, offset, length = entity["type"], entity["offset"], entity["length"]
    if not isinstance(offset, int) or not isinstance(length, int):
        raise api_error(unparsable + "offset and length must be of type Integer")
    if kind in _FOUND_BY_TELEGRAM:
        return None
    if kind not in _GIVEN_BY_BOTS:
        raise api_error(unparsable + "Unsupported type specified")
    if not 0 <= offset <= 1_000_000:
        raise api_error(f"receive an entity with incorrect offset {offset}")
    if not 0 <= length <= 1_000_000:
        raise api_error(f"receive an entity with incorrect length {length}")
    extras = {name: entity[name] for name in ("url", "user", "language", "custom_emoji_id") if entity.get(name)}
    return {"type": kind, "offset": offset, "length": length, **extras}


def _cleaned(text: str, entities: list[Json]) -> tuple[str, list[Json]]:
    """Blank or remove control characters, trim both ends, and shift the entities accordingly."""
    entities = [dict(entity) for entity in entities if entity["length"] > 0]
    if not entities:
        return _CONTROL.sub(" ", _REMOVED.sub("", text)).strip(" \n"), []
    starts: list[int] = []  # of every character and of the end of the text, in units
    position = 0
    for character in text:
        starts.append(position)
        position += 2 if character > "\uffff" else 1
    starts.append(position)
    index_of = {start: index for index, start in enumerate(starts)}
    for entity in sorted(entities, key=lambda entity: entity["offset"]):
        begin, end = entity["offset"], entity["offset"] + entity["length"]
        if begin >= position:
            raise api_error(f"entity begins after the end of the text at UTF-16 offset {begin}")
        if end > position:
            raise api_error(
                f"entity beginning at UTF-16 offset {begin} ends after the end of the text at UTF-16 offset {end}"
            )
        if begin not in index_of:
            at = len(text[: index_of[begin + 1]].encode())
            raise api_error(f"entity begins in a middle of a UTF-16 symbol at byte offset {at}")
        if end not in index_of:
            at = len(text[: index_of[end + 1]].encode())
            raise api_error(
                f"entity beginning at UTF-16 offset {begin} ends in a middle of a UTF-16 symbol at byte offset {at}"
            )
    kept = [not _REMOVED.match(character) for character in text]
    first = next((i for i, character in enumerate(text) if kept[i] and not _blank(character)), len(text))
    last = next((i for i in range(len(text) - 1, -1, -1) if kept[i] and not _blank(text[i])), -1)
    first = min(first, *(index_of[entity["offset"]] for entity in entities))  # blanks that begin an entity are kept
    moved: list[int] = []  # the new start of every old character
    pieces: list[str] = []
    position = 0
    for index, character in enumerate(text):
        moved.append(position)
        if kept[index] and first <= index <= last:
            pieces.append(_CONTROL.sub(" ", character))
            position += 2 if character > "\uffff" else 1
    moved.append(position)
    result: list[Json] = []
    for entity in entities:
        begin = moved[index_of[entity["offset"]]]
        end = moved[index_of[entity["offset"] + entity["length"]]]
        if end > begin:
            result.append({**entity, "offset": begin, "length": end - begin})
    return "".join(pieces), result


def _blank(character: str) -> bool:
    return character in " \n" or bool(_CONTROL.match(character))


def _complete(text: str, entities: list[Json]) -> tuple[str, list[Json]]:
    """Add the entities that Telegram finds itself, outside links and code; sort, and keep the first hundred."""
    closed = [e for e in entities if e["type"] in {"code", "pre", "text_link", "text_mention", "custom_emoji"}]
    taken = [(e["offset"], e["offset"] + e["length"]) for e in closed]
    inside_code = [(e["offset"], e["offset"] + e["length"], e) for e in entities if e["type"] in {"code", "pre"}]
    entities = [
        e for e in entities if not any(begin <= e["offset"] < end and e is not code for begin, end, code in inside_code)
    ]
    for kind, finder in _FINDERS:
        if kind != "url" and not any(mark in text for mark in "/@#"):
            break
        for match in finder.finditer(text):
            begin = units(text[: match.start()])
            end = begin + units(match.group())
            if not any(begin < other_end and other < end for other, other_end in taken):
                taken.append((begin, end))
                entities.append({"type": kind, "offset": begin, "length": end - begin})
    entities.sort(key=lambda entity: (entity["offset"], -entity["length"]))
    return text, entities[:MAX_ENTITIES]
