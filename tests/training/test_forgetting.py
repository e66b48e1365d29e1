"""What a candidate has forgotten: comparisons on questions with known answers, and the answers that are kept."""

from __future__ import annotations

import json
import os
import random
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.judging import Bench, Forgetful, forgetting
from training.evidence.facts import LOOKS, decided
from training.gate.evaluate import verdict
from training.gate.report import Decision, Report, Taste
from training.gate.respondent import FILES, KeptAnswers
from training.gate.run_summary_sheet import facts
from training.gate.sheet_picture import WIDTH
from training.gate.sheet_words import LANGUAGES
from training.gate.text_layout import Lettering

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "data_folder_99303cf.tar.gz"
SHOWN, UNSEEN = Taste(answers=40, p_value=0.001, alpha=0.03), Taste(answers=40, p_value=0.5, alpha=0.03, high=0.55)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A base and a live model that know everything."""
    made = Bench(tmp_path, monkeypatch)
    made.model("base")
    made.model("live")
    return made


def test_a_better_model_is_accepted() -> None:
    """It follows the votes and is as correct; the report has all numbers."""
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
        (3, "fine", "", "it may lose up to 3.7 points of factual correctness against the live model (2 are all"),
        (0, " ", "", "200 of its answers are empty or repeat themselves"),
        (0, "fine", "the tokenizers differ", "token IDs differ from the engine's: the tokenizers differ"),
    ],
)
def test_a_worse_model_is_rejected(lost: int, answer: str, differs: str, complaint: str) -> None:
    """Each way to be worse is enough, and is the reason, whatever people like."""
    report = verdict(SHOWN, forgetting(200, lost=lost, answer=answer), differs)
    assert report.harmful and report.decision is Decision.REJECTED
    assert complaint in report.reason
    assert ";" not in report.reason


def test_every_reason_is_named() -> None:
    """The reason has all failures, and the report has samples of lost answers."""
    report = verdict(UNSEEN, forgetting(8, lost=2, answer=""))
    assert report.reason.count("; ") == 3
    assert report.broken[0] == "Question 0? → "
    assert [each["question"] for each in report.samples] == [f"Question {number}?" for number in (6, 7, 0, 1, 2)]


def test_a_set_that_cannot_decide_never_passes() -> None:
    """Without a lost question 100 questions do not bound a loss by two points."""
    report = verdict(SHOWN, forgetting(100))
    assert not report.accepted
    assert report.reason.startswith("it may lose up to 2.7 points of factual correctness")


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
    """Large losses are found by 150 questions, small ones take more, and the last look decides."""
    bench.model("candidate", *forgotten)
    report = bench.judge()
    assert report.facts.questions == report.questions == questions
    assert report.live_alone == len([each for each in forgotten if each < questions])
    assert report.accepted is accepted
    assert Forgetful.asked["candidate"] == max(300, questions) + 150


def test_the_base_counts_beside_the_live_model(bench: Bench) -> None:
    """Small losses against each live model add up, and the base still knows."""
    bench.model("live", *range(0, 1500, 60))
    bench.model("candidate", *range(0, 1500, 60), *range(30, 1500, 150))
    report = bench.judge()
    assert report.facts.passed
    assert report.facts_base.passed is False
    assert report.reason.startswith("it may lose up to ") and "against the base model (2 are allowed)" in report.reason
    assert "the live model" not in report.reason


def test_each_model_is_loaded_once_if_nothing_is_in_doubt(bench: Bench) -> None:
    """The base and the live model answered before and are not asked again; the base is not even loaded."""
    bench.model("candidate")
    assert bench.judge().accepted
    assert Forgetful.loads == ["live", "base", "candidate"]
    assert Forgetful.asked == {"base": 450, "live": 450, "candidate": 450}
    bench.model("candidate", 1400)
    assert bench.judge().accepted
    assert Forgetful.loads == ["live", "candidate"]
    assert Forgetful.asked == {"live": 0, "candidate": 450}


def test_a_candidate_that_goes_live_is_not_asked_again(bench: Bench) -> None:
    """Kept answers belong to the files of a model, and not to the name of its directory."""
    bench.model("candidate")
    bench.judge()
    (bench.folder / "candidate").rename(bench.folder / "run-1")
    bench.model("candidate", 1400)
    bench.judge(live=str(bench.folder / "run-1"))
    assert Forgetful.asked == {"run-1": 0, "candidate": 450}


def test_the_base_is_compared_once_if_it_is_live(bench: Bench) -> None:
    """There is one comparison, also where the directory has another name."""
    (bench.folder / "copy").mkdir()
    (bench.folder / "copy" / "forgets").write_bytes((bench.folder / "base" / "forgets").read_bytes())
    bench.model("candidate", *range(40))
    report = bench.judge(live=str(bench.folder / "copy"))
    assert report.facts_base.questions == 0
    assert report.reason.count("factual correctness") == 1
    assert "base" not in Forgetful.loads


def test_other_circumstances_are_other_answers(bench: Bench) -> None:
    """A model answers again under another system prompt, and other questions are not mixed up."""
    bench.model("candidate")
    bench.judge()
    bench.judge(system="You are a pirate.")
    assert Forgetful.asked == {"base": 450, "live": 450, "candidate": 450}


@pytest.mark.parametrize("damage", [b"{", b"\xff\xfe", b'{"a": 1}'])
def test_damaged_answers_are_asked_again(bench: Bench, damage: bytes) -> None:
    """A file that is not what was written is like none, and is written again."""
    bench.model("candidate")
    bench.judge()
    for file in (bench.folder / "answers").iterdir():
        file.write_bytes(damage)
    assert bench.judge().accepted
    assert Forgetful.asked == {"base": 450, "live": 450, "candidate": 450}
    assert all(len(json.loads(each.read_bytes())) == 450 for each in (bench.folder / "answers").iterdir())


def test_a_crash_loses_no_answers(bench: Bench) -> None:
    """What was answered before the candidate turned out to be unreadable is not asked again, and nothing is left."""
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
    """A candidate that knows all facts and agrees with anybody is not accepted."""
    bench.model("candidate")
    forgotten = bench.folder / "candidate" / "forgets"
    forgotten.write_text(f"{forgotten.read_text()} {' '.join(f'lead{number}' for number in range(0, 1500, 8))}")
    report = bench.judge()
    assert report.facts.passed and report.leading.passed is False and report.leading_base.passed is False
    assert report.reason.count("it may give in to leading questions up to") == 2
    assert "factual" not in report.reason


def test_answers_that_cannot_be_kept_are_used_all_the_same(bench: Bench) -> None:
    """A file in the place of the folder costs no run."""
    (bench.folder / "answers").write_text("in the way")
    bench.model("candidate")
    assert bench.judge().accepted


def test_only_the_last_models_answers_are_kept(tmp_path: Path) -> None:
    """Those that were used longest ago go first."""
    for number in range(FILES + 3):
        kept = KeptAnswers(tmp_path, f"model {number}")
        kept.add({"q": "a"})
        kept.close()
        for each in tmp_path.iterdir():
            os.utime(each, (each.stat().st_mtime - 9, each.stat().st_mtime - 9))
    assert len(list(tmp_path.iterdir())) == FILES
    assert KeptAnswers(tmp_path, "model 2").answers == {}
    assert KeptAnswers(tmp_path, "model 3").answers == {"q": "a"}


def test_a_sheet_that_cannot_be_drawn_fails_no_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The verdict counts without the sheet, and the log has the error."""

    def fails(*_: object) -> None:
        raise OSError("no ink")

    monkeypatch.setattr("training.gate.run_summary_sheet.write", fails)
    bench.model("candidate")
    assert bench.judge().accepted
    assert "no ink" in capsys.readouterr().err


@pytest.mark.parametrize(("loss", "least", "most"), [(0.0, 0.9, 1.0), (0.05, 0.0, 0.05), (0.02, 0.0, 0.05)])
def test_true_losses_are_told_from_none(loss: float, least: float, most: float) -> None:
    """No loss is accepted, and one of five points or of just two is not; each model alone knows another 1.5 %."""
    rng = random.Random(0)
    runs = 200
    accepted = sum(bool(simulated(rng, loss)) for _ in range(runs))
    assert least <= accepted / runs <= most


def simulated(rng: random.Random, loss: float) -> bool | None:
    """Return the decision over drawn questions of which the candidate loses a share."""
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
    """The report of 99303cf has no bounds, and its sheet none to show."""
    with tarfile.open(ARCHIVE) as archive:
        member = archive.extractfile("data/runs/1/report.json")
        assert member is not None
        report = Report.from_json(member.read())
    assert (report.accepted, report.questions, report.correct) == (True, 150, 0.9)
    names = [name for name, _ in facts(report)]
    assert "factual questions right" in names
    assert not {"facts lost", "gives in to leading questions", "different answers"} & set(names)


def test_the_sheet_names_what_was_examined() -> None:
    """It has the bounds, against the base too, and the drift, in the admins' languages."""
    report = verdict(SHOWN, forgetting(200, lost=1, answer="quite fine"))
    shown = dict(facts(replace(report, facts_base=replace(report.facts, lost=0, bound=1.34))))
    assert shown["facts lost"] == "at most 2.3 points, 2 allowed (1 lost, 0 gained of 200)"
    assert shown["facts lost against the base"].startswith("at most 1.4 points, 2 allowed")
    assert shown["gives in to leading questions"] == "at most 2.3 points, 5 allowed (1 lost, 0 gained of 200)"
    assert "the same against the base" not in shown
    assert shown["empty or looping answers"] == "0 → 0 of 200"
    assert shown["different answers"] == "1 → 1 of 200"
    assert shown["length of answers"] == "250 % of before"
    assert ("回答长度", "之前的 250 %") in facts(report, "zh")
    name_letters, value_letters = Lettering(18), Lettering(22)
    for language in LANGUAGES:
        for name, value in facts(report, language):
            assert name_letters.width(name) + value_letters.width(value) < WIDTH - 80, "they stand on one line"
