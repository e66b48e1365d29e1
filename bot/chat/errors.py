"""The reasons why a question gets no answer."""

from __future__ import annotations


class Refused(Exception):
    """The bot refuses to answer. The text, a `Reason`, says what the person can do."""


class NoPictureYet(Exception):
    """The conversation has no picture to talk about."""


class EmptyAnswer(Exception):
    """The model ended without a word."""


class Interrupted(Exception):
    """The answer was broken off, and nothing of it is kept."""


class DeletedMeanwhile(Exception):
    """The data of the asker, or what the question is about, was deleted while the answer was on its way."""
