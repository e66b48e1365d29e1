"""Reading mmengine's training log."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.xtuner.scalars import losses, peak_memory, step_seconds

# As written by a run on a GPU that was killed after step 3 and resumed from step 2.
LOG = """\
{"lr": 2e-07, "data_time": 0.21, "loss": 11.67, "time": 2.68, "iter": 1, "memory": 23895, "step": 1}
{"lr": 2e-06, "data_time": 0.01, "loss": 9.5, "time": 0.31, "iter": 2, "memory": 3630, "step": 2}
{"lr": 4e-06, "data_time": 0.01, "loss": 7.25, "time": 0.33, "iter": 3, "memory": 3631, "step": 3}
{"lr": 2e-06, "data_time": 0.19, "loss": 9.25, "time": 0.32, "iter": 2, "memory": 3632, "step": 2}
"""


def test_losses_and_peak_memory(tmp_path: Path) -> None:
    """If a step was repeated, the later loss counts.

    The peak memory is the maximum over all lines, or 0 without a GPU.
    """
    log = tmp_path / "scalars.json"
    log.write_text(LOG, encoding="utf-8")
    assert losses(log) == [(1, 11.67), (2, 9.25), (3, 7.25)]
    assert peak_memory(log) == 23895 * 2**20
    log.write_text('{"loss": 1.5, "step": 1}\n', encoding="utf-8")
    assert peak_memory(log) == 0


def test_step_seconds(tmp_path: Path) -> None:
    """The time of all steps is summed, including repeated ones.

    Each log line contains the time per batch; here, the steps have one or four batches.
    """
    log = tmp_path / "scalars.json"
    log.write_text(LOG + '{"time": 0.5, "iter": 12, "step": 3}\n{"loss": 1.0, "step": 4}\n', encoding="utf-8")
    assert step_seconds(log) == pytest.approx(2.68 + 0.31 + 0.33 + 0.32 + 4 * 0.5)


def test_half_a_line_is_ignored(tmp_path: Path) -> None:
    """A partial line left by a power failure is skipped, and the lines before and after it are read."""
    log = tmp_path / "scalars.json"
    first, second, *_ = LOG.splitlines(keepends=True)
    log.write_text(first + '{"lr": 2e-06, "lo' + second + '{"loss": 7.25, "st', encoding="utf-8")
    assert losses(log) == [(1, 11.67), (2, 9.5)]
    log.write_bytes(log.read_bytes() + b"\0\xff\n")
    assert len(losses(log)) == 2
