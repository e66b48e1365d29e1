"""Compare thumbtune's lmdeploy engine with stock lmdeploy in picture chats on one GPU.

    python -m benchmarks.lmdeploy_serving --work DIR [--servers stock,ours] [--tiles 12]
        [--kv-bits 8] [--trace]

The script measures the time to the first token and the throughput. On first use, it writes a checkpoint
of InternVL2-2B with random weights, in the official layout, to DIR. It starts one server after the other
on the same GPU, with the same tiles, answer length, KV blocks and prefix caching, and uses
serving_load.py to put each under load. With `--trace`, each server runs under traced.py, which profiles
the two rounds of simultaneous chats. The results are printed as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.random_checkpoint import SIZES, default_tokenizer, write_random
from benchmarks.random_tokenizers import make_tokenizer
from benchmarks.serving_load import alone, crowd, headers
from inference.engines.access_key import KEY_VARIABLE, new_key
from inference.serving.engine_launch import free_port

MODULES = {"stock": "benchmarks.stock_server", "ours": "inference.engines.lmdeploy.server"}
STOCK_PREFILL = 8192
"""lmdeploy's default."""


def checkpoint(folder: Path, size: str) -> Path:
    """Return the directory of a checkpoint with random weights, writing it on first use."""
    directory = folder / f"random-{size}"
    if not (directory / "config.json").is_file():
        vocabulary = folder / "vocabulary"
        known = SIZES[size]
        tokenizer = make_tokenizer(vocabulary) if known.internlm2 else default_tokenizer(known, vocabulary)
        write_random(known, directory, tokenizer=tokenizer)
    return directory


def set_tiles(directory: Path, tiles: int) -> None:
    """Set the maximum number of tiles per picture in the checkpoint's config.json.

    Stock lmdeploy has no other setting for the number of tiles.
    """
    file = directory / "config.json"
    fields = json.loads(file.read_text(encoding="utf-8"))
    fields["max_dynamic_patch"] = tiles
    file.write_text(json.dumps(fields, indent=2), encoding="utf-8")


class ServerProcess:
    """A running server process, either stock lmdeploy's or thumbtune's."""

    def __init__(self, kind: str, model: Path, options: argparse.Namespace, report: Path | None) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.began = time.monotonic()
        traced = ["-m", "benchmarks.traced", str(report)] if report else ["-m"]
        prefill = options.prefill_tokens or (STOCK_PREFILL if kind == "stock" else 0)
        sizes = {"blocks": options.blocks, "batch": 64, "kv_bits": options.kv_bits, "prefill_tokens": prefill or None}
        line = [
            *(sys.executable, *traced, MODULES[kind], "--model", str(model), "--name", "m", "--port", str(port)),
            *("--settings", json.dumps(sizes)),
        ]
        log = (options.work / f"{kind}.log").open("w", encoding="utf-8")
        self.process = subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def ready(self) -> float:
        """Wait until the server is listening, and return the seconds since its start."""
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}: see its log")
            try:
                request = urllib.request.Request(f"{self.url}/health", headers=headers())
                with urllib.request.urlopen(request, timeout=5):
                    return time.monotonic() - self.began
            except OSError:
                time.sleep(0.2)

    def end(self) -> None:
        """Kill the server."""
        self.process.kill()
        self.process.wait()


def measure(kind: str, model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run all scenarios against a new server and return the measurements."""
    report = options.work / f"{kind}.trace.jsonl" if options.trace else None
    if report is not None:
        report.unlink(missing_ok=True)
    server = ServerProcess(kind, model, options, report)
    try:
        found: dict[str, Any] = {"start_seconds": round(server.ready(), 1)}
        found["first turn"], found["follow-up"] = alone(server.url, "m", 8, 0, 32)
        if report is not None:
            server.process.send_signal(signal.SIGUSR1)
        pause = 28.0 if kind == "stock" else 12.0
        number = options.people
        found[f"{number} new"], found[f"{number} follow-ups"] = crowd(
            server.url, "m", number, 1000, options.tokens, pause=pause
        )
        if report is not None:
            server.process.send_signal(signal.SIGUSR2)
            while not report.exists():
                time.sleep(0.2)
            found["trace"] = json.loads(report.read_text(encoding="utf-8").splitlines()[-1])
        return found
    finally:
        server.end()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command-line interface."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lmdeploy_serving", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="a folder for the checkpoint and the logs")
    parser.add_argument("--servers", default="stock,ours")
    parser.add_argument("--size", choices=SIZES, default="2b")
    parser.add_argument("--model", type=Path, help="a checkpoint in place of random weights")
    parser.add_argument("--tiles", type=int, default=12)
    parser.add_argument("--kv-bits", type=int, default=16)
    parser.add_argument("--blocks", type=int, default=8000, help="KV blocks of 64 tokens")
    parser.add_argument("--people", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prefill-tokens", type=int, help="for both (default: each its own)")
    parser.add_argument("--trace", action="store_true")
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault(KEY_VARIABLE, new_key())
    model = options.model or checkpoint(options.work, options.size)
    set_tiles(model, options.tiles)
    for kind in options.servers.split(","):
        result = measure(kind, model, options)
        sys.stdout.write(json.dumps({kind: {"tiles": options.tiles, "kv_bits": options.kv_bits, **result}}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
