"""Chats with the bot while its engines run on a Ray cluster of three nodes.

The cluster grows, loses a node, changes its model and shrinks. Each question gets one answer, each answer
comes from one model (the bot's client refuses a stream that names two), and follow-ups are answered by the
engine that has the picture cached, which therefore encodes no tiles for them.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve
from ray.cluster_utils import Cluster

from storage.learning_records import Model
from storage.model_store import ModelStore
from storage.state_machines import ModelState
from tests.support.community import Community, questions
from tests.support.cpu_serving import endless
from tests.support.person import UP, Person, button

FOLLOW_UP = "And how many are there?"
PEOPLE, NEWCOMERS = 6, 3
PATIENCE = 240.0

pytestmark = pytest.mark.timeout(900)


class Chatter:
    """A user who asks about a picture and keeps asking about it until `end` is called."""

    def __init__(self, person: Person, seed: str) -> None:
        self.person = person
        self.asked = 0
        self.answered = 0
        self._stop = False
        self.task = asyncio.create_task(self._run(seed))

    async def end(self) -> None:
        """Stop after the answer in progress, and check that each question has one answer."""
        self._stop = True
        await self.task
        answers = [each for each in await self.person.bot_messages() if button(each, UP)]
        assert len(answers) == self.asked, await self.person.chat_so_far()

    async def _run(self, seed: str) -> None:
        (question,) = questions(seed, 1)
        await self._ask(photo=question.picture, caption=question.text)
        while not self._stop:
            await self._ask(text=FOLLOW_UP)

    async def _ask(self, **what: Any) -> None:
        self.asked += 1
        await self.person.asks(seconds=PATIENCE, **what)
        self.answered += 1


async def until(condition: Callable[[], bool], chatters: Sequence[Chatter]) -> None:
    """Wait for a condition while people chat; an error in a chat fails the test."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            for chatter in chatters:
                if chatter.task.done():
                    chatter.task.result()
            await asyncio.sleep(0.2)


async def chat_on(chatters: Sequence[Chatter], answers: int = 2) -> None:
    """Wait until each person has received this many more answers."""
    goals = [(chatter, chatter.answered + answers) for chatter in chatters]
    await until(lambda: all(chatter.answered >= goal for chatter, goal in goals), chatters)


def running(model: str) -> int:
    """Return the number of running engines of a model."""
    application = serve.status().applications.get(f"thumbtune-{model}")
    return sum(each.replica_states.get("RUNNING", 0) for each in application.deployments.values()) if application else 0


def kill_a_node(cluster: Cluster, model: str) -> None:
    """Kill a node that runs an engine of the model, but not the head node, which runs Serve's proxy."""
    details = serve.context._get_global_client().get_serve_details()["applications"][f"thumbtune-{model}"]
    used = {replica["node_id"] for replica in details["deployments"]["engine"]["replicas"]}
    node = next(each for each in cluster.worker_nodes if each.node_id in used)
    cluster.remove_node(node, allow_graceful=False)


async def add_model(community: Community, directory: Path, name: str) -> None:
    """Add a candidate, a model that can be promoted, to the bot's models."""
    store = ModelStore(community.data / "models")
    workspace = store.workspace(name)
    shutil.copytree(directory, workspace, dirs_exist_ok=True)
    path, digest = store.publish(workspace, name)
    async with community.ledger() as ledger:
        await ledger.models.add(Model(name, str(path), ModelState.CANDIDATE, None, 1.0, manifest_hash=digest))


def answers(community: Community) -> list[tuple[int, int, str, str, int]]:
    """Return the ID, session, question, model and encoded tiles of all answers so far, oldest first."""
    with closing(sqlite3.connect(community.data / "ledger.db")) as database:
        select = "SELECT id, session, question, model, encoded_tiles FROM exchanges ORDER BY id"
        return database.execute(select).fetchall()


async def test_a_cluster_grows_loses_a_node_changes_its_model_and_shrinks(
    cluster: Cluster, serve_url: str, tmp_path: Path, warm_python: str
) -> None:
    """Throughout, each question gets one answer, and at least 95 % of the follow-ups find their picture cached.

    The first follow-up of each chat after a node was killed or engines were removed is not counted, because
    caches were lost with them.
    """
    base = endless(tmp_path / "base")
    sections: dict[str, Any] = {
        "chat": {"max_new_tokens": 30},
        "inference": {"engine": "ray", "model": str(base), "concurrency": 4, "drain_timeout": 30},
        "inference.ray": {"address": cluster.address, "url": serve_url, "num_cpus": 0.3, "python": warm_python},
        "inference.ray.replicas": {"min": 1, "max": 3, "grow_after": 1, "shrink_after": 4},
    }
    async with Community(tmp_path, **sections) as community:
        await community.bot.start()
        await until(lambda: running("base") == 1, ())
        crowd = [Chatter(await community.person(), f"ray-{number}") for number in range(PEOPLE)]
        await until(lambda: running("base") == 3, crowd)
        # Newcomers are answered by the added engines.
        crowd += [Chatter(await community.person(), f"ray-{PEOPLE + number}") for number in range(NEWCOMERS)]
        await chat_on(crowd)

        losses = [answers(community)[-1][0]]
        kill_a_node(cluster, "base")
        await chat_on(crowd)

        await add_model(community, base, "run-1")
        await community.admin.sends("/promote run-1")
        await until(lambda: "thumbtune-base" not in serve.status().applications, crowd)
        assert await community.live_model() == "run-1"
        await chat_on(crowd)
        await asyncio.gather(*(chatter.end() for chatter in crowd))

        losses.append(answers(community)[-1][0])
        await until(lambda: running("run-1") == 1, ())
        for chatter in crowd[::4]:
            assert (await chatter.person.asks(FOLLOW_UP, seconds=PATIENCE))["text"]
        found = answers(community)
        assert [model for *_, model, _ in found[-3:]] == ["run-1"] * 3
        assert {model for *_, model, _ in found} == {"base", "run-1"}
        assert all(tiles for _, _, question, _, tiles in found if question != FOLLOW_UP)

        firsts = {
            next((number for number, session, *_ in found if number > loss and session == each), 0)
            for loss in losses
            for each in {session for _, session, *_ in found}
        }
        follow_ups = [each for each in found if each[2] == FOLLOW_UP and each[0] not in firsts]
        elsewhere = [each for each in follow_ups if each[-1]]
        assert len(elsewhere) <= 0.05 * len(follow_ups), f"{elsewhere} of {len(follow_ups)}"

        async with httpx.AsyncClient() as stranger:
            for headers in ({}, {"Authorization": "Bearer x"}):
                refused = await stranger.get(f"{serve_url}/thumbtune-run-1/v1/models", headers=headers)
                assert refused.status_code == 401

        # The application of a killed bot is deleted.
        await community.bot.kill()
        await until(lambda: not serve.status().applications, ())
