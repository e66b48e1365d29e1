"""The chat page's Chinese catalogue translates every sentence of the page and contains no others."""

from __future__ import annotations

import json
import re

from bot.cli.demo import SHAPES_ONLY
from telegram_emulator.__main__ import NOTE
from telegram_emulator.emulator import PAGE

NO_WORDS = {"message draft", "noopener noreferrer", "Bad Request: "}
"""Literals with a space that are not shown."""


def _of_html() -> set[str]:
    html = (PAGE / "index.html").read_text(encoding="utf-8")
    texts = re.findall(r"<(\w+)(?=[^>]*\sdata-say)[^>]*>(.*?)</\1>", html, re.DOTALL)
    labels = re.findall(r'(?:aria-label|title|placeholder)="([^"]+)"', html)
    return {re.sub(r"\s+", " ", text.strip()) for _, text in texts} | set(labels)


def _of_scripts() -> set[str]:
    said: set[str] = set()
    for script in PAGE.glob("*.js"):
        text = re.sub(r"^//.*$|^import .*$", "", script.read_text(encoding="utf-8"), flags=re.MULTILINE)
        literals = re.findall(r'"((?:[^"\\\n]|\\.)*)"', text)
        said |= {each for each in literals if re.search(r"\w \w|…$", each) and not each.startswith(" ")}
        for call in re.findall(r"\b(?:t|bold)\(((?:[^()]|\([^()]*\))*)\)", text):
            said |= {each for each in re.findall(r'"([^"]+)"', call) if each != "👍" and each != "👎"}
    return said - NO_WORDS


def test_every_word_of_the_page_is_translated() -> None:
    """The Chinese catalogue has exactly the sentences of the page's HTML and scripts, with their placeholders."""
    catalogue = json.loads((PAGE / "zh.json").read_text(encoding="utf-8"))
    wanted = _of_html() | _of_scripts() | {SHAPES_ONLY, NOTE}
    assert wanted - set(catalogue) - {"/retrain", "/rollback"} == set()
    assert set(catalogue) - wanted == set()
    for english, chinese in catalogue.items():
        assert re.search(r"[\u4e00-\u9fff]", chinese) or english.startswith("{done}")
        assert sorted(re.findall(r"{\w+}|</?\w+", english)) == sorted(re.findall(r"{\w+}|</?\w+", chinese))
        assert "你" not in chinese
