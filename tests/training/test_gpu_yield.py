"""Training pauses while a user waits for the first token of an answer."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from inference.internvl2.tiny import CHECKPOINT
from inference.serving.first_token_signal import FirstTokenSignal
from tests.support.lessons import SYSTEM, drawn_lessons
from training.data.llava import write_rows
from training.evaluation_jobs import Candidate, EvaluationJob
from training.gate.factual_set import own_set
from training.gate.judge_candidate import evaluate
from training.gate.report import Taste
from training.job import ignore
from training.run_folder import CANDIDATE, TASTE
from training.xtuner import vision_cache
from training.xtuner.encoding import Encoder, load_tiles
from training.xtuner.gpu_yield import GpuYield

LONG = 60.0
TILING = Encoder(CHECKPOINT).tiling


def pausing(gpu_yield: GpuYield) -> threading.Thread:
    """Start a thread that calls `gpu_yield.pause` once, as if after a minute of work, and return the thread."""
    gpu_yield._resumed -= LONG  # as after a minute of work
    thread = threading.Thread(target=gpu_yield.pause, daemon=True)
    thread.start()
    return thread


def test_the_byte_is_set_while_a_user_waits(tmp_path: Path) -> None:
    """The shared byte is set while at least one user waits for the first token of an answer.

    A user's wait ends when the first token arrives or the answer is interrupted.
    """
    file = tmp_path / "logs" / "first-words"
    signal = FirstTokenSignal(file)
    assert file.read_bytes() == b"\0"
    with signal.awaited() as heard:
        with signal.awaited():
            assert file.read_bytes() == b"\1"
            heard()
            heard()
            assert file.read_bytes() == b"\1", "another one waits"
        assert file.read_bytes() == b"\0"


def test_the_training_pauses_while_the_byte_is_set(tmp_path: Path) -> None:
    """Training pauses while the shared byte is set and resumes when the byte is cleared."""
    signal = FirstTokenSignal(tmp_path / "first-words")
    gpu_yield = GpuYield(signal.file, max_pause=LONG)
    gpu_yield.pause()
    with signal.awaited() as heard:
        thread = pausing(gpu_yield)
        thread.join(0.2)
        assert thread.is_alive()
        heard()
        thread.join(LONG)
        assert not thread.is_alive()


def test_a_pause_is_bounded(tmp_path: Path) -> None:
    """A pause is never longer than the configured maximum or a quarter of the time since the previous pause.

    Therefore, neither a hung engine nor a large number of users can stop training.
    """
    signal = FirstTokenSignal(tmp_path / "first-words")
    gpu_yield = GpuYield(signal.file, max_pause=0.05)
    with signal.awaited():
        thread = pausing(gpu_yield)
        thread.join(LONG)
        assert not thread.is_alive()
        generous = GpuYield(signal.file, max_pause=2 * LONG)
        generous.pause()
        assert signal.file.read_bytes() == b"\1", "it continued after next to no work, though a user waits"


class _Clock:
    """A fake `time` module whose clock advances only when `sleep` is called or `now` is changed."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        """Return the fake time in seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Advance the clock by `seconds`."""
        self.now += seconds


def test_a_small_model_pauses_no_longer_than_a_large_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses lengthen the training by a quarter at most, however little time each layer takes."""
    clock = _Clock()
    monkeypatch.setattr("training.xtuner.gpu_yield.time", clock)
    signal = FirstTokenSignal(tmp_path / "first-words")
    gpu_yield, begun = GpuYield(signal.file), clock.now
    with signal.awaited():
        for _ in range(1000):
            clock.now += 0.0001
            gpu_yield.pause()
    assert clock.now - begun == pytest.approx(1.25 * 1000 * 0.0001)


def test_it_pauses_before_each_layer_in_both_directions(tmp_path: Path) -> None:
    """With two layers, `pause` is called four times per step: before each layer's forward and backward pass."""
    gpu_yield = GpuYield(FirstTokenSignal(tmp_path / "first-words").file)
    calls: list[None] = []
    gpu_yield.pause = lambda: calls.append(None)  # type: ignore[method-assign]
    layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    gpu_yield.attach(layers)
    layers[1](layers[0](torch.ones(1, 2, requires_grad=True))).sum().backward()
    assert len(calls) == 4


def test_the_vision_cache_and_the_evaluation_pause_before_each_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vision cache and the evaluation pause before each layer if the job names the engine's signal file.

    In this file, the engine marks whether a user is waiting; without the file, nothing pauses.
    """
    calls: list[None] = []
    monkeypatch.setattr(GpuYield, "pause", lambda _: calls.append(None))
    signal = FirstTokenSignal(tmp_path / "first-words")
    (lesson,) = drawn_lessons(tmp_path / "pictures", 1)
    layers = json.loads((CHECKPOINT / "config.json").read_text())
    seeing, speaking = (layers[part]["num_hidden_layers"] for part in ("vision_config", "llm_config"))
    for yield_file, expected in (("", 0), (str(signal.file), seeing)):
        tower = vision_cache.VisionTower(CHECKPOINT, GpuYield.open(yield_file))
        vision_cache.write_features(
            tmp_path,
            tower,
            lesson.pictures,
            lambda name: load_tiles(tmp_path / "pictures" / name, TILING),
            max_bytes=1e9,
            threads=1,
        )
        assert len(calls) == expected

    write_rows([lesson], tmp_path / "judged.json")
    questions = tmp_path / "questions"
    questions.mkdir()
    (questions / "a.png").write_bytes((tmp_path / "pictures" / lesson.pictures[0]).read_bytes())
    one = [{"image": "a.png", "question": "Which colour is it?", "expect": [["red"]]}]
    (questions / "questions.json").write_text(json.dumps(one))
    Taste().write(tmp_path / TASTE)
    Candidate().write(tmp_path / CANDIDATE)
    # One question for each examination is enough here.
    monkeypatch.setattr("training.gate.forgetting.leading_set", lambda _: own_set(questions))
    job = EvaluationJob(
        run="1",
        candidate=str(CHECKPOINT),
        live=str(CHECKPOINT),
        data=str(tmp_path / "judged.json"),
        images=str(tmp_path / "pictures"),
        work=str(tmp_path),
        system=SYSTEM,
        regression=str(questions),
        device="cpu",
        threads=1,
    )
    calls.clear()
    assert evaluate(job, ignore).ok
    assert not calls
    assert evaluate(replace(job, courtesy=str(signal.file)), ignore).ok
    # Each model at least prefills and begins an answer for the sheet; being the same, they answer the factual question
    # once.
    assert len(calls) >= 2 * (seeing + 2 * speaking) + seeing + 2 * speaking
