"""Worker: run lmdeploy's OpenAI server with InternVL2's chat template and faster picture processing.

    python -m inference.engines.lmdeploy.server --model DIR --name ID --port PORT [--settings JSON]

The server, its API and its engine, TurboMind, are lmdeploy's; patches.py lists the internals that are
replaced. The replacements need the lmdeploy release `SUPPORTED_VERSION`, and any other release is
refused. Only the routes that the bot's client uses are served, and only to clients with the key of this
launch.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from inference.chat_format.template import lmdeploy_template
from inference.engines.access_key import guarded, own_key
from inference.engines.lmdeploy import SUPPORTED_VERSION
from inference.engines.lmdeploy.kv_budget import (
    BLOCK_TOKENS,
    ModelMemory,
    NoRoom,
    default_blocks,
    prefill_tokens,
    share_of_free,
)
from inference.engines.lmdeploy.supported_models import CURE, unsupported
from inference.internvl2.families import read_family
from inference.process.parent_watch import watch_parent
from inference.process.yapf_import import import_yapf
from inference.settings import LmdeploySettings

if TYPE_CHECKING:
    from lmdeploy import TurbomindEngineConfig

ROUTES: Final = frozenset(
    {("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/health"), ("GET", "/metrics")}
)
"""The routes that are served. Other routes of lmdeploy can run code from a request (`/update_weights` unpickles it)."""

_TEMPORARY_NAME: Final = "thumbtune"
"""The model's name while lmdeploy creates the engine, because lmdeploy refuses "base", the name of the base model."""

_log = logging.getLogger("thumbtune.lmdeploy")


def engine_config(options: argparse.Namespace) -> tuple[TurbomindEngineConfig, int]:
    """Return TurboMind's configuration and the number of KV blocks; derive unset values from the GPU's memory.

    Raises:
        NoRoom: The GPU is too small for the settings.
    """
    import torch
    from lmdeploy import TurbomindEngineConfig

    settings: LmdeploySettings = options.settings
    free, total = torch.cuda.mem_get_info()
    memory = ModelMemory.of(options.model, settings.kv_bits, settings.tensor_parallel)
    prefill = settings.prefill_tokens or prefill_tokens(total)
    blocks = settings.blocks or default_blocks(memory, total, engines=options.engines, prefill=prefill)
    _log.info("%d KV blocks of %d tokens, %d prefill tokens", blocks, BLOCK_TOKENS, prefill)
    config = TurbomindEngineConfig(
        dtype=settings.dtype,
        tp=settings.tensor_parallel,
        session_len=min(settings.session_length, blocks * BLOCK_TOKENS),
        max_batch_size=settings.batch,
        cache_max_entry_count=share_of_free(memory, blocks, free),
        quant_policy=settings.kv_bits % 16,
        model_format=settings.weights if settings.weights != "auto" else None,
        max_prefill_token_num=prefill,
        enable_prefix_caching=True,
        enable_metrics=True,
    )
    return config, blocks


def patch_engines(name: str, replacements: Mapping[type, type]) -> None:
    """Make `api_server.serve` use `replacements` for lmdeploy's engine classes and `name` as the model's name.

    The function replaces `api_server.get_task`, which returns the engine class for a model. The model's name
    is set after the engine has been created, because lmdeploy refuses "base", the name of the base model.
    """
    from lmdeploy.serve.openai import api_server

    stock_task = api_server.get_task

    def task(*inputs: Any, **more: Any) -> Any:
        kind, stock = stock_task(*inputs, **more)

        def named(*parts: Any, **settings: Any) -> Any:
            engine = replacements.get(stock, stock)(*parts, **settings)
            engine.model_name = name
            return engine

        return kind, named

    api_server.get_task = task


def patch_app(name: str, key: str, *, window: int, cache: int) -> None:
    """Make lmdeploy's application serve only `ROUTES` to clients with `key`, and report the model's sizes.

    In /v1/models, the session length in tokens is given as `max_model_len`, as in vLLM
    (vllm/entrypoints/openai/protocol.py, ModelCard), and the size of the KV cache in tokens as
    `kv_cache_tokens`; lmdeploy's own list has no sizes. The function replaces `uvicorn.run`, which lmdeploy
    calls with its application.
    """
    import uvicorn
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    stock_run = uvicorn.run

    def models(_: object) -> JSONResponse:
        model = {"id": name, "object": "model", "created": 0, "owned_by": "lmdeploy"}
        sizes = {"max_model_len": window, "kv_cache_tokens": cache}
        return JSONResponse({"object": "list", "data": [{**model, **sizes}]})

    def run(app: Any, **more: Any) -> None:
        # The first matching route handles the request.
        app.router.routes.insert(0, Route("/v1/models", models))
        stock_run(guarded(app, key, ROUTES), **more)

    uvicorn.run = run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the worker from the command line, serving until SIGTERM."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    key = own_key()
    watch_parent()
    # A pooled connection that the server closes just before the next question would look like a crash.
    os.environ.setdefault("UVICORN_TIMEOUT_KEEP_ALIVE", "3600")
    os.environ.setdefault("UVICORN_LOG_LEVEL", "warning")
    if reason := unsupported(options.model):
        raise SystemExit(f"{reason}: {CURE}")
    # Importing lmdeploy takes seconds, so these checks come first.
    if (installed := version("lmdeploy")) != SUPPORTED_VERSION:
        raise SystemExit(
            f"lmdeploy {installed} is installed, but this engine requires {SUPPORTED_VERSION}: install "
            f"lmdeploy=={SUPPORTED_VERSION}, or run the installed version's own server and name it in "
            "inference.endpoint."
        )
    import_yapf()
    import torch

    # Many threads decode pictures at once, and each is fastest if torch starts no further threads.
    torch.set_num_threads(1)
    try:
        config, blocks = engine_config(options)
    except NoRoom as error:
        raise SystemExit(str(error)) from None
    from inference.engines.lmdeploy.patches import patch_lmdeploy

    replacements = patch_lmdeploy(
        prefill_tokens=config.max_prefill_token_num,
        cache_tokens=blocks * BLOCK_TOKENS,
        tiles=options.tiles,
        threads=options.settings.tile_threads or min(os.cpu_count() or 1, 12),
        cache_bytes=options.settings.tile_cache_megabytes * 2**20,
    )
    patch_engines(options.name, replacements)
    patch_app(options.name, key, window=config.session_len, cache=blocks * BLOCK_TOKENS)
    run(options, config, _TEMPORARY_NAME)


def register_model_code() -> None:
    """Register thumbtune's InternVL2 configuration and tokenizer with transformers' auto classes.

    As a result, lmdeploy needs no `trust_remote_code`, and no Python file of a checkpoint is imported.
    """
    from transformers import AutoConfig, AutoTokenizer

    from inference.internvl2.configuration_internvl2 import InternVLChatConfig
    from inference.internvl2.tokenization_internlm2 import InternLM2Tokenizer

    AutoConfig.register(InternVLChatConfig.model_type, InternVLChatConfig)
    AutoTokenizer.register(InternVLChatConfig, slow_tokenizer_class=InternLM2Tokenizer)


def run(options: argparse.Namespace, config: TurbomindEngineConfig, name: str) -> None:
    """Run lmdeploy's server, with the chat template of the model's family, until the server ends."""
    from lmdeploy.model import ChatTemplateConfig
    from lmdeploy.serve.openai.api_server import serve

    register_model_code()
    serve(
        str(options.model),
        model_name=name,
        backend="turbomind",
        backend_config=config,
        chat_template_config=ChatTemplateConfig(**lmdeploy_template(read_family(options.model))),
        server_name="127.0.0.1",
        server_port=options.port,
        allow_origins=[],
        disable_fastapi_docs=True,
        # Sampling parameters come only from the request, not from the checkpoint's generation configuration.
        generation_config="lmdeploy",
        log_level="WARNING",
        trust_remote_code=False,
    )


def parser() -> argparse.ArgumentParser:
    """Return the parser for the worker's command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m inference.engines.lmdeploy.server", description=(__doc__ or "").split("\n")[0]
    )
    arguments.add_argument("--model", type=Path, required=True, help="checkpoint directory in the official layout")
    arguments.add_argument("--name", required=True, help="the model's name in requests and responses")
    arguments.add_argument("--port", type=int, default=23333)
    arguments.add_argument(
        "--engines", type=int, default=1, help="number of engines that must fit on the GPU (default: 1)"
    )
    arguments.add_argument("--tiles", type=int, help="maximum number of tiles per picture (default: the checkpoint's)")
    arguments.add_argument(
        "--settings",
        type=LmdeploySettings.model_validate_json,
        default=LmdeploySettings(),
        help="the keys of [inference.lmdeploy] as JSON",
    )
    return arguments


if __name__ == "__main__":
    main()
