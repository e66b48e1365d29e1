"""Why a question gets no answer."""

from __future__ import annotations


class Refused(Exception):
    """The bot does not answer this question; the person can change that.

    Attributes:
        sentence: What to do about it, a sentence of the catalogues.
        values: What fills the sentence's placeholders.
    """

    def __init__(self, sentence: str, **values: object) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.values = values


class NoPictureYet(Exception):
    """The conversation has no picture to talk about."""


class EmptyAnswer(Exception):
    """The model ended without a word."""


class Interrupted(Exception):
    """The answer was broken off, and nothing of it is kept."""


class DeletedMeanwhile(Exception):
    """The data of the asker, or what the question is about, was deleted while the answer was on its way."""
