"""The errors that explain why a question gets no answer."""

from __future__ import annotations


class Refused(Exception):
    """A refusal to answer. The exception's message, a `Reason`, says what the user can do."""


class NoPictureYet(Exception):
    """The conversation has no picture to talk about."""


class EmptyAnswer(Exception):
    """The model's answer has no text."""


class Interrupted(Exception):
    """The answer was interrupted, and no part of it is kept."""


class DeletedMeanwhile(Exception):
    """The user's data, or the subject of the question, was deleted before the answer was complete."""
