"""Handlers for /drain and /undrain, with which admins take replicas out of service and put them back.

Repeating either command changes nothing.
"""

from __future__ import annotations

from aiogram import Router
from aiogram.filters import CommandObject, or_f
from aiogram.types import CallbackQuery, Message

from bot.admin.refusals import REFUSALS, refused
from bot.handlers.callbacks import acknowledge
from bot.handlers.commands import Command
from bot.handlers.request import Request
from bot.handlers.status import node_line
from bot.telegram.callback_data import Drain, Undrain, node_key
from bot.telegram.keyboards import replica_buttons
from inference.serving.supervisor import State


def register(router: Router) -> None:
    """Register the handlers of this module.

    Call after `access.register`, whose handlers refuse users who are not admins.
    """
    router.message.register(by_command, Command("drain", "undrain"))
    router.callback_query.register(by_button, or_f(Drain.filter(), Undrain.filter()))


async def by_command(message: Message, command: CommandObject, request: Request) -> None:
    """Take the named replica out of service or put it back.

    If the name is missing or unknown, list the replicas instead.
    """
    await _change(command.command.lower(), (command.args or "").strip(), request)


async def by_button(query: CallbackQuery, callback_data: Drain | Undrain, request: Request) -> None:
    """Take the replica named on the tapped button out of service or put it back."""
    await acknowledge(query)
    names = (node.name for node in request.services.monitoring.nodes())
    name = next((name for name in names if node_key(name) == callback_data.node), "")
    await _change(callback_data.__prefix__, name, request)


async def _change(action: str, name: str, request: Request) -> None:
    nodes = request.services.monitoring.nodes()
    if len(nodes) == 1:
        await request.reply.finish(
            request.say(
                "There's only one engine, so it stays in service. To run several, set inference.endpoints or "
                "inference.gpus in config.toml."
            )
        )
    elif all(node.name != name for node in nodes):
        await _list(name, request)
    else:
        try:
            await (_drain if action == "drain" else _undrain)(name, request)
        except REFUSALS as refusal:
            await request.reply.finish(refused(refusal, request.say))


async def _drain(node: str, request: Request) -> None:
    reply, say = request.reply, request.say
    await reply.show_partial(say("Moving the chats of {node} to other replicas…", node=node))
    await request.services.switch.drain(node, request.user.id)
    await reply.finish(
        say(
            "{node} is out of service; other replicas answer its chats. /undrain puts it back into service, "
            "running the live model.",
            node=node,
        )
    )


async def _undrain(node: str, request: Request) -> None:
    reply, say = request.reply, request.say
    await reply.show_partial(say("Putting {node} back into service…", node=node))
    now = await request.services.switch.undrain(node, request.user.id)
    text = say("{node} is in service.", node=node)
    if now.state is not State.READY:
        text += " " + say("It isn't answering yet. I'll keep trying; /status shows its state.")
    await reply.finish(text)


async def _list(wanted: str, request: Request) -> None:
    say, nodes = request.say, request.services.monitoring.nodes()
    lines = [
        *([say("There's no replica called {node}.", node=wanted)] if wanted else []),
        say("/drain NAME takes one of these out of service, /undrain NAME puts it back:"),
        *(node_line(node, say) for node in nodes),
    ]
    await request.reply.finish("\n".join(lines), replica_buttons({node.name: node.drained for node in nodes}, say))
