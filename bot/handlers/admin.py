"""/retrain, /cancel, /status, /schedule: for admins, with a polite refusal of all that is theirs for everybody else.

Knows how a request and its outcome are worded. What is done, `AdminActions` does; the progress of a run is told by
`bot.notices`. A request whose handling a crash has interrupted is not made twice: what can be seen in the ledger
tells whether it was carried out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, Protocol

from aiogram import Router
from aiogram.filters import Command, CommandObject, or_f
from aiogram.types import CallbackQuery, Message, TelegramObject, User

from bot.handlers.taps import acknowledge
from bot.inbox import Delivery
from bot.keyboards import CancelBroadcast, CancelRun, Promote, RollBack
from bot.progress import run_line
from bot.replies import Reply
from bot.retelling import retold
from bot.settings import BotSettings
from bot.translation import Say, later
from inference.messages import InferenceError
from inference.sight import Seen
from inference.status import NodeStatus, Status
from inference.supervisor import State
from storage.errors import RunBusy, StorageError
from storage.ledger import Ledger
from storage.records import Model, Run
from storage.states import ModelState
from training.job import TrainingError
from training.pipeline import Plan


class AdminRefusal(Exception):
    """What an admin asked for cannot be done now. `sentence` of the catalogues and `values` say why and what to do."""

    def __init__(self, sentence: str, **values: object) -> None:
        super().__init__(sentence.format(**values) if values else sentence)
        self._sentence = sentence
        self._values = values

    def told(self, say: Say) -> str:
        """The same in somebody's language."""
        return say(self._sentence, **self._values)


class Overview(Protocol):
    """What /status and /schedule show. `next_run` is the next run of the cron text `schedule` (None: only by
    command)."""

    @property
    def live(self) -> str: ...

    @property
    def engine(self) -> Status: ...

    @property
    def runs(self) -> Sequence[Run]: ...

    @property
    def counts(self) -> Mapping[str, int]: ...

    @property
    def next_run(self) -> datetime | None: ...

    @property
    def schedule(self) -> str: ...


class AdminActions(Protocol):
    """What admins can have done. `by` is their user id.

    Raises AdminRefusal, StorageError, InferenceError or TrainingError, with a text for the admin.
    """

    async def retrain(self, by: int) -> Run:
        """Start a run; it goes on after this returns."""
        ...

    async def plan(self) -> Plan:
        """What a run that began now would be."""
        ...

    async def cancel(self, by: int) -> Run | None:
        """Cancel the run under way; None if there is none."""
        ...

    async def overview(self) -> Overview:
        """How the bot is."""
        ...

    async def models(self) -> list[Model]:
        """Every kept model, oldest first."""
        ...

    async def promote(self, model: str, by: int) -> Model:
        """Answer with this model; returns when it does."""
        ...

    async def rollback(self, by: int) -> Model:
        """Answer with the model before the live one."""
        ...


MODEL_STATES: Final = {
    ModelState.CANDIDATE: later("candidate"),
    ModelState.LIVE: later("live"),
    ModelState.RETIRED: later("retired"),
    ModelState.REJECTED: later("rejected"),
}
ENGINE_STATES: Final = {
    State.STARTING: later("starting"),
    State.READY: later("ready"),
    State.RESTARTING: later("restarting"),
    State.FAILING: later("failing"),
    State.STOPPED: later("stopped"),
}
_IS_AN_ADMINS: Final = or_f(CancelRun.filter(), CancelBroadcast.filter(), Promote.filter(), RollBack.filter())
COMMANDS: Final = ("retrain", "cancel", "status", "models", "promote", "rollback", "schedule", "stats")
BROADCAST: Final = "broadcast"
REFUSALS: Final = (AdminRefusal, StorageError, InferenceError, TrainingError)


def router() -> Router:
    """The handlers of this module; whoever is no admin gets no further than the first."""
    admin = Router(name="admin")
    admin.message.register(not_yours, Command(*COMMANDS, BROADCAST), _is_stranger)
    admin.message.register(retrain, Command("retrain"))
    admin.message.register(cancel, Command("cancel"))
    admin.message.register(status, Command("status"))
    admin.message.register(schedule, Command("schedule"))
    admin.callback_query.register(not_yours_to_tap, _IS_AN_ADMINS, _is_stranger)
    admin.callback_query.register(cancel_this, CancelRun.filter())
    return admin


def _is_stranger(event: TelegramObject, settings: BotSettings, event_from_user: User | None = None) -> bool:
    return event_from_user is None or event_from_user.id not in settings.telegram.admins


async def not_yours(message: Message, reply: Reply, say: Say) -> None:
    """Refuse politely."""
    await reply.finish(say("Only my admins can do that. /help shows what I can do for you."))


async def not_yours_to_tap(query: CallbackQuery, say: Say) -> None:
    """Refuse politely, where an admin has forwarded buttons."""
    await acknowledge(query, say("Only my admins can do that."))


async def retrain(
    message: Message,
    command: CommandObject,
    event_from_user: User,
    delivery: Delivery,
    reply: Reply,
    say: Say,
    admin: AdminActions,
    ledger: Ledger,
) -> None:
    """Start a run, once; with "dry" only say what it would be."""
    if wish := (command.args or "").strip():
        await reply.finish(await _rehearsed(admin, say) if wish == "dry" else say("I know /retrain and /retrain dry."))
        return
    run = await _requested_before(ledger, event_from_user.id, delivery)
    try:
        run = run or await admin.retrain(event_from_user.id)
    except RunBusy:
        await reply.finish(say("A run is under way already. /status shows how it goes, /cancel stops it."))
    except REFUSALS as refusal:
        await reply.finish(refused(refusal, say))
    else:
        await reply.finish(say("Run {run} begins. I will keep you informed here.", run=run.id))


async def _requested_before(ledger: Ledger, by: int, delivery: Delivery) -> Run | None:
    """The run that an interrupted attempt at this very request has started."""
    if delivery.attempt == 1:
        return None
    mine = (run for run in await ledger.runs(10) if run.requested_by == by and run.created >= delivery.received)
    return next(mine, None)


async def _rehearsed(admin: AdminActions, say: Say) -> str:
    try:
        plan = await admin.plan()
    except REFUSALS as refusal:
        return refused(refusal, say)
    counts, recipe = plan.counts, plan.recipe
    lines = [
        say(
            "A run now would learn from {pairs} liked answers, {raters} raters; it would be judged by {held_out} more.",
            pairs=plan.pairs,
            raters=counts.raters,
            held_out=plan.held_out,
        ),
        say(
            "Of {rated} rated answers {disliked} are not liked enough, {unfinished} were cut short, {too_long} are too "
            "long, {duplicates} say the same as others.",
            rated=counts.rated,
            disliked=counts.disliked,
            unfinished=counts.unfinished,
            too_long=counts.too_long,
            duplicates=counts.duplicates,
        ),
        say("How: {method}, each pair {epochs} times.", method=recipe.method, epochs=f"{recipe.epochs:g}"),
    ]
    if plan.sources:
        lines.append(say("Beside them from elsewhere: {sources}.", sources=", ".join(plan.sources)))
    return "\n".join(lines)


async def cancel(message: Message, event_from_user: User, reply: Reply, say: Say, admin: AdminActions) -> None:
    """Cancel the run under way."""
    try:
        run = await admin.cancel(event_from_user.id)
    except REFUSALS as refusal:
        await reply.finish(refused(refusal, say))
        return
    if run is None:
        await reply.finish(say("There is no run to cancel."))
    else:
        await reply.finish(say("Run {run} is being cancelled.", run=run.id))


async def cancel_this(
    query: CallbackQuery, callback_data: CancelRun, say: Say, admin: AdminActions, ledger: Ledger
) -> None:
    """Cancel the run above the button, and no other."""
    active = await ledger.active_run()
    if active is None or active.id != callback_data.run:
        await acknowledge(query, say("Run {run} is over already.", run=callback_data.run))
        return
    try:
        await admin.cancel(query.from_user.id)
    except REFUSALS as refusal:
        await acknowledge(query, refused(refusal, say))
    else:
        await acknowledge(query, say("Run {run} is being cancelled.", run=active.id))


async def status(message: Message, reply: Reply, say: Say, admin: AdminActions) -> None:
    """Say how the bot is."""
    try:
        overview = await admin.overview()
    except REFUSALS as refusal:
        await reply.finish(refused(refusal, say))
        return
    engine, counts = overview.engine, overview.counts
    lines = [
        say("Model: {model}", model=overview.live or "–"),
        say(
            "Engine: {kind}, {state}; answering {in_flight}, waiting {waiting}, restarts {restarts}",
            kind=engine.engine,
            state=say(ENGINE_STATES[engine.state]),
            in_flight=engine.in_flight,
            waiting=engine.waiting,
            restarts=engine.restarts,
        ),
        *([_seen_line(engine.seen, say)] if engine.seen.answered else []),
        *(_node_line(node, say) for node in engine.nodes if len(engine.nodes) > 1),
        say(
            "Answers: {exchanges}, liked {ups}, disliked {downs}",
            exchanges=counts.get("exchanges", 0),
            ups=counts.get("ups", 0),
            downs=counts.get("downs", 0),
        ),
        say("People: {users}, pictures: {pictures}", users=counts.get("users", 0), pictures=counts.get("pictures", 0)),
    ]
    lines += [run_line(run, say) for run in overview.runs[:3]]
    if overview.next_run:
        lines.append(_next_line(overview.next_run, say))
    await reply.finish("\n".join(lines))


async def schedule(message: Message, reply: Reply, say: Say, admin: AdminActions) -> None:
    """Say when the next run begins by itself, and how the last one went."""
    try:
        overview = await admin.overview()
    except REFUSALS as refusal:
        await reply.finish(refused(refusal, say))
        return
    if overview.next_run:
        by = say("By training.schedule = {cron}, in UTC.", cron=f'"{overview.schedule}"')
        lines = [_next_line(overview.next_run, say), by]
    else:
        lines = [say("I learn only when I am told to: /retrain. training.schedule in config.toml sets times.")]
    await reply.finish("\n".join(lines + [run_line(run, say) for run in overview.runs[:1]]))


def _next_line(time: datetime, say: Say) -> str:
    return say("Next run: {time}", time=f"{time:%Y-%m-%d %H:%M %Z}".strip())


def _seen_line(seen: Seen, say: Say) -> str:
    """How quick the answers are, and how much of their prompts was not computed again."""
    return say(
        "First word after {median} s (99 % within {p99} s); {cached} % of the prompts from a cache",
        median=f"{seen.first_token_median:.2f}",
        p99=f"{seen.first_token_p99:.2f}",
        cached=f"{100 * seen.cached_share:.0f}",
    )


def _node_line(node: NodeStatus, say: Say) -> str:
    """One of several nodes, and what ails it."""
    line = say(
        "· {node}: {state}, {model}; answering {in_flight}, chats {chats}",
        node=node.name,
        state=say("out of service") if node.away else say(ENGINE_STATES[node.state]),
        model=node.model,
        in_flight=node.in_flight,
        chats=node.chats,
    )
    if node.seen.answered:
        line += f"\n  {_seen_line(node.seen, say)}"
    return line if node.state is State.READY or not node.last_error else f"{line}\n  {node.last_error.splitlines()[0]}"


def refused(refusal: Exception, say: Say) -> str:
    """Why something could not be done."""
    reason = refusal.told(say) if isinstance(refusal, AdminRefusal) else retold(str(refusal), say)
    return say("That did not work: {reason}", reason=reason)
