"""Starting a training worker while others start at the same time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yapf

from training.job import MergeJob, Outcome, outcome_file

WORKER = """
from training.job import MergeJob, Outcome
from training.worker import work

def do(job, say):
    import mmengine
    return Outcome(ok=True)

work(MergeJob, do)
"""


def test_a_half_written_yapf_cache_does_not_fail_a_worker(tmp_path: Path) -> None:
    """A training worker starts even if the cache of yapf, which mmengine imports, is incomplete.

    Another process may be writing yapf's cached grammars at the same time.
    """
    cache = tmp_path / "cache"
    grammars = cache / "YAPF" / yapf.__version__
    grammars.mkdir(parents=True)
    python = ".".join(map(str, sys.version_info))
    for grammar in ("Grammar", "PatternGrammar"):
        (grammars / f"{grammar}-py{python}.pickle").write_bytes(b"")
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    plain = subprocess.run(
        [sys.executable, "-c", "import yapf"], env=environment, capture_output=True, text=True, check=False
    )
    assert "EOFError: Ran out of input" in plain.stderr  # otherwise the test below would prove nothing

    job = tmp_path / "merge.json"
    MergeJob("1", "", "", "", work="", system="").write(job)
    with subprocess.Popen([sys.executable, "-c", WORKER, str(job)], env=environment, stdin=subprocess.PIPE) as worker:
        assert worker.wait(timeout=120) == 0
    assert Outcome.read(outcome_file(job)).ok


def test_a_worker_without_memory_says_what_to_do(tmp_path: Path) -> None:
    """A worker whose allocator fails names settings that free memory, and its log keeps torch's message."""
    job = tmp_path / "merge.json"
    MergeJob("1", "", "", "", work="", system="").write(job)
    code = WORKER.replace("import mmengine", "import torch").replace("return Outcome(ok=True)", "torch.empty(1 << 50)")
    ended = subprocess.run([sys.executable, "-c", code, str(job)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0
    assert "can't allocate memory" in ended.stderr
    outcome = Outcome.read(outcome_file(job))
    assert not outcome.ok
    assert "training.while_training" in outcome.reason
