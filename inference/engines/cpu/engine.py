"""Answers from a model on this machine: several at once, in turns, out of one thread.

Knows the model, the caches and sampling. A `Task` (tasks.py makes it) goes in, text goes to the task's listener as
it comes, a `Result` last. Knows neither HTTP nor JSON.

Each answer is computed in short units (a few tiles, a chunk of the prompt, one token), and the answers take turns
by units: a long one does not hold up a short one.
"""

from __future__ import annotations

import io
import threading
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

import torch
from cachetools import LRUCache
from PIL import Image
from torch import Tensor

from inference.chat_format.template import STOP_TOKENS, SYSTEM
from inference.engines.cpu.detokenizer import StopStrings, TextStream
from inference.engines.cpu.prefix_cache import Entry, PrefixCache
from inference.engines.cpu.tasks import Listener, Preparer, Result, Task, View
from inference.internvl2.checkpoint import load_model
from inference.internvl2.tokenizer import load_tokenizer, text_decoder
from inference.messages import Picture, Prompt, Role, Sampling, Turn, Usage

_CHUNK: Final = 512
"""Positions of a prompt computed in one unit."""

_PATCHES: Final = 2048
"""ViT patches computed in one unit: two tiles of 448 pixels."""

_WARM_TOKENS: Final = 4

_COLDEST: Final = 1e-4
"""Below this temperature logits divided by it could overflow, and only the likeliest token has a chance."""


class ChatEngine:
    """A model, its tokenizer and one thread that answers tasks made by its `preparer`. Close it to end the thread.

    `cache_bytes` bounds what is remembered of chats and pictures between answers.
    """

    def __init__(self, model: Any, tokenizer: Any, *, cache_bytes: int) -> None:
        self.preparer = Preparer(model.config, model.num_image_token, tokenizer)
        self.cache_bytes = 0
        """Bytes that the caches held after the latest unit, unfinished answers included."""
        self._model = model
        self._decode = text_decoder(tokenizer)
        self._tiles_a_unit = max(1, _PATCHES // self.preparer.patches)
        self._ends = _end_tokens(model, tokenizer)
        self._features: LRUCache[int, Tensor] = LRUCache(cache_bytes // 8, lambda features: features.nbytes)
        self._prefixes = PrefixCache(cache_bytes - cache_bytes // 8)
        self._inbox: SimpleQueue[Task | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, directory: str | Path, *, dtype: torch.dtype, cache_bytes: int) -> ChatEngine:
        """Load a checkpoint and have it answer a question about a picture and another; seconds to minutes.

        Whoever gets the engine gets one that has really generated something. Raises what loading raises.
        """
        engine = cls(load_model(directory, dtype=dtype), load_tokenizer(directory), cache_bytes=cache_bytes)
        asked = Turn(Role.USER, "What is this?", (_sample(engine.preparer.side),))
        for turns in (asked,), (asked, Turn(Role.ASSISTANT, "A picture."), Turn(Role.USER, "And this?")):
            prompt = Prompt(SYSTEM, turns, chat="", sampling=Sampling(max_new_tokens=_WARM_TOKENS))
            engine.answer(engine.preparer.prepare(prompt))
        return engine

    def close(self) -> None:
        """Abort what is under way and end the thread."""
        self._inbox.put(None)
        self._thread.join()

    def submit(self, task: Task, listener: Listener) -> None:
        """Begin to answer a prepared task; `listener` hears of everything."""
        task.listener = listener
        self._inbox.put(task)

    def answer(self, task: Task) -> tuple[str, Result]:
        """Answer a prepared task and wait for it; the whole text. Raises what went wrong."""
        events: SimpleQueue[str | Result | Exception] = SimpleQueue()
        self.submit(task, events.put)
        texts: list[str] = []
        while True:
            event = events.get()
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Result):
                return "".join(texts), event
            texts.append(event)

    def _work(self) -> None:
        """The thread: every running answer computes one unit, then the next does."""
        running: deque[tuple[Task, Generator[None, None, None]]] = deque()
        with torch.inference_mode():
            while True:
                while not running or not self._inbox.empty():
                    task = self._inbox.get()
                    if task is None:
                        for left, units in running:
                            left.abort()
                            _advance(left, units)
                        return
                    running.appendleft((task, self._answer(task)))
                task, units = running.popleft()
                if _advance(task, units):
                    running.append((task, units))
                self._weigh()

    def _answer(self, task: Task) -> Generator[None, None, None]:
        """Read, then speak. Each `yield`, here and below, ends a unit; whatever was computed is kept."""
        entry = self._prefixes.take(task.keys)
        cached = entry.length
        tally = _Tally()
        try:
            logits = yield from self._read(task, entry, tally)
            finish = "abort" if logits is None else (yield from self._speak(task, entry, logits, tally))
        except Exception:
            # The layers may have gone different ways.
            self._prefixes.discard(entry)
            raise
        self._prefixes.give(entry)
        self._weigh()
        task.listener(Result(finish, Usage(len(task.ids), tally.tokens, cached, tally.tiles)))

    def _weigh(self) -> None:
        self._prefixes.trim()
        self.cache_bytes = self._prefixes.nbytes + int(self._features.currsize)

    def _read(self, task: Task, entry: Entry, tally: _Tally) -> Generator[None, None, Tensor | None]:
        """Compute what is not known of the prompt; the logits after its last position, None when aborted."""
        logits: Tensor | None = None
        while entry.length < len(task.ids):
            start, stop = entry.length, min(entry.length + _CHUNK, len(task.ids))
            embeds = self._model.get_input_embeddings()(torch.tensor([task.ids[start:stop]]))
            for view in task.views:
                first, last = max(start, view.span.start), min(stop, view.span.stop)
                if first < last:
                    features = yield from self._see(task, view, tally)
                    if features is None:
                        return None
                    embeds[0, first - start : last - start] = features[first - view.span.start : last - view.span.start]
                    view.features = features if last < view.span.stop else None
            if task.aborted.is_set():
                return None
            logits = self._compute(entry, embeds, task.keys[start:stop])
            if entry.length < len(task.ids):
                yield
        return logits

    def _see(self, task: Task, view: View, tally: _Tally) -> Generator[None, None, Tensor | None]:
        """The features of a picture, [positions, width]: remembered, or encoded now; None when aborted."""
        known = self._features.get(view.key) if view.features is None else view.features
        if known is not None:
            return known
        pixels = self.preparer.decode(view.picture, view.limit) if view.pixels is None else view.pixels
        encoded: list[Tensor] = []
        for batch in torch.split(pixels.to(self._model.dtype), self._tiles_a_unit):
            if task.aborted.is_set():
                return None
            encoded.append(self._model.extract_feature(batch).flatten(0, 1))
            tally.tiles += len(batch)
            yield
        features = torch.cat(encoded)
        if features.nbytes <= self._features.maxsize:
            self._features[view.key] = features
        view.pixels = None
        return features

    def _speak(self, task: Task, entry: Entry, logits: Tensor, tally: _Tally) -> Generator[None, None, str]:
        """Draw tokens and tell the listener their text; returns how it ended."""
        room = min(task.sampling.max_new_tokens, self.preparer.window - len(task.ids))
        stream, stops = TextStream(self._decode), StopStrings(task.stop)
        chance = torch.Generator()
        if task.sampling.seed is None:
            chance.seed()
        else:
            chance.manual_seed(task.sampling.seed)
        while True:
            token = draw(logits, task.sampling, chance)
            if token in self._ends:
                finish = "stop"
                break
            tally.tokens += 1
            text, stopped = stops.push(stream.push(token))
            if text:
                task.listener(text)
            if stopped:
                return "stop"
            if tally.tokens == room:
                finish = "length"
                break
            yield
            if task.aborted.is_set():
                return "abort"
            embeds = self._model.get_input_embeddings()(torch.tensor([[token]]))
            logits = self._compute(entry, embeds, [token])
        text, stopped = stops.push(stream.flush())
        text = text if stopped else text + stops.flush()
        if text:
            task.listener(text)
        return "stop" if stopped else finish

    def _compute(self, entry: Entry, embeds: Tensor, keys: Sequence[int]) -> Tensor:
        """Run the language model over new positions [1, N, width]; the logits [vocabulary] after the last."""
        output = self._model.language_model(
            inputs_embeds=embeds, past_key_values=entry.kv, use_cache=True, logits_to_keep=1
        )
        entry.keys.extend(keys)
        logits: Tensor = output.logits[0, -1]
        return logits


@dataclass(slots=True)
class _Tally:
    """What an answer has cost so far."""

    tokens: int = 0
    tiles: int = 0


def _advance(task: Task, units: Generator[None, None, None]) -> bool:
    """Compute one unit; False when the answer is over. What goes wrong is this answer's affair alone."""
    try:
        next(units)
    except StopIteration:
        return False
    except Exception as error:  # noqa: BLE001 - whatever it is, the listener hears it and the others go on
        task.listener(error)
        return False
    return True


def draw(logits: Tensor, sampling: Sampling, chance: torch.Generator) -> int:
    """Draw a token from float32 logits [vocabulary]: the likeliest at temperature 0 (or near), else as TurboMind does.

    The `top_k` likeliest are kept and their probabilities brought to a sum of 1; of these, the fewest likeliest whose
    sum exceeds `top_p` (lmdeploy, src/turbomind/generation/sampling.cc: invokeTopKSortFilter, then
    invokeTopPMinPFilter).
    """
    if sampling.temperature < _COLDEST:
        return int(logits.argmax())
    kept, tokens = logits.topk(min(sampling.top_k or len(logits), len(logits)))
    probabilities = torch.softmax(kept / sampling.temperature, dim=-1)
    before = probabilities.cumsum(-1) - probabilities
    # The likeliest always stays, also at top_p 0.
    probabilities[1:][before[1:] > sampling.top_p] = 0
    return int(tokens[torch.multinomial(probabilities, 1, generator=chance)])


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end an answer: the checkpoint's generation configuration's, and those every InternVL2 has."""
    listed = model.generation_config.eos_token_id
    ends = set(listed if isinstance(listed, list) else [] if listed is None else [listed])
    known = tokenizer.get_added_vocab()
    return frozenset(ends | {known[token] for token in STOP_TOKENS if token in known})


def _sample(side: int) -> Picture:
    """A picture of one tile to warm up with."""
    encoded = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).convert("RGB").save(encoded, "PNG")
    return Picture.of(encoded.getvalue(), "image/png")
