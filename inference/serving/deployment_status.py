"""What the deployment tells about itself: for the operator's page, /health and the metrics. Plain values only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from inference.engines.commands import Kind
from inference.serving.engine_stats import Seen, seen
from inference.serving.nodes import Node
from inference.serving.supervisor import State


@dataclass(frozen=True, slots=True)
class Counters:
    """Since the deployment was made. Each question ends as exactly one of answered, failed and cancelled.

    `begun_anew` counts answers that were voided and begun again, `hangs` is a part of `crashes`; `warmed` counts
    prompts of chats that were computed ahead where they went. What answers cost is sight.py's.
    """

    answered: int = 0
    failed: int = 0
    cancelled: int = 0
    begun_anew: int = 0
    crashes: int = 0
    hangs: int = 0
    swaps: int = 0
    failed_swaps: int = 0
    warmed: int = 0

    def plus(self, **more: int) -> Counters:
        """These counters with some of them increased."""
        return replace(self, **{name: getattr(self, name) + number for name, number in more.items()})


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One moment of one node.

    `endpoint` is where its engine listens (empty: nowhere now), `model` what it answers with. `away` says that it
    answers nobody on purpose: drained by hand (`drained`) or by a swap, or paused. `in_flight` counts its answers
    under way, `waiting` the questions that queue for it, `chats` the recently active chats whose next question goes
    there, `seen` what its answers cost.
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
    seen: Seen = field(default_factory=Seen)
    drained: bool = False


@dataclass(frozen=True, slots=True)
class Status:
    """One moment of a deployment.

    `model` is what most nodes in service answer with. `pid` is an engine's process (None: an external server, or none
    runs now), `pids` all children, a starting or draining one included; `uptime` is seconds since that engine became
    ready, `restarts` counts those of the engines that are live. `in_flight` and `waiting` count questions,
    `swapping_to` is the model that comes up now. `state` is ready when any node in service is. `seen` is what answers
    cost.
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
    seen: Seen = field(default_factory=Seen)


def status_of(
    kind: Kind,
    nodes: Sequence[Node],
    chats: Mapping[str, int],
    counters: Counters,
    *,
    paused: bool,
    in_flight: int,
    waiting: Mapping[str, int],
) -> Status:
    """The status of a deployment over `nodes`.

    `chats` has each node's number of recently active ones, `waiting` that of the questions that queue for it.
    """
    serving = [node for node in nodes if not node.drained]
    # The first node speaks for all where there is one answer only, or else the first that is ready.
    first = min(serving, key=lambda node: node.state is not State.READY)
    lives = [node.slots.live for node in nodes]
    return Status(
        engine=kind,
        model=Counter(node.model_id for node in serving).most_common(1)[0][0],
        state=first.state,
        paused=paused,
        pid=first.slots.live.pid,
        pids=tuple(sorted(pid for node in nodes for pid in node.slots.pids)),
        uptime=first.slots.live.uptime,
        restarts=sum(live.restarts for live in lives),
        in_flight=in_flight,
        waiting=sum(waiting.values()),
        swapping_to=next((node.slots.swapping_to for node in nodes if node.slots.swapping_to), None),
        last_error=next((live.last_error for live in lives if live.last_error), ""),
        counters=counters.plus(crashes=sum(node.slots.crashes for node in nodes)),
        nodes=tuple(_node_status(node, chats[node.name], waiting.get(node.name, 0)) for node in nodes),
        seen=seen(node.sight for node in nodes),
    )


def _node_status(node: Node, chats: int, waiting: int) -> NodeStatus:
    live = node.slots.live
    return NodeStatus(
        name=node.name,
        endpoint=live.worker.base_url if live.worker else live.launch.endpoint,
        model=live.model_id,
        state=live.state,
        away=node.away,
        in_flight=node.in_flight,
        chats=chats,
        last_error=live.last_error,
        waiting=waiting,
        seen=seen([node.sight]),
        drained=node.drained,
    )
