"""Our parts inside lmdeploy's server: each replaces an internal of lmdeploy 0.18.0 by a quicker one.

- `VLAsyncEngine` is replaced by our subclass (lmdeploy_server.py has it made);
- `MultimodalProcessor._get_multimodal_prompt_input` takes data URLs, and nothing else, through `TileCache` (many
  threads, each picture once, fingerprint given) instead of `ImageEncoder.preprocess` (one thread, every picture on
  every turn);
- `Tokenizer.detokenize_incrementally` decodes a short window of new tokens instead of first naming every token of
  the prompt (58 ms of the event loop a request with InternLM2's tokenizer and a 13-tile picture);
- `TurboMind.create_instance` gives instances that let prompts in whole (prefill_gate.py) and hand on tokens in
  groups, at most one in `GROUP_SECONDS`, so that 64 streams do not spend the event loop on one event a token;
- the usage of chat completions in `chat_completions/serving.py` tells the tiles encoded (lmdeploy_usage.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Final

from PIL import ImageFile

from inference.engines.detokenizer import TextStream
from inference.engines.lmdeploy.image_cache import TileCache, Tiling
from inference.engines.lmdeploy.prefill_limiter import PrefillGate
from inference.engines.lmdeploy.usage import extend_usage, note_encoded, placed
from inference.internvl2.tokenizer import text_decoder
from inference.messages import INVALID_PICTURE, PictureError

GROUP_SECONDS: Final = 0.03
"""Text that arrives so soon after the last is handed on together with what follows."""

_PICTURE_KEYS: Final = {"url", "max_dynamic_patch"}


def quicken(*, prefill_tokens: int, tiles: int | None, threads: int, cache_bytes: int) -> dict[type, type]:
    """Put our parts into lmdeploy's server; return its engine → ours, to be made in its place.

    Called once, before `api_server.serve`.

    `prefill_tokens` is what TurboMind computes in one iteration, `tiles` the most tiles a picture (None: as the
    checkpoint says), `threads` cut them, `cache_bytes` of them are kept.
    """
    from lmdeploy.serve.core import VLAsyncEngine
    from lmdeploy.serve.processors import MultimodalProcessor
    from lmdeploy.tokenizer import DetokenizeState
    from lmdeploy.turbomind import TurboMind
    from lmdeploy.turbomind.turbomind import TurboMindInstance

    class Processor(MultimodalProcessor):  # type: ignore[misc]
        """lmdeploy's, with pictures from the cache."""

        cache: TileCache

        async def _get_multimodal_prompt_input(
            self, messages: list[dict[str, Any]], do_preprocess: bool, adapter_name: str | None = None, **more: Any
        ) -> Any:
            pictures = data_pictures(messages) if do_preprocess else None
            if pictures is None:
                # lmdeploy would open file:// URLs and paths, and fetch what others name.
                raise ValueError("Only text, and pictures of the user as data: URLs, are read here.")
            try:
                prepared = await asyncio.gather(*(self.cache.of(url, most) for url, most in pictures))
            except PictureError as error:
                raise ValueError(f"{INVALID_PICTURE}: {error}") from error
            model = self.vl_encoder.model
            prompt, place = model.proc_messages(
                messages, self.chat_template, tools=more.get("tools"), chat_template_kwargs=more["chat_template_kwargs"]
            )
            items = [each.item(self.cache.tiling) for each in prepared]
            return model.to_pytorch_aux([{"role": "preprocess", "content": items}], prompt, place, self.tokenizer)

    # lmdeploy lets pictures pass that were cut off; here they are refused, as by every other engine.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    gate = PrefillGate(prefill_tokens)

    class Instance(TurboMindInstance):  # type: ignore[misc]
        """TurboMind's, with prompts let in whole and tokens handed on in groups."""

        async def async_stream_infer(
            self, session_id: int, *, input_ids: list[int], multimodal: Any = None, **inputs: Any
        ) -> AsyncIterator[Any]:
            config = inputs["gen_config"]
            apart = config.logprobs or config.output_logits or config.output_last_hidden_state
            pictures = [(item.get("fingerprint", b""), item["image_tokens"]) for item in multimodal or ()]
            shown = placed(multimodal)
            stock = super().async_stream_infer(session_id, input_ids=input_ids, multimodal=multimodal, **inputs)
            async with gate.room(gate.cost(len(input_ids), pictures)) as computed, aclosing(stock) as outputs:
                async for output in outputs if apart else grouped(outputs):
                    computed()
                    note_encoded(shown, output)
                    yield output

    class Engine(VLAsyncEngine):  # type: ignore[misc]
        """lmdeploy's, with our parts in it."""

        def __init__(self, model_path: str, **inputs: Any) -> None:
            super().__init__(model_path, **inputs)
            stock: Any = self.prompt_processor  # type: ignore[has-type]
            decode = text_decoder(self.tokenizer.model.model)
            stock_detokenise = self.tokenizer.detokenize_incrementally

            def detokenise(ids: Sequence[int], state: Any, skip_special_tokens: bool = True, **more: Any) -> Any:
                if not skip_special_tokens:
                    return stock_detokenise(ids, state, skip_special_tokens, **more)
                stream = state.prev_tokens or TextStream(decode)
                return stream.push(*ids[state.ids_offset :]), DetokenizeState(len(ids), stream)

            self.tokenizer.detokenize_incrementally = detokenise
            processor = self.prompt_processor = Processor(
                stock.tokenizer, stock.chat_template, stock.vl_encoder, stock.backend, stock.allowed_media_domains
            )
            processor.cache = TileCache(
                tiling_of(self.vl_encoder.model, tiles),
                limit=cache_bytes,
                threads=threads,
            )
            publish(processor.cache, gate)

    extend_usage()
    TurboMind.create_instance = lambda self, cuda_stream_id=0: Instance(self, cuda_stream_id)
    return {VLAsyncEngine: Engine}


def data_pictures(messages: Sequence[dict[str, Any]]) -> list[tuple[str, int | None]] | None:
    """URL and tile limit of every picture, in order; None where anything else is shown."""
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
    """lmdeploy's EngineOutputs, those within `GROUP_SECONDS` of one another joined; the first and the last at once."""
    from lmdeploy.messages import ResponseType

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
    """What lmdeploy's InternVLVisionModel does to a picture; `tiles` replaces the configuration's number."""
    config = model.config
    return Tiling(
        image_size=model.vision_config.image_size,
        least=config.min_dynamic_patch,
        most=tiles or config.max_dynamic_patch,
        thumbnail=config.use_thumbnail,
        tokens_per_tile=model.image_tokens_per_patch,
        picture_token=model.image_token_id,
        dtype=model.mm_feature_dtype,
    )


def publish(cache: TileCache, gate: PrefillGate) -> None:
    """Show the tile cache and the gate on lmdeploy's /metrics."""
    from prometheus_client import REGISTRY
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    class Collector:
        def collect(self) -> Any:
            yield CounterMetricFamily("thumbtune_tile_cache_hits", "Pictures whose tiles were there", value=cache.hits)
            yield CounterMetricFamily("thumbtune_tile_cache_misses", "Pictures cut into tiles", value=cache.misses)
            yield GaugeMetricFamily("thumbtune_tile_cache_bytes", "Tiles kept", value=cache.size)
            yield GaugeMetricFamily(
                "thumbtune_prefill_waiting", "Prompts held back for a free iteration", value=gate.waiting
            )

    REGISTRY.register(Collector())
