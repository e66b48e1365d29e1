"""The emulator trims texts and finds entities in them as Telegram does."""

from __future__ import annotations

from typing import Any

from telegram_emulator.entities import formatted, units

Spans = list[tuple[str, int, int]]


def spans(entities: list[dict[str, Any]]) -> Spans:
    """Return each entity as a tuple (type, offset, length)."""
    return [(entity["type"], entity["offset"], entity["length"]) for entity in entities]


def test_telegram_finds_commands_links_mentions_and_hashtags() -> None:
    """Commands, links, mentions and hashtags become entities in ordinary text but not in code."""
    text, entities = formatted("/start@thumbtune_bot see https://example.org/a. @photofan #cats 1/2 a@b")
    assert [(kind, text[o : o + n]) for kind, o, n in spans(entities)] == [
        ("bot_command", "/start@thumbtune_bot"),
        ("url", "https://example.org/a"),
        ("mention", "@photofan"),
        ("hashtag", "#cats"),
    ]
    _, quiet = formatted("/start", [{"type": "code", "offset": 0, "length": 6}])
    assert spans(quiet) == [("code", 0, 6)]


def test_given_entities_move_with_the_trimmed_text() -> None:
    """Whitespace and control characters around a text are removed, and given entities still cover their words."""
    text, entities = formatted("\n\x07 👍 bold \r\n", [{"type": "bold", "offset": 6, "length": 5}])
    assert (text, spans(entities)) == ("👍 bold", [("bold", 3, 4)])


def test_details_of_entities_are_kept() -> None:
    """Link entities keep their URL, and code block entities keep their language."""
    link = {"type": "text_link", "offset": 0, "length": 1, "url": "https://example.org/?a&b"}
    code = {"type": "pre", "offset": 2, "length": 1, "language": "python"}
    assert formatted("x y", [link, code]) == ("x y", [link, code])


def test_units_count_as_utf_16() -> None:
    """Lengths count UTF-16 code units: characters beyond the Basic Multilingual Plane count twice."""
    assert units("a汉👍") == 4
