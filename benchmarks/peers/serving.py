"""Compare thumbtune's lmdeploy engine with other servers in picture chats on one GPU.

    python -m benchmarks.peers.serving --work DIR [--servers ours,stock,vllm,sglang] [--official CODE]
        [--path vllm=SITE] [--rates 4,8,12,16] [--stages]

The servers start one after the other on the same GPU, with the same checkpoint, tiles, answer lengths and
key, and with prefix caching. `stock` is lmdeploy's own server with the engine settings of `ours`. vLLM and
SGLang run with their defaults, except that 64 answers may be generated at once. On first use, the script
writes a checkpoint of InternVL2-2B with random weights, in the official layout, to DIR. vLLM and SGLang get
a copy with the official model code in CODE (the .py files of OpenGVLab/InternVL2-2B).

load.py puts each server under load: one user at a time, 8 and `--people` users at once, and then, for each
rate, users who arrive at random. The script prints a JSON object for each server: the seconds from its
start until it was ready, the measurements of each scenario, and the peak GPU memory. With `--trace`, the
servers `ours` and `stock` run under traced.py, which profiles the rounds of simultaneous chats. With `--stages`, `ours`
runs under staged_server.py, and the medians of each stage of a question of one user are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, Final

from benchmarks.peers.load import alone, crowd, headers, open_loop
from benchmarks.peers.memory_sampler import Memory
from benchmarks.random_checkpoint import SIZES, checkpoint, official, set_tiles
from inference.engines.access_key import KEY_VARIABLE, new_key
from inference.process.environment import for_children
from inference.serving.engine_launch import free_port

LMDEPLOY: Final = {"stock": "benchmarks.peers.stock_server", "ours": "inference.engines.lmdeploy.server"}
TRACED: Final = "benchmarks.traced"
STAGED: Final = "benchmarks.peers.staged_server"
STOCK_PREFILL: Final = 8192
"""lmdeploy's default."""

VLLM: Final = (
    *("-m", "vllm.entrypoints.openai.api_server", "--model", "{model}", "--served-model-name", "m"),
    *("--port", "{port}", "--api-key", "{key}", "--trust-remote-code", "--max-model-len", "16384"),
    *("--max-num-seqs", "64", "--gpu-memory-utilization", "0.6", "--enable-prompt-tokens-details"),
    *("--limit-mm-per-prompt", '{{"image": 4}}'),
)
SGLANG: Final = (
    *("-m", "sglang.launch_server", "--model-path", "{model}", "--served-model-name", "m"),
    *("--port", "{port}", "--api-key", "{key}", "--trust-remote-code", "--context-length", "16384"),
    *("--max-running-requests", "64", "--mem-fraction-static", "0.6"),
)
OTHERS: Final = {"vllm": VLLM, "sglang": SGLANG}


class ServerProcess:
    """A running server process of the given kind."""

    def __init__(self, kind: str, options: argparse.Namespace, report: Path | None) -> None:
        port, model = free_port(), options.model
        self.url = f"http://127.0.0.1:{port}"
        self.began = time.monotonic()
        if kind in OTHERS:
            if options.official:
                model = official(model, options.official, options.work / "official")
            names = {"model": model, "port": port, "key": os.environ[KEY_VARIABLE]}
            line = [each.format(**names) for each in OTHERS[kind]]
        else:
            program = [LMDEPLOY[kind]]
            if report:
                program = [TRACED, str(report), *program] if options.trace else [STAGED, str(report)]
            prefill = options.prefill_tokens or (STOCK_PREFILL if kind == "stock" else None)
            sizes = {"blocks": options.blocks, "batch": 64, "kv_bits": options.kv_bits, "prefill_tokens": prefill}
            line = ["-m", *program, "--model", str(model), "--name", "m", "--port", str(port)]
            line += ["--settings", json.dumps(sizes)]
        path = dict(each.split("=", 1) for each in options.path).get(kind)
        # With huge pages, as the bot starts its engines.
        environment = for_children() if kind == "ours" else os.environ
        log = (options.work / f"{kind}.log").open("w", encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, *line],
            env={**environment, **({"PYTHONPATH": path} if path else {})},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def ready(self) -> float:
        """Wait until the server is listening, and return the seconds since its start."""
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server exited with status {self.process.returncode}: see its log")
            try:
                request = urllib.request.Request(f"{self.url}/health", headers=headers())
                with urllib.request.urlopen(request, timeout=5):
                    return time.monotonic() - self.began
            except OSError:
                time.sleep(0.2)

    def end(self) -> None:
        """Kill the server and the processes that it started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def measure(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run all scenarios against a new server and return the measurements."""
    recorded = kind in LMDEPLOY if options.trace else options.stages and kind == "ours"
    report = options.work / f"{kind}.jsonl" if recorded else None
    if report is not None:
        report.unlink(missing_ok=True)
    memory, found = Memory(), dict[str, Any]()
    server = ServerProcess(kind, options, report)
    try:
        found["start_seconds"] = round(server.ready(), 1)
        found["first turn"], found["follow-up"] = alone(server.url, "m", 8, 0, 32)
        if report and options.stages:
            found["stages"] = stages(report)
        if report and options.trace:
            server.process.send_signal(signal.SIGUSR1)
        for number in options.people:
            pause = options.pause * (1 if kind == "ours" else 2.5)
            found[f"{number} new"], found[f"{number} follow-ups"] = crowd(
                server.url, "m", number, 1000 * number, options.tokens, pause=pause
            )
        if report and options.trace:
            server.process.send_signal(signal.SIGUSR2)
            while not report.exists():
                time.sleep(0.2)
            found["trace"] = json.loads(report.read_text(encoding="utf-8").splitlines()[-1])
        for rate in options.rates:
            found[f"{rate} people a second"] = open_loop(
                server.url, "m", rate, seconds=options.seconds, tokens=options.tokens // 2
            )
    except RuntimeError as error:  # earlier measurements are printed anyway
        found["error"] = str(error)
    finally:
        server.end()
    return {**found, "peak_gb": round(memory.peak() / 1e9, 1)}


def stages(report: Path) -> dict[str, dict[str, float]]:
    """Return the median milliseconds of each stage of the first turns and the follow-ups of `alone`."""
    questions = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    turns = {"first turn": questions[2::2], "follow-up": questions[3::2]}
    return {
        turn: {name: round(1000 * statistics.median(each[name] for each in asked), 2) for name in asked[0]}
        for turn, asked in turns.items()
    }


def main() -> None:
    """Run the command-line interface."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for the checkpoint and the logs")
    parser.add_argument("--servers", default="stock,ours")
    parser.add_argument("--size", choices=SIZES, default="2b")
    parser.add_argument("--model", type=Path, help="a checkpoint in place of random weights")
    parser.add_argument("--official", type=Path, help="the folder of the official model code")
    parser.add_argument("--path", action="append", default=[], help="KIND=FOLDER: a server's PYTHONPATH")
    parser.add_argument("--tiles", type=int, default=12)
    parser.add_argument("--kv-bits", type=int, default=16)
    parser.add_argument("--blocks", type=int, default=8000, help="KV blocks of 64 tokens")
    parser.add_argument("--people", type=numbers, default=[8, 64], help="how many users ask at once, for example 8,64")
    parser.add_argument("--tokens", type=int, default=128, help="the length of an answer; half of it in the open loop")
    parser.add_argument("--pause", type=float, default=12, help="seconds from the first to the second turn of 64 users")
    parser.add_argument("--rates", type=numbers, default=[], help="users arriving per second, for example 4,8,12,16")
    parser.add_argument("--seconds", type=float, default=30, help="how long users keep arriving at each rate")
    parser.add_argument("--prefill-tokens", type=int, help="for ours and stock (default: their own defaults)")
    recording = parser.add_mutually_exclusive_group()
    recording.add_argument("--trace", action="store_true")
    recording.add_argument("--stages", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault(KEY_VARIABLE, new_key())
    options.model = options.model or checkpoint(options.work, options.size)
    set_tiles(options.model, options.tiles)
    for kind in options.servers.split(","):
        result = measure(kind, options)
        print(json.dumps({kind: {"tiles": options.tiles, "kv_bits": options.kv_bits, **result}}), flush=True)


def numbers(text: str) -> list[int]:
    """Return the numbers in a comma-separated list."""
    return [int(each) for each in text.split(",")]


if __name__ == "__main__":
    main()
