"""Admin commands and their outcomes, notifications about runs, and refusals to users who are not admins."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bot.admin.progress import BAR, progress_details, run_progress
from bot.admin.refusals import AdminRefusal
from bot.cli.terminal import progress_text
from bot.handlers import privacy
from bot.handlers.menu import ADMINS
from bot.i18n import Translator
from bot.updates.ordering import QUICK_COMMANDS
from storage.errors import IllegalTransition, RunBusy, UnknownRecord
from storage.learning_records import Actor, Model, Rating, Run
from storage.ledger import Ledger
from storage.state_machines import ModelState, RunState
from tests.support.chatting import ADMIN, Notebook, Stage, final_reply, png, shows, until
from tests.support.ledgers import exchange
from tests.support.person import Person
from training.gate.report import Decision, Effort, Report, Taste
from training.job import RATED, Progress, ignore

REJECTED = "Run 3 is done. Model run-3: rejected.\nWorse on facts.\nThe bot keeps its model."
RUN = Run(
    3,
    RunState.TRAINING,
    "admin",
    ADMIN,
    1.0,
    1.0,
    step=5,
    steps=20,
    loss=1.234,
    seconds_left=125.4,
    samples=40,
    held_out=4,
)


async def words(person: Person, command: str) -> str:
    """Send `command` as `person` and return the text of the bot's final reply."""
    return str((await final_reply(person, command))["text"])


def test_the_quick_commands() -> None:
    """Commands that do not belong to a conversation are handled in lanes of their own."""
    assert {*ADMINS, *privacy.COMMANDS, "model", "help"} == QUICK_COMMANDS.keys()


async def test_others_are_refused_politely(stage: Stage) -> None:
    """Admin commands from other users are refused and do nothing."""
    admin = Notebook()
    async with stage.bot(admin=admin), stage.person() as ada:
        for command in ADMINS:
            assert "Only admins" in await words(ada, f"/{command} base")
        assert admin.asked == []


async def test_admins_get_what_they_ask_for(stage: Stage) -> None:
    """Each admin command is carried out on its sender's behalf, and the reply shows the outcome."""
    changed = {"chat.system_prompt": "x" * 100, "limits.blocked": [5, -6]}
    admin = Notebook(runs=[RUN], next_run=datetime(2027, 1, 2, 3, 4, tzinfo=UTC), changed=changed)
    async with stage.bot(admin=admin) as bot, stage.person(ADMIN, "Root") as root:
        for model in (
            Model("base", "/m/base", ModelState.RETIRED, None, 1.0),
            Model("run-0", "", ModelState.RETIRED, None, 1.5),
            Model("run-1", "/m/1", ModelState.REJECTED, None, 2.0, reason="worse on facts"),
            Model("run-2", "/m/2", ModelState.LIVE, None, 3.0),
        ):
            await bot.ledger.models.add(model)
        for number, value in enumerate((1, 1, -1), 1):
            session = await bot.ledger.sessions.open(7, 7)
            said = exchange(session, -number, chat=7, asker=7, model="run-2")
            await bot.ledger.votes.cast(Rating((await bot.ledger.exchanges.record(said)).id, 7, value, -number))
        assert "Run 3 is starting" in await words(root, "/retrain")
        assert "Run 3 is being cancelled" in await words(root, "/cancel")
        status = await words(root, "/status")
        for part in (
            "run-2",
            "Live model: run-2",
            "Answers: 12; liked: 5; disliked: 2",
            "questions waiting: 2",
            "Run 3: training\nAnswers to learn from: 40",
            "▓▓▓▓▓░",
            " 25 % (5 of 20 training steps)\nTime left in this stage: 2:05\n",
            "Average loss over the last tenth of the steps: 1.234",
            "2027-01-02 03:04 UTC",
            f'chat.system_prompt = "{"x" * 58}…, limits.blocked = [5, -6]\n',
        ):
            assert part in status
        seen = "First word after 0.05 s (99 % of answers: within 1.50 s); 40 % of the prompt tokens cached\n"
        assert f"restarts: 0\n{seen}" in status
        assert f"http://a:1: ready, run-2; answers in progress: 1, chats: 4\n  {seen}" in status
        assert (
            "http://b:1: not taking questions now, run-1; answers in progress: 0, chats: 0\n  gone for good\n" in status
        )
        assert "old story" not in status
        models = await words(root, "/models")
        assert "▶ run-2: live, 1970-01-01, 67 % 👍 (21–94 %, 3 votes)" in models
        assert "run-1: rejected, 1970-01-01 (worse on facts)" in models
        assert "run-0: removed" in models
        assert await words(root, "/promote run-1") == "run-1 now answers everyone."
        assert "/models" in await words(root, "/Promote")
        assert await words(root, "/rollback") == "base now answers everyone."
    assert admin.asked == [
        ("retrain", ADMIN),
        ("cancel", ADMIN),
        ("overview",),
        ("promote", "run-1", ADMIN),
        ("rollback", ADMIN),
    ]


@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        (RunBusy("busy"), "already in progress"),
        (AdminRefusal("install the trainer first"), "install the trainer first"),
        (IllegalTransition("not now"), "not now"),
    ],
)
async def test_a_refusal_is_shown(stage: Stage, refusal: Exception, says: str) -> None:
    """A refused admin command is answered with the reason."""
    async with stage.bot(admin=Notebook(refusal=refusal)), stage.person(ADMIN, "Root") as root:
        assert says in await words(root, "/retrain")
        for command in ("/cancel", "/status", "/promote x", "/rollback"):
            assert str(refusal) in await words(root, command)


async def test_an_unknown_model_is_refused(stage: Stage) -> None:
    """The reply to an unknown model ID refers the admin to /models."""
    async with stage.bot(admin=Notebook(refusal=UnknownRecord("no"))), stage.person(ADMIN, "Root") as root:
        assert await words(root, "/promote run-99") == "There's no model called run-99. /models lists them."


async def test_status_does_not_wait_for_an_answer(stage: Stage) -> None:
    """/status is answered while an answer to the same admin is still streaming."""
    go_on = asyncio.Event()
    async with stage.bot([go_on, "Done."]), stage.person(ADMIN, "Root") as root:
        await root.sends(photo=png())
        asked = await root.command("/status")
        async with asyncio.timeout(20):
            while not any("run-2" in message["text"] for message in await root.bot_messages()):
                await asyncio.sleep(0.02)
        go_on.set()
        assert (await root.answer(rated=True, after=0))["text"] == "Done."
        assert asked["message_id"] < (await root.bot_messages())[-1]["message_id"]


async def test_only_training_commands_wait_for_a_change_of_model(stage: Stage) -> None:
    """Only training commands wait for a model switch; /status and /cancel are answered meanwhile.

    The switch itself shows a placeholder at once.
    """
    warm = asyncio.Event()

    class Slow(Notebook):
        async def rollback(
            self, by: Actor, on_progress: Callable[[Progress], None] = ignore, *, confirmed: bool = False
        ) -> Model:
            model = await super().rollback(by, on_progress, confirmed=confirmed)
            await warm.wait()
            return model

    admin = Slow()
    async with stage.bot(admin=admin) as bot, stage.person(ADMIN, "Root") as root:
        await root.command("/rollback")
        await shows(root, "Warming up the previous model…")
        await root.command("/promote run-1")
        assert "run-2" in await words(root, "/status")
        for command in ("/models", "/schedule", "/stats", "/model", "/privacy", "/delete_my_data", "/help"):
            assert await words(root, command)
        assert "Run 3 is being cancelled" in await words(root, "/cancel")
        assert ("promote", "run-1", ADMIN) not in admin.asked
        warm.set()
        await stage.handled(bot)
        assert "base now answers everyone." in [each["text"] for each in await root.bot_messages()]
        assert admin.asked[-1] == ("promote", "run-1", ADMIN)


async def test_a_request_that_was_carried_out_is_not_repeated(stage: Stage) -> None:
    """A command carried out just before a crash is not repeated, because the ledger shows that it was done."""
    chat = {"id": ADMIN, "type": "private", "first_name": "Root"}
    message = {"message_id": 1, "date": 1, "chat": chat, "from": {**chat, "is_bot": False}}
    rows = [
        (number, "commands:7", json.dumps({"update_id": number, "message": {**message, "text": text}}))
        for number, text in ((1, "/retrain"), (2, "/rollback"))
    ]
    async with Ledger.open(stage.directory) as ledger:
        await ledger.inbox.store(rows)
        for number, *_ in rows:
            await ledger.inbox.begin(number)
        run = await ledger.runs.start("admin", ADMIN)
        for name in ("base", "run-1"):
            await ledger.models.add(Model(name, f"/{name}", ModelState.CANDIDATE, None, 1.0))
        await ledger.promotions.make("run-1", Actor("Root", ADMIN))
    admin = Notebook()
    async with stage.person(ADMIN, "Root") as root, stage.bot(admin=admin) as bot:
        await until(lambda: stage.emulator.counts(ADMIN).sends == 2)
        await stage.handled(bot)
        texts = [each["text"] for each in await root.bot_messages()]
        assert texts == [f"Run {run.id} is starting. I'll post its progress here.", "run-1 now answers everyone."]
        assert admin.asked == []


async def test_a_runs_progress_is_one_message_with_a_bar(stage: Stage, tmp_path: Path) -> None:
    """A run's progress is a single message that is edited, followed by the outcome.

    The outcome comes with the loss curve and the sheet if they exist.
    """
    async with stage.person(ADMIN, "Root") as root, stage.bot() as bot:
        for step in (0, 10, 20):
            await bot.notices.run_changed(replace(RUN, step=step))
            await bot.notices.settled()
        await bot.notices.run_changed(replace(RUN, state=RunState.MERGING, step=20))
        await bot.notices.settled()
        (shown,) = await root.bot_messages()
        assert "Run 3: merging" in shown["text"]
        assert "▓" * BAR in shown["text"]
        model = Model("run-3", "/m", ModelState.REJECTED, 3, 1.0, reason="worse on facts")
        picture, sheet = tmp_path / "sheet.png", tmp_path / "sheet.html"
        picture.write_bytes(png())
        sheet.write_text("<h1>Before and after</h1>")
        await bot.notices.run_finished(replace(RUN, state=RunState.DONE, model="run-3"), model, picture, sheet)
        messages = await root.bot_messages()
        assert len(messages) == 3
        assert (messages[2]["document"]["file_name"], messages[2]["document"]["mime_type"]) == (
            "run-3-sheet.html",
            "text/html",
        )
        assert "photo" in messages[1]
        assert messages[1]["caption"] == REJECTED
        await bot.notices.run_finished(replace(RUN, id=4, state=RunState.FAILED, reason="disk full"), None)
        assert "disk full" in (await root.bot_messages())[-1]["text"]


async def test_each_admin_gets_the_sheet_in_their_language(stage: Stage, tmp_path: Path) -> None:
    """An admin gets the sheet in their own language, or untranslated if it is from an earlier release."""
    picture, sheet = tmp_path / "sheet.png", tmp_path / "sheet.html"
    for file in (picture, tmp_path / "sheet.zh.png"):
        file.write_bytes(png())
    sheet.write_text("<h1>Before and after</h1>")
    model = Model("run-3", "/m", ModelState.LIVE, 3, 1.0)
    async with stage.person(ADMIN, "小伟", "zh") as admin, stage.bot() as bot:
        await final_reply(admin, "/model")
        for version in ("sheet.html", "sheet.zh.html"):
            (tmp_path / version).write_text("<h1>Before and after</h1>")
            await bot.notices.run_finished(replace(RUN, state=RunState.DONE, model="run-3"), model, picture, sheet)
            assert (await admin.bot_messages())[-1]["document"]["file_name"] == f"run-3-{version}"


async def test_the_last_edit_of_a_runs_progress_is_made_once(stage: Stage) -> None:
    """When a run ends, a progress message that already shows the final state is not edited again."""
    async with stage.person(ADMIN, "Root") as root, stage.bot() as bot:
        ended = replace(RUN, state=RunState.FAILED, reason="disk full")
        for run in (RUN, ended):
            await bot.notices.run_changed(run)
            await bot.notices.settled()
        await bot.notices.run_finished(ended, None)
        assert stage.emulator.calls["editmessagetext"] == 1
        assert len(await root.bot_messages()) == 2


async def test_an_outage_does_not_delay_a_run(stage: Stage) -> None:
    """While messages to one admin fail, the run continues and the other admin gets the messages in order."""
    stage.emulator.faults.plan("flood", 1_000_000, chat=ADMIN, seconds=1)
    async with stage.person(ADMIN, "Root") as root, stage.person(8, "Other") as other:
        await root.arrives()
        async with stage.bot(telegram={"admins": (ADMIN, 8)}) as bot:
            await bot.ledger.runs.start("admin", ADMIN)
            for state in (RunState.TRAINING, RunState.MERGING, RunState.EVALUATING):
                await bot.notices.run_changed(replace(RUN, state=state))
            await bot.notices.alert("disk", "The disk is nearly full.")
            await until(lambda: stage.emulator.counts(8).sends == 2)
            first, second = await other.bot_messages()
            assert "Run 3: evaluating" in first["text"], "states in between were replaced while they waited"
            assert "nearly full" in second["text"]
            assert stage.emulator.counts(ADMIN).sends == 0
            stage.emulator.faults.clear()
            await bot.notices.settled()
            texts = [each["text"] for each in await root.bot_messages()]
            assert [("Run 3" in text, "nearly full" in text) for text in texts] == [(True, False), (False, True)]


@pytest.mark.parametrize("trouble", ["html_page", "reset_after"])
async def test_the_end_of_a_run_is_sent_if_its_picture_fails(stage: Stage, tmp_path: Path, trouble: str) -> None:
    """If sending a run's picture fails, the outcome follows as text, since the picture may not have arrived."""
    async with stage.person(ADMIN, "Root") as root, stage.bot() as bot:
        await root.arrives()
        picture = tmp_path / "sheet.png"
        picture.write_bytes(png())
        stage.emulator.faults.plan(trouble, methods=["sendPhoto"])
        model = Model("run-3", "/m", ModelState.REJECTED, 3, 1.0, reason="worse on facts")
        await bot.notices.run_finished(replace(RUN, state=RunState.DONE, model="run-3"), model, picture)
        assert (await root.bot_messages())[-1]["text"] == REJECTED


async def test_the_numbers_of_a_run_are_shown(stage: Stage) -> None:
    """The outcome of a run includes the figures from the model's report, in the admin's language."""
    effort = Effort(
        pairs=54,
        votes=60,
        raters=3,
        liked=90,
        cut=31,
        largest_share=0.4,
        over_share=12,
        steps=56,
        training_seconds=75,
        merging_seconds=5,
        peak_memory=1_250_000_000,
        adapter_bytes=120_000,
        taught={RATED: 54, "/data/sources/food/rows.jsonl": 50, "/home/me/ex_cn.json": 4},
    )
    report = Report(
        Decision.ACCEPTED,
        taste=Taste(answers=45, agreement=0.75, low=0.65, high=0.85),
        questions=150,
        live_correct=0.9,
        correct=0.92,
        effort=effort,
    )
    model = Model("run-3", "/m", ModelState.LIVE, 3, 1.0, report=replace(report, seconds=3700).to_json())
    async with stage.person(ADMIN, "Root") as root, stage.person(8, "Other", "zh") as other:
        async with stage.bot(telegram={"admins": (ADMIN, 8)}) as bot:
            await other.sends("/start")
            await other.answer(rated=False)
            await bot.notices.run_finished(replace(RUN, state=RunState.DONE, model="run-3"), model)
        assert (await root.bot_messages())[-1]["text"].splitlines() == [
            "Run 3 is done. Model run-3: live.",
            "Learned from 54 liked answers (60 votes from 3 people).",
            "Judged on 45 rated answers: the model agrees with the votes in 75 % (65–85 %) of the comparisons.",
            "Largest share from one person: 40 %.",
            "Left out: 12 over the limit per person.",
            "⚠ 31 of 90 liked answers were cut off by the length limit and can't be used: raise chat.max_new_tokens",
            "Other sources: food (50), ex_cn.json (4).",
            "Factual questions answered correctly: 90.0 % before, 92.0 % now (150 questions).",
            "Time: training 1:15, merging 0:05, evaluating 1:01:40. Peak memory 1.2 GB, adapter 0.1 MB.",
        ]
        assert "事实题正确率：之前 90.0 %，现在 92.0 %" in (await other.bot_messages())[-1]["text"]


async def test_a_repeated_alert_is_sent_once(stage: Stage) -> None:
    """An alert that is raised repeatedly is sent to the admin once."""
    async with stage.person(ADMIN, "Root") as root, stage.bot() as bot:
        for _ in range(3):
            await bot.notices.alert("disk", "The disk is nearly full.")
            await bot.notices.settled()
        await bot.notices.alert("engine", "The engine is down.")
        await bot.notices.settled()
        assert len(await root.bot_messages()) == 2


async def test_an_unreachable_admin_does_not_stop_the_others(stage: Stage) -> None:
    """An admin who blocked the bot or never started it is skipped; other admins are notified."""
    async with stage.person(8, "Other") as other, stage.bot(telegram={"admins": (ADMIN, 8)}) as bot:
        await bot.notices.run_changed(RUN)
        await bot.notices.settled()
        assert len(await other.bot_messages()) == 1


def test_the_terminal_shows_the_same() -> None:
    """The terminal shows state, loss and remaining time before the bar, each as soon as it is known."""
    assert progress_text("training", None, None) == "training"
    assert progress_text("training", 1.2345, None) == "training, average loss 1.234"
    assert progress_text("evaluating", None, 3725.0) == "evaluating, 1:02:05 left"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss": None}, "5 of 20 rows checked"),
        ({"state": RunState.MERGING}, "5 of 20 weights merged"),
        ({"state": RunState.EVALUATING, "step": 21}, "20 of at least 20 answers"),
        ({"state": RunState.DONE}, "Run 3 is done\nAnswers to learn from: 40"),
        ({"trigger": "web"}, "Run 3: training\nStarted on the Review page.\n"),
    ],
)
def test_progress_says_what_it_counts_and_where_the_run_began(changes: dict[str, Any], said: str) -> None:
    """The steps of a run are named, for each stage by what it works on; so is the page that a run was started on."""
    assert said in run_progress(replace(RUN, **changes), Translator.load().to("en"))
    assert progress_details(replace(RUN, state=RunState.DONE), Translator.load().to("en")) == []
    last = progress_details(replace(RUN, step=20, seconds_left=0.2), Translator.load().to("en"))
    assert last == ["20 of 20 training steps"], "no time is left to tell"


def test_progress_speaks_the_admins_language() -> None:
    """A run's progress is shown in the admin's language, here Chinese."""
    text = run_progress(RUN, Translator.load().to("zh"))
    assert "第 3 次训练：训练中" in text
    assert "25 % (训练步数：5/20)\n本阶段剩余时间：2:05" in text
