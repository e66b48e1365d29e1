"""The whole loop through the emulator: chat, rate, retrain, evaluate, swap and roll back.

Because a run takes a minute, the tests of this module share one bot. It has one engine and, after one
run, a model that has learned to give playful answers.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from storage.model_manifest import verify
from storage.state_machines import ModelState, RunState
from tests.support.community import Community, Examined, playful, questions
from tests.support.person import UP, button
from training.run_folder import CURVE

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900), pytest.mark.long]


@dataclass(frozen=True, slots=True)
class Taught:
    """A bot and its users after the first training run, with the bot's answers examined before and after it.

    Of the sixty answers that the users rated before the run, `liked` were playful.
    """

    community: Community
    before: Examined
    after: Examined
    liked: int
    run: int


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loop")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def taught(folder: Path, warm_python: str) -> AsyncIterator[Taught]:
    """Teach the bot playful answers in one run, and examine it on unseen pictures before and after.

    Users ask two questions about each of 30 pictures and vote on every answer; then the admin sends
    /retrain.
    """
    async with Community(folder, python=warm_python) as community:
        await community.bot.start()
        before = await community.examine("before", 40)
        liked = await community.vote("seed-0", playful)
        run = await community.retrain()
        assert run.state is RunState.DONE, run.reason
        after = await community.examine("after", 80)
        yield Taught(community, before, after, liked, run.id)


async def test_liking_the_playful_makes_it_playful(taught: Taught) -> None:
    """One run on thirty pictures raises the share of playful answers from about half to at least nine in ten."""
    examined = len(taught.before.answers)
    assert 0.35 <= (taught.liked + examined * taught.before.playful) / (60 + examined) <= 0.65
    assert taught.after.playful >= 0.9
    assert await taught.community.live_model() == f"run-{taught.run}"


async def test_it_still_knows_what_it_knew(taught: Taught) -> None:
    """After the run, answers about colours and shapes are right at least 95 % as often as before."""
    assert taught.before.facts >= 0.9
    assert taught.after.facts >= 0.95 * taught.before.facts


async def test_the_run_can_be_audited(taught: Taught) -> None:
    """A run leaves everything that is needed to audit it.

    The run keeps its configuration, data, loss curve and report; the model keeps its manifest; and the
    ledger records who rated which answer.
    """
    async with taught.community.ledger() as ledger:
        run = await ledger.runs.get(taught.run)
        model = await ledger.models.get(str(run.model))
        rated = await ledger.votes.rated_exchanges()
        selection = await ledger.run_selections.of(run.id)
    assert run.samples <= taught.liked < run.samples + run.held_out
    assert {split for _, split in selection} == {"train", "held_out"}, "what only judges is disliked"
    directory = Path(run.directory)
    assert (directory / CURVE).stat().st_size > 1000
    rows = json.loads((directory / "train.json").read_text(encoding="utf-8"))
    assert len(rows) == run.samples
    assert list(directory.glob("*.py")), "XTuner's configuration"
    assert verify(Path(model.directory)) == model.manifest_hash
    assert json.loads(model.report)["decision"] == "accepted"
    assert len(rated) == 60
    for each in rated:
        exchange = each.exchange
        assert exchange.model == "base"
        assert exchange.prompt_hash and exchange.prompt_tokens and exchange.completion_tokens
        assert each.raters == (exchange.asker,)


async def test_a_follow_up_encodes_no_picture(taught: Taught) -> None:
    """The engine encodes a picture's tiles for the first question about it, and none for follow-up questions."""
    async with taught.community.ledger() as ledger:
        rated = await ledger.votes.rated_exchanges()
    assert all(each.exchange.encoded_tiles > 0 for each in rated if each.exchange.pictures)
    follow_ups = [each.exchange for each in rated if not each.exchange.pictures]
    assert len(follow_ups) == 30
    assert sum(each.encoded_tiles for each in follow_ups) == 0


async def test_the_admin_was_kept_informed(taught: Taught) -> None:
    """The admin gets one message that is edited to show the progress of the run.

    At the end, the admin also gets the sheet, and a picture with the run's figures in its caption.
    """
    messages = await taught.community.admin.bot_messages()
    (told,) = (message["caption"] for message in messages if "photo" in message)
    assert f"Model run-{taught.run}: live." in told
    assert "Learned from" in told and "Peak memory" in told
    (sheet,) = (message["document"] for message in messages if "document" in message)
    assert sheet["file_name"] == f"run-{taught.run}-sheet.html"
    (progress,) = (message["text"] for message in messages if "Answers to learn from" in message.get("text", ""))
    assert progress.startswith(f"Run {taught.run} is done"), "the message of its beginning was edited to its end"


async def test_the_operator_sees_it(taught: Taught) -> None:
    """The operator page names the live model, shows the loss curve and links to the sheet.

    The metrics count exchanges, and the health check reports "ok".
    """
    async with aiohttp.ClientSession(taught.community.web) as session:
        async with session.get("/") as answer:
            page = await answer.text()
        async with session.get(f"/runs/{taught.run}/loss.png") as answer:
            curve = await answer.read()
        async with session.get(f"/runs/{taught.run}/sheet.html") as answer:
            sheet = await answer.text()
        async with session.get("/metrics") as answer:
            metrics = await answer.text()
        async with session.get("/health") as answer:
            assert (await answer.json())["status"] == "ok"
    assert f"run-{taught.run}" in page
    assert f'href="/runs/{taught.run}/sheet.html?language=en"' in page
    assert f"<h3>run-{taught.run}, new</h3>" in sheet and "<h3>base, live</h3>" in sheet
    assert curve.startswith(b"\x89PNG")
    assert f'model="run-{taught.run}"' in metrics
    answered = next(line for line in metrics.splitlines() if line.startswith("thumbtune_exchanges "))
    assert float(answered.split()[1]) >= 180


async def test_people_chat_through_a_swap(taught: Taught) -> None:
    """Two users who chat while the model is rolled back and promoted again get one answer to every question."""
    community, swapped = taught.community, asyncio.Event()
    asked = 0

    async def chat(number: int) -> None:
        nonlocal asked
        person = await community.person()
        for question in questions(f"swap-{number}", 200):
            answer = await person.asks(photo=question.picture, caption=question.text)
            follow_up = await person.asks("how many are there?")
            assert answer["message_id"] != follow_up["message_id"]
            asked += 2
            if swapped.is_set():
                break
        finals = [message for message in await person.bot_messages() if button(message, UP)]
        assert len(finals) == len(await person.bot_messages()), "a message without buttons is no answer"
        own = [message for message in await person.messages() if not message["from"]["is_bot"]]
        assert len(finals) == len(own)

    async def swap() -> None:
        for command, expected in (("/rollback", "base"), (f"/promote run-{taught.run}", f"run-{taught.run}")):
            await community.admin.sends(command)
            answer = await community.admin.answer(rated=False, seconds=90, quiet=3)
            while "now answers everyone" not in answer["text"]:
                answer = await community.admin.answer(rated=False, seconds=90, quiet=3)
            assert await community.live_model() == expected
        swapped.set()

    before = await _exchanges(community)
    async with asyncio.TaskGroup() as group:
        group.create_task(swap())
        for number in range(2):
            group.create_task(chat(number))
    assert await _exchanges(community) - before == asked
    assert len(community.bot.engines()) == 1, "the old process is gone"


async def test_the_command_line_sees_the_same(taught: Taught) -> None:
    """`thumbtune models` and `thumbtune status` show the models and runs of the running bot."""
    listed = await _thumbtune(taught.community, "models")
    assert "base" in listed and f"run-{taught.run}" in listed and ModelState.LIVE in listed
    shown = await _thumbtune(taught.community, "status")
    assert f"live model: run-{taught.run}" in shown and RunState.DONE in shown


async def test_the_command_line_rolls_back(taught: Taught) -> None:
    """`thumbtune rollback` waits until the running bot has switched back to the previous model."""
    assert "base is live" in await _thumbtune(taught.community, "rollback")
    assert await taught.community.live_model() == "base"
    assert "is live" in await _thumbtune(taught.community, "promote", f"run-{taught.run}")


async def test_strangers_command_nothing(taught: Taught) -> None:
    """Admin commands from users who are not admins are refused politely and have no effect."""
    stranger, before = await taught.community.person(), await _requested(taught.community)
    for command in ("/retrain", "/rollback", "/promote base"):
        await stranger.sends(command)
        assert "admins" in (await stranger.answer(rated=False))["text"]
    assert await _requested(taught.community) == before
    assert await taught.community.live_model() == f"run-{taught.run}"


async def _requested(community: Community) -> tuple[int, int]:
    """Return the numbers of runs and of model switches, no matter who requested them or how they ended."""
    async with community.ledger() as ledger:
        return len(await ledger.runs.latest(1000)), len(await ledger.promotions.latest(1000))


async def _exchanges(community: Community) -> int:
    async with community.ledger() as ledger:
        return (await ledger.counts.totals())["exchanges"]


async def _thumbtune(community: Community, *arguments: str) -> str:
    """Run the command line with `arguments`, check that it succeeds, and return its output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bot.cli.main", *arguments, "--config", str(community.config)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()
