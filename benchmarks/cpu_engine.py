"""Measure the CPU engine's prefix cache.

    python -m benchmarks.cpu_engine [--size 100m] [--picture 448x448]

The script asks a model over HTTP about a new picture, then asks a follow-up about the same picture. The
model has random weights and the given size, unless `--model` names a checkpoint. Answers are one token
long, and times are from the request to the first token. The script prints the median times of both
questions and the ratio of the follow-up's time to the first question's. At 448 pixels, the ratio must be
at most 0.25 for models of at least 100 million parameters. The script also prints the tokens per second
of one chat and of four simultaneous chats.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from benchmarks.peers.load import picture
from benchmarks.random_checkpoint import SIZES
from benchmarks.random_checkpoint import main as write_random
from tests.support.cpu_serving import NAME, started

CHATS = 4
ANSWER_TOKENS = 32


def ask(client: httpx.Client, messages: list[dict[str, Any]], tokens: int) -> tuple[float, dict[str, Any]]:
    """Request an answer of at most `tokens` tokens; return the seconds it took and the response."""
    body = {"model": NAME, "messages": messages, "temperature": 0, "max_tokens": tokens}
    began = time.perf_counter()
    response = client.post("/v1/chat/completions", json=body)
    seconds = time.perf_counter() - began
    response.raise_for_status()
    return seconds, response.json()


def chat(client: httpx.Client, seed: int, size: tuple[int, int]) -> tuple[float, float, int]:
    """Return the seconds to the first token for a first turn and a follow-up, and the picture's tile count."""
    content = [
        {"type": "image_url", "image_url": {"url": picture(seed, size)}},
        {"type": "text", "text": "What is it?"},
    ]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    first, answer = ask(client, messages, 1)
    text = answer["choices"][0]["message"]["content"]
    messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "Which colour is it?"}]
    follow_up, again = ask(client, messages, 1)
    if again["usage"]["encoded_tiles"]:
        raise RuntimeError("the follow-up encoded the picture again")
    return first, follow_up, answer["usage"]["encoded_tiles"]


def speed(client: httpx.Client, chats: int) -> float:
    """Return the total tokens per second of `chats` simultaneous text chats."""
    began = time.perf_counter()
    with ThreadPoolExecutor(chats) as pool:
        asked = [[{"role": "user", "content": f"Count from {number}."}] for number in range(chats)]
        answers = list(pool.map(lambda messages: ask(client, messages, ANSWER_TOKENS)[1], asked))
    seconds = time.perf_counter() - began
    return sum(float(answer["usage"]["completion_tokens"]) for answer in answers) / seconds


def main() -> None:
    """Run the command-line interface."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="100m", help="size of the model with random weights")
    parser.add_argument("--model", type=Path, help="a checkpoint instead of a random model")
    parser.add_argument("--picture", default="448x448", help="width x height in pixels")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", default="", help="threads of the engine")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    width, height = map(int, options.picture.split("x"))
    flags = ("--dtype", options.dtype, "--slots", str(CHATS))
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            write_random(["--size", options.size, "--out", folder])
        with started(options.model or Path(folder), *flags, threads=options.threads, timeout=600) as server:
            client = server.http
            while client.get("/health").status_code != 200:
                time.sleep(0.1)
            chat(client, options.turns, (width, height))
            chats = [chat(client, seed, (width, height)) for seed in range(options.turns)]
            alone, together = speed(client, 1), speed(client, CHATS)
    first, follow_up = (statistics.median(seconds[turn] for seconds in chats) for turn in (0, 1))
    print(
        f"{options.picture}, {chats[0][2]} tiles, medians of {len(chats)} chats\n"
        f"first turn's first token  {first:.3f} s\n"
        f"follow-up's first token   {follow_up:.3f} s\n"
        f"ratio                     {follow_up / first:.3f} (target: at most 0.25)\n"
        f"tokens per second         {alone:.1f} alone, {together:.1f} in {CHATS} chats"
    )


if __name__ == "__main__":
    main()
