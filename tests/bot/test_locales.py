"""Every translation catalogue contains every sentence of the bot, with the same placeholders."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

import pytest
from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_file
from babel.messages.pofile import read_po

import bot
import storage
import training
from bot.config_file import descriptions
from bot.i18n import LOCALES, Translator
from bot.settings import ChatSettings

ROOM = Path(bot.__file__).parent
KEYWORDS = {"say": None, "_say": None, "later": None, "Reason": None, "count": (1, 2)}
REASONS = [Path(storage.__file__).parent, Path(training.__file__).parent]
SPEAKING = [
    *sorted((ROOM / "telegram").glob("*.py")),
    *sorted((ROOM / "admin").glob("*.py")),
    *sorted((ROOM / "chat").glob("*.py")),
    *sorted((ROOM / "handlers").glob("*.py")),
]
CATALOGUES = sorted(LOCALES.glob("*/LC_MESSAGES/*.po"))

SPOKEN = frozenset(
    {
        "finish",
        "whisper",
        "begin",
        "send_message",
        "edit_message_text",
        "send_photo",
        "answer",
        "acknowledge",
        "plain_pages",
    }
)
"""Calls whose first argument people read."""


def sentences() -> set[str | tuple[str, ...]]:
    """Return every sentence that is marked for translation in the source, plurals as tuples."""
    found: set[str | tuple[str, ...]] = set()
    for path in ROOM.rglob("*.py"):
        for _, message, *_ in extract_from_file("python", path, keywords=KEYWORDS):
            found.add(message if isinstance(message, str) else tuple(message))
    for path in (path for folder in REASONS for path in folder.rglob("*.py")):
        found |= {message for _, message, *_ in extract_from_file("python", path, keywords={"Reason": None})}
    found |= set(filter(None, descriptions().values()))  # the descriptions on the Settings page
    for path in (ROOM / "web" / "templates").glob("*.html"):
        for _, message, *_ in extract_from_file("jinja2.ext:babel_extract", path, keywords=KEYWORDS):
            found.add(message if isinstance(message, str) else tuple(message))
    return found


def catalogue(path: Path) -> Catalog:
    with path.open("rb") as source:
        return read_po(source, locale=path.parent.parent.name)


def places(sentence: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(sentence) if name}


def test_there_is_chinese() -> None:
    """The bot speaks English, the language of its source code, and, through a catalogue, Chinese."""
    assert list(Translator.load().languages) == ["en", "zh"]
    assert Translator.load().languages["zh"] == "中文"


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parent.parent.name)
def test_a_catalogue_has_every_sentence_and_no_other(path: Path) -> None:
    """A catalogue has no missing, untranslated, fuzzy or obsolete entries, and placeholders match the source."""
    messages = [message for message in catalogue(path) if message.id]
    assert {message.id for message in messages} == sentences()
    for message in messages:
        said = [message.string] if isinstance(message.string, str) else list(message.string or ())
        assert all(said), message.id
        assert not message.fuzzy, message.id
        meant = message.id if isinstance(message.id, str) else message.id[-1]
        assert all(places(each) == places(meant) for each in said), message.id


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parent.parent.name)
def test_commands_are_not_translated(path: Path) -> None:
    """A translation contains the same bot commands as its source sentence."""
    for message in catalogue(path):
        if isinstance(message.id, str) and message.id:
            assert sorted(re.findall(r"(?<!\w)/\w+", message.id)) == sorted(
                re.findall(r"(?<!\w)/[a-z_]+", str(message.string))
            )


def _spoken_literals(path: Path) -> Iterator[str]:
    """Yield the literal sentences that the module at `path` sends to users without translation."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and node.args):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name not in SPOKEN:
            continue
        for argument in node.args:
            literal = argument.value if isinstance(argument, ast.Constant) else None
            if isinstance(literal, str) and re.search(r"[A-Za-z]{2}", literal):
                yield literal


@pytest.mark.parametrize("path", SPEAKING, ids=lambda path: path.name)
def test_nothing_is_said_past_the_catalogues(path: Path) -> None:
    """No user-visible sentence bypasses the translation catalogues."""
    assert list(_spoken_literals(path)) == []


@pytest.mark.parametrize(
    ("wishes", "language"),
    [((None, "zh-hans"), "zh"), (("en", "zh"), "en"), ((None, "fr"), "en"), ((None, None), "en"), (("zh_TW",), "zh")],
)
def test_the_first_language_we_speak_is_spoken(wishes: tuple[str | None, ...], language: str) -> None:
    """A user's chosen language takes precedence over the client's language; English is the fallback."""
    assert Translator.load().to(*wishes).language == language


def test_numbers_and_unknown_sentences() -> None:
    """The translator uses each language's plural forms and returns an untranslated sentence unchanged."""
    voices = Translator.load()
    one, many = "{number} question ahead of yours…", "{number} questions ahead of yours…"
    assert voices.to("en").count(one, many, 1) == "1 question ahead of yours…"
    assert voices.to("en").count(one, many, 2) == "2 questions ahead of yours…"
    assert voices.to("zh").count(one, many, 2) == "您前面还有 2 个问题……"
    assert voices.to("zh")("An operator's own {words}") == "An operator's own {words}"


def test_the_default_question_is_translated() -> None:
    """The default question, asked for a photo without a caption, is translated into Chinese."""
    assert Translator.load().to("zh")(ChatSettings().default_question) == "这张图里有什么？"
