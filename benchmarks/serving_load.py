"""People who chat about pictures over HTTP, many at once: a load for any OpenAI-style server.

    python -m benchmarks.serving_load --url http://127.0.0.1:23333 --model NAME --people 64

Spread over several processes, so that the load is not bound by one event loop; speaks plain server-sent events, no
client library. Prints one JSON object: for each scenario requests a second, times to the first text, tokens.
Pictures are made up (a smooth scene with grain, 1280×960, about 250 KB as JPEG), a new one for every person.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np
from PIL import Image

from inference.chat_format.template import SYSTEM
from inference.engines.access_key import KEY_VARIABLE


@dataclass
class Chat:
    """One person's conversation with the server."""

    seed: int
    messages: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        image = {"type": "image_url", "image_url": {"url": picture(self.seed)}}
        question = {"type": "text", "text": "What is to be seen here? Tell me all about it."}
        self.messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": [image, question]}]

    def goes_on(self, answer: str) -> None:
        self.messages.append({"role": "assistant", "content": answer})
        self.messages.append({"role": "user", "content": "And what else? Look at the colours."})


@dataclass(frozen=True)
class Shot:
    """One answer: when it was asked, when its first text came, when it ended (clock of the machine), and its cost."""

    asked: float
    first: float
    ended: float
    prompt_tokens: int
    cached_tokens: int
    tokens: int


def picture(seed: int, size: tuple[int, int] = (1280, 960)) -> str:
    """A data URL, the same for the same seed."""
    dice = np.random.default_rng(seed)
    coarse = Image.fromarray(dice.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    scene = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
    grain = dice.integers(-12, 13, scene.shape, dtype=np.int16)
    encoded = io.BytesIO()
    Image.fromarray(np.clip(scene + grain, 0, 255).astype(np.uint8)).save(encoded, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()


def headers() -> dict[str, str]:
    """What a request carries: the engine's key, where the environment has one."""
    key = os.environ.get(KEY_VARIABLE)
    return {"Authorization": f"Bearer {key}"} if key else {}


async def ask(session: aiohttp.ClientSession, url: str, model: str, chat: Chat, tokens: int) -> Shot:
    """Ask, read to the end, add the answer to the chat."""
    body = {
        "model": model,
        "messages": chat.messages,
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0.8,
        "top_p": 0.8,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    asked, first, text = time.time(), 0.0, ""
    usage: dict[str, Any] = {}
    async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers()) as response:
        if response.status != 200:
            raise RuntimeError(f"HTTP {response.status}: {await response.text()}")
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise RuntimeError(chunk["error"])
            usage = chunk.get("usage") or usage
            piece = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            if piece and not first:
                first = time.time()
            text += piece
    chat.goes_on(text)
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Shot(asked, first, time.time(), usage["prompt_tokens"], cached, usage["completion_tokens"])


def people(
    url: str, model: str, seeds: Sequence[int], turns: int, tokens: int, start: float, pause: float
) -> list[list[Shot]]:
    """In a process of its own: these people ask at once, `turns` times each, every turn begun at an agreed time."""

    async def all_of_them() -> list[list[Shot]]:
        chats = [Chat(seed) for seed in seeds]
        rounds = []
        limit = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=limit, timeout=aiohttp.ClientTimeout(300)) as session:
            for turn in range(turns):
                await asyncio.sleep(max(start + turn * pause - time.time(), 0))
                rounds.append(await asyncio.gather(*(ask(session, url, model, chat, tokens) for chat in chats)))
        return rounds

    return asyncio.run(all_of_them())


def crowd(
    url: str, model: str, number: int, seed: int, tokens: int, *, pause: float, turns: int = 2
) -> list[dict[str, Any]]:
    """`number` people at once, each with a new picture, then a follow-up of each; one summary a turn."""
    processes = min(8, number)
    with ProcessPoolExecutor(processes) as pool:
        start = time.time() + 3
        jobs = [
            pool.submit(people, url, model, range(seed + part, seed + number, processes), turns, tokens, start, pause)
            for part in range(processes)
        ]
        parts = [job.result() for job in jobs]
    return [summary([shot for part in parts for shot in part[turn]]) for turn in range(turns)]


def alone(url: str, model: str, number: int, seed: int, tokens: int) -> list[dict[str, Any]]:
    """One person after another: a new picture and a follow-up each; the first pair warms up and does not count."""

    async def one_by_one() -> list[dict[str, Any]]:
        firsts, followers = [], []
        async with aiohttp.ClientSession() as session:
            for place in range(number + 1):
                chat = Chat(seed + place)
                firsts.append(await ask(session, url, model, chat, tokens))
                followers.append(await ask(session, url, model, chat, tokens))
        return [summary(firsts[1:]), summary(followers[1:])]

    return asyncio.run(one_by_one())


def summary(shots: Sequence[Shot]) -> dict[str, Any]:
    """What is told of one turn of everybody. Times in seconds."""
    waits = sorted(shot.first - shot.asked for shot in shots)
    wall = max(shot.ended for shot in shots) - min(shot.asked for shot in shots)
    return {
        "requests": len(shots),
        "requests_per_second": round(len(shots) / wall, 3),
        "first_token_median": round(statistics.median(waits), 4),
        "first_token_p99": round(waits[min(int(len(waits) * 0.99), len(waits) - 1)], 4),
        "wall": round(wall, 3),
        "tokens_per_second": round(sum(shot.tokens for shot in shots) / wall, 1),
        "prompt_tokens": round(statistics.mean(shot.prompt_tokens for shot in shots), 1),
        "cached_tokens": round(statistics.mean(shot.cached_tokens for shot in shots), 1),
    }


def measure(url: str, model: str, *, number: int, seed: int, tokens: int, pause: float) -> dict[str, Any]:
    """The four scenarios against one server."""
    first, follow = alone(url, model, 8, seed, 32)
    new, following = crowd(url, model, number, seed + 1000, tokens, pause=pause)
    return {"first turn": first, "follow-up": follow, f"{number} new": new, f"{number} follow-ups": following}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving_load", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True, help="the model's name at the server")
    parser.add_argument("--people", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128, help="length of every answer")
    parser.add_argument("--seed", type=int, default=0, help="other seeds, other pictures")
    parser.add_argument("--pause", type=float, default=40, help="seconds from the crowd's first to its second turn")
    options = parser.parse_args(arguments)
    results = measure(
        options.url, options.model, number=options.people, seed=options.seed, tokens=options.tokens, pause=options.pause
    )
    sys.stdout.write(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
