"""A request router for Ray Serve that keeps each chat on the engine that has its prefix cached.

Ray's consistent-hash router sends a session to the same replica until the number of replicas changes. Here,
a session stays on the replica that served it last as long as that replica is alive, has room and is
likely to have the session cached, so only new and returning chats go to added replicas.
"""

from __future__ import annotations

from typing import Any, Final

from cachetools import TTLCache
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.request_router import PendingRequest, ReplicaID, RunningReplica

_SESSIONS: Final = 100_000


class ChatRouter(ConsistentHashRouter):
    """A consistent-hash router that remembers which replica last served each session."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._homes: TTLCache[str, ReplicaID] = TTLCache(_SESSIONS, 0)

    def initialize_state(self, *, remember: float, **kwargs: Any) -> None:
        """Apply the router's settings; `remember` is how long a session stays on its replica, in seconds."""
        super().initialize_state(**kwargs)
        self._homes = TTLCache(_SESSIONS, remember)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replicas in the order in which to try them; those with a full queue are skipped."""
        ranks: list[list[RunningReplica]] = await super().choose_replicas(candidate_replicas, pending_request)
        session = pending_request.metadata.session_id if pending_request is not None else ""
        home = self._homes.get(session)
        at_home = [[each] for each in candidate_replicas if each.replica_id == home]
        return [*at_home, *(rank for rank in ranks if rank not in at_home)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Remember which replica serves the session."""
        if pending_request.metadata.session_id:
            self._homes[pending_request.metadata.session_id] = replica_id
