"""Translation of the texts that users read, with gettext catalogues that Babel reads from .po files.

The English sentences in the source code are the message IDs. Every other language has a file
`bot/locales/<language>/LC_MESSAGES/thumbtune.po`, which is compiled in memory at startup.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from gettext import GNUTranslations, NullTranslations
from io import BytesIO
from pathlib import Path
from typing import Final

from babel import Locale, negotiate_locale
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

from storage.chat_records import Person
from storage.translatable_reason import Reason

LOCALES: Final = Path(__file__).parent / "locales"
DOMAIN: Final = "thumbtune"
SOURCE_LANGUAGE: Final = "en"


def later(sentence: str) -> str:
    """Mark `sentence` for translation and return it unchanged; it is translated only when it is sent."""
    return sentence


@dataclass(frozen=True, slots=True)
class Say:
    """A translator for one language, called as `say("Hello, {name}.", name=…)`."""

    language: str
    catalogue: NullTranslations

    def __call__(self, sentence: str, /, **values: object) -> str:
        """Return `sentence` in this language, with its `{placeholders}` replaced by `values`.

        An unknown sentence is not translated. A `Reason` is translated together with its values, whether it is
        the sentence itself or one of the values.
        """
        if not sentence:
            return ""
        reason = sentence if isinstance(sentence, Reason) else Reason(sentence, **values)
        return reason.translated(self.catalogue.gettext)

    def joined(self, *sentences: str) -> str:
        """Join translated sentences with spaces, or without spaces in Chinese."""
        return ("" if self.language == "zh" else " ").join(filter(None, sentences))

    def count(self, one: str, many: str, number: int, /, **values: object) -> str:
        """Return the translated singular (`one`) or plural (`many`) for `number`, with `{number}` filled in."""
        return self.catalogue.ngettext(one, many, number).format(number=number, **values)


class Translator:
    """The translators for English and for every language that has a catalogue."""

    def __init__(self, catalogues: Mapping[str, NullTranslations]) -> None:
        self._translations = {language: Say(language, catalogue) for language, catalogue in catalogues.items()}
        self._translations[SOURCE_LANGUAGE] = Say(SOURCE_LANGUAGE, NullTranslations())

    @classmethod
    def load(cls, folder: Path = LOCALES) -> Translator:
        """Return a translator with every catalogue found below `folder`."""
        return cls({path.parent.parent.name: _compiled(path) for path in folder.glob(f"*/LC_MESSAGES/{DOMAIN}.po")})

    @property
    def languages(self) -> dict[str, str]:
        """The available languages, as codes mapped to the languages' own names, English first."""
        codes = sorted(self._translations, key=lambda code: (code != SOURCE_LANGUAGE, code))
        return {code: (Locale.parse(code).get_display_name() or code).capitalize() for code in codes}

    def for_person(self, person: Person | None, client_language: str | None = None) -> Say:
        """Return the translator for the language that a user chose or, by default, the language of their client.

        The client's language is `client_language` or, if unknown, the one last recorded for `person`.
        """
        known = person or Person(0)
        return self.to(known.language, client_language, known.client_language)

    def to(self, *tags: str | None) -> Say:
        """Return the translator for the first known language tag, or the English one if no tag is known.

        Only the language part of a tag counts: "zh-hans" is treated as "zh".
        """
        wanted = [tag.replace("_", "-").lower() for tag in tags if tag]
        return self._translations[negotiate_locale(wanted, self._translations, sep="-") or SOURCE_LANGUAGE]


@cache
def _compiled(path: Path) -> GNUTranslations:
    with path.open("rb") as source:
        catalogue = read_po(source, locale=path.parent.parent.name, domain=DOMAIN)
    binary = BytesIO()
    write_mo(binary, catalogue)
    binary.seek(0)
    return GNUTranslations(binary)
