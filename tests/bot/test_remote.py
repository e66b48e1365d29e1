"""The commands that control a running bot: what they wait for, how they end and what they print."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from bot.admin.status_labels import NAMES
from bot.cli import control, stored_data
from bot.cli.terminal import CommandRefused
from bot.config import Settings
from storage.learning_records import Model, Run
from storage.ledger import Ledger
from storage.state_machines import ModelState, RunState
from tests.support.whole_bot import ADMIN, whole_bot, words
from training.run_plan import fingerprint

WHY = "the finetune process died; it said last: [rank0]: no memory at [/opt/x.cpp:12]"


@pytest_asyncio.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger.open(tmp_path) as ledger:
        yield ledger


def running() -> bool:
    """Return True, as if a bot were running."""
    return True


class Bot:
    """A stand-in for a bot that stops: only the first `looks` checks find it running."""

    def __init__(self, looks: int) -> None:
        self._looks = looks

    def __call__(self) -> bool:
        self._looks -= 1
        return self._looks >= 0


async def due(ledger: Ledger) -> Run:
    """Wait for the run that a command requests, and return it."""
    while (run := await ledger.runs.due()) is None:
        await asyncio.sleep(0.01)
    return run


async def through(ledger: Ledger, run: Run, *states: RunState, **values: str) -> None:
    """Move `run` through `states`, setting the fields given in `values` along with the last state."""
    for state in states:
        await ledger.runs.move(run.id, state, **(values if state is states[-1] else {}))


async def finish(ledger: Ledger, model: Model) -> None:
    """Carry out the requested run as the bot would, with `model` as its result."""
    run = await due(ledger)
    working = (RunState.TRAINING, RunState.MERGING, RunState.EVALUATING)
    await through(ledger, run, *working)
    await ledger.models.add(model)
    await ledger.runs.move(run.id, RunState.DONE, model=model.id)


async def asked(ledger: Ledger, *, wait: bool, running: Callable[[], bool] = running, approve: bool = False) -> str:
    """Run `thumbtune retrain` and return its output.

    Raises:
        CommandRefused: The run fails, or its model does not go live.
    """
    with redirect_stdout(StringIO()) as printed:
        await control.retrain(ledger, running, wait, approve=approve)
    return printed.getvalue()


async def test_reasons_are_shown_as_they_are(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    """Reasons are printed unchanged: brackets in a process's output are not read as Rich markup."""

    async def fail() -> None:
        await through(ledger, await due(ledger), RunState.FAILED, reason=WHY)

    failing = asyncio.create_task(fail())
    with pytest.raises(CommandRefused) as refusal:
        await asked(ledger, wait=True)
    await failing
    assert str(refusal.value) == f"Run 1: failed. {WHY}"
    await ledger.models.add(Model("run-9", "/models/[9]", ModelState.REJECTED, None, 1.0, reason=WHY))
    await control.status(ledger, running())
    await stored_data.models(ledger, Settings())
    assert capsys.readouterr().out.count(WHY) == 2


@pytest.mark.parametrize("approve", [True, False])
async def test_a_model_that_waits_is_listed_as_waiting(
    ledger: Ledger, capsys: pytest.CaptureFixture[str], approve: bool
) -> None:
    """`thumbtune models` says which model waits for approval, also if the Settings page has changed that setting."""
    await ledger.models.add(Model("run-9", "/models/9", ModelState.CANDIDATE, None, 1.0))
    await ledger.setting_changes.add("training.approve", approve, "Root")
    await stored_data.models(ledger, Settings())
    assert ("candidate, waiting for approval" in capsys.readouterr().out) is approve


async def test_the_counts_have_the_same_names_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`thumbtune status`, /status and the operator page use the same words for the same numbers."""
    async with whole_bot(tmp_path, monkeypatch) as bot, bot.running() as application, bot.ledger() as ledger:
        admin = await bot.person(ADMIN, "Root", "en")
        await admin.command("/status")
        chat = words(await bot.says(ADMIN, lambda said: "Live model: base" in words(said)))
        with redirect_stdout(StringIO()) as printed:
            await control.status(ledger, running())
        counts = list(await ledger.counts.totals())
        async with aiohttp.ClientSession(application.address) as session, session.get("/") as page:
            shown = re.findall(r'<div class="card"><span>([^<]*)</span>', await page.text())
    listed = [each.partition(":")[0] for each in printed.getvalue().splitlines()]
    assert [each for each in listed if each != "bot"] == [NAMES[each] for each in ("live", *counts)]
    assert set(listed) - {"bot"} <= set(shown)
    for name in ("answers", "liked", "disliked", "people", "pictures"):
        assert f"{name}: 0" in chat.lower() or f"{name}: 1" in chat.lower()
    for name in ("answers in progress", "questions waiting"):
        assert name in chat and any(name in each for each in shown)


async def test_a_run_is_asked_for_until_it_begins(ledger: Ledger) -> None:
    """Without --wait, `thumbtune retrain` exits once the bot has begun the run."""
    asking = asyncio.create_task(asked(ledger, wait=False))
    run = await due(ledger)
    assert not asking.done()
    await through(ledger, run, RunState.TRAINING)
    assert "Run 1 has begun" in await asking


async def test_without_news_a_run_has_to_be_confirmed(ledger: Ledger, tmp_path: Path) -> None:
    """If nothing has changed since the last run, `thumbtune retrain` needs confirmation or --yes.

    Without a terminal to ask on, the command fails and mentions --yes.
    """
    settings = Settings.model_validate({"storage": {"dir": tmp_path}, "training": {"recipe": "tiny"}})
    await control.confirm_without_news(ledger, running, settings, yes=False)
    run = await ledger.runs.start("admin")
    await ledger.run_selections.freeze(run.id, [], fingerprint([], settings.job_specs()))
    await through(ledger, run, RunState.TRAINING, RunState.MERGING, RunState.EVALUATING, RunState.DONE)
    with pytest.raises(CommandRefused, match=r"Nothing has changed since run 1. Train again anyway\? .*--yes"):
        await control.confirm_without_news(ledger, running, settings, yes=False)
    await control.confirm_without_news(ledger, running, settings, yes=True)
    with pytest.raises(CommandRefused, match="No bot is running"):
        await control.confirm_without_news(ledger, Bot(0), settings, yes=True)


async def test_waiting_ends_when_the_new_model_answers(ledger: Ledger) -> None:
    """With --wait, `thumbtune retrain` exits once the new model is live."""
    asking = asyncio.create_task(asked(ledger, wait=True))
    await finish(ledger, Model("run-1", "/m/run-1", ModelState.CANDIDATE, 1, 1.0))
    await asyncio.sleep(3 * control.POLL_SECONDS)
    assert not asking.done()
    await ledger.promotions.make("run-1")
    assert "run-1 is live" in await asking


async def test_waiting_ends_with_a_canary(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    """With --wait, `thumbtune retrain` exits once the model becomes a canary; `thumbtune status` shows it."""
    await ledger.models.add(Model("base", "/m/base", ModelState.LIVE, None, 1.0))
    asking = asyncio.create_task(asked(ledger, wait=True))
    await finish(ledger, Model("run-1", "/m/run-1", ModelState.CANDIDATE, 1, 1.0))
    await ledger.canaries.start("run-1", 0.25)
    assert "run-1 answers in 25 % of the conversations as a canary" in await asking
    await control.status(ledger, running())
    told = "run-1 is a canary: it answers in 25 % of the conversations. Too few votes to tell."
    assert told in capsys.readouterr().out


async def test_waiting_ends_with_a_model_that_waits_for_approval(ledger: Ledger) -> None:
    """With --wait, `thumbtune retrain` exits once the model awaits an admin's approval, which may take days."""
    asking = asyncio.create_task(asked(ledger, wait=True, approve=True))
    await finish(ledger, Model("run-1", "/m/run-1", ModelState.CANDIDATE, 1, 1.0))
    await ledger.runs.settle(1)
    assert "run-1 waits until an admin approves it" in await asking


async def test_a_rejected_model_is_a_refusal(ledger: Ledger) -> None:
    """With --wait, `thumbtune retrain` fails if the model is rejected, and shows the reason."""
    finishing = asyncio.create_task(finish(ledger, Model("run-1", "/m", ModelState.REJECTED, 1, 1.0, reason="worse")))
    with pytest.raises(CommandRefused, match=r"Run 1: rejected\. worse"):
        await asked(ledger, wait=True)
    await finishing


async def test_a_model_that_does_not_go_live_is_a_refusal(ledger: Ledger) -> None:
    """With --wait, `thumbtune retrain` fails if the bot gives up on switching to the new model."""

    async def settle() -> None:
        await finish(ledger, Model("run-1", "/m/run-1", ModelState.CANDIDATE, 1, 1.0))
        await ledger.runs.settle(1)

    finishing = asyncio.create_task(settle())
    with pytest.raises(CommandRefused, match="thumbtune promote run-1"):
        await asked(ledger, wait=True)
    await finishing


async def test_a_bot_that_ends_leaves_no_wait_behind(ledger: Ledger) -> None:
    """When the bot stops, a waiting command exits and cancels its request if the run has not begun.

    A run that has begun is settled the next time the bot starts.
    """
    with pytest.raises(CommandRefused, match="before it started"):
        await asked(ledger, wait=False, running=Bot(2))
    assert (await ledger.runs.get(1)).state is RunState.CANCELLED
    assert await ledger.runs.unsettled() is None

    async def begin() -> None:
        await through(ledger, await due(ledger), RunState.TRAINING)

    beginning = asyncio.create_task(begin())
    with pytest.raises(CommandRefused, match="run 2 was training"):
        await asked(ledger, wait=True, running=Bot(4))
    await beginning
    assert (await ledger.runs.get(2)).state is RunState.TRAINING

    await ledger.models.add(Model("base", "/m/base", ModelState.CANDIDATE, None, 1.0))
    with pytest.raises(CommandRefused, match="stopped"):
        await control.promote(ledger, Bot(3), "base", False)
    assert await ledger.promotions.pending() == []


async def test_a_rejected_model_wants_a_yes(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    """Promoting, or rolling back to, a rejected model requires the operator's confirmation."""
    for name, reason in (("base", ""), ("run-1", "worse"), ("run-2", "")):
        await ledger.models.add(Model(name, f"/m/{name}", ModelState.CANDIDATE, None, 1.0, reason=reason))
        await ledger.promotions.make(name)
    with pytest.raises(CommandRefused, match=r"run-1 didn't go live: worse.*--yes"):
        await control.promote(ledger, running, "run-1", False)
    with pytest.raises(CommandRefused, match=r"run-1 didn't go live: worse.*--yes"):
        await control.rollback(ledger, running, False)
    assert await ledger.promotions.pending() == []
    going = asyncio.create_task(control.rollback(ledger, running, True))
    while not (asked := await ledger.promotions.pending()):
        await asyncio.sleep(0.01)
    await ledger.promotions.finish(asked[0].id)
    await going
    assert capsys.readouterr().out == "run-1 is live.\n"
    previous = await ledger.models.previous()
    assert previous is not None and previous.id == "base"
