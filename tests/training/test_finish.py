"""The files that a finished training run leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.test_resume import interrupted
from training.job import Outcome
from training.plots import draw_curve
from training.run_folder import CURVE, SCALARS
from training.xtuner.finetune import finish
from training.xtuner.resume import latest_checkpoint

LOG = '{"loss": 2.0, "step": 1}\n{"loss": 1.0, "step": 2}\n'


def test_checkpoints_are_removed_last(tmp_path: Path) -> None:
    """Checkpoints are removed only after the loss curve is written, so that a failed attempt can be repeated."""
    job = interrupted(tmp_path / "1")
    scalars = tmp_path / "1" / SCALARS
    scalars.write_text(LOG)
    (tmp_path / "1" / CURVE).mkdir()
    with pytest.raises(IsADirectoryError):
        finish(job, Outcome(ok=True, steps=2), gpu=False)
    assert latest_checkpoint(job) is not None
    (tmp_path / "1" / CURVE).rmdir()
    outcome = finish(job, Outcome(ok=True, steps=2), gpu=False)
    assert outcome.ok and outcome.steps == 2
    assert Path(str(outcome.curve)).is_file()
    assert latest_checkpoint(job) is None
    assert scalars.exists(), "the log stays"


def test_a_missing_previous_log_is_ignored(tmp_path: Path) -> None:
    """The loss curve is drawn without the previous run's log if the log is missing.

    An operator may remove an old run's folder while a new run is training.
    """
    log = tmp_path / "losses.json"
    log.write_text(LOG)
    draw_curve(log, tmp_path / "alone.png")
    assert (tmp_path / "alone.zh.png").read_bytes() != (tmp_path / "alone.png").read_bytes(), (
        "the labels are translated"
    )
    draw_curve(log, tmp_path / "gone.png", tmp_path / "old run" / "losses.json")
    assert (tmp_path / "gone.png").read_bytes() == (tmp_path / "alone.png").read_bytes()
