"""The three markup languages of the Bot API: HTML, MarkdownV2 and the legacy Markdown.

Written after core.telegram.org/bots/api#formatting-options; the words of the refusals, with their offsets in UTF-8
bytes, are those of TDLib's parser. Knows syntax only: `entities` cleans and completes what comes out.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field

from bot.emulator.refusals import Json, Refused, refused

_END = "\0"  # stands after the last character, as in a C string
_SPACES = " \t\r\n\v\0"

_HTML_TAGS = {
    "b": "bold", "strong": "bold", "i": "italic", "em": "italic", "u": "underline", "ins": "underline",
    "s": "strikethrough", "strike": "strikethrough", "del": "strikethrough", "tg-spoiler": "spoiler",
    "span": "spoiler", "code": "code", "pre": "pre", "blockquote": "blockquote", "a": "text_link",
    "tg-emoji": "custom_emoji",
}  # fmt: skip
_REFERENCE = re.compile(r"&(?:#x[0-9a-fA-F]{1,6}|#[0-9]{1,7}|lt|gt|amp|quot);?")
_NAMES = {  # how TDLib's messages call the entities
    "bold": "Bold", "italic": "Italic", "underline": "Underline", "strikethrough": "Strikethrough",
    "spoiler": "Spoiler", "code": "Code", "pre": "Pre", "text_link": "TextUrl", "custom_emoji": "CustomEmoji",
    "blockquote": "BlockQuote",
}  # fmt: skip


def parse(text: str, mode: str) -> tuple[str, list[Json]]:
    """The plain text and its entities. `mode` is html, markdownv2 or markdown. Raises `Refused`."""
    if mode == "html":
        return _Html(text).parse()
    if mode == "markdownv2":
        return _MarkdownV2(text).parse()
    if mode == "markdown":
        return _legacy_markdown(text)
    raise refused("Unsupported parse_mode")


@dataclass(slots=True)
class _Open:
    """An entity whose end is still to come. `offset` (units) and `start` (characters) are its place in the result."""

    kind: str
    at: int
    offset: int
    start: int
    tag: str = ""
    argument: str = ""


@dataclass(slots=True)
class _Parser:
    """What the parsers share: the text with its sentinel, the result so far and the open entities."""

    text: str
    i: int = 0
    out: list[str] = field(default_factory=list)
    offset: int = 0
    open: list[_Open] = field(default_factory=list)
    entities: list[Json] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.text = self.text.replace(_END, " ") + _END * 4

    @property
    def size(self) -> int:
        return len(self.text) - 4

    def put(self, character: str) -> None:
        self.out.append(character)
        self.offset += 2 if character > "\uffff" else 1

    def bytes_before(self, index: int) -> int:
        return len(self.text[:index].encode())

    def begin(self, kind: str, at: int, tag: str = "", argument: str = "") -> None:
        self.open.append(_Open(kind, at, self.offset, len(self.out), tag, argument))

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


def _unparsable(reason: str) -> Refused:
    return refused(f"can't parse entities: {reason}")


class _Html(_Parser):
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
            raise _unparsable(f'Can\'t find end tag corresponding to start tag "{self.open[-1].tag}"')
        return self.result()

    def skip_spaces(self) -> None:
        while self.i < self.size and self.text[self.i] in _SPACES:
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
        tag = self.word(_SPACES + ">").lower()
        if self.i >= self.size:
            raise _unparsable(f"Unclosed start tag at byte offset {at}")
        if tag not in _HTML_TAGS:
            raise _unparsable(f'Unsupported start tag "{tag}" at byte offset {at}')
        attributes: dict[str, str] = {}
        while self.text[self.i] != ">":
            self.skip_spaces()
            if self.text[self.i] == ">":
                break
            name = self.word(_SPACES + "=>/\"'")
            if not name:
                raise _unparsable(f'Empty attribute name in the tag "{tag}" at byte offset {at}')
            self.skip_spaces()
            if self.i >= self.size:
                raise _unparsable(f'Unclosed start tag "{tag}" at byte offset {at}')
            attributes[name] = "1"
            if self.text[self.i] == "=":
                self.i += 1
                attributes[name] = self.attribute_value(tag, at)
        self.i += 1
        if tag == "span" and attributes.get("class") != "tg-spoiler":
            raise _unparsable(f'Tag "span" must have class "tg-spoiler" at byte offset {at}')
        kind = _HTML_TAGS[tag]
        if tag == "blockquote" and "expandable" in attributes:
            kind = "expandable_blockquote"
        argument = attributes.get({"a": "href", "tg-emoji": "emoji-id", "code": "class"}.get(tag, ""), "")
        self.begin(kind, begin, tag, argument)

    def attribute_value(self, tag: str, at: int) -> str:
        self.skip_spaces()
        if self.i >= self.size:
            raise _unparsable(f'Unclosed start tag "{tag}" at byte offset {at}')
        quote = self.text[self.i]
        if quote in "\"'":
            self.i += 1
            value = self.word(quote + _END)
            if self.text[self.i] == quote:
                self.i += 1
            if self.i >= self.size:
                raise _unparsable(f"Unclosed start tag at byte offset {at}")
            return html.unescape(value)
        token = self.i
        while self.text[self.i].isalnum() or self.text[self.i] in ".-":
            self.i += 1
        if self.text[self.i] not in _SPACES + ">":
            raise _unparsable(f"Unexpected end of name token at byte offset {self.bytes_before(token)}")
        if self.i >= self.size:
            raise _unparsable(f"Unclosed start tag at byte offset {at}")
        return self.text[token : self.i].lower()

    def end_tag(self) -> None:
        at = self.bytes_before(self.i)
        if not self.open:
            raise _unparsable(f"Unexpected end tag at byte offset {at}")
        self.i += 2
        tag = self.word(_SPACES + ">").lower()
        self.skip_spaces()
        if self.text[self.i] != ">":
            raise _unparsable(f"Unclosed end tag at byte offset {at}")
        self.i += 1
        opened = self.open[-1]
        if tag and tag != opened.tag:
            raise _unparsable(f'Unmatched end tag at byte offset {at}, expected "</{opened.tag}>", found "</{tag}>"')
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
        text, entities = _Parser.result(self)
        for entity in entities:
            entity.pop("_class", None)
        return text, entities


class _MarkdownV2(_Parser):
    """Paired marks; everything else of `_*[]()~`>#+-=|{}.!` must be escaped with a backslash."""

    def parse(self) -> tuple[str, list[Json]]:
        quote_may_start, in_quote = True, False
        while self.i < self.size:
            character, following = self.text[self.i], self.text[self.i + 1]
            innermost = self.open[-1].kind if self.open else ""
            if character == "\\" and "\0" < following <= "~":
                self.put(following)
                quote_may_start = following == "\n"
                self.i += 2
            elif character not in ("`" if innermost in {"code", "pre"} else "_*[]()~`>#+-=|{}.!\n"):
                self.put(character)
                quote_may_start = quote_may_start and character == "\r"
                self.i += 1
            elif in_quote and character == "\n" and following != ">":
                self.end_quote("\n")
                in_quote = False
                quote_may_start = True
                self.i += 1
            elif self.ends(innermost):
                self.end(innermost)
            elif character == "\n":
                self.put("\n")
                quote_may_start = True
                self.i += 1
            elif character == ">" and quote_may_start:
                if not in_quote:
                    self.begin("blockquote", self.i)
                    in_quote = True
                self.i += 1
            else:
                self.start(character)
        if in_quote:
            self.end_quote()
        if self.open:
            raise self.endless()
        return self.result()

    def endless(self) -> Refused:
        opened = self.open[-1]
        name = "PreCode" if opened.argument else _NAMES[opened.kind]
        return _unparsable(f"Can't find end of {name} entity at byte offset {self.bytes_before(opened.at)}")

    def end_quote(self, line_end: str = "") -> None:
        """A block quote ends with its last line, the line's end included; `||` before that makes it expandable."""
        kind = "blockquote"
        if self.open[-1].kind == "spoiler" and self.open[-1].at == self.i - 2:
            self.open.pop()
            kind = "expandable_blockquote"
        if not self.open or self.open[-1].kind != "blockquote":
            raise self.endless()
        self.out += line_end
        self.offset += len(line_end)
        self.close(kind)

    def ends(self, innermost: str) -> bool:
        mark = {
            "bold": "*", "code": "`", "pre": "```", "text_link": "]", "underline": "__", "strikethrough": "~",
            "spoiler": "||", "custom_emoji": "]",
        }.get(innermost)  # fmt: skip
        if innermost == "italic":
            return self.text[self.i] == "_" and self.text[self.i + 1] != "_"
        return mark is not None and self.text.startswith(mark, self.i)

    def end(self, innermost: str) -> None:
        if innermost == "text_link":
            url = self.url() if self.text[self.i + 1] == "(" else ""
            self.close("text_link", url)
        elif innermost == "custom_emoji":
            if self.text[self.i + 1] != "(":
                raise _unparsable("The entity must contain a tg://emoji or tg://time URL")
            emoji = re.fullmatch(r"tg://emoji\?id=(\d+)", self.url())
            if not emoji:
                raise _unparsable("Invalid tg://emoji or tg://time URL specified")
            self.close("custom_emoji", emoji[1])
        else:
            self.i += {"underline": 1, "spoiler": 1, "pre": 2}.get(innermost, 0)
            self.close(innermost, self.open[-1].argument)
        self.i += 1

    def url(self) -> str:
        """Read `(url)` after the bracket that `i` points at; leaves `i` at the closing parenthesis."""
        self.i += 2
        begin = self.i
        url = ""
        while self.i < self.size and self.text[self.i] != ")":
            if self.text[self.i] == "\\" and "\0" < self.text[self.i + 1] <= "~":
                self.i += 1
            url += self.text[self.i]
            self.i += 1
        if self.text[self.i] != ")":
            raise _unparsable(f"Can't find end of a URL at byte offset {self.bytes_before(begin)}")
        return url

    def start(self, character: str) -> None:
        at = self.i
        if self.text.startswith("```", at):
            language = re.compile(r"[^\s`\0]+(?=\s)").match(self.text, at + 3)
            self.i = language.end() if language else at + 3
            self.i = re.compile(r"(?:\r\n|\n\r|\n|\r)?").match(self.text, self.i).end()  # type: ignore[union-attr]
            self.begin("pre", at, argument=language[0] if language else "")
            return
        for mark, kind in (
            ("__", "underline"), ("_", "italic"), ("*", "bold"), ("~", "strikethrough"), ("||", "spoiler"),
            ("[", "text_link"), ("`", "code"), ("![", "custom_emoji"),
        ):  # fmt: skip
            if self.text.startswith(mark, at):
                self.begin(kind, at)
                self.i += len(mark)
                return
        raise _unparsable(f"Character '{character}' is reserved and must be escaped with the preceding '\\'")


def _legacy_markdown(text: str) -> tuple[str, list[Json]]:
    """The old language: no nesting, a backslash before `_*`[` only."""
    parser = _Parser(text)
    kinds = {"_": "italic", "*": "bold", "[": "text_link", "`": "code", "```": "pre"}
    while parser.i < parser.size:
        character, following = parser.text[parser.i], parser.text[parser.i + 1]
        if character == "\\" and following in "_*`[":
            parser.put(following)
            parser.i += 2
            continue
        mark = "```" if parser.text.startswith("```", parser.i) else character
        if mark not in kinds:
            parser.put(character)
            parser.i += 1
            continue
        end_mark = "]" if mark == "[" else mark
        end = parser.text.find(end_mark, parser.i + len(mark))
        if end < 0:
            at = parser.bytes_before(parser.i)
            raise _unparsable(f"Can't find end of the entity starting at byte offset {at}")
        parser.begin(kinds[mark], parser.i)
        for inner in parser.text[parser.i + len(mark) : end]:
            parser.put(inner)
        parser.i = end + len(end_mark)
        url = ""
        if mark == "[" and parser.text[parser.i] == "(" and (close := parser.text.find(")", parser.i)) > 0:
            url = parser.text[parser.i + 1 : close]
            parser.i = close + 1
        parser.close(kinds[mark], url)
    return parser.result()
