"""A Bot API server on loopback with a web chat page: the demo's Telegram, and the tests'.

It knows Telegram's names, limits and words of refusal, and nothing of models, ledgers or this bot: whatever speaks
the Bot API can talk to it. State lives in memory and goes when it stops.

`server.Emulator` is the way in; `people` is what a person can do, `sending`, `editing` and `account` what a bot can.
"""

from telegram_emulator.server import Emulator
from telegram_emulator.voters import Conversation

__all__ = ["Conversation", "Emulator"]
