"""Translate the texts that people read, with gettext catalogues that Babel reads from .po files.

The English sentences in the source are the message ids. Every other language is a folder
`bot/locales/<language>/LC_MESSAGES/thumbtune.po`, which is compiled in memory at the start.
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

from storage.chat_records import Person
from storage.translatable_reason import Reason

LOCALES: Final = Path(__file__).parent / "locales"
DOMAIN: Final = "thumbtune"
SOURCE_LANGUAGE: Final = "en"


def later(sentence: str) -> str:
    """Mark a message for translation and return it unchanged. It is translated when it is sent."""
    return sentence


@dataclass(frozen=True, slots=True)
class Say:
    """Translates into one language: `say("Hello, {name}.", name=…)`."""

    language: str
    catalogue: NullTranslations

    def __call__(self, sentence: str, /, **values: object) -> str:
        """Return the message in this language with its `{placeholders}` filled. An unknown message stays as it is.

        A `Reason` is translated together with its values, whether it is the message itself or one of the values.
        """
        if not sentence:
            return ""
        reason = sentence if isinstance(sentence, Reason) else Reason(sentence, **values)
        return reason.translated(self.catalogue.gettext)

    def count(self, one: str, many: str, number: int, /, **values: object) -> str:
        """Return the singular or plural message for `number`, which fills `{number}`."""
        return self.catalogue.ngettext(one, many, number).format(number=number, **values)


class Translator:
    """All languages of the catalogues."""

    def __init__(self, catalogues: Mapping[str, NullTranslations]) -> None:
        self._translations = {language: Say(language, catalogue) for language, catalogue in catalogues.items()}
        self._translations[SOURCE_LANGUAGE] = Say(SOURCE_LANGUAGE, NullTranslations())

    @classmethod
    def load(cls, folder: Path = LOCALES) -> Translator:
        """Read every catalogue below `folder`."""
        return cls({path.parent.parent.name: _compiled(path) for path in folder.glob(f"*/LC_MESSAGES/{DOMAIN}.po")})

    @property
    def languages(self) -> dict[str, str]:
        """The language codes with each language's own name, English first."""
        codes = sorted(self._translations, key=lambda code: (code != SOURCE_LANGUAGE, code))
        return {code: (Locale.parse(code).get_display_name() or code).capitalize() for code in codes}

    def for_person(self, person: Person | None, client_language: str | None = None) -> Say:
        """Return the language that a person has chosen, or else that of their client, now or when last seen."""
        known = person or Person(0)
        return self.to(known.language, client_language, known.client_language)

    def to(self, *tags: str | None) -> Say:
        """Return the translation for the first known language tag, such as "zh-hans", or English if none is known."""
        for tag in tags:
            language = (tag or "").replace("_", "-").split("-")[0].lower()
            if language in self._translations:
                return self._translations[language]
        return self._translations[SOURCE_LANGUAGE]


@cache
def _compiled(path: Path) -> GNUTranslations:
    with path.open("rb") as source:
        catalogue = read_po(source, locale=path.parent.parent.name, domain=DOMAIN)
    binary = BytesIO()
    write_mo(binary, catalogue)
    binary.seek(0)
    return GNUTranslations(binary)
