"""Worker: lmdeploy's own OpenAI server with TurboMind, its prompt put right and its picture path made quick.

    python -m inference.lmdeploy_server --model DIR --name ID --port PORT

The server, its API and its engine are lmdeploy's. Where the installed lmdeploy is the one we know (`KNOWN`), five of
its internals are replaced; with any other version a warning says so and the stock path runs, only slower:

- `api_server.get_task` gives our subclass of `VLAsyncEngine`;
- `MultimodalProcessor._get_multimodal_prompt_input` takes data URLs through `TileCache` (many threads, each picture
  once, fingerprint given) instead of `ImageEncoder.preprocess` (one thread, every picture on every turn);
- `Tokenizer.detokenize_incrementally` decodes a short window of new tokens instead of first naming every token of
  the prompt (58 ms of the event loop a request with InternLM2's tokenizer and a 13-tile picture);
- `TurboMind.create_instance` gives instances that let prompts in whole (prefill_gate.py) and hand on tokens in
  groups, at most one in `GROUP_SECONDS`, so that 64 streams do not spend the event loop on one event a token;
- the usage of chat completions in `chat_completions/serving.py` says how many tiles were encoded (lmdeploy_usage.py).

Runs on lmdeploy's side of the HTTP interface; the client is client.py, the command line is built by engines.py.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from inference.detokenise import TextStream
from inference.internvl2.tokenizer import text_decoder
from inference.lifeline import watch_parent
from inference.lmdeploy_memory import BLOCK_TOKENS, Needs, NoRoom, default_blocks, prefill_tokens, share_of_free
from inference.lmdeploy_pictures import TileCache, Tiling
from inference.lmdeploy_usage import extend_usage, note_encoded, placed
from inference.messages import PictureError
from inference.prefill_gate import PrefillGate
from inference.prompt import lmdeploy_template

if TYPE_CHECKING:
    from lmdeploy import TurbomindEngineConfig

KNOWN: Final = "0.18.0"
"""The lmdeploy whose internals we replace."""

GROUP_SECONDS: Final = 0.03
"""Text that arrives so soon after the last is handed on together with what follows."""

_PICTURE_KEYS: Final = {"url", "max_dynamic_patch"}
_log = logging.getLogger("thumbtune.lmdeploy")


def quicken(options: argparse.Namespace) -> None:
    """Put our parts into lmdeploy's server. Called once, before `api_server.serve`."""
    from lmdeploy.serve.core import VLAsyncEngine
    from lmdeploy.serve.openai import api_server
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
                return await super()._get_multimodal_prompt_input(messages, do_preprocess, adapter_name, **more)
            try:
                prepared = await asyncio.gather(*(self.cache.of(url, most) for url, most in pictures))
            except PictureError as error:
                raise ValueError(str(error)) from error
            model = self.vl_encoder.model
            prompt, place = model.proc_messages(
                messages, self.chat_template, tools=more.get("tools"), chat_template_kwargs=more["chat_template_kwargs"]
            )
            items = [each.item(self.cache.tiling) for each in prepared]
            return model.to_pytorch_aux([{"role": "preprocess", "content": items}], prompt, place, self.tokenizer)

    gate = PrefillGate(options.prefill_tokens)

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
            stock = self.prompt_processor
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
                tiling_of(self.vl_encoder.model, options.tiles),
                limit=options.tile_cache_megabytes * 2**20,
                threads=options.tile_threads,
            )
            publish(processor.cache, gate)

    stock_task = api_server.get_task

    def task(*inputs: Any, **more: Any) -> Any:
        name, engine = stock_task(*inputs, **more)
        return name, Engine if engine is VLAsyncEngine else engine

    api_server.get_task = task
    extend_usage()
    TurboMind.create_instance = lambda self, cuda_stream_id=0: Instance(self, cuda_stream_id)


def data_pictures(messages: Sequence[dict[str, Any]]) -> list[tuple[str, int | None]] | None:
    """URL and tile limit of every picture, in order; None where something is not ours to take the short way."""
    found: list[tuple[str, int | None]] = []
    for message in messages:
        content = message.get("content")
        if not isinstance(content, list):
            continue
        for item in content:
            if item.get("type") == "text" and isinstance(item.get("text"), str):
                continue
            value = item.get("image_url") if item.get("type") == "image_url" else None
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


def engine_config(options: argparse.Namespace) -> TurbomindEngineConfig:
    """What TurboMind is started with. Fills in `blocks` and `prefill_tokens` by the card. Raises NoRoom."""
    import torch
    from lmdeploy import TurbomindEngineConfig

    free, total = torch.cuda.mem_get_info()
    needs = Needs.of(options.model, options.kv_bits)
    options.prefill_tokens = options.prefill_tokens or prefill_tokens(total)
    options.blocks = options.blocks or default_blocks(
        needs, total, engines=options.engines, prefill=options.prefill_tokens
    )
    _log.info("%d KV blocks of %d tokens, %d tokens at once", options.blocks, BLOCK_TOKENS, options.prefill_tokens)
    return TurbomindEngineConfig(
        tp=options.tensor_parallel,
        session_len=min(options.session_length, options.blocks * BLOCK_TOKENS),
        max_batch_size=options.batch,
        cache_max_entry_count=share_of_free(needs, options.blocks, free),
        quant_policy=options.kv_bits % 16,
        model_format=options.weights if options.weights != "auto" else None,
        max_prefill_token_num=options.prefill_tokens,
        enable_prefix_caching=True,
        enable_metrics=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The worker's command line; serves until SIGTERM."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    watch_parent()
    # A pooled connection that the server closes in the very moment of the next question looks like a crash.
    os.environ.setdefault("UVICORN_TIMEOUT_KEEP_ALIVE", "3600")
    os.environ.setdefault("UVICORN_LOG_LEVEL", "warning")
    import lmdeploy
    import torch
    from lmdeploy.model import ChatTemplateConfig
    from lmdeploy.serve.openai.api_server import serve

    # Tiles are made by many threads at once; each of them alone is quickest.
    torch.set_num_threads(1)
    try:
        config = engine_config(options)
    except NoRoom as error:
        raise SystemExit(str(error)) from None
    if lmdeploy.__version__ == KNOWN:
        quicken(options)
    else:
        _log.warning("lmdeploy %s is not %s: its own, slower picture path runs", lmdeploy.__version__, KNOWN)
    serve(
        str(options.model),
        model_name=options.name,
        backend="turbomind",
        backend_config=config,
        chat_template_config=ChatTemplateConfig(**lmdeploy_template()),
        server_name=options.host,
        server_port=options.port,
        log_level="WARNING",
        trust_remote_code=True,
    )


def parser() -> argparse.ArgumentParser:
    """What the worker can be told."""
    arguments = argparse.ArgumentParser(
        prog="python -m inference.lmdeploy_server", description=(__doc__ or "").split("\n")[0]
    )
    arguments.add_argument("--model", type=Path, required=True, help="checkpoint directory in the official layout")
    arguments.add_argument("--name", required=True, help="what the model is called in requests and answers")
    arguments.add_argument("--host", default="127.0.0.1")
    arguments.add_argument("--port", type=int, default=23333)
    arguments.add_argument("--blocks", type=int, help="KV blocks of 64 tokens (default: by the card's memory)")
    arguments.add_argument("--engines", type=int, default=1, help="engines the card must have room for (default: 1)")
    arguments.add_argument("--session-length", type=int, default=16384, help="longest conversation in tokens")
    arguments.add_argument("--batch", type=int, default=64, help="answers computed at a time")
    arguments.add_argument("--kv-bits", type=int, choices=(4, 8, 16), default=16, help="bits of a cached key or value")
    arguments.add_argument(
        "--weights", choices=("auto", "hf", "awq", "gptq"), default="auto", help="form of the weights"
    )
    arguments.add_argument(
        "--prefill-tokens", type=int, help="tokens of prompts computed at once (default: by the card)"
    )
    arguments.add_argument("--tensor-parallel", type=int, default=1, help="GPUs that share one model")
    arguments.add_argument(
        "--tiles", type=int, help="at most so many tiles a picture (default: as the checkpoint says)"
    )
    arguments.add_argument(
        "--tile-threads", type=int, default=min(os.cpu_count() or 1, 12), help="threads that cut tiles"
    )
    arguments.add_argument("--tile-cache-megabytes", type=int, default=2048, help="tiles of recent pictures kept")
    return arguments


if __name__ == "__main__":
    main()
