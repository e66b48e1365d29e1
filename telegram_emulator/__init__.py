"""A Bot API server on loopback with a web chat page: the Telegram of the demo and of the tests.

It keeps Telegram's names, limits and error texts, holds its state in memory, and serves any program that speaks the
Bot API. `server.Emulator` is the entry point. `people` is what a person can do; `sending`, `editing` and `account`
hold the methods that a bot can call.
"""

from telegram_emulator.sample_voters import SampleConversation
from telegram_emulator.server import Emulator

__all__ = ["Emulator", "SampleConversation"]
