"""Worker: run the CPU engine, which serves a model through OpenAI's chat API on 127.0.0.1.

    python -m inference.engines.cpu.server --model DIR --name NAME [--port 8000] [--threads N]
        [--slots N] [--cache-megabytes N] [--dtype float32|bfloat16]

The worker listens immediately, but /health answers with status 503 until the model has generated an
answer about a picture. The worker exits when its parent process does.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from aiohttp import web

from inference.engines.access_key import own_key
from inference.engines.cpu.engine import ChatEngine
from inference.engines.cpu.http_api import Server
from inference.process.parent_watch import watch_parent

_log: Final = logging.getLogger(__name__)

_SHUTDOWN_SECONDS: Final = 2.0
_HOST: Final = "127.0.0.1"


async def _serve(options: argparse.Namespace, key: str) -> int:
    """Listen, load the model and serve until SIGTERM or SIGINT; return the exit status."""
    server = Server(options.name, slots=options.slots, key=key)
    runner = web.AppRunner(server.app, handler_cancellation=True, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
    await runner.setup()
    await web.TCPSite(runner, _HOST, options.port).start()
    sys.stdout.write(f"http://{_HOST}:{runner.addresses[0][1]}\n")
    sys.stdout.flush()
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def end(status: int) -> None:
        if not ended.done():
            ended.set_result(status)

    def load() -> None:
        started = time.monotonic()
        try:
            server.engine = ChatEngine.open(
                options.model, dtype=getattr(torch, options.dtype), cache_bytes=options.cache_megabytes * 2**20
            )
        except Exception:  # noqa: BLE001 - otherwise the thread would end and leave the server loading forever
            _log.exception("%s cannot be served", options.model)
            loop.call_soon_threadsafe(end, 1)
        else:
            _log.info("%s is ready after %.1f s", options.name, time.monotonic() - started)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, 0)
    threading.Thread(target=load, name="loader", daemon=True).start()
    status = await ended
    await runner.cleanup()
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m inference.engines.cpu.server", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", type=Path, required=True, help="checkpoint directory in the official layout")
    parser.add_argument("--name", required=True, help="the model's name in requests and responses")
    parser.add_argument("--port", type=int, default=8000, help="port, 0 for any free one (default: 8000)")
    parser.add_argument("--threads", type=_positive, help="number of compute threads (default: one per core)")
    parser.add_argument("--slots", type=_positive, default=4, help="number of concurrent answers (default: 4)")
    parser.add_argument(
        "--cache-megabytes",
        type=int,
        default=_default_cache_megabytes(),
        help="memory for the caches in MiB (default: a quarter of the machine's memory, at most 4096)",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _default_cache_megabytes() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(min(memory // 4 // 2**20, 4096))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the worker from the command line, then exit without waiting for threads, which may be inside torch."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    key = own_key()
    watch_parent()
    # Always set, because a forked engine inherits its parent's number of threads.
    cores = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    torch.set_num_threads(options.threads or cores)
    try:
        status = asyncio.run(_serve(options, key))
    except OSError as error:
        _log.error("cannot listen on %s:%d: %s", _HOST, options.port, error)
        status = 1
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
