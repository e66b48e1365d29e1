"""Put an OpenAI-compatible server under load: many users chat about pictures at the same time.

    python -m benchmarks.peers.load --url http://127.0.0.1:23333 --model NAME --people 64 [--rate 4]

The simulated users are spread over several processes, so that no single event loop limits the load. They
read server-sent events without a client library. Each user has a new, random picture: smooth areas with
grain, 1280×960 pixels, about 250 KB as a JPEG. In the open loop, users arrive at random, whether or not
the server keeps up; their pictures have eight sizes, and each user asks three follow-ups. The script
prints one JSON object with the requests per second, the times to the first text and the token counts for
each scenario.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import numpy as np
from PIL import Image

from benchmarks.photos import SIZES
from inference.engines.access_key import KEY_VARIABLE
from inference.internvl2.families import INTERNVL2

FOLLOW_UPS: Final = 3
READING: Final = 3.0
PATIENCE: Final = 60.0


@dataclass
class HttpChat:
    """A simulated user's conversation with the server."""

    seed: int
    size: tuple[int, int] = (1280, 960)
    messages: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        image = {"type": "image_url", "image_url": {"url": picture(self.seed, self.size)}}
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
    ended = time.time()
    return TimedAnswer(asked, first or ended, ended, usage["prompt_tokens"], cached, usage["completion_tokens"])


def people(
    url: str, model: str, seeds: Sequence[int], *, turns: int, tokens: int, start: float, pause: float
) -> list[list[TimedAnswer]]:
    """Have users ask simultaneously, `turns` times each, and return their answers by turn.

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
    """Have `number` users ask simultaneously: each asks about a new picture, and then a follow-up.

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


def visitors(url: str, model: str, due: Sequence[float], seed: int, tokens: int) -> list[list[TimedAnswer]]:
    """Have one user arrive at each of the times `due`, and return the answers to each user.

    Times are in seconds since the epoch. A user reads for `READING` seconds after an answer before asking the
    next question. Users whose chats take longer than `PATIENCE` seconds leave. This function runs in a worker
    process.
    """
    chats = [HttpChat(seed + number, SIZES[number % len(SIZES)]) for number in range(len(due))]

    async def visit(session: aiohttp.ClientSession, chat: HttpChat, start: float, answers: list[TimedAnswer]) -> None:
        await asyncio.sleep(max(start - time.time(), 0))
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                for _ in range(1 + FOLLOW_UPS):
                    answers.append(await ask(session, url, model, chat, tokens))
                    await asyncio.sleep(READING)

    async def all_of_them() -> list[list[TimedAnswer]]:
        found: list[list[TimedAnswer]] = [[] for _ in chats]
        limit = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=limit, timeout=aiohttp.ClientTimeout(300)) as session:
            visits = zip(chats, due, found, strict=True)
            await asyncio.gather(*(visit(session, chat, start, answers) for chat, start, answers in visits))
        return found

    return asyncio.run(all_of_them())


def open_loop(url: str, model: str, rate: float, *, seconds: float, tokens: int) -> dict[str, Any]:
    """Have users arrive in a Poisson process with `rate` users per second for `seconds` seconds.

    Each rate has its own pictures, so that no server has them in its cache from a lower rate.

    Returns:
        The number of users, how many of them left before their last answer, and the summaries of the first
        turns and of the follow-ups.
    """
    seed = 10**6 + round(10**5 * rate)
    dice = np.random.default_rng(seed)
    processes = 8
    # The processes draw the pictures before this time.
    start = time.time() + 3 + 0.3 * rate * seconds / processes
    due = start + np.cumsum(dice.exponential(1 / rate, int(rate * seconds)))
    with ProcessPoolExecutor(processes) as pool:
        jobs = [
            pool.submit(visitors, url, model, due[part::processes].tolist(), seed + 1000 * part, tokens)
            for part in range(processes)
        ]
        chats = [answers for job in jobs for answers in job.result()]
    turns = [answer for answers in chats for answer in answers[:1]], [each for answers in chats for each in answers[1:]]
    first, follow = (summary(each) if each else {} for each in turns)
    gone = sum(len(answers) <= FOLLOW_UPS for answers in chats)
    return {"people": len(chats), "left": gone, "first turn": first, "follow-up": follow}


def alone(url: str, model: str, number: int, seed: int, tokens: int) -> list[dict[str, Any]]:
    """Have `number` users, one after another, ask a question about a new picture, then a follow-up question.

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
    """Return statistics of `answers`, with times in seconds."""
    median, late = np.percentile([answer.first - answer.asked for answer in answers], [50, 99]).round(4).tolist()
    wall = max(answer.ended for answer in answers) - min(answer.asked for answer in answers)
    return {
        "requests": len(answers),
        "requests_per_second": round(len(answers) / wall, 3),
        "first_token_median": median,
        "first_token_p99": late,
        "wall": round(wall, 3),
        "tokens_per_second": round(sum(answer.tokens for answer in answers) / wall, 1),
        "prompt_tokens": round(statistics.mean(answer.prompt_tokens for answer in answers), 1),
        "cached_tokens": round(statistics.mean(answer.cached_tokens for answer in answers), 1),
    }


def main() -> None:
    """Run the command-line interface."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True, help="the model's name on the server")
    parser.add_argument("--people", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128, help="length of every answer")
    parser.add_argument("--pause", type=float, default=40, help="seconds from the crowd's first to its second turn")
    parser.add_argument("--rate", type=float, help="users arriving per second; without it, there is no open loop")
    parser.add_argument("--seconds", type=float, default=30, help="how long users keep arriving")
    options = parser.parse_args()
    url, model, number = options.url, options.model, options.people
    results: dict[str, Any] = {}
    results["first turn"], results["follow-up"] = alone(url, model, 8, 0, 32)
    results[f"{number} new"], results[f"{number} follow-ups"] = crowd(
        url, model, number, 1000, options.tokens, pause=options.pause
    )
    if options.rate:
        results["open loop"] = open_loop(url, model, options.rate, seconds=options.seconds, tokens=options.tokens // 2)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
