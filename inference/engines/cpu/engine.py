"""Generation of answers with a model in this process, several at a time, interleaved in one thread.

Each answer is computed in short steps (a few tiles, a chunk of the prompt, or one token), and the
answers take turns step by step, so that a long answer does not hold up a short one. The next tokens of all
answers whose prompts have been processed are computed as one batch.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

import torch
from cachetools import LRUCache
from torch import Tensor

from inference.chat_format.token_ids import stop_ids
from inference.engines.cpu.prefix_cache import CacheEntry, PrefixCache
from inference.engines.cpu.preprocessing import (
    Aborted,
    GenerationRequest,
    GenerationResult,
    Listener,
    Preprocessor,
    PromptPicture,
)
from inference.engines.cpu.token_sampling import random_generator, sample_token
from inference.engines.detokenizer import TextStream
from inference.images.sample_picture import sample_picture
from inference.internvl2.checkpoint import load_model
from inference.internvl2.growing_cache import JointCache
from inference.internvl2.tokenizer import load_tokenizer, text_decoder
from inference.messages import Prompt, Role, Sampling, Turn, Usage

_PREFILL_CHUNK: Final = 512
"""The number of prompt positions processed in one step."""

_PATCHES_PER_STEP: Final = 2048
"""The number of ViT patches computed in one step, as many as in two tiles of 448 pixels."""

_WARMUP_TOKENS: Final = 4

_Next = tuple[CacheEntry, int]
"""The cache entry of an answer and its newest token, from which the logits of the next token are to be computed."""

_Steps = Generator[_Next | None, Tensor | None, None]
"""The steps of an answer. If a step yields `_Next`, the logits [vocabulary] must be sent to the next one."""


@dataclass(eq=False, slots=True)
class _Running:
    """A running generation; `next` is what its latest step yielded."""

    request: GenerationRequest
    steps: _Steps
    next: _Next | None = None

    def advance(self, logits: Tensor | Exception | None = None) -> bool:
        """Compute one step and return whether more steps remain.

        An exception, whether given instead of the logits or raised by the step, is passed only to the request's
        listener.
        """
        try:
            self.next = self.steps.throw(logits) if isinstance(logits, Exception) else self.steps.send(logits)
        except StopIteration:
            return False
        except Exception as error:  # noqa: BLE001 - the listener receives it and the other generations continue
            self.request.listener(error)
            return False
        return True


class ChatEngine:
    """A model, its tokenizer and one thread that generates answers until `close` is called.

    Args:
        model: The loaded model.
        tokenizer: The loaded tokenizer.
        cache_bytes: The memory in bytes for the keys and values of recent chats and the features of recent
            pictures.
    """

    def __init__(self, model: Any, tokenizer: Any, *, cache_bytes: int) -> None:
        self.preprocessor = Preprocessor(model.config, tokenizer)
        self.cache_bytes = 0
        """Size of the caches in bytes after the latest step, including unfinished answers."""
        self._model = model
        self._text_of = text_decoder(tokenizer)
        patches_per_tile = (self.preprocessor.tiling.side // model.config.vision_config.patch_size) ** 2
        self._tiles_per_step = max(1, _PATCHES_PER_STEP // patches_per_tile)
        self._stop_ids = stop_ids(model.generation_config, tokenizer)
        self._short_length = model.config.short_length or sys.maxsize
        self._features: LRUCache[int, Tensor] = LRUCache(cache_bytes // 8, lambda features: features.nbytes)
        self._prefixes = PrefixCache(cache_bytes - cache_bytes // 8)
        self._inbox: SimpleQueue[GenerationRequest | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, directory: str | Path, *, dtype: torch.dtype, cache_bytes: int) -> ChatEngine:
        """Load a checkpoint and warm up the engine with two short answers about a picture.

        The call takes seconds to minutes.
        """
        engine = cls(load_model(directory, dtype=dtype), load_tokenizer(directory), cache_bytes=cache_bytes)
        question = Turn(Role.USER, "What is this?", (sample_picture(),))
        for turns in (question,), (question, Turn(Role.ASSISTANT, "A picture."), Turn(Role.USER, "And this?")):
            prompt = Prompt(
                engine.preprocessor.family.system, turns, chat="", sampling=Sampling(max_new_tokens=_WARMUP_TOKENS)
            )
            engine.answer(engine.preprocessor.prepare(prompt))
        return engine

    def close(self) -> None:
        """Abort all generations and stop the thread."""
        self._inbox.put(None)
        self._thread.join()

    def submit(self, request: GenerationRequest, listener: Listener) -> None:
        """Start generating an answer; `listener` receives its text in pieces, then the result or an exception."""
        request.listener = listener
        self._inbox.put(request)

    def answer(self, request: GenerationRequest) -> tuple[str, GenerationResult]:
        """Generate an answer, wait for it, and return its whole text and the result.

        Any exception raised by the generation is re-raised.
        """
        events: SimpleQueue[str | GenerationResult | Exception] = SimpleQueue()
        self.submit(request, events.put)
        texts: list[str] = []
        while isinstance(event := events.get(), str):
            texts.append(event)
        if isinstance(event, Exception):
            raise event
        return "".join(texts), event

    @torch.inference_mode()
    def _run(self) -> None:
        """Compute one step of every running generation in turn, until the engine is closed."""
        running: deque[_Running] = deque()
        while True:
            while not running or not self._inbox.empty():
                request = self._inbox.get()
                if request is None:
                    for each in running:
                        each.request.abort()
                        each.advance()
                    return
                running.appendleft(_Running(request, self._generate(request)))
            turn = self._next_turn(running)
            logits = self._decode_tokens(turn) if turn[0].next else [None]
            running.extend(each for each, row in zip(turn, logits, strict=True) if each.advance(row))
            self._trim()

    def _next_turn(self, running: deque[_Running]) -> list[_Running]:
        """Remove the next generation from `running`, with all others whose next tokens fit into the same batch."""
        first = running.popleft()
        if first.next is None:
            return [first]
        others = [each for each in running if each.next and self._is_long(each) == self._is_long(first)]
        for each in others:
            running.remove(each)
        return [first, *others]

    def _is_long(self, each: _Running) -> bool:
        return each.request.length > self._short_length

    def _trim(self) -> None:
        self._prefixes.trim()
        self.cache_bytes = self._prefixes.nbytes + int(self._features.currsize)

    def _generate(self, request: GenerationRequest) -> _Steps:
        """Process the prompt, then generate the answer, yielding after each step."""
        entry = self._prefixes.take(request.keys)
        cached = entry.length
        try:
            logits = yield from self._prefill(request, entry)
            finish = yield from self._decode(request, entry, logits)
        except Aborted:
            finish = "abort"
        except Exception:
            # The layers may hold different numbers of positions.
            self._prefixes.discard(entry)
            raise
        self._prefixes.give(entry)
        self._trim()
        usage = Usage(len(request.ids), request.completion_tokens, cached, request.encoded_tiles)
        request.listener(GenerationResult(finish, usage))

    def _prefill(self, request: GenerationRequest, entry: CacheEntry) -> Generator[None, Any, Tensor]:
        """Process the prompt positions missing from `entry`; return the logits after the last position."""
        logits = torch.empty(0)
        while entry.length < len(request.ids):
            start, stop = entry.length, min(entry.length + _PREFILL_CHUNK, len(request.ids))
            embeds = self._model.get_input_embeddings()(torch.tensor([request.ids[start:stop]]))
            for picture in request.pictures:
                span = picture.span
                first, last = max(start, span.start), min(stop, span.stop)
                if first < last:
                    features = yield from self._encode(request, picture)
                    embeds[0, first - start : last - start] = features[first - span.start : last - span.start]
                    picture.features = features if last < span.stop else None
            request.check_abort()
            logits = self._compute(request, entry, embeds, request.keys[start:stop])
            if entry.length < len(request.ids):
                yield
        return logits

    def _encode(self, request: GenerationRequest, picture: PromptPicture) -> Generator[None, Any, Tensor]:
        """Return the features of a picture, [positions, width], from the cache or from the vision tower."""
        known = self._features.get(picture.key) if picture.features is None else picture.features
        if known is not None:
            return known
        if picture.pixels is None:
            picture.pixels = self.preprocessor.decode(picture.picture, picture.limit)
        encoded: list[Tensor] = []
        for batch in torch.split(picture.pixels.to(self._model.dtype), self._tiles_per_step):
            request.check_abort()
            encoded.append(self._model.extract_feature(batch).flatten(0, 1))
            request.encoded_tiles += len(batch)
            yield
        features = torch.cat(encoded)
        if features.nbytes <= self._features.maxsize:
            self._features[picture.key] = features
        picture.pixels = None
        return features

    def _decode(
        self, request: GenerationRequest, entry: CacheEntry, logits: Tensor
    ) -> Generator[_Next, Tensor | None, str]:
        """Sample tokens and pass their text to the listener; return how the answer ended."""
        room = min(request.sampling.max_new_tokens, self.preprocessor.window - len(request.ids))
        stream = TextStream(self._text_of)
        generator = random_generator(request.sampling.seed)
        finish = "stop"
        while (token := sample_token(logits, request.sampling, generator)) not in self._stop_ids:
            request.completion_tokens += 1
            if text := stream.push(token):
                request.listener(text)
            if request.completion_tokens == room:
                finish = "length"
                break
            computed = yield entry, token
            request.check_abort()
            assert computed is not None
            logits = computed
        if text := stream.flush():
            request.listener(text)
        return finish

    def _compute(self, request: GenerationRequest, entry: CacheEntry, embeds: Tensor, keys: Sequence[int]) -> Tensor:
        """Run the language model over new positions [1, N, width]; return the last position's logits [vocabulary]."""
        self._model.expect(request.length)
        output = self._model.language_model(
            inputs_embeds=embeds, past_key_values=entry.kv, use_cache=True, logits_to_keep=1
        )
        entry.keys.extend(keys)
        logits: Tensor = output.logits[0, -1].float()
        return logits

    def _decode_tokens(self, turn: Sequence[_Running]) -> Sequence[Tensor | Exception]:
        """Run the language model over the newest token of each generation.

        Returns:
            For each generation, the logits [vocabulary] or the exception.
        """
        entries, tokens = zip(*(each.next for each in turn if each.next), strict=True)
        cache = JointCache([each.kv for each in entries])
        self._model.expect(max(each.request.length for each in turn))
        try:
            output = self._model.language_model(
                input_ids=torch.tensor(tokens)[:, None],
                attention_mask=cache.mask,
                position_ids=cache.lengths[:, None],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        except Exception as error:  # noqa: BLE001 - the generations raise it
            return [error] * len(turn)
        for entry, token in zip(entries, tokens, strict=True):
            entry.keys.append(token)
        return list(output.logits[:, -1].float())
