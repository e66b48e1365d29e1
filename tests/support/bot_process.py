"""The complete bot as a child process that tests start, kill and inspect as an operator would."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil

ROOT = Path(__file__).parents[2]
PATIENCE = 90.0
ENGINE_MODULES = ("inference.engines.cpu.server", "inference.engines.lmdeploy.server")


def _die_with_the_tests() -> None:
    """Have the kernel kill the bot when the test process is killed (prctl option 1 is PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


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
"""The command line in this process, as the fixture `thumbtune` gives it: its words in, how it ended out."""


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
        self._process: asyncio.subprocess.Process | None = None
        self.log = config.with_suffix(".log")

    async def start(self, *, healthy: bool = True) -> None:
        """Start the process; if `healthy`, wait until /health answers 200."""
        program = f"{self.sabotage}\nfrom bot.cli.main import main\nmain()"
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, *(("-c", program) if self.sabotage else ("-m", "bot.cli.main"))),
                *("run", "--config", str(self._config), *self._options),
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_the_tests,
            )
        if healthy:
            await self.healthy()

    async def healthy(self) -> None:
        """Wait until /health answers 200, or fail and show the end of the log."""
        try:
            async with asyncio.timeout(PATIENCE), aiohttp.ClientSession() as session:
                while True:
                    if self.process.returncode is not None:
                        raise AssertionError(f"the bot ended with {self.process.returncode}:\n{self.tail()}")
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
    def process(self) -> asyncio.subprocess.Process:
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
        """Return the engine processes, whatever the engine, because some tests also run with lmdeploy on a GPU."""
        return [child for module in ENGINE_MODULES for child in self.children(module)]

    async def kill(self) -> None:
        """Send SIGKILL, as the kernel's out-of-memory killer does."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        if self._process and self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), 30)
            except TimeoutError:
                await self.kill()
                raise AssertionError(f"the bot did not stop within 30 s of SIGTERM:\n{self.tail()}") from None
        return self.process.returncode or 0

    def tail(self, lines: int = 40) -> str:
        """Return the last `lines` lines of the log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
