"""The Bot API methods about the bot itself, its updates, its commands, chats and files.

Each takes the world and a call's parameters, returns the JSON result and raises `Refused`.
"""

from __future__ import annotations

import re

from telegram_emulator.parameters import Parameters
from telegram_emulator.refusals import Json, refused
from telegram_emulator.world import Chat, User, World

_SCOPES = frozenset({
    "default", "all_private_chats", "all_group_chats", "all_chat_administrators", "chat", "chat_administrators",
    "chat_member",
})  # fmt: skip


async def get_me(world: World, parameters: Parameters) -> Json:
    """getMe."""
    return {
        **world.bot,
        "can_join_groups": True,
        "can_read_all_group_messages": False,
        "supports_inline_queries": False,
        "can_connect_to_business": False,
        "has_main_web_app": False,
    }


async def get_updates(world: World, parameters: Parameters) -> list[Json]:
    """getUpdates."""
    world.updates.allow(parameters.decoded("allowed_updates", "allowed updates"))
    limit = parameters.integer("limit", 100)
    return await world.updates.poll(parameters.integer("offset"), limit, parameters.integer("timeout"))


async def set_webhook(world: World, parameters: Parameters) -> bool:
    """setWebhook; http addresses are taken too, for all is on loopback here."""
    world.updates.allow(parameters.decoded("allowed_updates", "allowed updates"))
    await world.updates.webhook.set(
        parameters.text("url"), parameters.text("secret_token"), drop_pending=parameters.boolean("drop_pending_updates")
    )
    return True


async def delete_webhook(world: World, parameters: Parameters) -> bool:
    """deleteWebhook."""
    await world.updates.webhook.set("", "", drop_pending=parameters.boolean("drop_pending_updates"))
    return True


async def get_webhook_info(world: World, parameters: Parameters) -> Json:
    """getWebhookInfo."""
    return world.updates.webhook.describe()


async def get_file(world: World, parameters: Parameters) -> Json:
    """getFile."""
    return world.files.describe(parameters.text("file_id"))


async def set_my_commands(world: World, parameters: Parameters) -> bool:
    """setMyCommands; who has blocked the bot has a menu all the same."""
    commands = parameters.objects("commands", "commands")
    if len(commands) > 100:
        raise refused("BOT_COMMANDS_TOO_MUCH")
    checked = [_command(command) for command in commands]
    world.commands[_slot(world, parameters)] = checked
    world.events.publish("commands", None)
    return True


async def get_my_commands(world: World, parameters: Parameters) -> list[Json]:
    """getMyCommands: exactly those of this scope and language."""
    return world.commands.get(_slot(world, parameters), [])


async def delete_my_commands(world: World, parameters: Parameters) -> bool:
    """deleteMyCommands: those of exactly this scope and language, if there are any."""
    world.commands.pop(_slot(world, parameters), None)
    world.events.publish("commands", None)
    return True


def commands_for(world: World, user: User, chat: Chat) -> list[Json]:
    """The menu that a person sees in a chat: the narrowest scope, their language first
    (core.telegram.org/bots/api#determining-list-of-commands; the scopes for a group's administrators and for single
    members are left out)."""
    kind = "all_private_chats" if chat.kind == "private" else "all_group_chats"
    for scope, number in (("chat", chat.id), (kind, 0), ("default", 0)):
        for language in (user.language, ""):
            found = world.commands.get((scope, number, 0, language))
            if found:
                return found
    return []


def _command(command: Json) -> Json:
    if not re.fullmatch(r"/?[a-z0-9_]{1,32}", str(command.get("command", ""))):
        raise refused("BOT_COMMAND_INVALID")
    description = str(command.get("description", ""))
    if not 1 <= len(description) <= 256:
        raise refused("BOT_COMMAND_DESCRIPTION_INVALID")
    return {"command": command["command"].removeprefix("/"), "description": description}


def _slot(world: World, parameters: Parameters) -> tuple[str, int, int, str]:
    """Where a list of commands belongs: scope, chat, user and language."""
    scope = Parameters(parameters.object("scope", "BotCommandScope"))
    kind = scope.text("type", "default")
    if kind not in _SCOPES:
        raise refused("can't parse BotCommandScope: Unsupported type specified")
    chat = world.chat_for_bot(scope.text("chat_id"), write=False).id if kind.startswith("chat") else 0
    language = parameters.text("language_code")
    if language and not re.fullmatch(r"[a-z]{2}", language):
        raise refused("invalid language code specified")
    return kind, chat, scope.integer("user_id"), language


async def get_chat(world: World, parameters: Parameters) -> Json:
    """getChat: a Bot API `ChatFullInfo`."""
    gifts = ("unlimited_gifts", "limited_gifts", "unique_gifts", "premium_subscription", "gifts_from_channels")
    return {
        **world.as_chat(world.chat_for_bot(parameters.text("chat_id"))),
        "accent_color_id": 0,
        "max_reaction_count": 11,
        "accepted_gift_types": dict.fromkeys(gifts, False),
    }


async def get_chat_member(world: World, parameters: Parameters) -> Json:
    """getChatMember."""
    chat = world.chat_for_bot(parameters.text("chat_id"))
    return chat_member(world, chat, parameters.integer("user_id"))


def chat_member(world: World, chat: Chat, user_id: int, status: str | None = None) -> Json:
    """A Bot API `ChatMember`. Raises `Refused` for somebody who does not exist."""
    if user_id == world.bot["id"]:
        user, status = world.bot, status or chat.bot_status
    elif user_id in world.users:
        user, status = world.users[user_id].as_user(), status or ("member" if user_id in chat.members else "left")
    else:
        raise refused("PARTICIPANT_ID_INVALID")
    member: Json = {"status": status, "user": user}
    if status == "kicked":
        member["until_date"] = 0
    if status == "administrator":
        rights = (
            "is_anonymous", "can_manage_chat", "can_delete_messages", "can_manage_video_chats", "can_restrict_members",
            "can_promote_members", "can_change_info", "can_invite_users", "can_post_stories", "can_edit_stories",
            "can_delete_stories", "can_send_welcome_messages", "can_be_edited",
        )  # fmt: skip
        member |= dict.fromkeys(rights, False)
        member["can_manage_chat"] = member["can_delete_messages"] = True
    return member
