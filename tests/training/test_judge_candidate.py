"""The judge of a candidate, which prepares itself while other jobs of the run are busy."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from storage.errors import StorageError
from tests.support.lessons import SYSTEM, drawn_lessons
from training.data.llava import write_rows
from training.evaluation_jobs import Candidate, EvaluationJob
from training.gate.judge_candidate import evaluate
from training.job import ignore
from training.run_folder import CANDIDATE, TASTE

ENOUGH_SECONDS = 30


def test_a_failure_does_not_wait_for_the_taste_test(tmp_path: Path) -> None:
    """If the judge fails, it ends, although the taste test has not written its evidence yet."""
    write_rows(drawn_lessons(tmp_path / "pictures", 2), tmp_path / "judged.json")
    job = EvaluationJob(
        run="1",
        live=str(tmp_path / "live"),
        data=str(tmp_path / "judged.json"),
        images=str(tmp_path / "pictures"),
        work=str(tmp_path),
        system=SYSTEM,
        candidate=str(tmp_path / "nothing"),
    )
    Candidate().write(tmp_path / CANDIDATE)
    failed = threading.Event()

    def judge() -> None:
        with pytest.raises(StorageError):
            evaluate(job, ignore)
        failed.set()

    threading.Thread(target=judge, daemon=True).start()
    ended = failed.wait(ENOUGH_SECONDS)
    (tmp_path / TASTE).write_text("{}", encoding="utf-8")  # a judge that still waits ends now
    assert ended
