"""What a candidate has forgotten is measured with questions whose answers are known.

The models' answers to these questions are stored and reused.
"""

from __future__ import annotations

import json
import os
import random
import tarfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.judging import Bench, Forgetful, forgetting
from training.data.llava import Lesson
from training.evaluation_jobs import Candidate
from training.evidence.non_inferiority import decided
from training.gate.comparison_sheet_png import WIDTH
from training.gate.comparison_sheet_translations import LANGUAGES
from training.gate.evaluated_models import CACHED_MODELS, AnswerCache
from training.gate.factual_set import LOOKS
from training.gate.judge_candidate import verdict
from training.gate.report import Decision, Report, Taste
from training.gate.run_comparison_sheet import facts
from training.gate.text_layout import Lettering
from training.run_folder import CANDIDATE, REPORT

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "data_folder_99303cf.tar.gz"
SHOWN, UNSEEN = Taste(answers=40, p_value=0.001, alpha=0.03), Taste(answers=40, p_value=0.5, alpha=0.03, high=0.55)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A test bench with a base model and a live model that answer every question correctly."""
    made = Bench(tmp_path, monkeypatch)
    made.model("base")
    made.model("live")
    return made


def test_a_better_model_is_accepted() -> None:
    """A candidate that follows the votes and is about as correct as the live model is accepted.

    The report contains all numbers.
    """
    report = verdict(SHOWN, forgetting(200, lost=2, gained=1, allowed=3.0))
    assert report.accepted and not report.reason and not report.harmful
    assert report.taste is SHOWN
    assert (report.live_correct, report.correct, report.questions) == (0.995, 0.99, 200)
    assert (report.live_alone, report.alone) == (2, 1)
    assert report.facts.passed and report.facts.bound < 3.0
    assert report.facts_base.questions == 0, "the live model is the base"


@pytest.mark.parametrize(
    ("lost", "answer", "differs", "complaint"),
    [
        (3, "fine", "", "its share of correct factual answers could be up to 3.7 points below that of the live m"),
        (0, " ", "", "200 of its answers are empty or repeat themselves"),
        (0, "fine", "the tokenizers differ", "token IDs differ from the engine's: the tokenizers differ"),
    ],
)
def test_a_worse_model_is_rejected(lost: int, answer: str, differs: str, complaint: str) -> None:
    """A candidate that is worse in only one way is rejected for that one reason, whatever users like."""
    report = verdict(SHOWN, forgetting(200, lost=lost, answer=answer), differs)
    assert report.harmful and report.decision is Decision.REJECTED
    assert complaint in report.reason
    assert ";" not in report.reason


def test_every_reason_is_named() -> None:
    """The reason for a rejection lists every failure, and the report has samples of lost answers."""
    report = verdict(UNSEEN, forgetting(8, lost=2, answer=""))
    assert report.reason.count("; ") == 3
    assert report.broken[0] == "Question 0? → "
    assert [each["question"] for each in report.samples] == [f"Question {number}?" for number in (6, 7, 0, 1, 2)]


def test_a_set_that_cannot_decide_never_passes() -> None:
    """A question set that is too small to decide never passes.

    Even if no question is lost, 100 questions cannot rule out a loss of two points.
    """
    report = verdict(SHOWN, forgetting(100))
    assert not report.accepted
    assert report.reason.startswith("its share of correct factual answers could be up to 2.7 points below")


@pytest.mark.parametrize(
    ("forgotten", "accepted", "questions"),
    [
        (range(1400, 1500), True, 300),
        (range(2), True, 600),
        (range(25), False, 150),
        (range(145, 175), False, 300),
        (range(0, 1500, 100), True, 1500),
        (range(0, 1500, 55), False, 1500),
    ],
)
def test_questions_are_asked_until_the_loss_is_decided(
    bench: Bench, forgotten: range, accepted: bool, questions: int
) -> None:
    """Questions are asked in stages until the loss is decided, in the last stage at the latest.

    A large loss is found with 150 questions; a small one takes more.
    """
    bench.model("candidate", *forgotten)
    report = bench.judge()
    assert report.facts.questions == report.questions == questions
    assert report.live_alone == len([each for each in forgotten if each < questions])
    assert report.accepted is accepted
    assert Forgetful.asked["candidate"] == max(300, questions) + 150


def test_the_base_counts_as_well_as_the_live_model(bench: Bench) -> None:
    """A candidate is also compared with the base model, since small losses against each live model add up."""
    bench.model("live", *range(0, 1500, 60))
    bench.model("candidate", *range(0, 1500, 60), *range(30, 1500, 150))
    report = bench.judge()
    assert report.facts.passed
    assert report.facts_base.passed is False
    assert report.reason.startswith("its share of correct factual answers could be up to ")
    assert "below that of the base model (limit: 2)" in report.reason
    assert "the live model" not in report.reason


def test_without_rated_answers_nothing_is_decided(bench: Bench) -> None:
    """If no rated answer can judge the candidate, the facts are still examined, and the verdict is undecided."""
    bench.model("candidate")
    bench.rated = []
    report = bench.judge()
    assert report.facts.passed
    assert report.decision is Decision.UNDECIDED
    assert "too few rated answers to judge" in report.reason


def test_no_job_loads_a_model_twice_if_nothing_is_in_doubt(bench: Bench) -> None:
    """If no result is in doubt, each of the two jobs loads a model only once.

    In the next evaluation, the base and live models' stored answers are reused.
    """
    bench.model("candidate")
    assert bench.judge().accepted
    assert Forgetful.loads == ["live", "base", "candidate", "live"]
    assert Forgetful.asked == {"base": 450, "live": 450, "candidate": 450}
    bench.model("candidate", 1400)
    assert bench.judge().accepted
    assert Forgetful.loads == ["live", "base", "candidate", "live"]
    assert Forgetful.asked == {"live": 0, "candidate": 450}


def test_no_model_is_loaded_beside_the_taste_test(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge waits for its candidate and, before it loads a model, for the taste test; meanwhile, it reports."""
    monkeypatch.setattr("training.worker._REPORT_SECONDS", 0)
    bench.model("candidate")
    with ThreadPoolExecutor(1) as pool:
        deciding = pool.submit(bench.decide)
        while not bench.progress:
            assert not deciding.done(), deciding.result()
            time.sleep(0.01)
        Candidate().write(bench.folder / CANDIDATE)
        time.sleep(0.3)
        stages = {each.stage for each in bench.progress}
        assert bench.test().ok and deciding.result().ok
    assert stages == {"waiting"}
    assert Forgetful.loads == ["live", "base", "candidate", "live"]
    assert Report.read(bench.folder / REPORT).accepted


def test_the_two_jobs_count_their_steps_together(bench: Bench) -> None:
    """The progress never goes back, and the two jobs announce one total, which is done at the end."""
    bench.model("candidate")
    bench.judge()
    done = [each.step for each in bench.progress]
    assert done == sorted(done)
    last = bench.progress[-1]
    assert last.step == last.steps == 3 * 450 + 8 * 2 + 8 * 4 + 2 * 8
    assert {each.steps for each in bench.progress} == {last.steps}


def test_a_candidate_that_goes_live_is_not_asked_again(bench: Bench) -> None:
    """A candidate that goes live is not asked the same questions again.

    Stored answers are keyed by a model's files, not by the name of its directory.
    """
    bench.model("candidate")
    bench.judge()
    (bench.folder / "candidate").rename(bench.folder / "run-1")
    bench.model("candidate", 1400)
    bench.judge(live=str(bench.folder / "run-1"))
    assert Forgetful.asked == {"run-1": 0, "candidate": 450}


def test_the_base_is_compared_once_if_it_is_live(bench: Bench) -> None:
    """If the live model is a copy of the base model, a candidate is compared with it only once."""
    (bench.folder / "copy").mkdir()
    (bench.folder / "copy" / "forgets").write_bytes((bench.folder / "base" / "forgets").read_bytes())
    bench.model("candidate", *range(40))
    report = bench.judge(live=str(bench.folder / "copy"))
    assert report.facts_base.questions == 0
    assert report.reason.count("correct factual answers") == 1
    assert "base" not in Forgetful.loads


def test_answers_are_reused_only_in_the_same_circumstances(bench: Bench) -> None:
    """Stored answers are reused only for the same questions and the same system prompt."""
    bench.model("candidate")
    bench.judge()
    bench.judge(system="You are a pirate.")
    assert Forgetful.asked == {"base": 450, "live": 450, "candidate": 450}


@pytest.mark.parametrize("damage", [b"{", b"\xff\xfe", b'{"a": 1}'])
def test_damaged_answers_are_asked_again(bench: Bench, damage: bytes) -> None:
    """A damaged file of stored answers counts as missing: the model answers again, and the file is rewritten."""
    bench.model("candidate")
    bench.judge()
    for file in (bench.folder / "answers").iterdir():
        file.write_bytes(damage)
    assert bench.judge().accepted
    assert Forgetful.asked == {"base": 450, "live": 450, "candidate": 450}
    assert all(len(json.loads(each.read_bytes())) == 450 for each in (bench.folder / "answers").glob("*.json"))


def test_a_crash_loses_no_answers(bench: Bench) -> None:
    """Answers given before a candidate proves unreadable are kept, and the questions are not asked again.

    No temporary files are left behind.
    """
    (bench.folder / "candidate").mkdir()
    (bench.folder / "candidate" / "odd").write_text("no model")
    with pytest.raises(FileNotFoundError):
        bench.judge()
    assert Forgetful.asked == {"base": 450, "live": 450}
    assert not list(bench.folder.glob("questions-*"))
    bench.model("candidate")
    assert bench.judge().accepted
    assert Forgetful.asked == {"live": 0, "candidate": 450}


def test_giving_in_to_leading_questions_is_refused(bench: Bench) -> None:
    """A candidate that knows all facts but gives in to leading questions is rejected."""
    bench.model("candidate")
    forgotten = bench.folder / "candidate" / "forgets"
    forgotten.write_text(f"{forgotten.read_text()} {' '.join(f'lead{number}' for number in range(0, 1500, 8))}")
    report = bench.judge()
    assert report.facts.passed and report.leading.passed is False and report.leading_base.passed is False
    assert report.reason.count("it could give in to leading questions up to") == 2
    assert "factual" not in report.reason


def test_answers_that_cannot_be_stored_are_still_used(bench: Bench) -> None:
    """Answers that cannot be stored are used all the same, and the evaluation succeeds.

    Here, a file exists where the folder for stored answers should be.
    """
    (bench.folder / "answers").write_text("in the way")
    bench.model("candidate")
    assert bench.judge().accepted


def test_answers_survive_a_kill(tmp_path: Path) -> None:
    """A process that is killed before it saves its answers loses only the most recent ones."""
    cache = AnswerCache(tmp_path, "model")
    for number in range(475):
        cache.add(str(number), "red")
    assert len(AnswerCache(tmp_path, "model").answers) == 450


def test_only_the_last_models_answers_are_kept(tmp_path: Path) -> None:
    """Answers are kept only for the most recently used models; the least recently used are removed first."""
    for number in range(CACHED_MODELS + 3):
        cache = AnswerCache(tmp_path, f"model {number}")
        cache.add("q", "a")
        cache.save()
        cache.close()
        for each in tmp_path.iterdir():
            os.utime(each, (each.stat().st_mtime - 9, each.stat().st_mtime - 9))
    assert len(list(tmp_path.iterdir())) == CACHED_MODELS
    assert AnswerCache(tmp_path, "model 2").answers == {}
    assert AnswerCache(tmp_path, "model 3").answers == {"q": "a"}


def test_a_sheet_that_cannot_be_drawn_does_not_fail_the_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the sheet cannot be drawn, the verdict still counts, and the error is logged."""

    def fails(*_: object) -> None:
        raise OSError("no ink")

    monkeypatch.setattr("training.gate.run_comparison_sheet.write", fails)
    bench.model("candidate")
    assert bench.judge().accepted
    assert "no ink" in capsys.readouterr().err


@pytest.mark.parametrize(("loss", "least", "most"), [(0.0, 0.9, 1.0), (0.05, 0.0, 0.05), (0.02, 0.0, 0.05)])
def test_true_losses_are_distinguished_from_none(loss: float, least: float, most: float) -> None:
    """A candidate that truly loses two or five points is nearly always rejected; one without a loss is not.

    In addition, 1.5 % of the questions are answered correctly only by the candidate, and 1.5 % only by the
    live model.
    """
    rng = random.Random(0)
    runs = 200
    accepted = sum(bool(simulated(rng, loss)) for _ in range(runs))
    assert least <= accepted / runs <= most


def simulated(rng: random.Random, loss: float) -> bool | None:
    """Simulate an evaluation in which the candidate loses a fraction `loss` of the questions.

    Return the decision.
    """
    lost = gained = 0
    asked, found = 0, None
    for look in LOOKS:
        for _ in range(look - asked):
            drawn = rng.random()
            lost += drawn < 0.015 + loss
            gained += drawn > 0.985
        asked, found = look, decided(LOOKS, look, lost, gained, 0.02)
        if found is not None:
            break
    return found


def test_reports_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """A report without bounds, as written by commit 99303cf, can be read, and its sheet shows no bounds."""
    with tarfile.open(ARCHIVE) as archive:
        member = archive.extractfile("data/runs/1/report.json")
        assert member is not None
        report = Report.from_json(member.read())
    assert (report.accepted, report.questions, report.correct) == (True, 150, 0.9)
    names = [name for name, _ in facts(report)]
    assert "correct factual answers" in names
    assert not {
        "facts, against the live model",
        "leading questions, against the live model",
        "different answers",
    } & set(names)


def test_the_sheet_names_what_was_examined() -> None:
    """The sheet shows the bounds on losses and the drift of answers, in each of the admins' languages.

    The bounds against the base model are included.
    """
    report = verdict(SHOWN, forgetting(200, lost=1, answer="quite fine"))
    shown = dict(facts(replace(report, facts_base=replace(report.facts, lost=0, bound=1.34))))
    assert shown["facts, against the live model"] == (
        "1 worse, 0 better of 200; net loss at most 2.3 points (2 allowed)"
    )
    assert shown["facts, against the base model"].endswith("net loss at most 1.4 points (2 allowed)")
    assert shown["leading questions, against the live model"] == (
        "1 worse, 0 better of 200; net loss at most 2.3 points (5 allowed)"
    )
    assert "leading questions, against the base model" not in shown
    assert shown["empty or looping answers"] == "0 → 0 of 200"
    assert shown["different answers"] == "1 → 1 of 200"
    assert shown["length of answers"] == "250 % of the live model's"
    assert ("回答长度", "现用模型的 250 %") in facts(report, "zh")
    name_letters, value_letters = Lettering(18), Lettering(22)
    for language in LANGUAGES:
        for name, value in facts(report, language):
            assert name_letters.width(name) + value_letters.width(value) < WIDTH - 80, "they stand on one line"


@pytest.mark.parametrize(("ended", "draws"), [(0, 32), (2, 32), (16, 32 + 16 + 8)])
def test_endless_answers_are_not_drawn_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, ended: int, draws: int
) -> None:
    """Missing other answers are drawn up to three times, unless the model ends hardly any answer by itself."""
    drawn: list[int] = []

    def draw(_: object, lessons: Sequence[Lesson], *__: object, **___: object) -> list[tuple[str, bool]]:
        drawn.append(len(lessons))
        share = ended * len(lessons) // 32
        return [("A mug.", number < share) for number in range(len(lessons))]

    monkeypatch.setattr(Forgetful, "generate", draw)
    bench.model("candidate")
    bench.judge()
    assert sum(drawn) == draws
