"""The reasons why a question gets no answer."""

from __future__ import annotations


class Refused(Exception):
    """The bot refuses to answer, for a reason that the person can fix.

    Attributes:
        sentence: A translatable message that says what to do.
        values: The values for its placeholders.
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
