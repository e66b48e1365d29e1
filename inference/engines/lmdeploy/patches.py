"""Faster replacements for internals of lmdeploy 0.18.0.

- `serve.core.VLAsyncEngine`: a subclass with the replacements below (server.py makes lmdeploy create
  it).
- `serve.processors.MultimodalProcessor._get_multimodal_prompt_input`: accepts pictures only as data:
  URLs, and has `TileCache` prepare and fingerprint each picture once, in many threads and on the GPU. The
  original prepares every picture of the conversation on every turn in one thread
  (`ImageEncoder.preprocess`), and opens file: URLs and paths.
- `Tokenizer.detokenize_incrementally`: decodes a short window of new tokens. The original first converts
  every token of the prompt (which blocks the event loop for 58 ms per request with InternLM2's tokenizer
  and a picture of 13 tiles).
- `TurboMind.create_instance`: returns instances that admit prompts through `PrefillLimiter` and pass on
  tokens in groups, at most one group per `GROUP_SECONDS`, so that 64 streams do not cost the event loop
  one event per token.
- `serve.openai.chat_completions.serving`: `UsageInfo` and the two response types that contain it gain
  the usage field `encoded_tiles`: the number of tiles that went through the vision tower. TurboMind
  encodes the whole of a picture if any of its positions lies beyond the cached part of the prompt; the
  length of the cached part is in TurboMind's output. The engine's output and the response are handled in
  the same asyncio task, so the number of tiles is passed in a context variable.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, ClassVar, Final

import torch
from lmdeploy.messages import ResponseType
from lmdeploy.serve.core import VLAsyncEngine
from lmdeploy.serve.openai.chat_completions import serving
from lmdeploy.serve.processors import MultimodalProcessor
from lmdeploy.tokenizer import DetokenizeState
from lmdeploy.turbomind import TurboMind
from lmdeploy.turbomind.turbomind import TurboMindInstance
from PIL import ImageFile
from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from inference.engines.detokenizer import TextStream
from inference.engines.lmdeploy.prefill_limiter import PrefillLimiter
from inference.engines.lmdeploy.tile_cache import TileCache
from inference.internvl2.tile_grid import Tiling
from inference.internvl2.tokenizer import text_decoder
from inference.messages import INVALID_PICTURE, PictureError

GROUP_SECONDS: Final = 0.03
"""The minimum time between groups. Tokens that arrive sooner are held for the next group."""

_PICTURE_KEYS: Final = {"url", "max_dynamic_patch"}

_encoded: Final[ContextVar[int]] = ContextVar("encoded_tiles", default=0)


def patch_lmdeploy(
    *, prefill_tokens: int, cache_tokens: int, tiles: int | None, threads: int, cache_bytes: int
) -> dict[type, type]:
    """Install the replacements for lmdeploy's internals. Call this once, before `api_server.serve`.

    Args:
        prefill_tokens: The number of prompt tokens that TurboMind processes per iteration.
        cache_tokens: The size of the KV cache in tokens.
        tiles: The maximum number of tiles per picture, or None for the checkpoint's own limit.
        threads: The number of threads that decode pictures.
        cache_bytes: The size of the tile cache in bytes.

    Returns:
        A mapping from lmdeploy's engine class to the replacement that the server should create.
    """
    # lmdeploy accepts truncated pictures; here they are refused, as in every other engine.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    Instance.limiter = PrefillLimiter(prefill_tokens, cache_tokens)
    TileCachingEngine.tiles, TileCachingEngine.threads, TileCachingEngine.cache_bytes = tiles, threads, cache_bytes
    serving.UsageInfo = UsageWithTiles
    serving.ChatCompletionResponse = Response
    serving.ChatCompletionStreamResponse = StreamResponse
    TurboMind.create_instance = lambda self, cuda_stream_id=0: Instance(self, cuda_stream_id)
    return {VLAsyncEngine: TileCachingEngine}


class Processor(MultimodalProcessor):  # type: ignore[misc]
    """A processor that takes pictures from the tile cache."""

    cache: TileCache

    async def _get_multimodal_prompt_input(
        self, messages: list[dict[str, Any]], do_preprocess: bool, adapter_name: str | None = None, **more: Any
    ) -> Any:
        pictures = data_pictures(messages) if do_preprocess else None
        if pictures is None:
            # lmdeploy would open file: URLs and paths, and download from http: URLs.
            raise ValueError("Only text, and the user's pictures as data: URLs, are accepted.")
        try:
            prepared = await asyncio.gather(*(self.cache.get(url, most) for url, most in pictures))
        except PictureError as error:
            raise ValueError(f"{INVALID_PICTURE}: {error}") from error
        model = self.vl_encoder.model
        prompt, token = model.proc_messages(
            messages, self.chat_template, tools=more.get("tools"), chat_template_kwargs=more["chat_template_kwargs"]
        )
        items = [each.item(self.cache.tiling.tokens, model.image_token_id) for each in prepared]
        return model.to_pytorch_aux([{"role": "preprocess", "content": items}], prompt, token, self.tokenizer)


class Instance(TurboMindInstance):  # type: ignore[misc]
    """A TurboMind instance that admits prompts through the limiter and passes on tokens in groups."""

    limiter: ClassVar[PrefillLimiter]

    async def async_stream_infer(
        self, session_id: int, *, input_ids: list[int], multimodal: Any = None, **inputs: Any
    ) -> AsyncIterator[Any]:
        """Wait for the limiter to admit the prompt, then generate as TurboMind does, but group the outputs."""
        config = inputs["gen_config"]
        ungrouped = config.logprobs or config.output_logits or config.output_last_hidden_state
        pictures = {item.get("fingerprint", b""): item["image_tokens"] for item in multimodal or ()}
        ends = picture_ends(multimodal)
        stock = super().async_stream_infer(session_id, input_ids=input_ids, multimodal=multimodal, **inputs)
        async with self.limiter.room(len(input_ids), pictures) as processed, aclosing(stock) as outputs:
            async for output in outputs if ungrouped else grouped(outputs):
                processed()
                note_encoded(ends, output)
                yield output


class TileCachingEngine(VLAsyncEngine):  # type: ignore[misc]
    """An lmdeploy engine that uses the tile cache and the incremental detokenizer."""

    tiles: ClassVar[int | None]
    threads: ClassVar[int]
    cache_bytes: ClassVar[int]

    def __init__(self, model_path: str, **inputs: Any) -> None:
        super().__init__(model_path, **inputs)
        stock: Any = self.prompt_processor  # type: ignore[has-type]
        processor = self.prompt_processor = Processor(
            stock.tokenizer, stock.chat_template, stock.vl_encoder, stock.backend, stock.allowed_media_domains
        )
        model = self.vl_encoder.model
        processor.cache = TileCache(
            tiling_of(model, self.tiles),
            dtype=model.mm_feature_dtype,
            # Only tests run without a GPU.
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            limit=self.cache_bytes,
            threads=self.threads,
        )
        publish_metrics(processor.cache, Instance.limiter)
        decode = text_decoder(self.tokenizer.model.model)
        stock_detokenize = self.tokenizer.detokenize_incrementally

        def detokenize(ids: Sequence[int], state: Any, skip_special_tokens: bool = True, **more: Any) -> Any:
            if not skip_special_tokens:
                return stock_detokenize(ids, state, skip_special_tokens, **more)
            stream = state.prev_tokens or TextStream(decode)
            return stream.push(*ids[state.ids_offset :]), DetokenizeState(len(ids), stream)

        self.tokenizer.detokenize_incrementally = detokenize


PictureEnd = tuple[int, int]
"""The position after a picture's last token, and the number of its tiles."""


def picture_ends(items: Iterable[Mapping[str, Any]] | None) -> list[PictureEnd]:
    """Return the end position and the number of tiles of each picture in TurboMind's `multimodal` argument."""
    return [(item["offset"] + item["image_tokens"], item["pixel_values"].shape[0]) for item in items or ()]


def note_encoded(pictures: Sequence[PictureEnd], output: Any) -> None:
    """Record the number of tiles encoded for a TurboMind output. Call this in the request's own asyncio task."""
    cached = output.req_metrics.cached_tokens if output.req_metrics is not None else 0
    _encoded.set(sum(tiles for end, tiles in pictures if end > cached))


class UsageWithTiles(serving.UsageInfo):  # type: ignore[misc]
    """The usage of a chat completion, with the number of tiles encoded in the current asyncio task."""

    encoded_tiles: int = 0

    @classmethod
    def build(cls, *inputs: Any, **more: Any) -> Any:
        """Build the usage as lmdeploy does, and add the number of encoded tiles."""
        usage = super().build(*inputs, **more)
        usage.encoded_tiles = _encoded.get()
        return usage


# A response serializes only the fields of the declared type.
class Response(serving.ChatCompletionResponse):  # type: ignore[misc]
    """A complete answer, with `encoded_tiles` in its usage."""

    usage: UsageWithTiles


class StreamResponse(serving.ChatCompletionStreamResponse):  # type: ignore[misc]
    """A chunk of a streamed answer, with `encoded_tiles` in its usage."""

    usage: UsageWithTiles | None = None


def data_pictures(messages: Sequence[dict[str, Any]]) -> list[tuple[str, int | None]] | None:
    """Return each picture's URL and tile limit in order, or None if there is unsupported content.

    Only text and the user's pictures as data: URLs are supported.
    """
    found: list[tuple[str, int | None]] = []
    for message in messages:
        content = message.get("content")
        if not isinstance(content, list):
            continue
        for item in content:
            if item.get("type") == "text" and isinstance(item.get("text"), str):
                continue
            value: Any = item.get("image_url") if item.get("type") == "image_url" else None
            if isinstance(value, str):
                value = {"url": value}
            ours = (
                message.get("role") == "user"
                and isinstance(value, dict)
                and value.keys() <= _PICTURE_KEYS
                and str(value.get("url")).startswith("data:")
            )
            if not ours:
                return None
            most = value.get("max_dynamic_patch")
            found.append((value["url"], most if isinstance(most, int) and most > 0 else None))
    return found


async def grouped(outputs: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Merge lmdeploy's EngineOutputs so that at most one is yielded per `GROUP_SECONDS`.

    The first and the last output are passed on immediately.
    """
    held: Any = None
    due = 0.0
    async for output in outputs:
        if held is not None:
            output.token_ids = held.token_ids + output.token_ids
            held = None
        if output.status is ResponseType.SUCCESS and output.token_ids and time.monotonic() < due:
            held = output
            continue
        due = time.monotonic() + GROUP_SECONDS
        yield output
    if held is not None:
        yield held


def tiling_of(model: Any, tiles: int | None) -> Tiling:
    """Return the tiling of lmdeploy's InternVLVisionModel, limited to `tiles` tiles per picture if given."""
    config = model.config
    return Tiling(
        side=model.vision_config.image_size,
        tokens=model.image_tokens_per_patch,
        min_tiles=config.min_dynamic_patch,
        max_tiles=tiles or config.max_dynamic_patch,
        thumbnail=config.use_thumbnail,
    )


def publish_metrics(cache: TileCache, limiter: PrefillLimiter) -> None:
    """Add the metrics of the tile cache and the prefill limiter to lmdeploy's /metrics page."""

    class Collector:
        def collect(self) -> Any:
            yield CounterMetricFamily("thumbtune_tile_cache_hits", "Pictures whose tiles were cached", value=cache.hits)
            yield CounterMetricFamily("thumbtune_tile_cache_misses", "Pictures cut into tiles", value=cache.misses)
            yield GaugeMetricFamily("thumbtune_tile_cache_bytes", "Size of the cached tiles", value=cache.size)
            yield GaugeMetricFamily(
                "thumbtune_prefill_waiting", "Prompts with new pictures waiting to be prefilled", value=limiter.waiting
            )

    REGISTRY.register(Collector())
