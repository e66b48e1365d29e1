"""The Bot API's HTML: a fixed set of tags, nested properly, and character references.

Written after core.telegram.org/bots/api#html-style; the words of the refusals are TDLib's.
"""

from __future__ import annotations

import html
import re

from telegram_emulator.markup_parser import END, SPACES, Parser, unparsable
from telegram_emulator.refusals import Json

_HTML_TAGS = {
    "b": "bold", "strong": "bold", "i": "italic", "em": "italic", "u": "underline", "ins": "underline",
    "s": "strikethrough", "strike": "strikethrough", "del": "strikethrough", "tg-spoiler": "spoiler",
    "span": "spoiler", "code": "code", "pre": "pre", "blockquote": "blockquote", "a": "text_link",
    "tg-emoji": "custom_emoji",
}  # fmt: skip
_REFERENCE = re.compile(r"&(?:#x[0-9a-fA-F]{1,6}|#[0-9]{1,7}|lt|gt|amp|quot);?")


class Html(Parser):
    """Tags of a fixed set, nested properly; four named character references and the numeric ones."""

    def parse(self) -> tuple[str, list[Json]]:
        while self.i < self.size:
            character = self.text[self.i]
            if character == "<":
                if self.text[self.i + 1] == "/":
                    self.end_tag()
                else:
                    self.start_tag()
            elif character == "&" and (reference := _REFERENCE.match(self.text, self.i)):
                for decoded in html.unescape(reference[0]):
                    self.put(decoded)
                self.i = reference.end()
            else:
                self.put(character)
                self.i += 1
        if self.open:
            raise unparsable(f'Can\'t find end tag corresponding to start tag "{self.open[-1].tag}"')
        return self.result()

    def skip_spaces(self) -> None:
        while self.i < self.size and self.text[self.i] in SPACES:
            self.i += 1

    def word(self, stops: str) -> str:
        begin = self.i
        while self.text[self.i] not in stops:
            self.i += 1
        return self.text[begin : self.i]

    def start_tag(self) -> None:
        begin = self.i
        at = self.bytes_before(begin)
        self.i += 1
        tag = self.word(SPACES + ">").lower()
        if self.i >= self.size:
            raise unparsable(f"Unclosed start tag at byte offset {at}")
        if tag not in _HTML_TAGS:
            raise unparsable(f'Unsupported start tag "{tag}" at byte offset {at}')
        attributes: dict[str, str] = {}
        while self.text[self.i] != ">":
            self.skip_spaces()
            if self.text[self.i] == ">":
                break
            name = self.word(SPACES + "=>/\"'")
            if not name:
                raise unparsable(f'Empty attribute name in the tag "{tag}" at byte offset {at}')
            self.skip_spaces()
            if self.i >= self.size:
                raise unparsable(f'Unclosed start tag "{tag}" at byte offset {at}')
            attributes[name] = "1"
            if self.text[self.i] == "=":
                self.i += 1
                attributes[name] = self.attribute_value(tag, at)
        self.i += 1
        if tag == "span" and attributes.get("class") != "tg-spoiler":
            raise unparsable(f'Tag "span" must have class "tg-spoiler" at byte offset {at}')
        kind = _HTML_TAGS[tag]
        if tag == "blockquote" and "expandable" in attributes:
            kind = "expandable_blockquote"
        argument = attributes.get({"a": "href", "tg-emoji": "emoji-id", "code": "class"}.get(tag, ""), "")
        self.begin(kind, begin, tag, argument)

    def attribute_value(self, tag: str, at: int) -> str:
        self.skip_spaces()
        if self.i >= self.size:
            raise unparsable(f'Unclosed start tag "{tag}" at byte offset {at}')
        quote = self.text[self.i]
        if quote in "\"'":
            self.i += 1
            value = self.word(quote + END)
            if self.text[self.i] == quote:
                self.i += 1
            if self.i >= self.size:
                raise unparsable(f"Unclosed start tag at byte offset {at}")
            return html.unescape(value)
        token = self.i
        while self.text[self.i].isalnum() or self.text[self.i] in ".-":
            self.i += 1
        if self.text[self.i] not in SPACES + ">":
            raise unparsable(f"Unexpected end of name token at byte offset {self.bytes_before(token)}")
        if self.i >= self.size:
            raise unparsable(f"Unclosed start tag at byte offset {at}")
        return self.text[token : self.i].lower()

    def end_tag(self) -> None:
        at = self.bytes_before(self.i)
        if not self.open:
            raise unparsable(f"Unexpected end tag at byte offset {at}")
        self.i += 2
        tag = self.word(SPACES + ">").lower()
        self.skip_spaces()
        if self.text[self.i] != ">":
            raise unparsable(f"Unclosed end tag at byte offset {at}")
        self.i += 1
        opened = self.open[-1]
        if tag and tag != opened.tag:
            raise unparsable(f'Unmatched end tag at byte offset {at}, expected "</{opened.tag}>", found "</{tag}>"')
        span = (opened.offset, self.offset - opened.offset)
        if opened.kind == "pre" and self.entities and self.entities[-1].get("_class") is not None:
            inner = self.entities[-1]  # <pre><code class="language-…"> is one entity with a language
            if (inner["offset"], inner["length"]) == span:
                self.entities.pop()
                self.close("pre", inner["_class"].removeprefix("language-"))
                return
        self.close(opened.kind, opened.argument)
        if opened.kind == "code" and opened.argument and span[1]:
            self.entities[-1]["_class"] = opened.argument

    def result(self) -> tuple[str, list[Json]]:
        text, entities = Parser.result(self)
        for entity in entities:
            entity.pop("_class", None)
        return text, entities
