"""One child process: output, log, signals, and that nothing of it stays behind."""

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


async def test_process_output_goes_to_the_log(tmp_path: Path) -> None:
    """Standard output and error stand in the log, each line with its time, and in the tail."""
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


async def test_process_lines_are_handed_over(tmp_path: Path) -> None:
    """`on_line` gets the lines of the standard output, in order, however they end, and none of the errors."""
    heard: list[str] = []
    code = r"import sys; print('ü'); print('no', file=sys.stderr); sys.stdout.write('10%\r20%\r\nend' + 'x' * 200_000)"
    child = await Child.start(python(code), log=tmp_path / "log", on_line=heard.append)
    await child.wait()
    assert heard[:3] == ["ü", "10%", "20%"]
    assert "".join(heard[3:]) == "end" + "x" * 200_000
    assert "no" in child.tail().splitlines()


async def test_process_shows_where_it_and_its_children_stand(tmp_path: Path) -> None:
    """One after the other, whole; who has not said that it answers is left alone, and all of them live on."""
    log = tmp_path / "log"
    code = """
        import os, time
        from inference import stacks
        def here():
            os.write(1, b"ready\\n")
            time.sleep(600)
        if os.fork() == 0:
            here()
        stacks.answer()
        os.fork()
        here()
    """
    heard: list[str] = []
    child = await Child.start(python(dedent(code)), log=log, on_line=heard.append, cwd=ROOT)
    await until(lambda: len(heard) == 3)
    await child.show_stacks()
    await until(lambda: log.read_text().count("in <module>") == 2)
    standing = re.findall(r"process (\d+) stands here:", log.read_text())
    assert len(standing) == len(set(standing)) == log.read_text().count(" in here\n") == 2
    assert str(child.pid) in standing
    assert child.returncode is None
    await child.stop(0)
    await child.show_stacks()  # nobody is left to ask


async def test_process_that_crashes_shows_where(tmp_path: Path) -> None:
    """What breaks in a library's C code has Python's stack in the log."""
    code = "import ctypes; from inference import stacks; stacks.answer(); ctypes.string_at(0)"
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
async def test_process_end_is_told(tmp_path: Path, code: str, words: str) -> None:
    """The way a child ended is said in words, by the child and in its log."""
    child = await Child.start(python(code), log=tmp_path / "log")
    assert child.how_it_ended() == "still running"
    await child.wait()
    assert child.how_it_ended() == words
    assert words in (tmp_path / "log").read_text()


async def test_process_environment_and_directory(tmp_path: Path) -> None:
    """A child sees our environment, what is added to it, and the directory it is given."""
    code = "import os; print(os.environ['HOME'], os.environ['CUE'], os.getcwd())"
    child = await Child.start(python(code), log=tmp_path / "log", cwd=tmp_path, environment={"CUE": "yes"})
    await child.wait()
    assert child.tail() == f"{os.environ['HOME']} yes {tmp_path}"


async def test_process_is_told_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the bot's token, however its variable is written, nor an account's reach a child."""
    for name in ("THUMBTUNE_TELEGRAM__TOKEN", "thumbtune_web__token", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "CUE"):
        monkeypatch.setenv(name, "mine")
    code = "import os; print(*(name for name, value in os.environ.items() if value == 'mine'))"
    child = await Child.start(python(code), log=tmp_path / "log")
    await child.wait()
    assert child.tail() == "CUE"


async def test_process_stop_asks_first(tmp_path: Path) -> None:
    """A child that heeds SIGTERM ends in its own way; stopping it again changes nothing."""
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(5)); print('up'); time.sleep(60)"
    child = await Child.start(python(code), log=tmp_path / "log")
    await until(lambda: "up" in child.tail())
    assert await child.stop(20) == 5
    assert await child.stop(20) == 5


@pytest.mark.parametrize("how", ["ignores", "is stopped"])
async def test_process_stop_kills_who_does_not_heed(tmp_path: Path, how: str) -> None:
    """A child that ignores SIGTERM, or cannot hear it, is killed after the grace."""
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(60)"
    child = await Child.start(python(code), log=tmp_path / "log")
    await until(lambda: "up" in child.tail())
    if how == "is stopped":
        os.kill(child.pid, signal.SIGSTOP)
    assert await child.stop(0.1) == -signal.SIGKILL
    assert not alive(child.pid)


async def test_process_cancelled_stop_kills(tmp_path: Path) -> None:
    """Who is cancelled while waiting for a child's end does not leave it running."""
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(60)"
    child = await Child.start(python(code), log=tmp_path / "log")
    await until(lambda: "up" in child.tail())
    stopping = asyncio.create_task(child.stop(60))
    await asyncio.sleep(0.05)
    stopping.cancel()
    assert await child.wait() == -signal.SIGKILL


_CROWD = """
import subprocess, sys, time
crowd = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(crowd.pid, flush=True)
"""


@pytest.mark.parametrize("end", ["killed", "leaves"])
async def test_process_takes_its_children_along(tmp_path: Path, end: str) -> None:
    """What a child has started ends with it, also when it holds the child's output open."""
    pids: list[str] = []
    wait = "time.sleep(60)" if end == "killed" else ""
    child = await Child.start(python(_CROWD + wait), log=tmp_path / "log", on_line=pids.append)
    await until(lambda: pids)
    if end == "killed":
        child.kill()
    await child.wait()
    await until(lambda: not alive(int(pids[0])))


async def test_process_log_rotates(tmp_path: Path) -> None:
    """A log is rotated at its size and only so many old files are kept."""
    log = tmp_path / "log"
    code = "for number in range(2000): print('line', number)"
    child = await Child.start(python(code), log=log, log_bytes=10_000, log_files=2)
    await child.wait()
    assert sorted(os.listdir(tmp_path)) == ["log", "log.1", "log.2"]
    assert all(os.stat(tmp_path / name).st_size <= 10_000 for name in os.listdir(tmp_path))
    assert "line 1999" in log.read_text()


async def test_process_leaves_no_descriptor(tmp_path: Path) -> None:
    """Neither a child's life nor a failed start leaves an open descriptor behind."""

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


async def test_process_dies_with_its_parent(tmp_path: Path) -> None:
    """`kill -9` of the parent ends its children, each of several."""
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
