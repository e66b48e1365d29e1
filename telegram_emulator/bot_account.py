"""Bot API methods about the bot itself: its updates, its commands and the files it downloads.

Each function takes the emulator's state and the parameters of a call, returns the JSON result, and
raises `BotApiError` if the call fails.
"""

from __future__ import annotations

import re

from telegram_emulator.api_errors import Json, api_error
from telegram_emulator.parameters import Parameters
from telegram_emulator.world import CommandList, EmulatedChat, User, World

_SCOPES = frozenset({
    "default", "all_private_chats", "all_group_chats", "all_chat_administrators", "chat", "chat_administrators",
})  # fmt: skip


async def get_me(world: World, parameters: Parameters) -> Json:
    """Handle a call to `getMe`."""
    return world.bot


async def get_updates(world: World, parameters: Parameters) -> list[Json]:
    """Handle a call to `getUpdates`."""
    world.updates.allow(parameters.decoded("allowed_updates", "allowed updates"))
    limit = parameters.integer("limit", 100)
    return await world.updates.poll(parameters.integer("offset"), limit, parameters.integer("timeout"))


async def set_webhook(world: World, parameters: Parameters) -> bool:
    """Handle a call to `setWebhook`.

    Plain http addresses are accepted as well, because all traffic stays on the loopback interface.
    """
    world.updates.allow(parameters.decoded("allowed_updates", "allowed updates"))
    await world.webhook.set(
        parameters.text("url"), parameters.text("secret_token"), drop_pending=parameters.boolean("drop_pending_updates")
    )
    return True


async def delete_webhook(world: World, parameters: Parameters) -> bool:
    """Handle a call to `deleteWebhook`."""
    await world.webhook.set("", "", drop_pending=parameters.boolean("drop_pending_updates"))
    return True


async def get_file(world: World, parameters: Parameters) -> Json:
    """Handle a call to `getFile`."""
    return world.files.describe(parameters.text("file_id"))


async def create_forum_topic(world: World, parameters: Parameters) -> Json:
    """Handle a call to `createForumTopic`.

    In private chats, topics must be turned on; in supergroups, the bot must be an administrator.
    """
    name = parameters.text("name")
    if not 1 <= len(name) <= 128:
        raise api_error("TOPIC_TITLE_EMPTY" if not name else "topic name is too long")
    chat = world.chat_for_bot(parameters.text("chat_id"))
    private = chat.kind == "private"
    if not world.bot["has_topics_enabled"] if private else chat.kind != "supergroup":
        raise api_error("the chat is not a forum")
    if not private and chat.bot_status != "administrator":
        raise api_error("not enough rights to create a topic")
    topic = world.add_topic(chat, name, world.bot)
    return {"message_thread_id": topic, **chat.messages[topic]["forum_topic_created"]}


async def set_my_commands(world: World, parameters: Parameters) -> bool:
    """Handle a call to `setMyCommands`.

    The call also succeeds for the chat of a user who has blocked the bot.
    """
    commands = parameters.objects("commands", "commands")
    if len(commands) > 100:
        raise api_error("BOT_COMMANDS_TOO_MUCH")
    checked = [_command(command) for command in commands]
    world.commands[_command_list(world, parameters)] = checked
    world.events.publish("commands", None)
    return True


async def delete_my_commands(world: World, parameters: Parameters) -> bool:
    """Handle a call to `deleteMyCommands`.

    Only the list with exactly the given scope and language is deleted, if there is one.
    """
    world.commands.pop(_command_list(world, parameters), None)
    world.events.publish("commands", None)
    return True


def commands_for(world: World, user: User, chat: EmulatedChat) -> list[Json]:
    """Return the command menu that a user sees in a chat.

    The menu with the narrowest scope is used, preferably in the user's language. The order of precedence is
    that of core.telegram.org/bots/api#determining-list-of-commands; the scopes for group administrators are
    ignored.
    """
    kind = "all_private_chats" if chat.kind == "private" else "all_group_chats"
    for scope, number in (("chat", chat.id), (kind, 0), ("default", 0)):
        for language in (user.language, ""):
            found = world.commands.get(CommandList(scope, number, language))
            if found:
                return found
    return []


def _command(command: Json) -> Json:
    if not re.fullmatch(r"/?[a-z0-9_]{1,32}", str(command.get("command", ""))):
        raise api_error("BOT_COMMAND_INVALID")
    description = str(command.get("description", ""))
    if not 1 <= len(description) <= 256:
        raise api_error("BOT_COMMAND_DESCRIPTION_INVALID")
    return {"command": command["command"].removeprefix("/"), "description": description}


def _command_list(world: World, parameters: Parameters) -> CommandList:
    scope = Parameters(parameters.object("scope", "BotCommandScope"))
    kind = scope.text("type", "default")
    if kind not in _SCOPES:
        raise api_error("can't parse BotCommandScope: Unsupported type specified")
    chat = world.chat_for_bot(scope.text("chat_id"), write=False).id if kind.startswith("chat") else 0
    language = parameters.text("language_code")
    if language and not re.fullmatch(r"[a-z]{2}", language):
        raise api_error("invalid language code specified")
    return CommandList(kind, chat, language)
