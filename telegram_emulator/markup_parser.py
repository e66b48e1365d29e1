"""What the parsers of the three markup languages share: the text, the result so far, and the open entities.

Offsets in refusals count UTF-8 bytes, those of entities UTF-16 units, as in TDLib.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from telegram_emulator.refusals import Json, Refused, refused

END = "\0"  # stands after the last character, as in a C string
SPACES = " \t\r\n\v\0"


def unparsable(reason: str) -> Refused:
    return refused(f"can't parse entities: {reason}")


@dataclass(slots=True)
class Open:
    """An entity whose end is still to come. `offset` (units) and `start` (characters) are its place in the result."""

    kind: str
    at: int
    offset: int
    start: int
    tag: str = ""
    argument: str = ""


@dataclass(slots=True)
class Parser:
    """What the parsers share: the text with its sentinel, the result so far and the open entities."""

    text: str
    i: int = 0
    out: list[str] = field(default_factory=list)
    offset: int = 0
    open: list[Open] = field(default_factory=list)
    entities: list[Json] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.text = self.text.replace(END, " ") + END * 4

    @property
    def size(self) -> int:
        return len(self.text) - 4

    def put(self, character: str) -> None:
        self.out.append(character)
        self.offset += 2 if character > "\uffff" else 1

    def bytes_before(self, index: int) -> int:
        return len(self.text[:index].encode())

    def begin(self, kind: str, at: int, tag: str = "", argument: str = "") -> None:
        self.open.append(Open(kind, at, self.offset, len(self.out), tag, argument))

    def close(self, kind: str, argument: str = "") -> None:
        """End the innermost entity; an empty one leaves no trace."""
        opened = self.open.pop()
        length = self.offset - opened.offset
        if length == 0:
            return
        entity: Json = {"type": kind, "offset": opened.offset, "length": length}
        if kind == "text_link":
            self.link(entity, argument or "".join(self.out[opened.start :]))
            return
        if kind == "pre" and argument:
            entity["language"] = argument
        if kind == "custom_emoji":
            entity["custom_emoji_id"] = argument
        self.entities.append(entity)

    def link(self, entity: Json, url: str) -> None:
        """A link to a user is a mention, a link to nowhere is text."""
        user = re.fullmatch(r"tg://user\?id=(\d+)", url)
        if user:
            self.entities.append({**entity, "type": "text_mention", "user_id": int(user[1])})
        elif re.match(r"(https?|tg|ton|tonsite)://", url):
            self.entities.append({**entity, "url": url})
        elif re.fullmatch(r"[^\s/]+\.[^\s/.]{2,}(/\S*)?", url):
            self.entities.append({**entity, "url": f"http://{url}"})

    def result(self) -> tuple[str, list[Json]]:
        return "".join(self.out), sorted(self.entities, key=lambda entity: (entity["offset"], -entity["length"]))
