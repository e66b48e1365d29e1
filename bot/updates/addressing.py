"""Detection of the group updates that are meant for the bot; other group updates are not stored.

A bot that is a group administrator or has privacy mode turned off receives every message in the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiogram import Bot
from aiogram.types import Message, MessageReactionUpdated

from bot.updates.ordering import command_of
from storage.ledger import Ledger


async def addressed(messages: Sequence[Message], bot: Bot) -> bool:
    """Return whether any of `messages` in a group mentions the bot or replies to one of the bot's messages."""
    me = await bot.me()
    for each in messages:
        to = each.reply_to_message
        # In a topic every message replies to the one that created the topic, which the bot may have sent.
        if to and to.from_user and to.from_user.id == me.id and not to.forum_topic_created:
            return True
        text = each.text or each.caption or ""
        for entity in each.entities or each.caption_entities or ():
            if entity.type == "mention" and entity.extract_from(text).lower() == f"@{me.username}".lower():
                return True
            if entity.type == "text_mention" and entity.user and entity.user.id == me.id:
                return True
    return False


async def spoken_to(messages: Sequence[Message], bot: Bot) -> bool:
    """Return whether `messages` are meant for the bot.

    Messages are meant for the bot if they are in a private chat, address the bot, or begin with a command
    that names no other bot.
    """
    if messages[0].chat.type == "private" or await addressed(messages, bot):
        return True
    written = messages[0].text or messages[0].caption or ""
    named = written.split(maxsplit=1)[0].partition("@")[2].lower() if command_of(written) else None
    return named is not None and named in ("", str((await bot.me()).username).lower())


async def is_ours(raw: dict[str, Any], bot: Bot, ledger: Ledger) -> bool:
    """Return whether the bot may have to act on an update.

    Messages and reactions among the members of a group need no action. The result is True for every picture
    in an album, because only one of them has the caption, and for an edit of an answered question.
    """
    try:
        if "message_reaction" in raw:
            reaction = MessageReactionUpdated.model_validate(raw["message_reaction"])
            return await ledger.replies.exists(
                reaction.chat.id, message=reaction.message_id, question=reaction.message_id
            )
        edited = raw.get("edited_message")
        content = raw.get("message", edited)
        if not isinstance(content, dict) or "media_group_id" in content:
            return True
        message = Message.model_validate(content)
        if await spoken_to((message,), bot):
            return True
        return edited is not None and await ledger.replies.exists(message.chat.id, question=message.message_id)
    except (ValueError, OverflowError):  # a shape unknown to the installed aiogram: the inbox decides
        return True
