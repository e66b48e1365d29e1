"""The Bot API's MarkdownV2 and the legacy Markdown.

Written after core.telegram.org/bots/api#markdownv2-style; the words of the refusals are TDLib's.
"""

from __future__ import annotations

import re

from telegram_emulator.markup_parser import Parser, unparsable
from telegram_emulator.refusals import Json, Refused

_NAMES = {  # how TDLib's messages call the entities
    "bold": "Bold", "italic": "Italic", "underline": "Underline", "strikethrough": "Strikethrough",
    "spoiler": "Spoiler", "code": "Code", "pre": "Pre", "text_link": "TextUrl", "custom_emoji": "CustomEmoji",
    "blockquote": "BlockQuote",
}  # fmt: skip


class MarkdownV2(Parser):
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
        return unparsable(f"Can't find end of {name} entity at byte offset {self.bytes_before(opened.at)}")

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
                raise unparsable("The entity must contain a tg://emoji or tg://time URL")
            emoji = re.fullmatch(r"tg://emoji\?id=(\d+)", self.url())
            if not emoji:
                raise unparsable("Invalid tg://emoji or tg://time URL specified")
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
            raise unparsable(f"Can't find end of a URL at byte offset {self.bytes_before(begin)}")
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
        raise unparsable(f"Character '{character}' is reserved and must be escaped with the preceding '\\'")


def legacy_markdown(text: str) -> tuple[str, list[Json]]:
    """The old language: no nesting, a backslash before `_*`[` only."""
    parser = Parser(text)
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
            raise unparsable(f"Can't find end of the entity starting at byte offset {at}")
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
