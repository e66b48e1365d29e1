"""A worker process ends when its parent process ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.children import alive, until

WORKER = (
    "from inference.process.parent_watch import watch_parent; "
    "import signal, sys, time; {setup}; watch_parent(0.2); {work}"
)
SLEEP = "sys.stdout.write('up\\n'); sys.stdout.flush(); time.sleep(300)"
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.read()
"""


def worker(setup: str = "pass", work: str = SLEEP) -> str:
    """Return the source code of a worker that watches its parent and, by default, runs for several minutes."""
    return WORKER.format(setup=setup, work=work)


def test_a_worker_ends_when_the_pipe_is_closed() -> None:
    """When the pipe from its parent closes, a worker gets SIGTERM and thus a chance to clean up."""
    with subprocess.Popen(
        [sys.executable, "-c", worker()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline() == "up\n"
        assert child.poll() is None
        child.stdin.close()
        assert child.wait(30) == -signal.SIGTERM


def test_a_worker_ends_when_its_parent_is_killed() -> None:
    """A worker ends when its parent is killed, because the kernel closes the pipe between them."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, worker()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
        parent.wait()
        asyncio.run(until(lambda: not alive(child)))


def test_a_worker_that_ignores_sigterm_is_killed_with_its_children() -> None:
    """A worker that ignores SIGTERM is killed after the grace period, along with the process group it leads."""
    work = (
        "import subprocess; grandchild = subprocess.Popen(['sleep', '300'], stdin=subprocess.DEVNULL); "
        "sys.stdout.write(f'{grandchild.pid}\\n'); sys.stdout.flush(); time.sleep(300)"
    )
    ignoring = worker("signal.signal(signal.SIGTERM, signal.SIG_IGN)", work)
    with subprocess.Popen(
        [sys.executable, "-c", ignoring],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        grandchild = int(child.stdout.readline())
        child.stdin.close()
        assert child.wait(30) == -signal.SIGKILL
        asyncio.run(until(lambda: not alive(grandchild)))


@pytest.mark.parametrize("source", ["/dev/null", "file"])
def test_a_worker_run_by_hand_is_not_watched(source: str, tmp_path: Path) -> None:
    """A worker whose standard input is a file or /dev/null is not watched and runs to its end."""
    path = Path(source) if source.startswith("/") else tmp_path / "input"
    if not path.exists():
        path.write_text("")
    code = (
        "from inference.process.parent_watch import watch_parent; import sys, time; "
        "watches = watch_parent(0); time.sleep(0.3); sys.exit(watches)"
    )
    with path.open() as stdin:
        assert subprocess.run([sys.executable, "-c", code], stdin=stdin, check=False).returncode == 0


def test_a_worker_without_standard_input_is_not_watched() -> None:
    """A worker whose standard input is closed is not watched."""
    code = (
        "import os; os.close(0); from inference.process.parent_watch import watch_parent; "
        "assert watch_parent() is False"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, env=os.environ).returncode == 0
