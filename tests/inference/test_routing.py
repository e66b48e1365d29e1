"""Chat routing: each chat stays with one replica, leaving it only while that replica is down."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from inference.messages import Delta
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
    """One engine answers every question in a chat, and the status shows the number of chats per engine."""
    async with fleet(tmp_path, 3) as cards:
        chats = cards.chats(8)
        for _ in range(3):
            for chat in chats:
                assert (await ask(cards.deployment, "hi", chat)).pid == cards.pid(cards.home(chat))
        nodes = {node.name: node for node in cards.deployment.status().nodes}
        assert {name: node.chats for name, node in nodes.items()} == Counter(map(cards.home, chats))


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_routing_a_dead_nodes_answers_restart_elsewhere(tmp_path: Path, how: str) -> None:
    """An answer whose engine dies or hangs restarts on the chat's next choice, and the chat returns later.

    The engine that takes the place of the lost one has computed the chat's newest prompt by then.
    """
    async with fleet(tmp_path, 3, token_timeout=1.5, warm_seconds=10) as cards:
        chat = "ada"
        home, second = cards.home(chat), cards.second(chat)
        asking, heard = await under_way(cards.deployment, "words:30 slow:0.05", chat)
        lost = await cards.kill(home) if how == "kill" else cards.signal(home, signal.SIGSTOP)
        answer = await asking
        assert answer.restarts == 1
        assert answer.pid == cards.pid(second)
        assert Delta(restarted=True) in heard
        await until(lambda: {node.name: node.chats for node in cards.deployment.status().nodes}[home] == 1)
        assert {node.name: node.last_error for node in cards.deployment.status().nodes}[home]
        await until(lambda: cards.deployment.status().counters.warmed == 1)
        returned = await ask(cards.deployment, "hi", chat)
        assert returned.pid == cards.pid(home) != lost
        computed = [note["request"]["max_tokens"] for note in notes(tmp_path / "a", "begin") if note["chat"] == chat]
        assert computed[-2:] == [1, 512]


async def test_routing_starts_without_a_missing_node(tmp_path: Path) -> None:
    """An engine that does not start at first is left out and joins once it has started."""
    async with fleet(tmp_path, 2, cue={"start": "exit_once"}) as cards:
        await until(lambda: all(node.state is State.READY for node in cards.deployment.status().nodes))
        for chat in cards.chats(2):
            assert (await ask(cards.deployment, "hi", chat)).pid == cards.pid(cards.home(chat))


async def test_routing_a_full_node_holds_up_only_its_own(tmp_path: Path) -> None:
    """Concurrency is limited per engine, so other engines keep answering while one has a queue."""
    async with fleet(tmp_path, 2, concurrency=1) as cards:
        first, theirs, second = cards.chats(3)
        assert cards.home(first) == cards.home(second) != cards.home(theirs)
        asking, _ = await under_way(cards.deployment, "gate:2", first)
        queued = asyncio.create_task(ask(cards.deployment, "hi", second))
        await until(lambda: cards.deployment.status().waiting == 1)
        assert (await ask(cards.deployment, "hi", theirs)).pid == cards.pid(cards.home(theirs))
        open_gate(tmp_path / "a")
        await asking
        assert (await queued).pid == cards.pid(cards.home(first))


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
