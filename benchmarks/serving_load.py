"""Put an OpenAI-compatible server under load: many users chat about pictures at the same time.

    python -m benchmarks.serving_load --url http://127.0.0.1:23333 --model NAME --people 64

The simulated users are spread over several processes, so that no single event loop limits the load. They
read server-sent events without a client library. Each user has a new, random picture: smooth areas with
grain, 1280×960 pixels, about 250 KB as a JPEG. The script prints one JSON object with the requests per
second, the times to the first text and the token counts for each scenario.
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

from inference.engines.access_key import KEY_VARIABLE
from inference.internvl2.families import INTERNVL2


@dataclass
class HttpChat:
    """A simulated user's conversation with the server."""

    seed: int
    messages: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        image = {"type": "image_url", "image_url": {"url": picture(self.seed)}}
        question = {"type": "text", "text": "What is to be seen here? Tell me all about it."}
        self.messages = [
            {"role": "system", "content": INTERNVL2.system},
            {"role": "user", "content": [image, question]},
        ]

    def continue_after(self, answer: str) -> None:
        """Add `answer` and the user's next question to the conversation."""
        self.messages.append({"role": "assistant", "content": answer})
        self.messages.append({"role": "user", "content": "And what else? Look at the colours."})


@dataclass(frozen=True)
class TimedAnswer:
    """The times at which a question was asked and its answer began and ended, and the token counts.

    Times are in seconds since the epoch.
    """

    asked: float
    first: float
    ended: float
    prompt_tokens: int
    cached_tokens: int
    tokens: int


def picture(seed: int, size: tuple[int, int] = (1280, 960)) -> str:
    """Return the data URL of a random JPEG that is determined by `seed` and `size`."""
    dice = np.random.default_rng(seed)
    coarse = Image.fromarray(dice.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    scene = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
    grain = dice.integers(-12, 13, scene.shape, dtype=np.int16)
    encoded = io.BytesIO()
    Image.fromarray(np.clip(scene + grain, 0, 255).astype(np.uint8)).save(encoded, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()


def headers() -> dict[str, str]:
    """Return the headers of a request, with the engine's key if it is in the environment."""
    key = os.environ.get(KEY_VARIABLE)
    return {"Authorization": f"Bearer {key}"} if key else {}


async def ask(session: aiohttp.ClientSession, url: str, model: str, chat: HttpChat, tokens: int) -> TimedAnswer:
    """Ask the chat's last question, read the whole answer, and add it and the next question to the chat."""
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
    chat.continue_after(text)
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return TimedAnswer(asked, first, time.time(), usage["prompt_tokens"], cached, usage["completion_tokens"])


def people(
    url: str, model: str, seeds: Sequence[int], *, turns: int, tokens: int, start: float, pause: float
) -> list[list[TimedAnswer]]:
    """Let users ask simultaneously, `turns` times each, and return their answers by turn.

    There is one user for each of `seeds`. The first turn begins at `start`, in seconds since the epoch. The
    others follow `pause` seconds apart, or when the previous answers are complete, if that is later. This
    function runs in a worker process.
    """

    async def all_of_them() -> list[list[TimedAnswer]]:
        chats = [HttpChat(seed) for seed in seeds]
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
    """Let `number` users ask simultaneously, each first about a new picture, then a follow-up.

    Returns:
        One summary per turn.
    """
    processes = min(8, number)
    with ProcessPoolExecutor(processes) as pool:
        start = time.time() + 3
        jobs = [
            pool.submit(
                people,
                url,
                model,
                range(seed + part, seed + number, processes),
                turns=turns,
                tokens=tokens,
                start=start,
                pause=pause,
            )
            for part in range(processes)
        ]
        parts = [job.result() for job in jobs]
    return [summary([answer for part in parts for answer in part[turn]]) for turn in range(turns)]


def alone(url: str, model: str, number: int, seed: int, tokens: int) -> list[dict[str, Any]]:
    """Let `number` users, one after another, ask a question about a new picture, then a follow-up question.

    One more user goes first, only to warm up the server.

    Returns:
        The summaries of the first turns and the follow-ups.
    """

    async def one_by_one() -> list[dict[str, Any]]:
        firsts, followers = [], []
        async with aiohttp.ClientSession() as session:
            for place in range(number + 1):
                chat = HttpChat(seed + place)
                firsts.append(await ask(session, url, model, chat, tokens))
                followers.append(await ask(session, url, model, chat, tokens))
        return [summary(firsts[1:]), summary(followers[1:])]

    return asyncio.run(one_by_one())


def summary(answers: Sequence[TimedAnswer]) -> dict[str, Any]:
    """Return the statistics of all users' answers in one turn, with times in seconds."""
    waits = sorted(answer.first - answer.asked for answer in answers)
    wall = max(answer.ended for answer in answers) - min(answer.asked for answer in answers)
    return {
        "requests": len(answers),
        "requests_per_second": round(len(answers) / wall, 3),
        "first_token_median": round(statistics.median(waits), 4),
        "first_token_p99": round(waits[min(int(len(waits) * 0.99), len(waits) - 1)], 4),
        "wall": round(wall, 3),
        "tokens_per_second": round(sum(answer.tokens for answer in answers) / wall, 1),
        "prompt_tokens": round(statistics.mean(answer.prompt_tokens for answer in answers), 1),
        "cached_tokens": round(statistics.mean(answer.cached_tokens for answer in answers), 1),
    }


def measure(url: str, model: str, *, number: int, seed: int, tokens: int, pause: float) -> dict[str, Any]:
    """Run the four scenarios against one server and return the statistics."""
    first, follow = alone(url, model, 8, seed, 32)
    new, following = crowd(url, model, number, seed + 1000, tokens, pause=pause)
    return {"first turn": first, "follow-up": follow, f"{number} new": new, f"{number} follow-ups": following}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command-line interface."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving_load", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True, help="the model's name on the server")
    parser.add_argument("--people", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128, help="length of every answer")
    parser.add_argument("--seed", type=int, default=0, help="determines the pictures")
    parser.add_argument("--pause", type=float, default=40, help="seconds from the crowd's first to its second turn")
    options = parser.parse_args(arguments)
    results = measure(
        options.url, options.model, number=options.people, seed=options.seed, tokens=options.tokens, pause=options.pause
    )
    sys.stdout.write(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
