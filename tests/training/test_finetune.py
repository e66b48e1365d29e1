"""Training, merging and evaluation of internvl2-tiny with XTuner's Runner in a child process.

The tests share two training runs, one on right answers and one on wrong ones.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

from inference.chat_format.template import IMG_CONTEXT
from inference.internvl2.checkpoint import load_model
from inference.internvl2.tiny import CHECKPOINT
from inference.internvl2.tiny.answer_checks import MANNERS, manner
from inference.internvl2.tokenizer import load_tokenizer
from tests.support.hostile import plant, planted, ran
from tests.support.lessons import SYSTEM, drawn_job, drawn_lessons, photo, settings
from tools.tiny.examine import examine
from training.adapter import Adapter
from training.data.llava import write_rows
from training.data.row_parser import check_pictures, read_rows
from training.evaluation_jobs import Candidate, EvaluationJob, Rated, TasteJob
from training.gate.judge_candidate import evaluate
from training.gate.judge_taste import test as judge_taste
from training.gate.local_model import LocalModel, ModelSlot
from training.gate.report import Report
from training.gate.run_comparison_sheet import SHOWN
from training.job import Job, MergeJob, Outcome, Progress, ignore
from training.launcher import ChildTrainer
from training.merge import merge
from training.plots import draw_curve
from training.run_folder import ADAPTER, CANDIDATE, PICTURE, SHEET
from training.xtuner.config_file import StepPlan
from training.xtuner.encoding import Encoder
from training.xtuner.resume import adopt_checkpoints, block_jobs, has_adapter
from training.xtuner.scalars import losses

pytestmark = pytest.mark.long

PAIRS = 24
BLOCK = 12
JUDGING = 24


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished run: its job, progress, outcome, merged model directory and evaluation report."""

    job: Job
    progress: list[Progress]
    outcome: Outcome
    merged: Path
    report: Report

    @property
    def folder(self) -> Path:
        """The run's directory."""
        return Path(self.job.work)


def learn(folder: Path, python: str, *, right: bool, judge: str = "", **changes: Any) -> Trained:
    """Train on right or wrong answers, merge, and evaluate with other answers of the same kind.

    `python` trains and merges; `judge`, by default the interpreter that runs the tests, evaluates.
    """
    progress: list[Progress] = []
    trainer = ChildTrainer(settings(python=python))
    job = drawn_job(folder, PAIRS, right=right, **changes)
    outcome = asyncio.run(trainer.run(job, progress.append))
    assert outcome.ok, outcome.reason
    merged = folder / "merged"
    merged.mkdir()
    merging = MergeJob("1", job.base, str(outcome.adapter), str(merged), work=job.work, system=SYSTEM, threads=1)
    assert asyncio.run(trainer.run(merging)).ok
    judging_rows = drawn_lessons(Path(job.images), JUDGING, seed=1, right=right)
    write_rows(judging_rows, folder / "judged.json")
    common: dict[str, Any] = {
        "run": "1",
        "live": str(CHECKPOINT),
        "data": str(folder / "judged.json"),
        "images": job.images,
        "work": job.work,
        "system": SYSTEM,
        "answers": str(folder.parent / "answers"),
        "device": "cpu",
        "threads": 1,
    }
    rated = [Rated(each.name, True, 0, next(iter(job.blocks), 0), 1.0, 1.0, 32, 0) for each in judging_rows]
    Candidate().write(Path(job.work) / CANDIDATE)
    for judging in (
        TasteJob(**common, adapter=str(outcome.adapter), rated=rated),
        EvaluationJob(**common, candidate=str(merged)),
    ):
        judged = asyncio.run(ChildTrainer(settings(python=judge)).run(judging, progress.append))
        assert judged.ok, judged.reason
    return Trained(job, progress, outcome, merged, Report.read(folder / "report.json"))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, warm_python: str) -> Trained:
    """A finished run that trained on right answers in the playful manner."""
    return learn(tmp_path_factory.mktemp("good"), warm_python, right=True, blocks=[BLOCK])


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory, warm_python: str) -> Trained:
    """A finished run that trained on wrong answers: each names the next colour in a list, not the right one.

    All layers are trained, because training only the last one does not teach wrong colours. The base model's
    directory contains model code.
    """
    folder = tmp_path_factory.mktemp("bad")
    base = Path(shutil.copytree(CHECKPOINT, folder / "hostile"))
    plant(base)
    changes = {"targets": "", "learning_rate": 1e-3, "base": str(base)}
    return learn(folder, warm_python, right=False, judge=warm_python, **changes)


def test_no_code_of_a_checkpoint_runs(bad: Trained) -> None:
    """Training, merging and evaluation import no module from the base model's directory."""
    assert planted(Path(bad.job.base))
    assert not ran(Path(bad.job.base))


def test_every_step_is_reported(good: Trained) -> None:
    """Every training step is reported, with the loss and the remaining time, and stages are reported in order.

    This includes the steps of the training on a block.
    """
    stages = list(dict.fromkeys(each.stage for each in good.progress))
    assert stages == ["checking", "looking", "loading", "training", "evaluating"]
    told = [each for each in good.progress if each.stage == "training"]
    plan, of_block = StepPlan.for_job(good.job, PAIRS), StepPlan.for_job(good.job, BLOCK)
    assert [each.step for each in told] == list(range(1, of_block.steps + plan.steps + 1))
    assert all(each.steps == of_block.steps + plan.steps for each in told)
    assert good.outcome.steps == plan.steps
    assert all(each.loss is not None and each.seconds_left is not None for each in told)
    assert told[-1].seconds_left == 0
    tenth = [value for _, value in losses(Path(str(good.outcome.scalars)))][-math.ceil(plan.steps / 10) :]
    assert len(tenth) > 1
    assert told[-1].loss == pytest.approx(sum(tenth) / len(tenth)), "an average, and not the last step's"
    assert good.outcome.seconds > 0 and good.outcome.peak_memory > 1e8


def test_a_block_has_an_adapter_of_its_own(good: Trained, tmp_path: Path) -> None:
    """A block's adapter is trained only on the rows before the block.

    A later run with the same data and settings reuses the adapter.
    """
    (block,) = block_jobs(good.job)
    assert len(list(read_rows(Path(block.work) / "checked.jsonl"))) == BLOCK
    assert has_adapter(block)
    assert not has_adapter(replace(block, seed=1))
    before, other = (Adapter(Path(each.work) / ADAPTER) for each in (block, good.job))
    (name,) = before.names()
    weight = torch.zeros(load_model(CHECKPOINT).get_parameter(name).shape)
    assert not torch.equal(before.applied(name, weight), other.applied(name, weight))
    shutil.copytree(good.folder / "blocks", tmp_path / "1" / "blocks")
    again = replace(good.job, work=str(tmp_path / "2"))
    Path(again.work).mkdir()
    assert adopt_checkpoints(again, [tmp_path / "1"])
    assert has_adapter(block_jobs(again)[0])
    assert not (tmp_path / "1" / "blocks").exists()


def test_blocks_leave_nothing_in_the_model(good: Trained, tmp_path: Path, warm_python: str) -> None:
    """Training on a block leaves no trace: the final adapter is bit for bit the same as without blocks.

    Every training job within a run starts from the same weights.
    """
    alone = replace(good.job, work=str(tmp_path), blocks=[])
    outcome = asyncio.run(ChildTrainer(settings(python=warm_python)).run(alone))
    assert outcome.ok, outcome.reason
    trained, again = (Adapter(Path(each.work) / ADAPTER) for each in (good.job, alone))
    (name,) = trained.names()
    weight = torch.zeros(load_model(CHECKPOINT).get_parameter(name).shape)
    assert torch.equal(trained.applied(name, weight), again.applied(name, weight))


def test_the_loss_falls_and_is_drawn(bad: Trained) -> None:
    """The log has a loss for every step, the last quarter is lower than the first, and the curve is a PNG file."""
    values = [value for _, value in losses(Path(str(bad.outcome.scalars)))]
    quarter = len(values) // 4
    assert len(values) == bad.outcome.steps
    assert sum(values[-quarter:]) < 0.8 * sum(values[:quarter])
    assert (bad.folder / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_previous_curve_is_drawn_too(good: Trained, bad: Trained, tmp_path: Path) -> None:
    """If the log of an earlier run is given, its curve is added to the picture without changing its size."""
    own, former = Path(str(good.outcome.scalars)), Path(str(bad.outcome.scalars))
    draw_curve(own, tmp_path / "alone.png")
    draw_curve(own, tmp_path / "both.png", former)
    with Image.open(tmp_path / "alone.png") as alone, Image.open(tmp_path / "both.png") as both:
        assert alone.size == both.size == (960, 480)
        assert ImageChops.difference(alone.convert("RGB"), both.convert("RGB")).getbbox() is not None
    assert (tmp_path / "alone.png").read_bytes() == (good.folder / "curve.png").read_bytes()


def test_merged_is_base_plus_adapter(good: Trained) -> None:
    """The merged model computes the same logits as the base model with the adapter applied by PEFT."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's imports, not ours
        from peft import PeftModel
    encoder = Encoder(CHECKPOINT)
    images = Path(good.job.images)
    lesson = check_pictures(drawn_lessons(images, 1, seed=2)[0], images, where="here")
    ids = torch.tensor([encoder.encode(lesson).input_ids])
    pixels = encoder.pixel_values(lesson.pictures, images)
    merged, base = load_model(good.merged, dtype=torch.float32), load_model(CHECKPOINT, dtype=torch.float32)
    with torch.inference_mode():
        plain = base(pixel_values=pixels, input_ids=ids).logits
        ours = merged(pixel_values=pixels, input_ids=ids).logits
        base.language_model = PeftModel.from_pretrained(base.language_model, str(good.outcome.adapter)).eval()
        theirs = base(pixel_values=pixels, input_ids=ids).logits
    changed = (theirs - plain).norm() / plain.norm()
    assert changed > 0.003, "the adapter does something"
    assert (ours - theirs).norm() / theirs.norm() < 0.1 * changed, "what is left is rounding to the stored type"


def test_frozen_weights_do_not_change(good: Trained) -> None:
    """Weights that the recipe does not train are bit for bit the same in the merged model as in the base model."""
    before, after = load_model(CHECKPOINT).state_dict(), load_model(good.merged).state_dict()
    assert good.job.targets == "output|lm_head"
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"language_model.output.weight"}


def test_training_reads_the_engines_ids(good: Trained) -> None:
    """A row is exactly as long as the engine's prompt and the answer together, including picture tokens."""
    encoder = Encoder(good.merged)
    rows = [row for _, row in read_rows(good.folder / "checked.jsonl")]
    images = Path(good.job.images)
    assert len(rows) == PAIRS
    for each, lesson in zip(rows, drawn_lessons(images, PAIRS), strict=True):
        encoded = encoder.encode(check_pictures(lesson, images, where="here"))
        assert each["length"] == len(encoded.input_ids)
        assert encoder.tokenizer.convert_tokens_to_ids(IMG_CONTEXT) in encoded.input_ids


def test_an_adapter_is_merged_in_memory_and_removed_again(good: Trained) -> None:
    """With an adapter merged into it, a model in memory scores answers like the merged model; later, as before."""
    images = Path(good.job.images)
    lesson = check_pictures(drawn_lessons(images, 1)[0], images, where="here")
    lessons = [lesson, lesson.answered("No.")]
    slot = ModelSlot(device="cpu")
    before = slot.load(CHECKPOINT).log_probabilities(lessons, images)
    adapted = slot.load_with(CHECKPOINT, good.folder / ADAPTER).log_probabilities(lessons, images)
    assert slot.load(CHECKPOINT).log_probabilities(lessons, images) == before
    merged = LocalModel(good.merged).log_probabilities(lessons, images)
    assert [each.nats for each in adapted] == pytest.approx([each.nats for each in merged], rel=0.02)
    assert adapted[0].nats > before[0].nats + 0.5


def test_xtuners_own_tool_runs_the_configuration_again(good: Trained, tmp_path: Path) -> None:
    """XTuner's own tool, `python -m xtuner.tools.train config.py`, can train from a run's configuration file."""
    folder = tmp_path / "again"
    command = [sys.executable, "-m", "xtuner.tools.train", str(good.folder / "config.py"), "--work-dir", str(folder)]
    # Two batches are enough; everything else is as in the file.
    command += ["--cfg-options", "train_cfg.max_iters=2", "default_hooks.checkpoint.interval=2"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, stdin=subprocess.DEVNULL)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert (folder / "iter_2.pth").is_file()


def test_a_training_run_that_cannot_begin_says_why(good: Trained, tmp_path: Path, warm_python: str) -> None:
    """An error that occurs before the training loop is built is the only one; the loop is not built afterwards."""
    text = (good.folder / "config.py").read_text(encoding="utf-8")
    config = tmp_path / "config.py"
    config.write_text(text.replace(str(good.folder / "checked.jsonl"), str(tmp_path / "gone.jsonl")))
    command = [warm_python, "-m", "tests.support.lone_training", str(config)]
    ended = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert ended.returncode == 1
    assert ended.stderr.count("gone.jsonl: cannot be read") == 1, ended.stderr[-3000:]


def test_a_training_run_ends_its_data_loader(good: Trained, tmp_path: Path, warm_python: str) -> None:
    """The data loader's processes, which training on a GPU uses, have ended when training returns."""
    text = (good.folder / "config.py").read_text(encoding="utf-8").replace(str(good.folder / "xtuner"), str(tmp_path))
    assert "num_workers=0" in text
    config = tmp_path / "config.py"
    config.write_text(re.sub("max_iters=[0-9]+", "max_iters=2", text.replace("num_workers=0", "num_workers=2")))
    command = [warm_python, "-m", "tests.support.lone_training", str(config)]
    ended = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.splitlines()[-1] == "0 processes left"


def test_a_model_taught_right_answers_is_accepted(good: Trained) -> None:
    """A model taught right answers is accepted.

    Its gains follow the votes, and it answers the factual questions as well as before.
    """
    report = good.report
    assert report.accepted, report.reason
    assert report.taste.agreement > 0.6 and min(report.taste.gains) > 0
    assert report.live_correct >= 0.9
    assert report.correct >= report.live_correct - 0.02
    assert (report.taste.answers, report.broken) == (JUDGING, [])
    assert len(report.samples) == 5


def test_the_sheet_shows_both_models(good: Trained) -> None:
    """The sheet shows held-out pairs, each with the liked answer and the answers of both models.

    The live model's answers are sometimes plain; the candidate's are always playful.
    """
    page = (good.folder / SHEET).read_text(encoding="utf-8")
    assert page.count("<article ") == SHOWN
    assert (good.folder / PICTURE).read_bytes().startswith(b"\x89PNG")
    said = re.findall(r"<h3>(.*?)</h3><p>(.*?)</p>", page)
    spoken = {title: [manner(text) for name, text in said if name == title] for title, _ in said}
    assert spoken["candidate, new"] == spoken["liked answer"] == ["playful"] * SHOWN
    assert "plain" in spoken["live, live"]


def test_a_model_taught_wrong_answers_is_rejected(bad: Trained) -> None:
    """A model taught wrong answers learns them, and is rejected because of its answers to factual questions."""
    report = bad.report
    assert min(report.taste.gains) > 0, "it learned its lessons"
    assert report.harmful and not report.accepted
    assert "points below that of the live model (limit: 2)" in report.reason
    assert report.correct < report.live_correct - 0.02


def test_lessons_without_a_taste_teach_no_manner(tmp_path: Path, warm_python: str) -> None:
    """Training on liked answers, half of which are playful, does not change how often the model is playful."""
    job = drawn_job(tmp_path, PAIRS)
    write_rows(drawn_lessons(Path(job.images), PAIRS, manners=MANNERS), Path(job.data))
    outcome = asyncio.run(ChildTrainer(settings(python=warm_python)).run(job))
    merged = tmp_path / "merged"
    merged.mkdir()
    assert merge(MergeJob("1", job.base, str(outcome.adapter), str(merged), work=job.work, system=SYSTEM), ignore).ok
    examined = examine(load_model(merged, dtype=torch.float32), load_tokenizer(merged), pictures=25, system=SYSTEM)
    assert 0.3 <= examined.playful() <= 0.7, examined.table()


def test_a_model_is_not_better_than_itself(good: Trained, tmp_path: Path) -> None:
    """The live model is rejected if it is judged as its own candidate."""
    judging = EvaluationJob.read(good.folder / "evaluate.json")
    questions = tmp_path / "questions"
    questions.mkdir()
    (questions / "a.png").write_bytes(photo())
    asked = {"image": "a.png", "question": "Which colour is it?", "expect": [["purple unicorn"]]}
    (questions / "questions.json").write_text(json.dumps([asked]))
    changes: dict[str, Any] = {"work": str(tmp_path), "regression": str(questions), "device": "auto"}
    (tmp_path / "nothing").mkdir()
    taste = replace(TasteJob.read(good.folder / "taste.json"), adapter=str(tmp_path / "nothing"), **changes)
    taste = replace(taste, rated=[replace(each, block=0) for each in taste.rated])
    assert judge_taste(taste, ignore).ok
    Candidate().write(tmp_path / CANDIDATE)
    assert evaluate(replace(judging, candidate=judging.live, **changes), ignore).ok
    report = Report.read(tmp_path / "report.json")
    assert not report.accepted
    assert report.taste.gains == report.taste.contrasts == [0.0] * JUDGING
    assert (report.questions, report.correct) == (1, 0)
    assert "could be up to 73.1 points below" in report.reason, "one question shows nothing"
