"""Message text and its entities, cleaned, validated and completed according to Telegram's rules.

Text is measured in UTF-16 code units. Entities are Bot API `MessageEntity` objects as dicts. Some kinds
are set by the bot; Telegram itself detects the others: commands, mentions, links and hashtags. The
markup languages of `parse_mode` are not implemented.
"""

from __future__ import annotations

import re
from itertools import accumulate
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
    """Return the length of `text` in UTF-16 code units, the unit in which Telegram measures text."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2


def formatted(text: str, entities: Any = None) -> tuple[str, list[Json]]:
    """Return `text` and `entities` as Telegram would store them in a message.

    The resulting text may be empty.

    Raises:
        BotApiError: The text exceeds 32 KiB, or an entity is malformed or outside the text.
    """
    if len(text.encode()) > _MAX_BYTES:
        raise api_error("Text is too long")
    given = [_checked(entity) for entity in entities] if isinstance(entities, list) else []
    return _complete(*_cleaned(text, [entity for entity in given if entity is not None]))


def _checked(entity: Any) -> Json | None:
    """Validate and return a bot's `MessageEntity`, or return None if Telegram itself detects its kind.

    Raises:
        BotApiError: The entity is malformed.
    """
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
    """Remove control characters or replace them with spaces, trim both ends, and shift the entities to match.

    Raises:
        BotApiError: An entity lies outside the text or splits a character.
    """
    entities = [entity for entity in entities if entity["length"] > 0]
    whole = _without_controls(text)
    if not entities:
        return whole.strip(" \n"), []
    places = {start: index for index, start in enumerate(accumulate(map(units, text), initial=0))}
    moved: list[tuple[Json, int, int]] = []  # each entity, and where it begins and ends in `whole`
    for entity in sorted(entities, key=lambda entity: entity["offset"]):
        begin, end = entity["offset"], entity["offset"] + entity["length"]
        _check_span(text, places, begin, end)
        new_begin, new_end = (units(_without_controls(text[: places[at]])) for at in (begin, end))
        moved.append((entity, new_begin, new_end))
    # Leading blanks that belong to an entity are kept.
    cut = min(len(whole) - len(whole.lstrip(" \n")), *(begin for _, begin, _ in moved))
    trimmed = whole[cut:].rstrip(" \n")
    kept = [(entity, begin - cut, min(end - cut, units(trimmed))) for entity, begin, end in moved]
    return trimmed, [{**entity, "offset": begin, "length": end - begin} for entity, begin, end in kept if end > begin]


def _check_span(text: str, places: dict[int, int], begin: int, end: int) -> None:
    """Check that an entity begins and ends inside the text and does not split a character.

    `begin` and `end` are offsets in UTF-16 units. `places` maps the UTF-16 offset of each character to the
    character's index in `text`.

    Raises:
        BotApiError: The entity lies outside the text or splits a character.
    """
    length = max(places)
    if begin >= length:
        raise api_error(f"entity begins after the end of the text at UTF-16 offset {begin}")
    ends = f"entity beginning at UTF-16 offset {begin} ends"
    if end > length:
        raise api_error(f"{ends} after the end of the text at UTF-16 offset {end}")
    for at, what in ((begin, "entity begins"), (end, ends)):
        if at not in places:
            byte = len(text[: places[at + 1]].encode())
            raise api_error(f"{what} in a middle of a UTF-16 symbol at byte offset {byte}")


def _without_controls(text: str) -> str:
    return _CONTROL.sub(" ", _REMOVED.sub("", text))


def _complete(text: str, entities: list[Json]) -> tuple[str, list[Json]]:
    """Add the entities that Telegram itself detects, sort all entities, and keep the first hundred.

    Nothing is detected inside links or code.
    """
    closed = [e for e in entities if e["type"] in {"code", "pre", "text_link", "text_mention", "custom_emoji"}]
    taken = [(e["offset"], e["offset"] + e["length"]) for e in closed]
    inside_code = [(e["offset"], e["offset"] + e["length"], e) for e in entities if e["type"] in {"code", "pre"}]
    entities = [
        e for e in entities if not any(begin <= e["offset"] < end and e is not code for begin, end, code in inside_code)
    ]
    for kind, finder in _FINDERS:
        for match in finder.finditer(text):
            begin = units(text[: match.start()])
            end = begin + units(match.group())
            if not any(begin < other_end and other < end for other, other_end in taken):
                taken.append((begin, end))
                entities.append({"type": kind, "offset": begin, "length": end - begin})
    entities.sort(key=lambda entity: (entity["offset"], -entity["length"]))
    return text, entities[:MAX_ENTITIES]
