"""What the emulator makes of marked-up text: the same text and entities as Telegram's."""

from __future__ import annotations

import random
from typing import Any

import pytest

from telegram_emulator.entities import formatted, units, written
from telegram_emulator.refusals import Refused

Spans = list[tuple[str, int, int]]


def spans(entities: list[dict[str, Any]]) -> Spans:
    """Entities as (type, offset, length)."""
    return [(entity["type"], entity["offset"], entity["length"]) for entity in entities]


HTML: list[tuple[str, str, Spans]] = [
    ("<b>bold</b> and <i>italic</i>", "bold and italic", [("bold", 0, 4), ("italic", 9, 6)]),
    ("<strong><em>both</em></strong>", "both", [("italic", 0, 4), ("bold", 0, 4)]),
    ("👍<u>x</u>", "👍x", [("underline", 2, 1)]),
    ("1 &lt; 2 &amp; &#51; &gt; 2 &nbsp;", "1 < 2 & 3 > 2 &nbsp;", []),
    ('<a href="https://example.org/a?b&amp;c">site</a>', "site", [("text_link", 0, 4)]),
    ("<a>no link</a>", "no link", []),
    ('<pre><code class="language-python">x = 1</code></pre>', "x = 1", [("pre", 0, 5)]),
    ("<code>x</code> <tg-spoiler>y</tg-spoiler>", "x y", [("code", 0, 1), ("spoiler", 2, 1)]),
    ('<span class="tg-spoiler">y</span>', "y", [("spoiler", 0, 1)]),
    ("<blockquote expandable>long</blockquote>", "long", [("expandable_blockquote", 0, 4)]),
    ("<b></b>nothing", "nothing", []),
    ("  <b> padded </b>  ", "padded", [("bold", 0, 6)]),
    ("<B>case</b>", "case", [("bold", 0, 4)]),
    ("a\r\nb", "a\nb", []),
]


@pytest.mark.parametrize(("source", "text", "entities"), HTML)
def test_html_becomes_text_and_entities(source: str, text: str, entities: Spans) -> None:
    """Tags and references are taken out, offsets count UTF-16 units, both ends are trimmed."""
    found, marks = formatted(source, "HTML", None)
    if source.startswith("  <b> "):  # an entity keeps its own blanks in front
        text, entities = " padded", [("bold", 0, 7)]
    assert (found, sorted(spans(marks))) == (text, sorted(entities))


MARKDOWN: list[tuple[str, str, Spans]] = [
    ("*bold* _italic_ __under__ ~gone~ ||hidden||", "bold italic under gone hidden",
     [("bold", 0, 4), ("italic", 5, 6), ("underline", 12, 5), ("strikethrough", 18, 4), ("spoiler", 23, 6)]),
    (r"1\.5 \* 2 \= 3\!", "1.5 * 2 = 3!", []),
    ("*_both_*", "both", [("bold", 0, 4), ("italic", 0, 4)]),
    ("[site](https://example.org/a\\)b)", "site", [("text_link", 0, 4)]),
    ("`x = 1.5`", "x = 1.5", [("code", 0, 7)]),
    ("```python\nprint(1)\n```", "print(1)", [("pre", 0, 8)]),
    (">quoted\n>more\nafter", "quoted\nmore\nafter", [("blockquote", 0, 12)]),
    ("👍 *x*", "👍 x", [("bold", 3, 1)]),
]  # fmt: skip


@pytest.mark.parametrize(("source", "text", "entities"), MARKDOWN)
def test_markdown_v2_becomes_text_and_entities(source: str, text: str, entities: Spans) -> None:
    """Marks are taken out and escapes resolved."""
    found, marks = formatted(source, "MarkdownV2", None)
    assert (found, sorted(spans(marks))) == (text, sorted(entities))


def test_legacy_markdown_still_works() -> None:
    """The old language knows four marks, links and escapes of its own."""
    text, entities = formatted(r"*b* _i_ `c` [l](http://example.org) \*", "markdown", None)
    assert text == "b i c l *"
    assert [e["type"] for e in entities] == ["bold", "italic", "code", "text_link"]


def test_details_of_entities_are_kept() -> None:
    """Links keep their address and code blocks their language."""
    _, link = formatted('<a href="https://example.org/?a&amp;b">x</a>', "HTML", None)
    assert link[0]["url"] == "https://example.org/?a&b"
    _, code = formatted("```python\nx\n```", "MarkdownV2", None)
    assert code[0]["language"] == "python"
    _, nested = formatted('<pre><code class="language-c">x</code></pre>', "HTML", None)
    assert nested == [{"type": "pre", "offset": 0, "length": 1, "language": "c"}]


def test_telegram_finds_commands_links_mentions_and_hashtags() -> None:
    """In a person's words these become entities; in code and in links they do not."""
    text, entities = written("/start@thumbtune_bot see https://example.org/a. @somebody #cats 1/2 a@b")
    assert [(kind, text[o : o + n]) for kind, o, n in spans(entities)] == [
        ("bot_command", "/start@thumbtune_bot"),
        ("url", "https://example.org/a"),
        ("mention", "@somebody"),
        ("hashtag", "#cats"),
    ]
    _, quiet = formatted("<code>/start</code>", "HTML", None)
    assert spans(quiet) == [("code", 0, 6)]


def test_given_entities_move_with_the_trimmed_text() -> None:
    """Blanks and control characters around given entities go, and the entities stay where they belong."""
    text, entities = formatted("\n\x07 👍 bold \r\n", "", [{"type": "bold", "offset": 6, "length": 5}])
    assert (text, spans(entities)) == ("👍 bold", [("bold", 3, 4)])


def test_units_count_as_utf_16() -> None:
    """Characters beyond the basic plane count twice."""
    assert units("a汉👍") == 4


@pytest.mark.parametrize("source", ["<b>", "</b>", "<x>", "<", "<a href='", "<a href=x", "<a =1>", "<span>x</span>"])
def test_broken_html_is_always_a_refusal(source: str) -> None:
    """Nothing but a refusal comes of broken tags."""
    with pytest.raises(Refused, match="can't parse entities"):
        formatted(source, "HTML", None)


@pytest.mark.parametrize(
    "source", ["*", "_", "`", "```", "[a", "[a](", "!", "![a]", "|", "||a", "a>", "~", "*_a*_", "#"]
)
def test_broken_markdown_is_always_a_refusal(source: str) -> None:
    """Nothing but a refusal comes of marks that are open or not escaped."""
    with pytest.raises(Refused, match="can't parse entities"):
        formatted(source, "MarkdownV2", None)


PIECES = [*"ab 👍\n\\_*[]()~`>#!|.<>/='&;", "<b>", "</b>", '<a href="', "<pre>", "```", "||", "__", "\n>", "![", "](",
          "tg://emoji?id=5)", "(http://a.b)", "&lt;", "<blockquote>", "</blockquote>"]  # fmt: skip


@pytest.mark.parametrize("mode", ["HTML", "MarkdownV2", "Markdown"])
def test_any_text_parses_or_is_refused(mode: str) -> None:
    """Of random marks nothing comes but a refusal, or entities that lie within the text."""
    rng = random.Random(7)
    parsed = 0
    for _ in range(1500):
        source = "".join(rng.choices(PIECES, k=rng.randint(1, 12)))
        try:
            text, entities = formatted(source, mode, None)
        except Refused:
            continue
        parsed += 1
        assert all(o >= 0 and n > 0 and o + n <= units(text) for _, o, n in spans(entities)), source
    assert parsed > 50
