"""Histograms of how long people wait for answers, for /metrics."""

from __future__ import annotations

from prometheus_client import Histogram

from inference.serving.engine_stats import SECONDS_BUCKETS


class AnswerTimes:
    """The times that people wait, from the arrival of a question in the bot until Telegram has accepted the text.

    Downloads of pictures, the queue, the engine and Telegram's rate limits are included. The wait for an
    edited question begins with the edit. Questions that end with an apology are not counted, and a stopped
    answer counts in `first_word` only.
    """

    def __init__(self) -> None:
        self.first_word = Histogram(
            "thumbtune_first_word_seconds",
            "Seconds from the arrival of a question until the first words of its answer were shown",
            buckets=SECONDS_BUCKETS,
            registry=None,
        )
        self.answer = Histogram(
            "thumbtune_answer_seconds",
            "Seconds from the arrival of a question until its whole answer was shown",
            buckets=SECONDS_BUCKETS,
            registry=None,
        )
