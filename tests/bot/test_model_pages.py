"""The page of models over HTTP with the whole bot: approval, the canary's trial, and what an operator does there."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

import pytest
from aiohttp import encode_basic_auth

from storage.chat_records import Chat, Person
from storage.learning_records import Rating
from storage.state_machines import ModelState, Verdict
from tests.bot.test_review import ADA, BEN, Desk, at_work
from tests.support.ledgers import exchange
from tests.support.person import button
from tests.support.whole_bot import ADMIN, words
from training.run_folder import ADAPTER

TRIED = {"training": {"canary": 0.5}}
MODELS = "/models"


class Opens(Protocol):
    """Run a bot with the answers of `fill` and some settings overridden, and yield a desk."""

    def __call__(self, **sections: dict[str, Any]) -> AbstractAsyncContextManager[Desk]: ...


@pytest.fixture
async def opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Opens]:
    yield lambda **sections: at_work(tmp_path, monkeypatch, **sections)


async def trained(desk: Desk, model: ModelState, cue: str = "good") -> None:
    """Train the model run-1, and wait until it is in the state `model`."""
    desk.bot.cue(cue)
    await desk.post("/review/train")
    run = await desk.bot.ended(1)
    assert run.model == "run-1", run.reason

    async with asyncio.timeout(30):
        while (await desk.ledger.models.get("run-1")).state is not model or not await desk.ledger.runs.is_settled(1):
            await asyncio.sleep(0.02)


def labels(page: str, model: str) -> list[str]:
    """Return the words on the buttons and links that lead to actions on a model."""
    card = re.search(rf'<article class="model" id="{model}">.*?</article>', page, re.DOTALL)
    assert card, model
    return re.findall(r'(?:<button[^>]*>|<a class="button" href="/models[^>]*>)([^<]*)<', card[0])


async def live(desk: Desk) -> str:
    found = await desk.ledger.models.live()
    assert found is not None
    return found.id


async def test_approval_over_time(opens: Opens) -> None:
    """A model has its share of likes with interval, votes and a chart; votes of people who opted out do not count."""
    async with opens() as desk:
        page = await desk.get(MODELS)
        assert "67 % 👍 (30–90 %, 6 votes)" in page and labels(page, "base") == []
        assert page.count('<polygon class="band"') == 1
        await desk.ledger.people.save(Person(BEN, "Ben"), Chat(BEN))
        await desk.ledger.votes.cast(Rating(1, BEN, 1, 900))
        assert "71 % 👍 (36–92 %, 7 votes)" in await desk.get(MODELS)
        await desk.ledger.people.set_opted_out(ADA, True)
        page = await desk.get(MODELS)
        assert "100 % 👍 (21–100 %, 1 vote)" in page
        await desk.ledger.people.set_opted_out(BEN, True)
        page = await desk.get(MODELS)
        assert "no votes" in page and "<svg role" not in page
        assert "没有评价" in await desk.get(f"{MODELS}?language=zh")


async def test_a_canary_is_stopped(opens: Opens) -> None:
    """During a trial the page shows its standing and, once there are votes, the evidence; Stop ends the trial.

    The page says once that the trial was stopped.
    """
    async with opens(**TRIED) as desk:
        await trained(desk, ModelState.CANARY)
        page = await desk.get(MODELS)
        assert "run-1 is a canary: it answers in 50 % of the conversations. Too few votes to tell. " in page
        assert "Without a decision after 14 days or 2000 votes, the canary goes live.</p>" in page
        assert "Evidence, pair by pair" not in page
        for number, model in enumerate(("run-1", "base"), start=50):
            session = await desk.ledger.sessions.restart(ADA, ADA)
            made = await desk.ledger.exchanges.record(exchange(session, number, chat=ADA, asker=ADA, model=model))
            await desk.ledger.votes.cast(Rating(made.id, ADA, 1, 900 + number))
        page = await desk.get(MODELS)
        assert (
            "Approval since the trial began: 100 % of 1 votes" in page
            and "Evidence, pair by pair" in page
            and "1 pair<" in page
        )
        assert labels(page, "run-1") == ["✔ Promote", "✖ Stop"] and labels(page, "base") == []
        refused = await desk.post("/models/run-1/delete", status=409)
        assert "run-1 is a canary: stop it first" in refused
        assert await desk.post("/models/run-1/stop") == MODELS
        assert "run-1 was stopped; the live model answers everyone again." in await desk.get(MODELS)
        page = await desk.get(MODELS)
        assert "was stopped" not in page and "an admin stopped its trial" in page
        trial = await desk.ledger.canaries.latest("run-1")
        assert trial is not None and trial.verdict is Verdict.STOPPED
        assert "run-1 isn&#39;t a canary right now" in await desk.post("/models/run-1/stop", status=409)


async def test_promoted_and_rolled_back_once(opens: Opens) -> None:
    """A canary is promoted, then rolled back; a second press on an outdated page does not go back further."""
    async with opens(**TRIED) as desk:
        await trained(desk, ModelState.CANARY)
        await desk.post("/models/run-1/promote")
        assert await live(desk) == "run-1"
        page = await desk.get(MODELS)
        assert "run-1 now answers everyone." in page
        assert "↩ Back to base: this model, which was live before, answers everyone again." in page
        assert labels(page, "base") == ["↩ Back to base"] and labels(page, "run-1") == []
        await desk.post("/models/rollback", live="run-1")
        assert await live(desk) == "base"
        stale = await desk.post("/models/rollback", live="run-1", status=409)
        assert "A different model is live now." in stale
        (newest, *_) = await desk.ledger.promotions.latest(1)
        assert newest.back and newest.by is None and await live(desk) == "base"


@pytest.mark.parametrize(("cue", "state"), [("worse", ModelState.REJECTED), ("few", ModelState.UNDECIDED)])
async def test_a_verdict_is_overruled_with_a_second_press(opens: Opens, cue: str, state: ModelState) -> None:
    """A rejected or undecided model goes live only once confirmed, and only beside the live model that was shown."""
    async with opens() as desk:
        await trained(desk, state, cue)
        assert labels(await desk.get(MODELS), "run-1") == ["Switch to run-1", "Delete…"]
        asked = await desk.post("/models/run-1/promote", live="base", status=409)
        assert "didn&#39;t go live: " in asked and "Use it anyway" in asked
        assert await live(desk) == "base"
        await desk.post("/models/run-1/promote", live="run-9", confirmed="1", status=409)
        await desk.post("/models/run-1/promote", live="base", confirmed="1")
        assert await live(desk) == "run-1"


async def test_harm_is_not_overruled(opens: Opens) -> None:
    """A model that failed the harm checks has no button, and a forged form is refused with the reason."""
    async with opens() as desk:
        await trained(desk, ModelState.REJECTED, "harmful")
        assert labels(await desk.get(MODELS), "run-1") == ["Delete…"]
        refused = await desk.post("/models/run-1/promote", live="base", confirmed="1", status=409)
        assert "run-1 failed the harm checks and will never answer anyone" in refused
        assert "Use it anyway" not in refused


async def test_a_candidate_is_approved(opens: Opens) -> None:
    """With `training.approve` a candidate has a button that puts it into service."""
    async with opens(training={"canary": 0.5, "approve": True}) as desk:
        await trained(desk, ModelState.CANDIDATE)
        page = await desk.get(MODELS)
        assert "candidate, waiting for approval" in page
        assert "candidate, waiting for approval" in await desk.get("/")
        assert labels(page, "run-1") == ["✔ Approve", "Switch to run-1", "Delete…"]
        canary, approve, *others = re.findall(r"<li>([^<]*)</li>", page)
        assert canary.startswith("A canary is a new model that first answers in a share of the conversations")
        assert approve == "✔ Approve: the model becomes a canary."
        assert [each.partition(":")[0] for each in others] == ["Switch", "Delete"]
        await desk.post("/models/run-1/approve")
        assert "run-1 was approved and is a canary now." in await desk.get(MODELS)
        assert (await desk.ledger.models.get("run-1")).state is ModelState.CANARY
        refused = await desk.post("/models/run-1/approve", status=409)
        assert "isn&#39;t waiting for approval: it has already been approved and is now a canary." in refused


async def test_an_open_page_learns_of_changes(opens: Opens) -> None:
    """The stream of an open page sends one event when a model changes, and ends."""
    async with opens(**TRIED) as desk:
        await trained(desk, ModelState.CANARY)
        assert 'new EventSource("/models/events")' in await desk.get(MODELS)
        async with desk.session.get("/models/events") as stream:
            assert (stream.status, stream.content_type) == (200, "text/event-stream")
            assert await stream.content.readuntil(b"\n\n") == b":\n\n"
            await desk.post("/models/run-1/stop")
            rest = await stream.content.read()
        assert rest.replace(b":\n\n", b"") == b"data: changed\n\n"


async def test_without_canaries_an_approved_model_goes_live_at_once(opens: Opens) -> None:
    """What Approve does is said for the settings in force."""
    async with opens(training={"canary": 0, "approve": True}) as desk:
        await trained(desk, ModelState.CANDIDATE)
        page = await desk.get(MODELS)
        assert "✔ Approve: the model goes live at once and answers everyone." in page and "A canary is" not in page
        assert labels(page, "run-1") == ["✔ Approve", "Delete…"], "a switch would be the same"
        run = await desk.get("/runs/1")
        assert "run-1: candidate, waiting for approval." in run and 'action="/models/run-1/approve"' in run
        await desk.post("/models/run-1/approve", page="/runs/1")
        assert await live(desk) == "run-1"
        run = await desk.get("/runs/1")
        assert "waiting for approval" not in run and "/approve" not in run


async def test_the_admins_hear_of_changes_on_the_page(opens: Opens) -> None:
    """What is done on the page is reported in the chat; messages with outdated buttons say it instead."""
    async with opens(training={"canary": 0.5, "approve": True}, web={"port": 0, "token": "a-password"}) as desk:
        desk.session.headers["Authorization"] = encode_basic_auth("Olga", "a-password")
        admin = await desk.bot.person(ADMIN, "Ada", "zh")
        await admin.command("/model")
        await desk.bot.says(ADMIN)
        await trained(desk, ModelState.CANDIDATE)
        offer = await desk.bot.says(ADMIN, lambda said: button(said, "✔ 批准") is not None)
        await desk.post("/models/run-1/approve")
        told = await desk.bot.says(ADMIN, lambda said: words(said).startswith("Olga 在模型页面上作了更改："))
        assert words(told).endswith("run-1 已获批准，正在试用。")
        assert "试用中，由 Olga 决定</small>" in await desk.get(f"{MODELS}?language=zh")
        approved = await desk.bot.edited(ADMIN, offer, "\nrun-1 已获批准，正在试用。由 Olga 决定。")
        assert "reply_markup" not in approved and "等待" not in words(approved)
        assert button(told, "✖ 停止") is not None
        await desk.post("/models/run-1/stop")
        await desk.bot.says(ADMIN, lambda said: "run-1 的试用已停止" in words(said), after=told["message_id"])
        stopped = await desk.bot.edited(ADMIN, told, "\nrun-1 未能上线。管理员停止了试用。由 Olga 决定。")
        assert words(stopped).startswith(words(told)) and "reply_markup" not in stopped


async def test_a_model_is_deleted_after_confirmation(opens: Opens) -> None:
    """The page of a deletion says how much it frees; only its button deletes, and never a model in use."""
    async with opens() as desk:
        await trained(desk, ModelState.REJECTED, "worse")
        adapter = desk.bot.data / "runs" / "1" / ADAPTER
        page = await desk.get("/models/run-1/delete")
        assert "Permanently delete run-1?" in page and "0.0 MB" in page
        await desk.post("/models/run-1/delete", csrf="forged", status=403)
        assert adapter.is_dir()
        await desk.post("/models/run-1/delete", page="/models/run-1/delete")
        page = await desk.get(MODELS)
        assert "run-1 was deleted." in page and "Deleted models" in page and '<tr id="run-1">' in page
        assert not adapter.exists() and not (desk.bot.data / "models" / "run-1").exists()
        assert "Training starts from base" in await desk.get("/models/base/delete", status=409)
        refused = await desk.post("/models/run-1/promote", live="base", confirmed="1", status=409)
        assert "The files of run-1 were deleted." in refused
        await desk.get("/models/run-9/delete", status=404)
        assert "no model run-9" in await desk.post("/models/run-9/promote", status=409)


async def test_a_slow_change_goes_on_in_the_background(opens: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    """While an engine warms up, the page says so and reloads itself, and no other change begins.

    If the bot stops meanwhile, the former live model stays.
    """
    async with opens() as desk:
        monkeypatch.setattr("bot.web.model_changes.PATIENCE", 0.05)
        await trained(desk, ModelState.LIVE)
        (desk.bot.base / "cue.json").write_text(json.dumps({"start": "deaf"}))
        assert await desk.post("/models/rollback", live="run-1") == MODELS
        page = await desk.get(MODELS)
        assert "Warming up the previous model…" in page and 'http-equiv="refresh"' in page
        other = await desk.post("/models/run-1/delete", page="/review", status=409)
        assert "Warming up the previous model…" in other
        assert "Warming up the previous model…" in await desk.get(MODELS)
        folder = desk.bot
    async with folder.ledger() as ledger:
        found = await ledger.models.live()
        assert found is not None and found.id == "run-1"


async def test_an_approval_in_the_chat_is_shown_on_the_page(opens: Opens) -> None:
    """While a model that was approved in the chat warms up, the page says so, and its buttons are disabled."""
    async with opens(training={"canary": 0.5, "approve": True}) as desk:
        admin = await desk.bot.person(ADMIN, "Ada", "en")
        await admin.command("/model")
        await desk.bot.says(ADMIN)
        await trained(desk, ModelState.CANDIDATE, "slow")
        offer = await desk.bot.says(ADMIN, lambda said: button(said, "✔ Approve") is not None)
        await admin.taps("✔ Approve", offer)
        async with asyncio.timeout(30):
            while "Warming up run-1…" not in (page := await desk.get(MODELS)):
                await asyncio.sleep(0.02)
        card = page[page.index('<article class="model" id="run-1">') :].partition("</article>")[0]
        assert "warming up</small>" in card and "waiting for approval" not in card
        assert card.count("<button") == card.count(" disabled>") == 3 and "/delete" not in card
        assert 'http-equiv="refresh"' in page


async def test_erased_answers_are_mentioned(opens: Opens) -> None:
    """The pages of a model and of its run say how many of the run's answers have been erased since."""
    async with opens() as desk:
        await trained(desk, ModelState.LIVE)
        run = await desk.ledger.runs.get(1)
        for path in (MODELS, "/runs/1"):
            assert "erased or withdrawn" not in await desk.get(path)
        await desk.ledger.personal_data.erase(ADA)
        gone = run.samples + run.held_out - len(await desk.ledger.run_selections.of(1))
        assert gone > 1
        assert f"{gone} answers that its run used have been erased or withdrawn since." in await desk.get(MODELS)
        page = await desk.get("/runs/1")
        assert f"{gone} answers that this run used have been erased or withdrawn since." in page
        assert "Learned from 4 liked answers" in page


async def test_the_page_of_models_is_private(opens: Opens) -> None:
    """Nothing about models is shown or changed without the password."""
    async with opens(web={"port": 0, "token": "a-password"}) as desk:
        for path in (MODELS, "/models/base/delete"):
            await desk.get(path, status=401)
        for path in ("base/approve", "base/promote", "base/stop", "base/delete", "rollback"):
            async with desk.session.post(f"{MODELS}/{path}", data={}, allow_redirects=False) as answer:
                assert answer.status == 401
