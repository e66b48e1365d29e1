"""Status and counters of a deployment as plain values, for the operator's page, /health and /metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from inference.engines.commands import Kind
from inference.serving.answering import Answering
from inference.serving.chat_handover import ChatHandover
from inference.serving.engine_stats import EngineStats, Tally, combined
from inference.serving.nodes import Node
from inference.serving.routing import CanaryRoute
from inference.serving.supervisor import State, Supervisor


@dataclass(frozen=True, slots=True)
class Counters:
    """Counters since the deployment was created.

    Each question counts as answered, failed or cancelled. `answers_restarted` counts restarts of answers, and
    `warmed` counts the prompts processed for warm-up. `crashes` includes `hangs`.
    """

    answered: int = 0
    failed: int = 0
    cancelled: int = 0
    answers_restarted: int = 0
    crashes: int = 0
    hangs: int = 0
    swaps: int = 0
    failed_swaps: int = 0
    warmed: int = 0


@dataclass(frozen=True, slots=True)
class CanaryStatus:
    """Status of a canary.

    `state` is ready if the canary is ready on any replica; `crashes` and `last_error` cover the canary's
    engines on all replicas.
    """

    model: str
    share: float
    state: State
    crashes: int
    last_error: str


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """Status of one replica.

    Attributes:
        endpoint: The URL of the engine, or empty if its process is not running.
        away: Whether the replica receives no questions because its engine is being swapped or is paused.
        in_flight: The number of answers in flight.
        chats: The number of recently active chats that are routed to the replica.
        waiting: The number of queued questions.
        stats: The statistics of the replica's answers.
    """

    name: str
    endpoint: str
    model: str
    state: State
    away: bool
    in_flight: int
    chats: int
    last_error: str
    waiting: int = 0
    stats: EngineStats = field(default_factory=EngineStats)


@dataclass(frozen=True, slots=True)
class Status:
    """Status of a deployment.

    Attributes:
        model: The live model of most replicas.
        state: Ready if any replica is ready.
        pid: The process ID of one engine, or None for an external server or if no engine runs.
        pids: The IDs of all child processes, including starting and draining ones.
        uptime: The number of seconds since the engine with process ID `pid` became ready.
        restarts: The number of restarts of the live models' engines.
        in_flight: The number of questions being answered.
        waiting: The number of queued questions.
        swapping_to: The model that is starting, or None.
        stats: The statistics of all answers.
        tallies: The tally of each model's answers, by model ID.
    """

    engine: Kind
    model: str
    state: State
    paused: bool
    pid: int | None
    pids: tuple[int, ...]
    uptime: float
    restarts: int
    in_flight: int
    waiting: int
    swapping_to: str | None
    last_error: str
    counters: Counters
    nodes: tuple[NodeStatus, ...] = ()
    stats: EngineStats = field(default_factory=EngineStats)
    canary: CanaryStatus | None = None
    tallies: Mapping[str, Tally] = field(default_factory=dict)


def status_of(
    kind: Kind, nodes: Sequence[Node], answering: Answering, handover: ChatHandover, route: CanaryRoute | None
) -> Status:
    """Return the status of a deployment that consists of `nodes`."""
    # Single values are those of the first replica that is ready, or of the first one if none is.
    first = min(nodes, key=lambda node: node.slots.live.state is not State.READY)
    lives = [node.slots.live for node in nodes]
    canaries = [node.slots.canary for node in nodes if node.slots.canary is not None]
    waiting, chats = answering.admission.waiting_by_lane(), handover.chats()
    return Status(
        engine=kind,
        model=Counter(node.slots.live.model_id for node in nodes).most_common(1)[0][0],
        state=first.slots.live.state,
        paused=answering.admission.paused,
        pid=first.slots.live.pid,
        pids=tuple(sorted(pid for node in nodes for pid in node.slots.pids)),
        uptime=first.slots.live.uptime,
        restarts=sum(live.restarts for live in lives),
        in_flight=answering.admission.active,
        waiting=waiting.total(),
        swapping_to=next((node.slots.swapping_to for node in nodes if node.slots.swapping_to), None),
        last_error=_first_error([*lives, *canaries]),
        counters=Counters(
            **answering.counted, warmed=handover.warmer.warmed, crashes=sum(node.slots.crashes for node in nodes)
        ),
        nodes=tuple(_node_status(node, chats[node.name], waiting[node.name]) for node in nodes),
        stats=combined([node.stats for node in nodes]),
        canary=_canary_status(canaries, route) if route and canaries else None,
        tallies=dict(answering.tallies),
    )


def _canary_status(canaries: Sequence[Supervisor], route: CanaryRoute) -> CanaryStatus:
    return CanaryStatus(
        model=route.model,
        share=route.share,
        state=min((each.state for each in canaries), key=lambda state: state is not State.READY),
        crashes=sum(each.crashes for each in canaries),
        last_error=_first_error(canaries),
    )


def _first_error(supervisors: Iterable[Supervisor]) -> str:
    return next((each.last_error for each in supervisors if each.last_error), "")


def _node_status(node: Node, chats: int, waiting: int) -> NodeStatus:
    live = node.slots.live
    return NodeStatus(
        name=node.name,
        endpoint=live.worker.client.base_url if live.worker else live.launch.endpoint,
        model=live.model_id,
        state=live.state,
        away=node.away,
        in_flight=node.in_flight,
        chats=chats,
        last_error=live.last_error,
        waiting=waiting,
        stats=combined([node.stats]),
    )
