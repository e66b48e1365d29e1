"""/drain, /undrain and the buttons that do the same: which of several nodes are in service, for admins.

To be asked behind `admin`, which lets nobody else come this far. Doing either twice is the same as once.
"""

from __future__ import annotations

from typing import Final

from aiogram import Bot, Router
from aiogram.filters import CommandObject, or_f
from aiogram.types import CallbackQuery, Message, User

from bot.admin.protocol import REFUSALS, AdminActions, refused
from bot.handlers.callbacks import reply_to
from bot.handlers.commands import Command
from bot.handlers.status import node_line
from bot.i18n import Say
from bot.telegram.keyboards import Drain, Undrain, node_key, serving
from bot.telegram.outbox import Reply
from bot.updates.inbox import Delivery
from inference.serving.supervisor import State
from storage.ledger import Ledger


def router() -> Router:
    """The handlers of this module."""
    nodes = Router(name="nodes")
    nodes.message.register(by_command, Command(*_CHANGES))
    nodes.callback_query.register(by_button, or_f(Drain.filter(), Undrain.filter()))
    return nodes


async def by_command(
    message: Message, command: CommandObject, event_from_user: User, reply: Reply, say: Say, admin: AdminActions
) -> None:
    """Take a node out of service, or back into it; without a name, list them."""
    if node := await _named((command.args or "").strip(), reply, say, admin):
        await _CHANGES[command.command.lower()](node, event_from_user.id, reply, say, admin)


async def by_button(
    query: CallbackQuery,
    callback_data: Drain | Undrain,
    bot: Bot,
    delivery: Delivery,
    say: Say,
    admin: AdminActions,
    ledger: Ledger,
) -> None:
    """The same with the node on the button; if there is none like it any more, list them."""
    reply = await reply_to(query, bot, delivery, ledger)
    if reply and (node := await _named(_name(callback_data.node, admin), reply, say, admin)):
        await _CHANGES[callback_data.__prefix__](node, query.from_user.id, reply, say, admin)


async def _drain(node: str, by: int, reply: Reply, say: Say, admin: AdminActions) -> None:
    await reply.begin(say("Moving the chats of {node} to the others…", node=node))
    try:
        await admin.drain(node, by)
    except REFUSALS as refusal:
        await reply.finish(refused(refusal, say))
    else:
        await reply.finish(
            say(
                "{node} is out of service; the others answer its chats. /undrain takes it back, with the model that "
                "answers then.",
                node=node,
            )
        )


async def _undrain(node: str, by: int, reply: Reply, say: Say, admin: AdminActions) -> None:
    await reply.begin(say("Taking {node} back into service…", node=node))
    try:
        now = await admin.undrain(node, by)
    except REFUSALS as refusal:
        await reply.finish(refused(refusal, say))
        return
    text = say("{node} is in service.", node=node)
    if now.state is not State.READY:
        text += " " + say("It does not answer yet; I keep trying, and /status shows how it is.")
    await reply.finish(text)


_CHANGES: Final = {"drain": _drain, "undrain": _undrain}
"""What a command does, and the button whose data begins with its name."""


async def _named(wanted: str, reply: Reply, say: Say, admin: AdminActions) -> str | None:
    """The name, where it is one; else all nodes are listed. A single node is neither taken out nor back."""
    nodes = admin.nodes()
    if len(nodes) == 1:
        await reply.finish(
            say(
                "I have one engine only, so it stays in service. inference.endpoints or inference.gpus in config.toml "
                "give me several."
            )
        )
        return None
    if any(node.name == wanted for node in nodes):
        return wanted
    lines = [
        *([say("I have no node called {node}.", node=wanted)] if wanted else []),
        say("/drain NODE takes one of these out of service, /undrain NODE takes it back:"),
        *(node_line(node, say) for node in nodes),
    ]
    await reply.finish("\n".join(lines), serving({node.name: node.drained for node in nodes}, say))
    return None


def _name(key: str, admin: AdminActions) -> str:
    """The name that a button stands for; empty where there is no such node any more."""
    return next((node.name for node in admin.nodes() if node_key(node.name) == key), "")
