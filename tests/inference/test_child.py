"""Child processes: output, logs, signals and cleanup."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from inference.process.child import Child
from tests.support.children import alive, until

ROOT = Path(__file__).parents[2]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


async def test_output_goes_to_the_log(tmp_path: Path) -> None:
    """A child's standard output and error appear in `tail` and, with the time of each line, in the log."""
    log = tmp_path / "logs" / "child.log"
    child = await Child.start(
        python("import sys; print('one'); print('two', file=sys.stderr); sys.stdout.write('no end of line')"), log=log
    )
    assert await child.wait() == 0
    lines = log.read_text().splitlines()
    assert f"process {child.pid}" in lines[0]
    assert {line.split(" ", 2)[2] for line in lines[1:-1]} == {"one", "two", "no end of line"}
    assert all(line.startswith("20") for line in lines)
    assert sorted(child.tail().splitlines()) == ["no end of line", "one", "two"]


async def test_on_line_gets_the_lines_of_the_standard_output(tmp_path: Path) -> None:
    """`on_line` receives each line of standard output in order, whatever its ending, but no standard error."""
    lines: list[str] = []
    code = r"import sys; print('ü'); print('no', file=sys.stderr); sys.stdout.write('10%\r20%\r\nend' + 'x' * 200_000)"
    child = await Child.start(python(code), log=tmp_path / "log", on_line=lines.append)
    await child.wait()
    assert lines[:3] == ["ü", "10%", "20%"]
    assert "".join(lines[3:]) == "end" + "x" * 200_000
    assert "no" in child.tail().splitlines()


async def test_stacks_of_a_child_and_its_descendants_are_dumped(tmp_path: Path) -> None:
    """`dump_stacks` logs the complete stacks of a child and its descendants.

    Processes without the stack dump handler are not signalled, and all processes keep running.
    """
    log = tmp_path / "log"
    code = """
        import os, time
        from inference.process import stack_dump
        def hang():
            os.write(1, b"ready\\n")
            time.sleep(600)
        if os.fork() == 0:
            hang()
        stack_dump.enable()
        os.fork()
        hang()
    """
    lines: list[str] = []
    child = await Child.start(python(dedent(code)), log=log, on_line=lines.append, cwd=ROOT)
    await until(lambda: len(lines) == 3)
    await child.dump_stacks()
    await until(lambda: log.read_text().count("in <module>") == 2)
    dumped = re.findall(r"stacks of process (\d+):", log.read_text())
    assert len(dumped) == len(set(dumped)) == log.read_text().count(" in hang\n") == 2
    assert str(child.pid) in dumped
    assert child.returncode is None
    await child.stop(0)
    await child.dump_stacks()  # the process has ended


async def test_a_crash_dumps_the_stack(tmp_path: Path) -> None:
    """After a crash in C code, the child's Python stack is in its log."""
    code = "import ctypes; from inference.process import stack_dump; stack_dump.enable(); ctypes.string_at(0)"
    child = await Child.start(python(code), log=tmp_path / "log", cwd=ROOT)
    await child.wait()
    assert child.how_it_ended() == "signal SIGSEGV"
    assert "in string_at" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; sys.exit(7)", "exit code 7"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal SIGKILL"),
    ],
)
async def test_the_end_is_described(tmp_path: Path, code: str, words: str) -> None:
    """`how_it_ended` describes how a child ended, and the child's log contains the same description."""
    child = await Child.start(python(code), log=tmp_path / "log")
    assert child.how_it_ended() == "still running"
    await child.wait()
    assert child.how_it_ended() == words
    assert words in (tmp_path / "log").read_text()


async def test_environment_and_directory(tmp_path: Path) -> None:
    """A child gets its parent's environment, the additional variables and the given working directory."""
    code = "import os; print(os.environ['HOME'], os.environ['CUE'], os.getcwd())"
    child = await Child.start(python(code), log=tmp_path / "log", cwd=tmp_path, environment={"CUE": "yes"})
    await child.wait()
    assert child.tail() == f"{os.environ['HOME']} yes {tmp_path}"


async def test_a_child_gets_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child's environment has neither thumbtune settings, in upper or lower case, nor account tokens."""
    for name in ("THUMBTUNE_TELEGRAM__TOKEN", "thumbtune_web__token", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "CUE"):
        monkeypatch.setenv(name, "mine")
    code = "import os; print(*(name for name, value in os.environ.items() if value == 'mine'))"
    child = await Child.start(python(code), log=tmp_path / "log")
    await child.wait()
    assert child.tail() == "CUE"


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this kernel has no transparent huge pages"
)
@pytest.mark.parametrize(("own", "huge"), [({}, True), ({"THP_MEM_ALLOC_ENABLE": "0"}, False)])
async def test_torch_asks_for_huge_pages_in_a_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: dict[str, str], huge: bool
) -> None:
    """torch asks for huge pages (the flag "hg" in proc(5)) for a child's large tensors, unless the operator sets 0."""
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    code = "import torch; kept = torch.ones(2**24); print(' hg ' in open('/proc/self/smaps').read())"
    child = await Child.start(python(code), log=tmp_path / "log")
    await child.wait()
    assert child.tail() == str(huge)


async def test_stop_terminates_first(tmp_path: Path) -> None:
    """`stop` lets a child that handles SIGTERM end by itself, and calling it again changes nothing."""
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(5)); print('up'); time.sleep(60)"
    child = await Child.start(python(code), log=tmp_path / "log")
    await until(lambda: "up" in child.tail())
    assert await child.stop(20) == 5
    assert await child.stop(20) == 5


@pytest.mark.parametrize("how", ["ignores", "is stopped"])
async def test_stop_kills_after_the_grace(tmp_path: Path, how: str) -> None:
    """`stop` kills a child that ignores SIGTERM or is suspended, once the grace period has passed."""
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(60)"
    child = await Child.start(python(code), log=tmp_path / "log")
    await until(lambda: "up" in child.tail())
    if how == "is stopped":
        os.kill(child.pid, signal.SIGSTOP)
    assert await child.stop(0.1) == -signal.SIGKILL
    assert not alive(child.pid)


async def test_a_cancelled_stop_kills(tmp_path: Path) -> None:
    """If `stop` is cancelled, the child is killed rather than left running."""
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(60)"
    child = await Child.start(python(code), log=tmp_path / "log")
    await until(lambda: "up" in child.tail())
    stopping = asyncio.create_task(child.stop(60))
    await asyncio.sleep(0.05)
    stopping.cancel()
    assert await child.wait() == -signal.SIGKILL


_FAMILY = """
import subprocess, sys, time
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(grandchild.pid, flush=True)
"""


@pytest.mark.parametrize("end", ["killed", "ends"])
async def test_descendants_end_with_the_child(tmp_path: Path, end: str) -> None:
    """A child's descendants are killed when the child ends, even if they keep its output open."""
    pids: list[str] = []
    wait = "time.sleep(60)" if end == "killed" else ""
    child = await Child.start(python(_FAMILY + wait), log=tmp_path / "log", on_line=pids.append)
    await until(lambda: pids)
    if end == "killed":
        child.kill()
    await child.wait()
    await until(lambda: not alive(int(pids[0])))


async def test_the_log_is_rotated(tmp_path: Path) -> None:
    """A log is rotated when it reaches its maximum size, and a limited number of old files is kept."""
    log = tmp_path / "log"
    code = "for number in range(2000): print('line', number)"
    child = await Child.start(python(code), log=log, log_bytes=10_000, log_files=2)
    await child.wait()
    assert sorted(os.listdir(tmp_path)) == ["log", "log.1", "log.2"]
    assert all(os.stat(tmp_path / name).st_size <= 10_000 for name in os.listdir(tmp_path))
    assert "line 1999" in log.read_text()


async def test_no_descriptor_leaks(tmp_path: Path) -> None:
    """Neither a finished child nor a failed start leaves a file descriptor open."""

    async def one_round() -> None:
        with pytest.raises(FileNotFoundError):
            await Child.start([str(tmp_path / "nothing")], log=tmp_path / "log")
        child = await Child.start(python("print('x')"), log=tmp_path / "log", on_line=lambda _: None)
        await child.wait()

    await one_round()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        await one_round()
    assert len(os.listdir("/proc/self/fd")) <= before


_PARENT = """
import asyncio, sys
from pathlib import Path
from inference.process.child import Child
from tests.support.children import alive, until

async def main():
    line = [sys.executable, "-c", "import time\\nfrom inference.process.parent_watch import watch_parent\\n"
            "watch_parent(0.2)\\nprint('watching', flush=True)\\ntime.sleep(60)"]
    children = [await Child.start(line, log=Path(sys.argv[1]) / str(number)) for number in range(2)]
    while not all("watching" in child.tail() for child in children):
        await asyncio.sleep(0.02)
    print(*(child.pid for child in children), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_children_end_with_their_parent(tmp_path: Path) -> None:
    """All children end when their parent is killed with `kill -9`."""
    parent = await asyncio.create_subprocess_exec(
        *python(_PARENT), str(tmp_path), stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert parent.stdout is not None
    pids = [int(word) for word in (await parent.stdout.readline()).split()]
    assert len(pids) == 2
    assert all(alive(pid) for pid in pids)
    parent.kill()
    await parent.wait()
    await until(lambda: not any(alive(pid) for pid in pids))
