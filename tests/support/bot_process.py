"""The complete bot as a child process that tests start, kill and inspect as an operator would."""

from __future__ import annotations

import asyncio
import ctypes
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import aiohttp
import psutil

ROOT = Path(__file__).parents[2]
PATIENCE = 90.0
ENGINE_MODULES = ("inference.engines.cpu.server", "inference.engines.lmdeploy.server")


# A fork server with all imports done: each start takes a moment instead of seconds.
FORGE = multiprocessing.get_context("forkserver")
FORGE.set_forkserver_preload(["tests.support.chatting", "bot.process", "bot.cli.main", "openai.resources"])


def _run_bot(words: tuple[str, ...], log: Path, sabotage: str, environment: dict[str, str]) -> None:
    """Run `thumbtune` in this child of the fork server; the kernel kills it when the fork server ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # option 1 is PR_SET_PDEATHSIG
    with log.open("ab") as written:
        for stream in (1, 2):
            os.dup2(written.fileno(), stream)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["thumbtune", *words]
    exec(sabotage, {})
    from bot.cli.main import main

    main()


def write_config(path: Path, sections: dict[str, dict[str, Any]]) -> None:
    """Write `sections` to a settings file; plain values are written as JSON, which is also valid TOML."""
    lines: list[str] = []
    for section, values in sections.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


async def command(config: Path, *words: str, sabotage: str = "") -> tuple[int, str]:
    """Run `thumbtune` with arguments `words` and settings file `config`; return its exit code and output.

    The command has no terminal.
    """
    ended = await ran(*words, "--config", str(config), sabotage=sabotage)
    return ended.code, ended.out + ended.err


@dataclass(frozen=True)
class Ended:
    """The exit code, standard output and standard error of a command that has ended."""

    code: int
    out: str
    err: str


Thumbtune = Callable[..., Ended]
"""The type of the fixture `thumbtune`, a function that runs a command in this process and returns its outcome."""


async def ran(*words: str, folder: Path = ROOT, sabotage: str = "") -> Ended:
    """Run `thumbtune` with arguments `words` in `folder`, without a terminal, and return the outcome."""
    program = f"{sabotage}\nfrom bot.cli.main import main\nmain()"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, *words),
        cwd=folder, env={**os.environ, "COLUMNS": "500", "PYTHONPATH": str(ROOT)}, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    return Ended(process.returncode or 0, out.decode(), err.decode())


class BotProcess:
    """A `thumbtune run` process that logs to a file beside its settings file.

    `options` are further options of the command. `sabotage` is Python code that runs in the process before the
    bot does.
    """

    def __init__(self, config: Path, web: str, *, options: tuple[str, ...] = ()) -> None:
        self._config = config
        self._options = options
        self._web = web
        self.sabotage = ""
        self._process: BaseProcess | None = None
        self.log = config.with_suffix(".log")

    async def start(self, *, healthy: bool = True) -> None:
        """Start the process; if `healthy`, wait until /health returns 200."""
        words = ("run", "--config", str(self._config), *self._options)
        self._process = FORGE.Process(target=_run_bot, args=(words, self.log, self.sabotage, dict(os.environ)))
        await asyncio.to_thread(self._process.start)
        if healthy:
            await self.healthy()

    async def healthy(self) -> None:
        """Wait until /health returns 200, or fail and show the end of the log."""
        try:
            async with asyncio.timeout(PATIENCE), aiohttp.ClientSession() as session:
                while True:
                    if self.process.exitcode is not None:
                        raise AssertionError(f"the bot ended with {self.process.exitcode}:\n{self.tail()}")
                    try:
                        async with session.get(f"{self._web}/health") as answer:
                            if answer.status == 200:
                                return
                    except aiohttp.ClientError:
                        pass
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            raise AssertionError(f"the bot is not healthy after {PATIENCE} s:\n{self.tail()}") from error

    @property
    def started(self) -> bool:
        return self._process is not None

    @property
    def process(self) -> BaseProcess:
        assert self._process is not None, "not started"
        return self._process

    def children(self, module: str) -> list[psutil.Process]:
        """Return the bot's child processes that run `module`, such as `inference.engines.cpu.server`."""
        try:
            family = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        found = []
        for child in family:
            try:
                if module in child.cmdline():
                    found.append(child)
            except psutil.NoSuchProcess:
                continue
        return found

    def engines(self) -> list[psutil.Process]:
        """Return the processes of the CPU engine or of lmdeploy, with which some tests also run on a GPU."""
        return [child for module in ENGINE_MODULES for child in self.children(module)]

    async def kill(self) -> None:
        """Send SIGKILL, as the kernel's out-of-memory killer does."""
        self.process.kill()
        await self.ended()

    async def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.terminate()
        code = await self.ended()
        if code is None:
            await self.kill()
            raise AssertionError(f"the bot did not stop within 30 s of SIGTERM:\n{self.tail()}")
        return code

    async def ended(self) -> int | None:
        """Wait up to 30 seconds for the process to end; return its exit code, or None if it is still running."""
        await asyncio.to_thread(self.process.join, 30)
        return self.process.exitcode

    def tail(self, lines: int = 40) -> str:
        """Return the last `lines` lines of the log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
