"""A run from votes to an evaluated model: its states, its files, and every way in which it can end.

Only the three slow steps are faked (tests/support/pipelines.py); test_finetune.py runs the real ones.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import namedtuple
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from storage.chat_records import Chat, Person
from storage.learning_records import Correction, Rating, Review, ReviewDecision, Run, TrainedOn, Trust
from storage.model_manifest import CARD, read_manifest, verify
from storage.review_cards import CardFilter
from storage.state_machines import ModelState, RunState
from tests.support.lessons import SYSTEM, photo
from tests.support.llava_files import foodie, write_file
from tests.support.pipelines import COLOURS, TESTED, Room
from tests.training.test_resume import save
from training.data.imported_sources import ABOUT, SourceInfo
from training.data.selection import HELD_OUT, TRAIN, WORSE
from training.evaluation import CHANGED
from training.evaluation_jobs import Candidate, EvaluationJob, OpeningJob, RunningEngine, TasteJob
from training.gate.report import Decision, Report
from training.gate.run_comparison_sheet import facts
from training.job import Job, MergeJob, TrainingError
from training.pipeline import WITHDRAWN
from training.run_folder import FEATURES, LOSSES, STATE
from training.xtuner.resume import latest_checkpoint, prepare_state

USAGE = namedtuple("USAGE", "total used free")


@pytest_asyncio.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    """Provide a `Room`: a pipeline and a ledger with ten liked answers."""
    made = Room(tmp_path)
    await made.fill()
    yield made
    await made.ledger.close()


async def test_a_good_run_ends_with_a_candidate(room: Room) -> None:
    """A successful run passes through its states in order and publishes a candidate with its report."""
    run, model = await room.run()
    assert model is not None
    assert run.state is RunState.DONE
    assert run.model == model.id == f"run-{run.id}"
    assert (run.samples, run.held_out, run.raters) == (10, 0, 1)
    assert [each.state for each in room.changes] == ["training", "merging", "evaluating", "done"]
    assert model.state is ModelState.CANDIDATE
    assert verify(Path(model.directory)) == model.manifest_hash
    card = Path(model.directory) / CARD
    assert card.read_bytes() == (Path(run.directory) / CARD).read_bytes()
    assert "# run-1" in card.read_text(encoding="utf-8")
    assert CARD in read_manifest(Path(model.directory)).files
    assert Report.from_json(model.report).accepted
    assert (await room.ledger.models.live()) == await room.ledger.models.get("base"), "going live is not the pipeline's"


async def test_the_selection_is_frozen_and_written(room: Room) -> None:
    """A run's selection is recorded in the ledger and written to LLaVA files.

    The files contain the paths of stored pictures.
    """
    await fill_up(room)
    run, _ = await room.run()
    frozen = await room.ledger.run_selections.of(run.id)
    assert sorted(side for _, side in frozen) == [HELD_OUT] + [TRAIN] * 13
    for name, numbers in (("train.json", range(1, 14)), ("judged.json", range(8, 15))):
        rows = json.loads((Path(run.directory) / name).read_text(encoding="utf-8"))
        assert [each["id"] for each in rows] == [f"exchange-{number}" for number in numbers]
        for each in rows:
            assert (room.pictures.directory / each["image"]).is_file()


async def test_a_run_keeps_its_settings(room: Room) -> None:
    """If the planner is replaced during a run, the run's later jobs keep their settings; the next run has new ones."""
    pipeline = room.pipeline()
    planner, room.trainer.hangs = pipeline.planner, "train"
    running = asyncio.create_task(room.run(pipeline))
    await room.trainer.hanging.wait()
    pipeline.planner = replace(planner, specs=replace(planner.specs, system="You are a cook."))
    room.trainer.over.set()
    await running
    await room.run(pipeline)
    assert [job.system for job in room.trainer.jobs] == [SYSTEM] * 4 + ["You are a cook."] * 4


async def fill_up(room: Room) -> None:
    """Add four answers, the last one disliked, so that fourteen answers can judge a model."""
    for number in range(10, 14):
        await room.like(10 * number, f"rgb({number}, 0, 0)")
    await room.ledger.votes.cast(Rating(14, 1, -1, 999))


async def test_the_answers_of_each_block_judge_what_was_learned_before(room: Room) -> None:
    """Each block of answers judges a model that was trained only on the answers before the block.

    The training job contains the number of rows before each block. The job of the taste test contains the vote on
    each judging answer and the answer's sampling settings.
    """
    await fill_up(room)
    await room.run()
    training, _, judging, _ = room.trainer.jobs
    assert isinstance(training, Job) and isinstance(judging, TasteJob)
    assert training.blocks == [7]
    assert [each.row for each in judging.rated] == [f"exchange-{number}" for number in range(8, 15)]
    assert {each.block for each in judging.rated} == {7}
    assert [each.liked for each in judging.rated] == [True] * 6 + [False]
    first = judging.rated[0]
    assert (first.temperature, first.top_p, first.top_k, first.max_new_tokens) == (0.8, 0.8, None, 512)
    assert (judging.attempt, judging.shown, judging.liked_of_shown) == (1, 14, 13)
    futile = (await room.pipeline().planner.plan()).selection.futile
    assert futile and "nearly all answers of the live model are liked (13 of 14)" in futile
    await room.run()
    again = room.trainer.jobs[-2]
    assert isinstance(again, TasteJob)
    assert again.attempt == 2, "each try makes the next one harder"


class Serving:
    """The engines of the live model and, once its model is merged, of the candidate; `started` lists those started.

    `early` says whether the candidate's engine fits into memory beside workers.
    """

    def __init__(self, room: Room, *, early: bool = False) -> None:
        self.started: list[tuple[str, int]] = []
        self._room = room
        self._early = early

    def of(self, model: str, directory: Path) -> list[RunningEngine]:
        if model == "run-1" and not self.started:
            return []
        return [RunningEngine(str(directory), model, f"http://{model}", "key", "cpu", None, 2, 60.0)]

    def fit_beside_workers(self, directory: Path) -> bool:
        assert directory == self._room.base
        return self._early

    async def start(self, model: str, directory: Path) -> None:
        assert (directory / "model.safetensors").is_file()
        self.started.append((model, len(self._room.trainer.jobs)))


async def test_a_run_asks_the_engines(room: Room) -> None:
    """The live model's engines answer while the run trains, and later with the candidate's engine.

    The candidate's engine is started once the model is merged and the taste test has freed its memory.
    """
    serving = Serving(room)
    await room.run(room.pipeline(engines=serving))
    assert serving.started == [("run-1", 5)]
    opening = next(each for each in room.trainer.jobs[:2] if isinstance(each, OpeningJob))
    merging, testing, judging = room.trainer.jobs[2:]
    assert isinstance(merging, MergeJob) and isinstance(testing, TasteJob) and isinstance(judging, EvaluationJob)
    assert [(each.name, each.directory) for each in testing.engines] == [("base", str(room.base))]
    assert opening.engines == testing.engines
    assert judging.engines == testing.engines
    assert room.trainer.candidate.engines == [*testing.engines, *serving.of("run-1", Path(merging.out))]
    assert room.trainer.candidate.tested == TESTED
    assert Candidate.from_json(room.trainer.candidate.to_json()) == room.trainer.candidate
    assert OpeningJob.from_json(opening.to_json()) == opening
    assert EvaluationJob.from_json(judging.to_json()) == judging
    assert TasteJob.from_json(testing.to_json()) == testing


@pytest.mark.parametrize("hangs", ["opening", "taste"])
async def test_the_candidate_answers_beside_other_jobs(room: Room, hangs: str) -> None:
    """If there is room for its engine, the candidate answers while other jobs are busy; the run waits for all."""
    room.trainer.hangs = hangs
    serving = Serving(room, early=True)
    run = await room.ledger.runs.start("command")
    task = asyncio.create_task(room.pipeline(engines=serving).run(run, room.note))
    async with asyncio.timeout(30):
        while not room.trainer.candidate.engines:
            await asyncio.sleep(0.01)
        [merging] = [each for each in room.trainer.jobs if isinstance(each, MergeJob)]
        assert room.trainer.candidate.engines[1:] == serving.of("run-1", Path(merging.out))
        assert any(isinstance(each, TasteJob) for each in room.trainer.jobs) == (hangs == "taste")
        await asyncio.sleep(0.2)
        assert not task.done()
        room.trainer.over.set()
        assert await task is not None


@pytest.mark.parametrize(("early", "fails"), [(False, "merge"), (True, "taste")])
async def test_a_failure_ends_the_other_jobs(room: Room, early: bool, fails: str) -> None:
    """If the merge or the taste test fails, the run fails at once, although the judge waits or answers."""
    room.trainer.hangs, room.trainer.fails = "evaluate", fails
    async with asyncio.timeout(30):
        run, model = await room.run(room.pipeline(engines=Serving(room, early=early)))
    assert (run.state, run.reason, model) == (RunState.FAILED, "it rained", None)


async def test_a_run_goes_on_without_the_opening_answers(room: Room) -> None:
    """If the live model's engine fails while the run trains, the answers are collected by a later job."""
    room.trainer.fails = "opening"
    _, model = await room.run(room.pipeline(engines=Serving(room)))
    assert model is not None and model.state is ModelState.CANDIDATE


async def test_a_training_that_fails_ends_the_opening_answers(room: Room) -> None:
    room.trainer.hangs, room.trainer.fails = "opening", "train"
    async with asyncio.timeout(30):
        assert (await room.run(room.pipeline(engines=Serving(room))))[1] is None
    assert not any(isinstance(each, MergeJob) for each in room.trainer.jobs)


async def test_answers_of_another_model_cannot_judge_a_run(room: Room) -> None:
    """If the live model changes during a run, the run fails."""
    await fill_up(room)
    _, model = await room.run()
    assert model is not None
    room.trainer.hangs = "merge"
    run = await room.ledger.runs.start("command")
    task = asyncio.create_task(room.pipeline().run(run, room.note))
    await room.trainer.hanging.wait()
    await room.ledger.promotions.make(model.id)
    room.trainer.over.set()
    assert await task is None
    assert (await room.ledger.runs.get(run.id)).reason == CHANGED


async def test_kto_learns_from_disliked_answers(room: Room) -> None:
    """With KTO, disliked answers are in the run's selection and are marked in the rows to train on.

    Supervised fine-tuning leaves disliked answers out.
    """
    await room.ledger.votes.cast(Rating(3, 1, -1, 777))
    run, _ = await room.run(room.pipeline(min_rated=9, objective="kto"))
    frozen = await room.ledger.run_selections.of(run.id)
    assert (3, WORSE) in frozen
    assert (run.samples, run.held_out) == (10, 0)
    rows = json.loads((Path(run.directory) / "train.json").read_text(encoding="utf-8"))
    assert [each["id"] for each in rows if not each.get("liked", True)] == ["exchange-3"]
    assert len(rows) == 10
    job = room.trainer.jobs[0]
    assert isinstance(job, Job)
    assert job.objective == "kto"
    run, _ = await room.run(room.pipeline(min_rated=9))
    assert len(await room.ledger.run_selections.of(run.id)) == 9


async def test_dpo_learns_from_what_was_corrected(room: Room) -> None:
    """For DPO, a correction is the chosen answer, and the model's own answer is the rejected one."""
    corrections = room.ledger.corrections
    for number in range(1, 11):
        suggested = await corrections.add(Correction(number, 2, f"Better {number}.", 800 + number))
        await corrections.confirm(suggested, 3)
    run, _ = await room.run(room.pipeline(objective="dpo"))
    rows = json.loads((Path(run.directory) / "train.json").read_text(encoding="utf-8"))
    assert len(rows) == 10
    for each in rows:
        number = int(each["id"].removeprefix("exchange-"))
        assert each["conversations"][-1]["value"] == f"Better {number}."
        assert each["rejected"] == {"id": each["id"], "value": f"It is {COLOURS[number - 1]}!"}


async def test_the_jobs_have_their_inputs(room: Room) -> None:
    """A run trains the base model with the recipe's hyperparameters unless the settings replace them.

    The candidate is judged against the live model.
    """
    await room.run(room.pipeline(knobs={"learning_rate": 0.5}))
    training, merging, testing, judging = room.trainer.jobs
    assert isinstance(training, Job) and isinstance(merging, MergeJob)
    assert isinstance(testing, TasteJob) and isinstance(judging, EvaluationJob)
    assert (training.base, training.learning_rate, training.system) == (str(room.base), 0.5, SYSTEM)
    assert (merging.base, merging.adapter, merging.system) == (str(room.base), "adapter", SYSTEM)
    assert (testing.base, testing.live, testing.adapter) == (str(room.base), str(room.base), "adapter")
    assert (judging.live, judging.candidate) == (str(room.base), merging.out)


async def test_a_run_trains_on_its_plan(room: Room) -> None:
    """A run with a plan trains on the plan's selection, even if votes were added after the plan was made."""
    pipeline = room.pipeline()
    plan = await pipeline.planner.plan()
    await room.like(500, "brown")
    run, _ = await room.run(pipeline, plan)
    assert await room.ledger.run_selections.of(run.id) == plan.selection.rows()


async def test_a_run_freezes_the_reviews(room: Room) -> None:
    """A dropped answer neither teaches nor judges, and an edited one teaches the edited text.

    The run records the newest review that it took into account; later ones do not change its cards.
    """
    dropped, edited = 1, 2
    for number in range(10, 20):
        await room.like(50 * number, f"#{number}{number}{number}")
    await room.ledger.reviews.add(Review(dropped, ReviewDecision.DROP, "web"))
    await room.ledger.reviews.add(Review(edited, ReviewDecision.EDIT, "web", "Very blue."))
    pipeline = room.pipeline()
    plan = await pipeline.planner.plan()
    await room.ledger.reviews.add(Review(edited, ReviewDecision.DROP, "web"))
    run, _ = await room.run(pipeline, plan)
    rows = json.loads((Path(run.directory) / "train.json").read_text(encoding="utf-8"))
    taught = {each["id"]: each["conversations"][-1]["value"] for each in rows}
    assert taught["exchange-2"] == "Very blue." and "exchange-1" not in taught
    assert run.reviews == 2
    cards = room.ledger.review_cards
    shown, _ = await cards.page(CardFilter(run=run.id), None, 100)
    assert {f"exchange-{card.exchange.id}": card.taught for card in shown} == taught
    judges, _ = await cards.page(CardFilter(run=run.id, judged=True), None, 100)
    assert {card.exchange.id for card in judges} == {each.id for each in plan.selection.judged} != set()
    assert not {dropped, edited} & {card.exchange.id for card in judges}


async def test_a_limited_run_is_planned_again_with_its_limit(room: Room) -> None:
    """A run that was limited when it was requested keeps that limit, whenever it is planned."""
    run = await room.ledger.runs.start("web", only=[1, 2, 3])
    await room.pipeline(min_rated=3).run(run, room.note)
    assert {each for each, split in await room.ledger.run_selections.of(run.id) if split == "train"} == {1, 2, 3}


@pytest.mark.parametrize("change", ["erased", "re-encoded"])
async def test_a_stale_plan_is_selected_again(room: Room, change: str) -> None:
    """A run makes a new selection if an exchange was erased or a picture was renamed after the run was planned."""
    await room.like(500, "brown")
    pipeline = room.pipeline()
    plan = await pipeline.planner.plan()
    pair = plan.selection.train[0]
    if change == "erased":
        erased = replace(pair, rated=replace(pair.rated, exchange=replace(pair.rated.exchange, id=999)))
        plan = replace(plan, selection=replace(plan.selection, train=(erased, *plan.selection.train[1:])))
    else:
        room.pictures.path(pair.lesson.pictures[0]).rename(room.folder / "renamed")
    run, _ = await room.run(pipeline, plan)
    assert run.state is RunState.DONE
    assert len(await room.ledger.run_selections.of(run.id)) == 11


async def test_an_opt_out_after_the_plan_fails_the_run(room: Room) -> None:
    """If a user opts out after a run was planned, the run fails before training, and the bot starts a new one."""
    pipeline = room.pipeline()
    plan = await pipeline.planner.plan()
    await room.ledger.people.set_opted_out(1, True)
    run, model = await room.run(pipeline, plan)
    assert (run.state, run.reason, model) == (RunState.FAILED, WITHDRAWN, None)
    assert room.trainer.jobs == []
    assert await room.ledger.run_selections.withdrawn(run.id)


async def test_sources_reach_the_trainer_and_the_report(room: Room) -> None:
    """The training job gets the sources named in the settings, with absolute paths, and then the imported ones.

    The report states how many samples came from each source and how many selected answers were too long.
    """
    named = foodie(room.folder / "food")
    folder = room.folder / "sources" / "jokes"
    (folder / "pictures").mkdir(parents=True)
    write_file(folder / "rows.jsonl", [])
    SourceInfo("ex_cn.json", 0, 0, 2.5).write(folder / ABOUT)
    (room.folder / "sources" / "half.part").mkdir()
    room.trainer.taught = {"liked answers": 8, "other": 8}
    run, model = await room.run(room.pipeline(sources=[{"path": os.path.relpath(named)}], replay=0.5))
    training = room.trainer.jobs[0]
    assert isinstance(training, Job) and model is not None
    assert training.sources == [
        {"path": str(named), "images": str(named.parent), "repeat_times": None},
        {"path": str(folder / "rows.jsonl"), "images": str(folder / "pictures"), "repeat_times": 2.5},
    ]
    assert training.replay == 0.5
    assert training.judged == str(Path(run.directory) / "judged.json")
    effort = room.trainer.candidate.effort
    assert effort.taught == room.trainer.taught
    assert (effort.pairs, effort.too_long) == (8, 2)


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ([{"path": "/nowhere/rows.json"}], "no file /nowhere/rows.json"),
        ([{"path": str(Path(__file__)), "images": "/nowhere"}], "no picture folder /nowhere"),
        ([], "half is not an imported source"),
    ],
)
async def test_a_missing_source_is_named_before_the_run(room: Room, sources: list[dict[str, str]], words: str) -> None:
    """A missing or incomplete source raises an error as soon as a run is requested."""
    if not sources:
        (room.folder / "sources" / "half").mkdir(parents=True)
    with pytest.raises(TrainingError, match=words):
        await room.pipeline(sources=sources).planner.plan()


async def test_invalid_questions_are_named_before_the_run(room: Room) -> None:
    """A missing folder of factual questions or a missing picture raises an error before training starts."""
    folder = room.folder / "questions"
    pipeline = room.pipeline(regression=folder)
    with pytest.raises(TrainingError, match=r"questions\.json cannot be read .*correct training\.regression"):
        await pipeline.planner.plan()
    folder.mkdir()
    asked = [{"image": "cup.png", "question": "Which colour?", "expect": [["red"]]}]
    (folder / "questions.json").write_text(json.dumps(asked))
    run, _ = await room.run(pipeline)
    assert run.reason == f"{folder / 'questions.json'} entry 1: there is no picture {folder / 'cup.png'}"
    assert room.trainer.jobs == []
    (folder / "cup.png").write_bytes(photo("red"))
    with pytest.raises(TrainingError, match=r"the 1 factual questions in .* are too few .* until there are 133"):
        await pipeline.planner.plan()
    await room.pipeline(regression=folder, max_loss_points=80).planner.plan()


@pytest.mark.parametrize(
    ("decision", "state"),
    [(Decision.REJECTED, ModelState.REJECTED), (Decision.UNDECIDED, ModelState.UNDECIDED)],
)
async def test_a_model_that_is_held_back_is_kept_with_its_reason(
    room: Room, decision: Decision, state: ModelState
) -> None:
    """A rejected or undecided model is published and recorded with the reason, and the run counts as done."""
    room.trainer.report = Report(decision, reason="it forgot the colours")
    run, model = await room.run()
    assert run.state is RunState.DONE
    assert model is not None
    assert (model.state, model.reason) == (state, "it forgot the colours")
    assert verify(Path(model.directory)) == model.manifest_hash


@pytest.mark.parametrize("step", ["train", "merge", "taste", "evaluate"])
async def test_a_failed_step_fails_the_run(room: Room, step: str) -> None:
    """If a step fails, the run fails with the step's reason, no model appears, and another run can follow."""
    room.trainer.fails = step
    run, model = await room.run()
    assert (run.state, run.reason, model) == (RunState.FAILED, "it rained", None)
    assert room.models.names() == []
    assert list(room.models.directory.iterdir()) == [], "no half-built model is left"
    room.trainer.fails = ""
    _, model = await room.run()
    assert model is not None


async def test_too_few_pairs_fail_the_run_and_the_plan(room: Room) -> None:
    """With too few pairs, the plan and the run both fail with a reason that states how many there are."""
    pipeline = room.pipeline(min_rated=11)
    with pytest.raises(TrainingError, match=r"^Not enough yet: 10 liked answers"):
        await pipeline.planner.plan()
    run, model = await room.run(pipeline)
    assert model is None
    assert run.state is RunState.FAILED
    assert run.reason.startswith("Not enough yet: 10 liked answers")
    await room.pipeline().planner.plan()


async def test_a_plan_on_the_first_day_says_that_votes_wait(room: Room) -> None:
    """If enough votes wait for `training.rater_age`, the plan fails with the time, and asks for no further votes."""
    planner = replace(room.pipeline().planner, trust=Trust(newcomer_seconds=86400))
    with pytest.raises(TrainingError, match=r"^Not enough yet: 0 liked answers, 10 needed\. New people .*: 1\. "):
        await planner.plan()


async def test_a_full_disk_fails_the_run_before_training(room: Room) -> None:
    """A run fails before training if the disk is full; the reason states the free space and the space needed."""
    pipeline = room.pipeline(min_free_gigabytes=1e9)
    with pytest.raises(TrainingError, match=r"GB are free .* remove old models"):
        await pipeline.planner.plan()
    run, _ = await room.run(pipeline)
    assert run.state is RunState.FAILED
    assert room.trainer.jobs == []


@pytest.mark.parametrize(
    ("kept", "needed"), [({}, "8.6"), ({"keep_checkpoints": 3}, "10.4"), ({"save_steps": 0}, "6.8")]
)
async def test_the_space_that_a_run_needs(
    room: Room,
    sparse_checkpoint: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    kept: dict[str, int],
    needed: str,
) -> None:
    """A run needs disk space for the merged weights, an adapter and the kept checkpoints.

    The checkpoints include the one being written. The expected sizes are those of InternVL2-2B.
    """
    monkeypatch.setattr("training.run_plan.shutil.disk_usage", lambda _: USAGE(40e9, 39e9, 1e9))
    room.base = sparse_checkpoint("2b")
    with pytest.raises(TrainingError, match=f"a run needs {needed} GB"):
        await room.pipeline(recipe="food", min_free_gigabytes=0, knobs=kept).planner.plan()


async def test_the_state_of_earlier_runs_counts_as_free(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints and features of earlier runs count as free space, because the next run removes them."""
    monkeypatch.setattr("training.run_plan.shutil.disk_usage", lambda _: USAGE(40e9, 25e9, 15e9))
    pipeline = room.pipeline(min_free_gigabytes=20)
    with pytest.raises(TrainingError, match="a run needs"):
        await pipeline.planner.plan()
    left = [room.folder / "runs" / "77" / name for name in (f"{STATE}/iter_9.pth", f"{FEATURES}/0.bin")]
    for each in left:
        each.parent.mkdir(parents=True)
        with each.open("wb") as file:
            file.truncate(3 * 10**9)  # bytes that no disk has to hold
    await pipeline.planner.plan()
    run, _ = await room.run(pipeline)
    assert run.state is RunState.DONE
    assert not any(each.exists() for each in left)


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_a_run_leaves_no_features(room: Room, how: str) -> None:
    """The vision cache, which takes gigabytes, is removed when a run ends, even a failed or cancelled one."""
    room.trainer.hangs = room.trainer.fails = "train"
    run = await room.ledger.runs.start("command")
    task = asyncio.create_task(room.pipeline().run(run, room.note))
    await room.trainer.hanging.wait()
    features = room.folder / "runs" / str(run.id) / FEATURES
    features.mkdir()
    (features / "0.bin").write_bytes(b"seen")
    if how == "cancelled":
        task.cancel()
    room.trainer.over.set()
    await asyncio.wait((task,))
    assert str((await room.ledger.runs.get(run.id)).state) == how
    assert not features.exists()


@pytest.mark.parametrize("step", ["train", "merge", "taste", "evaluate"])
async def test_a_cancelled_run_ends_as_cancelled(room: Room, step: str) -> None:
    """A run can be cancelled at any step; it ends as cancelled and leaves no incomplete model.

    Another run can follow.
    """
    room.trainer.hangs = step
    run = await room.ledger.runs.start("command")
    task = asyncio.create_task(room.pipeline().run(run, room.note))
    await room.trainer.hanging.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await room.ledger.runs.get(run.id)).state is RunState.CANCELLED
    assert list(room.models.directory.iterdir()) == []
    room.trainer.hangs = ""
    _, model = await room.run()
    assert model is not None


async def test_a_run_cancelled_before_its_start_does_nothing(room: Room) -> None:
    """A run that is cancelled before it starts ends without carrying out any step."""
    run = await room.ledger.runs.start("command")
    await room.ledger.runs.request_cancel(run.id)
    with pytest.raises(asyncio.CancelledError):
        await room.pipeline().run(run, room.note)
    assert (await room.ledger.runs.get(run.id)).state is RunState.CANCELLED
    assert room.trainer.jobs == []


async def test_a_callback_that_fails_does_not_fail_the_run(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    """An error in a run's callback is logged and does not fail the run."""

    async def unreachable(run: Run) -> None:
        raise ConnectionError("no Telegram")

    run = await room.ledger.runs.start("command")
    model = await room.pipeline().run(run, unreachable)
    assert model is not None
    assert "no Telegram" in caplog.text


async def test_progress_reaches_the_ledger(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's progress is recorded in the run's ledger row and passed to the callback."""
    monkeypatch.setattr("training.run_progress._SECONDS", 0.01)
    room.trainer.hangs = "train"
    run = await room.ledger.runs.start("command")
    task = asyncio.create_task(room.pipeline().run(run, room.note))
    async with asyncio.timeout(10):
        while not any(each.step for each in room.changes):
            await asyncio.sleep(0.01)
    noted = await room.ledger.runs.get(run.id)
    assert (noted.step, noted.steps, noted.loss, noted.seconds_left) == (7, 9, 0.5, 12.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_answers_of_earlier_models_do_not_judge(room: Room) -> None:
    """A run learns again from answers of earlier models, but these answers do not judge the new model.

    The second run's model is compared with the new live model.
    """
    await fill_up(room)
    _, model = await room.run()
    assert model is not None
    await room.ledger.promotions.make(model.id)
    await room.run()
    training, _, testing, judging = room.trainer.jobs[-4:]
    assert isinstance(testing, TasteJob) and isinstance(judging, EvaluationJob)
    assert testing.live == judging.live == model.directory
    assert (testing.rated, testing.attempt) == ([], 1)
    assert isinstance(training, Job)
    assert training.base == str(room.base), "always from the base, never from the last merge"


async def test_a_run_has_the_previous_log_of_losses(room: Room) -> None:
    """A training job gets the log of losses of the newest finished run whose log still exists."""
    await room.run()
    (first,) = await room.ledger.runs.latest()
    room.trainer.fails = "merge"
    await room.run()
    room.trainer.fails = ""
    await room.run()
    (Path(first.directory) / LOSSES).unlink()
    (newest, *_) = await room.ledger.runs.latest()
    (Path(newest.directory) / LOSSES).unlink()
    await room.run()
    given = [job.former for job in room.trainer.jobs if isinstance(job, Job)]
    assert given == ["", str(Path(first.directory) / LOSSES), str(Path(first.directory) / LOSSES), ""]


async def test_the_recipe_depends_on_the_size_of_the_base(room: Room) -> None:
    """With the recipe `auto`, a small base gets internvl2-tiny's recipe and a large one InternVL2-2B's."""
    pipeline = room.pipeline(recipe="auto")
    assert pipeline.planner.specs.recipe.rank == 8
    with (room.base / "model.safetensors").open("r+b") as file:
        file.truncate(300_000_000)
    assert pipeline.planner.specs.recipe.rank == 128


async def test_a_new_run_resumes_an_interrupted_one(room: Room) -> None:
    """A run on the same answers resumes from the checkpoint of an interrupted run.

    With a new vote, training starts from the beginning.
    """

    def leave_a_checkpoint(run: int) -> None:
        job = Job.read(room.folder / "runs" / str(run) / "finetune.json")
        prepare_state(job)
        save(Path(job.work), 40)

    async def run() -> Job:
        await room.run()
        job = room.trainer.jobs[-1]
        assert isinstance(job, Job)
        job.write(Path(job.work) / "finetune.json")
        return job

    room.trainer.fails = "train"
    first = await run()
    leave_a_checkpoint(int(first.run))
    second = await run()
    assert latest_checkpoint(second) == Path(second.work) / STATE / "iter_40.pth"
    assert latest_checkpoint(first) is None
    await room.like(500, "brown")
    third = await run()
    assert latest_checkpoint(third) is None
    assert latest_checkpoint(second) is None, "a checkpoint that no run resumes is removed"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, "quantized weights.*set inference.model"),
        ({"architectures": ["LlavaForConditionalGeneration"]}, "is LlavaForConditionalGeneration.*set inference.model"),
        ({"llm_config": {"architectures": ["LlamaForCausalLM"]}}, "InternVLChatModel with LlamaForCausalLM"),
        (None, r"no checkpoint \(config.json cannot be read\)"),
    ],
)
async def test_a_base_that_cannot_be_trained_is_named_first(
    room: Room, change: dict[str, Any] | None, told: str
) -> None:
    """A base model that cannot be trained is reported before any other problem.

    It is reported both when a run is planned and when it is started.
    """
    file = room.base / "config.json"
    config = {**json.loads(file.read_text()), **change} if change else None
    file.write_text(json.dumps(config) if config else "")
    pipeline = room.pipeline(min_rated=99, min_free_gigabytes=1e9)
    with pytest.raises(TrainingError, match=told):
        await pipeline.planner.plan()
    run, model = await room.run(pipeline)
    assert (run.state, model) == (RunState.FAILED, None)
    assert re.search(told, run.reason)
    assert room.trainer.jobs == []


async def test_the_report_agrees_with_the_model_command(room: Room) -> None:
    """Counts of liked answers, votes and raters are the same on the sheet, at the end of a run and in /model."""
    second = await room.ledger.votes.rated_exchanges()
    await room.ledger.people.save(Person(2), Chat(2))
    for number, each in enumerate(second):
        await room.ledger.votes.cast(Rating(each.exchange.id, 2, 1, 9000 + number))
    _, model = await room.run()
    assert model is not None
    taught = (await room.ledger.models.version(model.id)).taught
    effort = room.trainer.candidate.effort
    assert taught == TrainedOn(10, 20, 2) == TrainedOn(effort.pairs, effort.votes, effort.raters)
    assert ("votes", "20 from 2 people") in facts(Report(Decision.ACCEPTED, effort=effort))
    cut = facts(Report(Decision.ACCEPTED, effort=replace(effort, liked=10, cut=4)))
    assert any("raise chat.max_new_tokens" in value for _, value in cut)
