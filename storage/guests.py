"""Questions from chats in which the bot is a guest; it learns from them only with the asker's permission."""

from __future__ import annotations

from typing import Final

GUESTS: Final = 0
"""The ID that stands for all chats in which the bot is a guest. Their own IDs are not used, because another chat that
the bot knows may have the same ID (https://core.telegram.org/bots/api#message, `guest_query_id`)."""

UNLEARNED: Final = (
    f"SELECT id FROM exchanges WHERE chat = {GUESTS}"
    " AND asker NOT IN (SELECT id FROM users WHERE teaches_as_guest AND NOT opted_out)"
)
"""Exchanges in such chats from which the bot must not learn."""
