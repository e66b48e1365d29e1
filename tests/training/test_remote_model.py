"""Models that answer the questions of an evaluation through engines, and what happens when an engine fails."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from inference.internvl2.tiny import CHECKPOINT
from tests.support.cpu_serving import KEY, NAME, Served, started
from tests.support.lessons import SYSTEM
from training.data.llava import Lesson, write_rows
from training.evaluation_jobs import EvaluationJob, OpeningJob, RunningEngine, TasteJob
from training.gate import factual_set, leading_questions
from training.gate.answer_backend import AnswerBackend, greedy
from training.gate.factual_set import DRAWN, drawn_set
from training.gate.judge_taste import test as judge_taste
from training.gate.local_model import LocalModel
from training.gate.opening_answers import answer as opening_answers
from training.gate.remote_model import ModelQuestion, RemoteModels
from training.job import Progress, TrainingError, ignore

TOKENS = 24


def engine(served: Served, **changes: Any) -> RunningEngine:
    """Return how a job reaches a server."""
    url = str(served.http.base_url)
    made = RunningEngine(str(CHECKPOINT), NAME, url, KEY, "cpu", tiles=None, at_once=2, token_timeout=60)
    return replace(made, **changes)


def fields(folder: Path, *engines: RunningEngine) -> dict[str, Any]:
    """Return the fields of a job in which the stand-in is the live model."""
    return {
        "run": "1",
        "data": "",
        "images": "",
        "work": str(folder),
        "system": SYSTEM,
        "live": str(CHECKPOINT),
        "device": "cpu",
        "threads": 1,
        "engines": list(engines),
    }


def job(folder: Path, *engines: RunningEngine) -> EvaluationJob:
    """Return a job of an evaluation in which the stand-in model is both the live model and the candidate."""
    return EvaluationJob(**fields(folder, *engines), candidate=str(CHECKPOINT))


def disregard(number: int, text: str) -> None:
    """Do nothing with an answer."""


def questions(lessons: Iterable[Lesson], images: Path) -> list[ModelQuestion]:
    """Return questions to the stand-in."""
    return [ModelQuestion(CHECKPOINT, each, images, greedy(TOKENS)) for each in lessons]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """A running CPU engine with the stand-in model."""
    with started(CHECKPOINT) as server:
        server.until_ready()
        yield server


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Lesson], Path]:
    """Factual questions about drawn pictures, and the folder of the pictures."""
    folder = tmp_path_factory.mktemp("drawn")
    drawn = drawn_set(folder)
    return [drawn.lesson(each, SYSTEM) for each in drawn.first(6)], folder


@pytest.fixture(scope="module")
def expected(asked: tuple[list[Lesson], Path]) -> list[str]:
    """The answers of the model itself, without an engine."""
    return LocalModel(CHECKPOINT).answers(*asked, greedy(TOKENS))


def test_an_engine_gives_the_model_s_answers(
    served: Served, asked: tuple[list[Lesson], Path], expected: list[str]
) -> None:
    """Through an engine, a model gives the same answers as without it."""
    done: dict[int, str] = {}
    assert RemoteModels([engine(served)]).answers(questions(*asked), done.__setitem__) == expected
    assert [done[number] for number in range(len(expected))] == expected


def test_each_engine_answers_for_its_own_model(
    served: Served, asked: tuple[list[Lesson], Path], expected: list[str]
) -> None:
    """Models with an engine answer at the same time, and the questions to others remain."""
    other, unserved = Path("/models/other"), Path("/models/unserved")
    models = RemoteModels([engine(served), engine(served, directory=str(other))])
    mixed = [replace(each, directory=model) for each in questions(*asked) for model in (unserved, other, CHECKPOINT)]
    assert models.answers(mixed, disregard) == [text for each in expected for text in (None, each, each)]


def test_questions_that_an_engine_leaves_open_are_answered_here(
    tmp_path: Path, asked: tuple[list[Lesson], Path], expected: list[str]
) -> None:
    """If an engine dies during an evaluation, or cannot be reached at all, the model is loaded for the other questions.

    Each question has one answer.
    """
    lessons, images = asked
    done: list[int] = []
    given: dict[int, str] = {}
    with started(CHECKPOINT) as served:
        served.until_ready()
        backend = AnswerBackend(job(tmp_path, engine(served, at_once=1)))

        def die(number: int, text: str) -> None:
            done.append(number)
            given[number] = text
            served.process.kill()

        assert backend.answers(questions(lessons, images), die) == expected
        assert sorted(done) == [*range(len(lessons))] and [given[number] for number in sorted(done)] == expected
        unreachable = AnswerBackend(job(tmp_path, engine(served)))
    assert unreachable.answers(questions(lessons, images), disregard) == expected


def test_the_live_model_s_engine_answers_before_the_candidate_is_merged(
    tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The live model's answers and the questions' pictures are kept, and the next job has nothing left to ask.

    If no engine serves the model, the taste test collects them.
    """
    for module in (factual_set, leading_questions):
        monkeypatch.setattr(module, "LOOKS", (4,))
    write_rows([], tmp_path / "judged.json")
    values = {**fields(tmp_path, engine(served)), "data": str(tmp_path / "judged.json")}
    for name, opening, left in (("with", True, 0), ("without", False, 8)):
        answers, done = tmp_path / name, list[Progress]()
        if opening:
            assert opening_answers(OpeningJob(**values, answers=str(answers)), ignore).ok
            drawn = {each: each.stat().st_mtime_ns for each in (answers / DRAWN).iterdir()}
        engines = values["engines"] if opening else []
        judge_taste(TasteJob(**{**values, "engines": engines}, answers=str(answers), adapter=""), done.append)
        [kept] = answers.glob("*.json")
        assert len(json.loads(kept.read_text())) == 8, "four facts and four leading questions"
        assert (done[-1].step if done else 0) == left
    assert drawn == {each: each.stat().st_mtime_ns for each in (tmp_path / "with" / DRAWN).iterdir()}, "drawn once"


def test_answers_are_kept_if_the_job_fails(tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a job fails, the answers that have arrived are kept, and the next job asks only for the others."""
    for module in (factual_set, leading_questions):
        monkeypatch.setattr(module, "LOOKS", (4,))
    values, kept = fields(tmp_path, engine(served)), tmp_path / "answers"

    def fail(progress: Progress) -> None:
        if progress.step == 5:
            raise OSError("no progress can be printed")

    with pytest.raises(OSError, match="no progress"):
        opening_answers(OpeningJob(**values, answers=str(kept)), fail)
    [file] = kept.glob("*.json")
    first = json.loads(file.read_text())
    assert len(first) >= 4
    assert opening_answers(OpeningJob(**values, answers=str(kept)), ignore).steps == 8 - len(first)
    assert json.loads(file.read_text()).items() > first.items()


def test_no_model_is_loaded_while_a_run_trains(tmp_path: Path, served: Served) -> None:
    """If the engine does not answer, the job fails, and loads no model beside the one in training."""
    gone = engine(served, url="http://127.0.0.1:9")
    with pytest.raises(TrainingError, match="were not answered by the engine"):
        opening_answers(OpeningJob(**fields(tmp_path, gone), answers=str(tmp_path / "answers")), ignore)


def test_a_question_waits_for_users(
    tmp_path: Path, served: Served, asked: tuple[list[Lesson], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a user waits for the first token of an answer, the engine is asked nothing, but not for ever."""
    lessons, images = asked
    words, done = tmp_path / "first-words", list[bytes]()
    words.write_bytes(b"\1")
    model = RemoteModels([engine(served, at_once=1, first_words=str(words))])
    monkeypatch.setattr("training.gate.remote_model._MAX_PAUSE", 60)
    free = Timer(0.3, words.write_bytes, [b"\0"])
    free.start()
    model.answers(questions(lessons[:2], images), lambda *_: done.append(words.read_bytes()))
    free.join()
    assert done == [b"\0", b"\0"]
    words.write_bytes(b"\1")
    monkeypatch.setattr("training.gate.remote_model._MAX_PAUSE", 0.1)
    model.answers(questions(lessons[:1], images), lambda *_: done.append(words.read_bytes()))
    assert done[2] == b"\1", "a user who always waits does not stop the evaluation"


def test_a_broken_question_is_not_the_engine_s_fault(served: Served, asked: tuple[list[Lesson], Path]) -> None:
    """A question that the engine refuses has no answer, and the others are answered."""
    lessons, images = asked
    (images / "broken.png").write_bytes(b"no picture")
    broken = replace(lessons[0].turns[0].pictures[0], sha256="broken.png")
    refused = replace(lessons[0], turns=(replace(lessons[0].turns[0], pictures=(broken,)), *lessons[0].turns[1:]))
    model = RemoteModels([engine(served, at_once=1)])
    found = model.answers(questions([refused, *lessons[:2]], images), disregard)
    assert [each is None for each in found] == [True, False, False]
