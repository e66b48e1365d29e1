"""The sentences people read, in their language: gettext catalogues, read from their .po files by Babel.

English is the language of the source: its sentences are the message ids. Every other language is a folder
`bot/locales/<language>/LC_MESSAGES/thumbtune.po`, compiled in memory when the bot starts, so no binary needs to be
kept fresh. Knows no sentence itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from gettext import GNUTranslations, NullTranslations
from io import BytesIO
from pathlib import Path
from typing import Final

from babel import Locale
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

from storage.reason import Reason

LOCALES: Final = Path(__file__).parent / "locales"
DOMAIN: Final = "thumbtune"
SOURCE_LANGUAGE: Final = "en"


def later(sentence: str) -> str:
    """Mark a sentence for the catalogues where it is written; it is translated where it is said."""
    return sentence


@dataclass(frozen=True, slots=True)
class Say:
    """Speaks one language: `say("Hello, {name}.", name=…)`."""

    language: str
    catalogue: NullTranslations

    def __call__(self, sentence: str, /, **values: object) -> str:
        """Return the sentence in this language, its `{places}` filled; an unknown sentence stays as it is.

        A `Reason` is translated with its values, as the sentence or as a value.
        """
        if not sentence:
            return ""
        reason = sentence if isinstance(sentence, Reason) else Reason(sentence, **values)
        return reason.translated(self.catalogue.gettext)

    def count(self, one: str, many: str, number: int, /, **values: object) -> str:
        """The sentence for `number` things, which fills `{number}`."""
        return self.catalogue.ngettext(one, many, number).format(number=number, **values)


class Translator:
    """All languages the bot speaks."""

    def __init__(self, catalogues: Mapping[str, NullTranslations]) -> None:
        self._voices = {language: Say(language, catalogue) for language, catalogue in catalogues.items()}
        self._voices[SOURCE_LANGUAGE] = Say(SOURCE_LANGUAGE, NullTranslations())

    @classmethod
    def load(cls, folder: Path = LOCALES) -> Translator:
        """Read every catalogue below `folder`."""
        return cls({path.parent.parent.name: _compiled(path) for path in folder.glob(f"*/LC_MESSAGES/{DOMAIN}.po")})

    @property
    def languages(self) -> dict[str, str]:
        """Language code → its name in itself, English first."""
        codes = sorted(self._voices, key=lambda code: (code != SOURCE_LANGUAGE, code))
        return {code: (Locale.parse(code).get_display_name() or code).capitalize() for code in codes}

    def to(self, *wishes: str | None) -> Say:
        """The voice for the first wish we speak: what the person chose, then their client's tag ("zh-hans")."""
        for wish in wishes:
            language = (wish or "").replace("_", "-").split("-")[0].lower()
            if language in self._voices:
                return self._voices[language]
        return self._voices[SOURCE_LANGUAGE]


@cache
def _compiled(path: Path) -> GNUTranslations:
    with path.open("rb") as source:
        catalogue = read_po(source, locale=path.parent.parent.name, domain=DOMAIN)
    binary = BytesIO()
    write_mo(binary, catalogue)
    binary.seek(0)
    return GNUTranslations(binary)
