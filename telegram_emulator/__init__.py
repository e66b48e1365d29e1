"""A local Bot API server with a web chat page, which replaces Telegram in the demo and the tests.

The server uses Telegram's names, limits and error texts, holds its state in memory, and serves any
program that speaks the Bot API. `emulator.Emulator` is the entry point. `person_actions`
implements the actions of users; `sending`, `editing` and `bot_account` implement the methods that a bot can call.
"""

from telegram_emulator.emulator import Emulator
from telegram_emulator.sample_voters import SampleConversation

__all__ = ["Emulator", "SampleConversation"]
