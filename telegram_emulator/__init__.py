"""A Bot API server on loopback with a web chat page: the Telegram of the demo and of the tests.

It keeps Telegram's names, limits and error texts, holds its state in memory, and serves any program that speaks the
Bot API. `emulator.Emulator` is the entry point. `person_actions` is what a person can do; `sending`, `editing` and
`account` hold the methods that a bot can call.
"""

from telegram_emulator.emulator import Emulator
from telegram_emulator.sample_voters import SampleConversation

__all__ = ["Emulator", "SampleConversation"]
