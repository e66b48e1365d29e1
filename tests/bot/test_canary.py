"""The life of a canary: approval, promotion, rollback, a stop by an admin, and a bot killed midway."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from bot.admin.canary_trial import fault_of_canary, fault_of_live
from bot.chat.conversation import INVITED
from bot.telegram.keyboards import AGAIN
from inference.engines.commands import Kind
from inference.serving.deployment_status import CanaryStatus, Counters, Status
from inference.serving.engine_launch import free_port
from inference.serving.engine_stats import Tally
from inference.serving.supervisor import State
from storage.errors import IllegalTransition
from storage.learning_records import BASE, Trial
from storage.ledger import FILE_NAME
from storage.state_machines import ModelState, Verdict
from tests.support.bot_process import BotProcess
from tests.support.children import until
from tests.support.person import DOWN, UP, Message, Person, button
from tests.support.whole_bot import ADMIN, WholeBot, picture, whole_bot, words

COMPARE = "Compare two answers"
TRIED = {"training": {"canary": 0.5}}


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WholeBot]:
    """Provide a bot that is not running yet, with an empty data folder and a Telegram emulator."""
    async with whole_bot(tmp_path, monkeypatch) as made:
        yield made


async def taught(place: WholeBot) -> Person:
    """As an admin, like enough answers for a training run, and return the admin."""
    admin = await place.person(ADMIN, "Ada", "en")
    for seed in range(4):
        await admin.toast(await admin.taps(UP, await admin.asks(photo=picture(seed))))
    return admin


async def tried(place: WholeBot) -> tuple[Person, Message]:
    """Train a model that becomes a canary, and return the admin and the message announcing the canary."""
    admin = await taught(place)
    await admin.command("/retrain")
    return admin, await place.says(ADMIN, lambda said: ": canary." in words(said))


def speaker(answer: Message) -> str:
    """Return the name of the model that gave `answer`, read from the answer's text."""
    return words(answer).split("/")[0]


async def vote(place: WholeBot, person: Person, liked: str, seeds: Any) -> Trial:
    """Ask about pictures made from `seeds`, liking only answers from `liked`, until the trial ends; return it."""
    async with place.ledger() as ledger:
        for seed in seeds:
            answer = await person.asks(photo=picture(seed))
            await person.toast(await person.taps(UP if speaker(answer) == liked else DOWN, answer))
            trial = await ledger.canaries.latest("run-1")
            assert trial is not None
            if trial.ended:
                return trial
    raise AssertionError("the votes decide nothing")


async def answering(person: Person, seeds: range) -> list[str]:
    """Ask about a picture made from each of `seeds` and return which models answered."""
    return [speaker(await person.asks(photo=picture(seed))) for seed in seeds]


async def state(place: WholeBot, model: str) -> ModelState:
    async with place.ledger() as ledger:
        return (await ledger.models.get(model)).state


async def test_a_canary_that_people_dislike_is_rolled_back(place: WholeBot) -> None:
    """A disliked canary is rolled back with a reason.

    Until then, it answers some of the conversations, its results are shown, and no other run can start.
    """
    async with place.running(**TRIED) as application:
        admin, _ = await tried(place)
        assert set(await answering(admin, range(100, 116))) == {BASE, "run-1"}
        await admin.command("/status")
        status = await place.says(ADMIN, lambda said: "run-1 is a canary: it answers in 50 %" in words(said))
        assert "Too few votes to tell. Evidence comes only from people who rate" in words(status)
        await admin.command("/models")
        listed = await place.says(ADMIN, lambda said: "▷ run-1: canary" in words(said))
        assert button(listed, "✖ Stop")
        await admin.toast(await admin.taps(UP, await admin.asks(photo=picture(150))))
        await admin.command("/retrain")
        await place.says(ADMIN, lambda said: "run-1 is still a canary" in words(said))
        async with aiohttp.ClientSession(application.address) as session:
            metrics = await (await session.get("/metrics")).text()
            assert "thumbtune_canary_share 0.5" in metrics
            assert "run-1 is a canary" in await (await session.get("/")).text()
        trial = await vote(place, admin, BASE, count(200))
        assert (trial.verdict, trial.live, trial.run) == (Verdict.ROLLED_BACK, BASE, 1)
        told = await place.says(ADMIN, lambda said: "The canary run-1 was rolled back; base answers" in words(said))
        assert "liked less often. Approval since the trial began: 0 % of " in words(told)
        assert set(await answering(admin, range(300, 308))) == {BASE}
    async with place.ledger() as ledger:
        model = await ledger.models.get("run-1")
        assert (model.state, model.reason) == (ModelState.REJECTED, trial.reason)
        for exchange in [await ledger.exchanges.get(number) for number in range(1, 30)]:
            assert exchange.model == exchange.answer.split("/")[0], "recorded is who answered"


async def test_another_answer_is_one_of_each_model(place: WholeBot) -> None:
    """🔄 shows an answer from each model without naming the models.

    The answer chosen as better gets a like, and the conversation continues with it.
    """
    async with place.running(**TRIED):
        admin, _ = await tried(place)
        await admin.taps(AGAIN, await admin.asks(photo=picture(100)))
        shown = await place.says(ADMIN, lambda said: "Which is better?" in words(said))
        first, second = (part.removeprefix("1️⃣").split("/")[0].strip() for part in words(shown).split("2️⃣"))
        assert {first, second} == {BASE, "run-1"}
        assert button(shown, "The same") and not button(shown, UP)
        await admin.toast(await admin.taps("2️⃣", shown))
        marked = await place.says(ADMIN, lambda said: bool(button(said, f"{UP} ✓")) and "2️⃣" in words(said))
        assert button(marked, AGAIN)
        async with place.ledger() as ledger:
            newest = await ledger.exchanges.for_message(ADMIN, shown["message_id"])
            assert newest is not None and newest.model == second
            assert await ledger.exchanges.newest_at(newest.position) == newest.id
            assert await ledger.votes.latest(newest.id, ADMIN) == 1
            trial = await ledger.canaries.running()
            assert trial is not None
            assert await ledger.duels.won(trial) == [second == "run-1"]
        await admin.command("/status")
        won = int(second == "run-1")
        await place.says(ADMIN, lambda said: f"It won {won} of 1 comparisons." in words(said))
        await admin.command("/stats")
        chart = await place.says(ADMIN, lambda said: "photo" in said)
        assert (chart["photo"][-1]["width"], chart["photo"][-1]["height"]) == (960, 1200)
        assert f"It won {won} of 1 comparisons." in chart["caption"]


async def test_a_canary_that_people_like_is_promoted(place: WholeBot) -> None:
    """A canary that gets enough likes becomes the live model and answers all conversations."""
    async with place.running(**TRIED):
        admin, _ = await tried(place)
        trial = await vote(place, admin, "run-1", count(200))
        assert trial.verdict is Verdict.PROMOTED
        await place.says(ADMIN, lambda said: "The canary run-1 is live now." in words(said))
        assert set(await answering(admin, range(300, 308))) == {"run-1"}
        async with place.ledger() as ledger:
            newest = await ledger.promotions.newest()
            assert newest is not None
            assert (newest.model, newest.previous, newest.by) == ("run-1", BASE, None)


@pytest.mark.parametrize("pressed", ["✖ Stop", "✔ Promote"])
async def test_an_admin_ends_a_trial(place: WholeBot, pressed: str) -> None:
    """The buttons on the end-of-run message stop or promote the canary at once.

    The buttons then disappear.
    """
    promoted = pressed == "✔ Promote"
    async with place.running(**TRIED):
        admin, message = await tried(place)
        await admin.command("/rollback")
        await place.says(ADMIN, lambda found: "run-1 is only on trial. ✖ Stop, under the message" in words(found))
        await admin.taps(pressed, message)
        stopped = "run-1 was stopped; the live model answers everyone again."
        said = "run-1 now answers everyone." if promoted else stopped
        await place.says(ADMIN, lambda found: words(found) == said)
        assert set(await answering(admin, range(100, 108))) == {"run-1" if promoted else BASE}
        assert await state(place, "run-1") is (ModelState.LIVE if promoted else ModelState.REJECTED)
        await place.loses_buttons(ADMIN, message)


@pytest.mark.parametrize("share", [0.5, 0])
async def test_a_candidate_waits_for_approval(place: WholeBot, share: float) -> None:
    """With `training.approve`, a candidate answers no one until an admin presses the button to approve it.

    The button then disappears, as do those of the canary once its trial is over.
    """
    async with place.running(training={"canary": share, "approve": True}):
        admin = await taught(place)
        await admin.command("/retrain")
        outcome = "becomes a canary" if share else "goes live at once"
        message = await place.says(ADMIN, lambda said: f"Once approved, it {outcome}" in words(said))
        assert set(await answering(admin, range(100, 106))) == {BASE}
        assert await state(place, "run-1") is ModelState.CANDIDATE
        await until(lambda: not any("run-1" in each.cmdline() for each in psutil.Process().children(recursive=True)))
        await admin.command("/models")
        listed = await place.says(ADMIN, lambda said: button(said, "✔ Approve run-1") is not None)
        assert "run-1: candidate, waiting for approval, " in words(listed)
        assert button(listed, "Switch to run-1") is None
        await admin.taps("✔ Approve", message)
        said = "run-1 is a canary: it answers in 50 %" if share else "run-1 now answers everyone."
        reply = await place.says(ADMIN, lambda found: said in words(found))
        assert await state(place, "run-1") is (ModelState.CANARY if share else ModelState.LIVE)
        now = "is a canary now" if share else "now answers everyone"
        told = await place.edited(ADMIN, message, f"\nrun-1 was approved and {now}. Decided by Ada.")
        assert words(told).startswith("Run 1 is done.") and "waiting" not in words(told) and "reply_markup" not in told
        if share:
            assert button(reply, "✖ Stop")
            await admin.command("/promote run-1")
            told = await place.edited(ADMIN, reply, "\nrun-1 now answers everyone. Decided by Ada.")
            assert words(told).startswith(said) and "reply_markup" not in told


@pytest.mark.parametrize("pressed", ["✔ Approve", "✖ Stop"])
async def test_outdated_buttons_disappear(place: WholeBot, pressed: str) -> None:
    """Buttons about a model disappear once its state has changed, across restarts, and the message says what happened.

    A tap on an outdated button in a message that the bot does not remember says what happened to the model.
    """
    sections: dict[str, Any] = {"training": {"canary": 0.5, "approve": pressed == "✔ Approve"}}
    sections["telegram"] = {"admins": [ADMIN, 8]}
    other = await place.person(8, "Bob", "en")
    async with place.running(**sections):
        admin = await taught(place)
        await admin.command("/retrain")
        forgotten = await place.says(ADMIN, lambda said: button(said, pressed) is not None)
        remembered = await place.says(other.id, lambda said: button(said, pressed) is not None)
        async with place.ledger() as ledger, asyncio.timeout(30):
            while not await ledger.runs.is_settled(1):
                await asyncio.sleep(0.02)
            await ledger.model_buttons.remove(ADMIN, forgotten["message_id"])
    async with place.running(**sections):
        await other.command("/promote run-1")
        news = await place.says(ADMIN, lambda found: words(found).startswith("Changed in the chat by Bob: "))
        assert words(news).endswith("run-1 now answers everyone.")
        now = "was approved and now" if pressed == "✔ Approve" else "now"
        told = await place.edited(other.id, remembered, f"\nrun-1 {now} answers everyone. Decided by Bob.")
        assert "reply_markup" not in told and "It is waiting" not in words(told) and "It answers in" not in words(told)
        await admin.taps(pressed, forgotten)
        was = "waiting for approval" if pressed == "✔ Approve" else "a canary right now"
        await place.says(ADMIN, lambda found: f"run-1 isn't {was}: it is live now." in words(found))
        await place.loses_buttons(ADMIN, forgotten)
    async with place.ledger() as ledger:
        assert await ledger.model_buttons.outdated() == []


async def test_erased_votes_leave_the_evidence(place: WholeBot) -> None:
    """The votes of users who opt out or whose data is erased do not count in a trial.

    If a user opts in again, their votes count again.
    """
    async with place.running(**TRIED) as _, place.ledger() as ledger:
        await tried(place)
        voters = [await place.person(number, f"Voter {number}", "en") for number in (51, 52)]
        for person in voters:
            for seed in range(2):
                answer = await person.asks(photo=picture(1000 * person.id + seed))
                await person.toast(await person.taps(UP, answer))
        trial = await ledger.canaries.running()
        assert trial is not None
        assert [each.rater for each in await ledger.canaries.votes(trial)] == [51, 51, 52, 52]
        await ledger.people.set_opted_out(51, True)
        assert [each.rater for each in await ledger.canaries.votes(trial)] == [52, 52]
        await ledger.people.set_opted_out(51, False)
        await ledger.personal_data.erase(52)
        assert [each.rater for each in await ledger.canaries.votes(trial)] == [51, 51]


async def test_some_answers_invite_a_comparison(place: WholeBot) -> None:
    """During a trial, one in every few answers has a button that offers a duel; a tap on it starts the duel."""
    async with place.running(**TRIED):
        admin = await taught(place)
        before = [await admin.asks(photo=picture(seed)) for seed in range(100, 100 + INVITED)]
        assert not any(button(each, COMPARE) for each in before)
        await admin.command("/retrain")
        await place.says(ADMIN, lambda said: ": canary." in words(said))
        asked = [await admin.asks(photo=picture(seed)) for seed in range(200, 200 + INVITED)]
        inviting = [each for each in asked if button(each, COMPARE)]
        assert len(inviting) == 1
        await admin.taps(COMPARE, inviting[0])
        await place.says(ADMIN, lambda said: "Which is better?" in words(said))


async def test_a_canary_survives_kill_9(place: WholeBot) -> None:
    """After `kill -9`, the bot restarts both engines and routes conversations as before.

    The buttons of the trial and any open duel still work.
    """
    port = free_port()
    bot = BotProcess(place.config(**TRIED, web={"port": port}), f"http://127.0.0.1:{port}")
    await bot.start()
    try:
        admin, message = await tried(place)
        seeds = range(100, 108)
        before = await answering(admin, seeds)
        await admin.taps(AGAIN, await admin.asks(photo=picture(150)))
        duel = await place.says(ADMIN, lambda said: "Which is better?" in words(said))
        await bot.kill()
        await bot.start()

        async def same() -> bool:
            return await answering(admin, seeds) == before

        async with asyncio.timeout(60):
            while not await same():
                await asyncio.sleep(0.1)
        assert set(before) == {BASE, "run-1"}
        await admin.toast(await admin.taps("2️⃣", duel))
        async with place.ledger() as ledger:
            trial = await ledger.canaries.running()
            assert trial is not None
            assert len(await ledger.duels.won(trial)) == 1
        await admin.taps("✖ Stop", message)
        await place.says(ADMIN, lambda found: words(found).startswith("run-1 was stopped"))
    finally:
        await bot.stop()


async def test_a_trial_that_cannot_go_on(place: WholeBot) -> None:
    """A canary becomes a candidate again if the bot restarts with room for only one engine.

    It does not go live by itself, not even if the bot was killed before the end of its run was settled.
    """
    async with place.running(**TRIED):
        await tried(place)
    with closing(sqlite3.connect(place.data / FILE_NAME)) as database, database:
        database.execute("UPDATE runs SET settled = 0")
    async with place.running(**TRIED, inference={"swap": "cold"}):
        assert await state(place, "run-1") is ModelState.CANDIDATE
        admin = await place.person(ADMIN, "Ada", "en")
        assert set(await answering(admin, range(100, 106))) == {BASE}
        await admin.toast(await admin.taps(UP, await admin.asks(photo=picture(150))))
        await admin.command("/retrain")
        await place.says(ADMIN, lambda said: "run-2 went live at once: a canary needs two engines" in words(said))
        await until(lambda: len(place.engines()) > 0)
        assert set(await answering(admin, range(110, 114))) == {"run-2"}


@pytest.mark.parametrize("cue", ["worse", "silent"])
async def test_a_failed_candidate_answers_no_one(place: WholeBot, cue: str) -> None:
    """A candidate is not tried as a canary if the evaluation rejects it or its engine does not start."""
    async with place.running(**TRIED):
        admin = await taught(place)
        place.cue(cue)
        await admin.command("/retrain")
        await place.says(ADMIN, lambda said: "Model run-1: " in words(said))
        assert set(await answering(admin, range(100, 112))) == {BASE}
        assert await state(place, "run-1") is (ModelState.REJECTED if cue == "worse" else ModelState.CANDIDATE)
        async with place.ledger() as ledger:
            assert await ledger.canaries.latest("run-1") is None


async def test_a_model_that_does_harm_answers_no_one(place: WholeBot) -> None:
    """A model that fails the harm checks is never promoted, not even by an admin.

    A model left undecided by too few votes can be promoted once an admin confirms.
    """
    async with place.running(**TRIED):
        admin = await taught(place)
        place.cue("harmful")
        await admin.command("/retrain")
        await place.says(ADMIN, lambda said: "Model run-1: rejected" in words(said))
        await admin.command("/promote run-1")
        refused = await place.says(ADMIN, lambda said: "run-1 failed the harm checks" in words(said))
        assert "will never answer anyone: 40 of its answers are empty" in words(refused)
        place.cue("few")
        await admin.toast(await admin.taps(UP, await admin.asks(photo=picture(50))))
        await admin.command("/retrain")
        told = await place.says(ADMIN, lambda said: "Model run-2: undecided" in words(said))
        assert "12 rated answers are too few to tell" in words(told)
        assert "/promote run-2 switches to the new one anyway." in words(told)
        assert set(await answering(admin, range(100, 104))) == {BASE}
        await admin.command("/promote run-2")
        asked = await place.says(ADMIN, lambda said: "run-2 didn't go live: 12 rated answers" in words(said))
        await admin.taps("Switch to run-2", asked)
        await place.says(ADMIN, lambda said: words(said) == "run-2 now answers everyone.")
        assert await state(place, "run-2") is ModelState.LIVE


async def test_a_canary_whose_engine_fails_is_rolled_back(place: WholeBot) -> None:
    """A canary whose engine keeps failing is rolled back.

    The live model answers the interrupted questions and all later ones.
    """
    async with place.running(**TRIED, inference={"restart_limit": 1}):
        admin = await taught(place)
        place.cue("frail")
        await admin.command("/retrain")
        await place.says(ADMIN, lambda said: ": canary." in words(said))
        async with place.ledger() as ledger:
            for seed in count(100):
                await admin.asks(photo=picture(seed), caption="die:1! words:3")
                if await ledger.canaries.running() is None:
                    break
        told = await place.says(ADMIN, lambda said: "The canary run-1 was rolled back; base answers" in words(said))
        assert "Its engine keeps failing: " in words(told)
        assert set(await answering(admin, range(500, 504))) == {BASE}


async def test_a_promoted_model_whose_engine_fails_is_rolled_back(place: WholeBot) -> None:
    """A promoted model whose engine keeps failing is replaced by the previous live model.

    The admins learn the reason, and a later rollback does not return to the failed model.
    """
    async with place.running(inference={"restart_limit": 1}) as application:
        admin = await taught(place)
        place.cue("frail")
        await admin.command("/retrain")
        await place.says(ADMIN, lambda said: "Model run-1: live" in words(said))
        await admin.sends(photo=picture(50), caption="die:1!")
        told = await place.says(ADMIN, lambda said: "run-1 was rolled back; base is live again." in words(said))
        assert "Its engine keeps failing: " in words(told)
        assert await answering(admin, range(100, 102)) == [BASE, BASE]
        async with place.ledger() as ledger:
            model = await ledger.models.get("run-1")
            assert model.state is ModelState.REJECTED
            assert model.reason.startswith("Its engine keeps failing")
            assert await ledger.models.previous() is None
        assert application.address


def status_with(tallies: dict[str, Tally], **values: Any) -> Status:
    return Status(
        Kind.CPU, "new", State.READY, False, 1, (1,), 0, 0, 0, 0, None, "", Counters(), tallies=tallies, **values
    )


@pytest.mark.parametrize(
    ("new", "old", "broken"),
    [
        (Tally(20, 10), Tally(20, 2), True),
        (Tally(19, 19), Tally(20, 0), False),
        (Tally(20, 9), Tally(20, 0), False),
        (Tally(20, 10), Tally(20, 3), False),
        (Tally(20, 20), Tally(0, 0), False),
    ],
)
def test_broken_answers_are_clear_evidence_only(new: Tally, old: Tally, broken: bool) -> None:
    """A model is at fault if at least half its answers are broken but at most a tenth of the other model's are.

    Both models need at least 20 answers.
    """
    status = status_with({"new": new, "old": old})
    trial = Trial(1, "new", "old", 1, 0.5, 0.0, 0)
    assert (fault_of_live(status, "old") is not None) is broken
    assert (fault_of_canary(status, trial) is not None) is broken


def test_an_engine_that_keeps_crashing_is_clear_evidence() -> None:
    """Five engine crashes are clear evidence against a canary; four are not."""
    trial = Trial(1, "new", "old", 1, 0.5, 0.0, 0)
    for crashes in (4, 5):
        status = status_with({}, canary=CanaryStatus("new", 0.5, State.READY, crashes, "out of memory\nlines"))
        fault = fault_of_canary(status, trial)
        assert (fault == "Its engine keeps failing: out of memory") is (crashes == 5)


async def test_states_of_a_trial_are_checked(place: WholeBot) -> None:
    """Only one trial runs at a time, it ends only once, and the model on trial cannot be pruned."""
    async with place.running(**TRIED):
        await tried(place)
    async with place.ledger() as ledger:
        with pytest.raises(IllegalTransition, match="The trial of run-1 is still running"):
            await ledger.canaries.start("run-1", 0.5)
        trial = await ledger.canaries.running()
        assert trial is not None
        with pytest.raises(IllegalTransition):
            await ledger.canaries.end(trial.id, Verdict.PROMOTED, "")
        with pytest.raises(IllegalTransition, match="about to be"):
            await ledger.models.prune("run-1")
        await ledger.canaries.end(trial.id, Verdict.ROLLED_BACK, "worse")
        with pytest.raises(IllegalTransition):
            await ledger.canaries.end(trial.id, Verdict.ROLLED_BACK, "worse")


async def test_a_trial_ends_at_its_horizon(place: WholeBot, monkeypatch: pytest.MonkeyPatch) -> None:
    """A canary without enough votes by the end of its trial is promoted.

    The message to the admins says how large a drop the votes could have revealed.
    """
    async with place.running(**TRIED):
        await tried(place)
        monkeypatch.setattr("bot.admin.canary_trial.HORIZON_DAYS", 0.0)
        told = await place.says(ADMIN, lambda said: "The canary run-1 is live now. No harm was detected" in words(said))
        assert "a drop of 100 points or more" in words(told)
        assert await state(place, "run-1") is ModelState.LIVE
