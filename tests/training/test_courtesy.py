"""A run steps aside while somebody waits for a first word."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from inference.internvl2.tiny import CHECKPOINT
from inference.serving.pressure import FirstWords
from tests.support.lessons import SYSTEM, drawn_lessons
from training.data.llava import write_rows
from training.gate.evaluate import evaluate
from training.job import EvaluationJob, ignore
from training.xtuner import vision_cache
from training.xtuner.encoding import Sight
from training.xtuner.gpu_yield import Courtesy

LONG = 60.0


def stepping(courtesy: Courtesy) -> threading.Thread:
    """A thread that steps aside once."""
    courtesy._resumed -= LONG  # as after a minute of work
    thread = threading.Thread(target=courtesy.step_aside, daemon=True)
    thread.start()
    return thread


def test_the_byte_is_set_while_anybody_waits(tmp_path: Path) -> None:
    """From the first question to the first word of the last, whether it comes or the answer breaks off."""
    file = tmp_path / "logs" / "first-words"
    words = FirstWords(file)
    assert file.read_bytes() == b"\0"
    with words.awaited() as heard:
        with words.awaited():
            assert file.read_bytes() == b"\1"
            heard()
            heard()
            assert file.read_bytes() == b"\1", "another one waits"
        assert file.read_bytes() == b"\0"


def test_the_training_waits_until_the_word_has_come(tmp_path: Path) -> None:
    """It pauses while the byte is set and goes on when it is not."""
    words = FirstWords(tmp_path / "first-words")
    courtesy = Courtesy(words.file, longest=LONG)
    courtesy.step_aside()
    with words.awaited() as heard:
        thread = stepping(courtesy)
        thread.join(0.2)
        assert thread.is_alive()
        heard()
        thread.join(LONG)
        assert not thread.is_alive()


def test_no_pause_is_longer_than_allowed_or_than_the_work_before(tmp_path: Path) -> None:
    """The byte of an engine that hangs holds nothing up for good, nor do many who chat."""
    words = FirstWords(tmp_path / "first-words")
    courtesy = Courtesy(words.file, longest=0.05)
    with words.awaited():
        thread = stepping(courtesy)
        thread.join(LONG)
        assert not thread.is_alive()
        generous = Courtesy(words.file, longest=2 * LONG)
        generous.step_aside()
        assert words.file.read_bytes() == b"\1", "it went on after next to no work, though somebody waits"


class _Clock:
    """Time that passes when somebody works or sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        """The time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let it pass."""
        self.now += seconds


def test_a_small_model_is_held_no_longer_than_a_large_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However short its layers are and however long somebody waits, it takes twice the time and no more."""
    clock = _Clock()
    monkeypatch.setattr("training.xtuner.gpu_yield.time", clock)
    words = FirstWords(tmp_path / "first-words")
    courtesy, begun = Courtesy(words.file), clock.now
    with words.awaited():
        for _ in range(1000):
            clock.now += 0.0001
            courtesy.step_aside()
    assert clock.now - begun == pytest.approx(2 * 1000 * 0.0001)


def test_it_is_asked_before_each_layer_in_both_directions(tmp_path: Path) -> None:
    """Two layers are held four times in a step."""
    courtesy = Courtesy(FirstWords(tmp_path / "first-words").file)
    asked: list[None] = []
    courtesy.step_aside = lambda: asked.append(None)  # type: ignore[method-assign]
    layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    courtesy.attach(layers)
    layers[1](layers[0](torch.ones(1, 2, requires_grad=True))).sum().backward()
    assert len(asked) == 4


def test_pictures_and_the_evaluation_step_aside_before_each_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vision features of a run do, and both models that are judged, while a job names the engine's file."""
    asked: list[None] = []
    monkeypatch.setattr(Courtesy, "step_aside", lambda _: asked.append(None))
    words = FirstWords(tmp_path / "first-words")
    (lesson,) = drawn_lessons(tmp_path / "pictures", 1)
    layers = json.loads((CHECKPOINT / "config.json").read_text())
    seeing, speaking = (layers[part]["num_hidden_layers"] for part in ("vision_config", "llm_config"))
    places = {"base": CHECKPOINT, "images": tmp_path / "pictures", "sight": Sight.of(CHECKPOINT)}
    for courtesy, expected in (("", 0), (str(words.file), seeing)):
        paths = {"pictures": lesson.pictures, "courtesy": courtesy, **places}
        vision_cache.write(tmp_path / "0.bin", room=1e9, threads=1, **paths)  # type: ignore[arg-type]
        assert len(asked) == expected

    write_rows([lesson], tmp_path / "held_out.json")
    questions = tmp_path / "questions"
    questions.mkdir()
    (questions / "a.png").write_bytes((tmp_path / "pictures" / lesson.pictures[0]).read_bytes())
    one = [{"image": "a.png", "question": "Which colour is it?", "expect": [["red"]]}]
    (questions / "questions.json").write_text(json.dumps(one))
    job = EvaluationJob(
        run="1",
        candidate=str(CHECKPOINT),
        live=str(CHECKPOINT),
        data=str(tmp_path / "held_out.json"),
        images=str(tmp_path / "pictures"),
        work=str(tmp_path),
        system=SYSTEM,
        regression=str(questions),
        device="cpu",
        threads=1,
    )
    asked.clear()
    assert evaluate(job, ignore).ok
    assert not asked
    assert evaluate(replace(job, courtesy=str(words.file)), ignore).ok
    # Each model reads the liked answer once, and at least reads and begins two answers.
    assert len(asked) >= 2 * (3 * seeing + 5 * speaking)
