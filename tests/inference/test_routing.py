"""Chat routing: each chat stays with one replica, leaving it only while that replica is down or drained."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from inference.messages import Delta, EngineUnavailable, LastNode
from inference.serving.routing import ranked
from inference.serving.supervisor import State
from inference.settings import InferenceSettings
from tests.support.children import fake_command, notes, until
from tests.support.deployments import ask, deployed, open_gate, under_way
from tests.support.fleets import fleet

NAMES = ("http://a:1", "http://b:1", "http://c:1", "http://d:1")


def test_routing_spreads_chats_evenly() -> None:
    """Each of four nodes is the first choice of about a quarter of the chats.

    The chats of a lost node spread evenly over the other three.
    """
    chats = [f"chat {number}" for number in range(4000)]
    for chosen in (chats, [chat for chat in chats if ranked(chat, NAMES)[0] == 0]):
        place = 0 if chosen is chats else 1
        numbers = Counter(ranked(chat, NAMES)[place] for chat in chosen)
        fair = len(chosen) / (4 if place == 0 else 3)
        assert all(0.85 * fair < number < 1.15 * fair for number in numbers.values()), numbers


def test_routing_moves_as_few_chats_as_possible() -> None:
    """Removing a node moves only its own chats, and adding a node moves chats only to the new one.

    The order of the nodes' names does not matter.
    """
    for number in range(500):
        chat = f"chat {number}"
        order = [NAMES[index] for index in ranked(chat, NAMES)]
        fewer = NAMES[:2] + NAMES[3:]
        assert [fewer[index] for index in ranked(chat, fewer)] == [name for name in order if name != NAMES[2]]
        turned = tuple(reversed(NAMES))
        assert [turned[index] for index in ranked(chat, turned)] == order


def test_routing_is_the_same_in_every_process() -> None:
    """Chats are routed identically after a restart of the bot and on another machine."""
    code = f"from inference.serving.routing import ranked; print([ranked(f'chat {{n}}', {NAMES!r}) for n in range(50)])"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said.strip() == str([ranked(f"chat {number}", NAMES) for number in range(50)])
    assert [ranked(f"chat {number}", NAMES)[0] for number in range(12)] == [3, 2, 2, 0, 1, 0, 0, 0, 3, 3, 1, 3], (
        "as in every version"
    )


async def test_routing_a_chat_stays(tmp_path: Path) -> None:
    """One server answers every question in a chat, and the status shows the number of chats per server."""
    async with fleet(tmp_path, 3) as (deployment, servers):
        chats = servers.chats(8)
        for _ in range(3):
            for chat in chats:
                assert (await ask(deployment, "hi", chat)).text.split("/")[1] == str(servers.pid(servers.home(chat)))
        nodes = {node.name: node for node in deployment.status().nodes}
        assert {name: node.chats for name, node in nodes.items()} == Counter(map(servers.home, chats))
        assert all(node.endpoint == f"{name}/v1" and node.model == "a" for name, node in nodes.items())


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_routing_a_dead_nodes_answers_restart_elsewhere(tmp_path: Path, how: str) -> None:
    """An answer whose node dies or hangs restarts on the chat's next choice of node.

    The lost node rejoins later.
    """
    async with fleet(tmp_path, 3, token_timeout=1.5) as (deployment, servers):
        chat = "ada"
        home, second = servers.home(chat), servers.second(chat)
        asking, heard = await under_way(deployment, "words:30 slow:0.05", chat)
        if how == "kill":
            await servers.kill(home)
        else:
            servers.freeze(home)
        answer = await asking
        assert answer.restarts == 1
        assert answer.pid == servers.pid(second)
        assert (await ask(deployment, "hi", chat)).pid == servers.pid(second)
        nodes = {node.name: node for node in deployment.status().nodes}
        assert nodes[home].last_error
        assert nodes[second].chats >= 1
        if how == "freeze":
            await servers.kill(home)
        await servers.start(home)
        await until(lambda: {node.name: node.chats for node in deployment.status().nodes}[home] == 1)
        assert (await ask(deployment, "hi", chat)).pid == servers.pid(home)
        # Before it came back, and where it went, the chat's newest prompt was computed.
        assert [note["request"]["max_tokens"] for note in notes(servers.directory(home), "begin")][-2] == 1
        assert Delta(restarted=True) in heard


async def test_routing_drain_and_undrain(tmp_path: Path) -> None:
    """A drained node finishes its answers and gets no new questions; after `undrain`, its chats return."""
    async with fleet(tmp_path, 3) as (deployment, servers):
        chat = "ada"
        home, second = servers.home(chat), servers.second(chat)
        asking, _ = await under_way(deployment, "gate:2", chat)
        draining = asyncio.create_task(deployment.drain(home))
        await until(lambda: any(node.away for node in deployment.status().nodes))
        assert not draining.done()
        open_gate(servers.directory(home))
        assert (await asking).pid == servers.pid(home)
        await draining
        open_gate(servers.directory(second))
        assert (await ask(deployment, "gate:2", chat)).pid == servers.pid(second)
        await deployment.undrain(home)
        assert (await ask(deployment, "hi", chat)).pid == servers.pid(home)
        with pytest.raises(EngineUnavailable, match=home):
            await deployment.drain("unknown")


async def test_routing_drain_warms_first(tmp_path: Path) -> None:
    """Before a chat moves or returns, the target node processes the chat's newest prompt, generating one token."""
    async with fleet(tmp_path, 3) as (deployment, servers):
        chat = "ada"
        home, second = servers.home(chat), servers.second(chat)
        await ask(deployment, "first words", chat)
        await deployment.drain(home)

        def computed(endpoint: str) -> list[int]:
            begun = notes(servers.directory(endpoint), "begin")
            return [note["request"]["max_tokens"] for note in begun if note["chat"] == chat]

        assert computed(second) == [1]
        await ask(deployment, "second words", chat)
        await deployment.undrain(home)
        assert computed(home) == [512, 1]
        assert deployment.status().counters.warmed == 2
        assert deployment.status().counters.answered == 2


async def test_routing_the_last_ready_node_stays(tmp_path: Path) -> None:
    """The last ready node cannot be drained.

    A missing node is drained at once and can be undrained before it is back. If the only ready node left is
    one that has been drained, questions wait, and the status is not ready.
    """
    async with fleet(tmp_path, 3) as (deployment, servers):
        first, second, missing = servers.endpoints

        def drained() -> list[bool]:
            return [node.drained for node in deployment.status().nodes]

        await servers.kill(missing)
        assert (await ask(deployment, "hi", servers.chat_at(missing))).restarts == 1
        await until(lambda: deployment.status().nodes[2].state is not State.READY)
        async with deployment._moves.alone():  # as while a model is changed
            await deployment.drain(missing)
        await deployment.drain(second)
        assert drained() == [False, True, True]
        for _ in range(2):
            with pytest.raises(LastNode, match=first):
                await deployment.drain(first)
            await deployment.undrain(missing)  # is in service now, and does not answer
        assert drained() == [False, True, False]
        assert deployment.status().nodes[2].state is not State.READY
        await deployment.undrain(second)
        await deployment.drain(first)
        assert (await ask(deployment, "hi", servers.chat_at(first))).pid == servers.pid(second)
        await servers.kill(second)
        asking = asyncio.create_task(ask(deployment, "hi", servers.chat_at(second)))
        await until(lambda: deployment.status().state is not State.READY)
        assert deployment.status().nodes[0].state is State.READY
        await servers.start(missing)
        assert (await asking).pid == servers.pid(missing)


async def test_routing_a_drain_that_lasts_too_long_is_not_a_crash(tmp_path: Path) -> None:
    """An answer unfinished at the drain timeout restarts on another replica.

    Stopping the drained engine does not count as a crash.
    """
    async with deployed(tmp_path, gpus=[0, 1], drain_timeout=0.1) as deployment:
        asking, heard = await under_way(deployment, "gate:2", "ada")
        home = next(node.name for node in deployment.status().nodes if node.in_flight)
        pids = deployment.status().pids
        await deployment.drain(home)
        await until(lambda: Delta(restarted=True) in heard)
        open_gate(tmp_path / "a")
        answer = await asking
        assert (answer.restarts, answer.pid in pids) == (1, True)
        await until(lambda: not {*pids} <= {*deployment.status().pids})
        await until(lambda: all(node.state is State.READY for node in deployment.status().nodes))
        assert (deployment.status().counters.crashes, deployment.status().last_error) == (0, "")
        await deployment.undrain(home)
        assert (await ask(deployment, "hi", "ada")).pid not in pids


async def test_routing_starts_without_a_missing_node(tmp_path: Path) -> None:
    """A server that does not respond at startup is left out and joins once it responds."""
    async with fleet(tmp_path, 2, missing=1, start_timeout=1) as (deployment, servers):
        chat = next(f"chat {n}" for n in range(60) if servers.home(f"chat {n}") == servers.endpoints[1])
        assert (await ask(deployment, "hi", chat)).pid == servers.pid(servers.endpoints[0])
        await servers.start(servers.endpoints[1])
        await until(lambda: all(node.state is State.READY for node in deployment.status().nodes))
        await until(lambda: deployment.status().nodes[1].chats == 1)
        assert (await ask(deployment, "hi", chat)).pid == servers.pid(servers.endpoints[1])


async def test_routing_a_full_node_delays_only_its_own_chats(tmp_path: Path) -> None:
    """Concurrency is limited per node, so other nodes keep answering while one has a queue."""
    async with fleet(tmp_path, 2, concurrency=1) as (deployment, servers):
        ours = [f"one {number}" for number in range(60) if servers.home(f"one {number}") == servers.endpoints[0]][:2]
        theirs = next(f"two {n}" for n in range(60) if servers.home(f"two {n}") == servers.endpoints[1])
        asking, _ = await under_way(deployment, "gate:2", ours[0])
        queued = asyncio.create_task(ask(deployment, "hi", ours[1]))
        await until(lambda: deployment.status().waiting == 1)
        assert (await ask(deployment, "hi", theirs)).pid == servers.pid(servers.endpoints[1])
        open_gate(servers.directory(servers.endpoints[0]))
        await asking
        assert (await queued).pid == servers.pid(servers.endpoints[0])


async def test_routing_each_gpu_has_its_own_engine(tmp_path: Path) -> None:
    """Each GPU gets its own engine, which sees no other GPU; without `gpus`, the environment is unchanged."""

    def command(model_id: str, model_dir: Path, port: int, settings: InferenceSettings) -> list[str]:
        line = fake_command(model_id, model_dir, port, settings)
        code = "import os, sys; print('sees', os.environ.get('CUDA_VISIBLE_DEVICES')); sys.stdout.flush()"
        return [sys.executable, "-c", f"{code}; os.execv(sys.argv[1], sys.argv[1:])", *line]

    async with deployed(tmp_path, command=command, gpus=[0, 3]) as deployment:
        assert [node.name for node in deployment.status().nodes] == ["gpu0", "gpu3"]
        assert len(deployment.status().pids) == 2
        pids = {(await ask(deployment, "hi", f"chat {number}")).pid for number in range(20)}
        assert pids == set(deployment.status().pids)
    for gpu in (0, 3):
        assert f"sees {gpu}\n" in (tmp_path / "logs" / f"engine-gpu{gpu}-blue.log").read_text()
    async with deployed(tmp_path, command=command):
        pass
    assert "sees None\n" in (tmp_path / "logs" / "engine-blue.log").read_text()
