"""The lmdeploy worker without a GPU: lmdeploy's real server with our own model in place of TurboMind.

    python -m tests.support.lmdeploy_on_cpu RECORD --model DIR --name ID --port PORT --settings JSON

TurboMind's input for each request (token IDs, picture positions, digests and patches of pixels, fingerprints)
is written to RECORD as one JSON line. Decoding is greedy. Prefixes are not cached, but are counted as if
they were.
"""

from __future__ import annotations

import ast
import asyncio
import base64
import json
import sys
import time
from collections.abc import AsyncIterator
from hashlib import sha256
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Self

import lmdeploy
import torch
from lmdeploy.messages import EngineOutput, RequestMetrics, ResponseType, ScheduleMetrics
from torch.nn.functional import adaptive_avg_pool2d

from inference.engines.lmdeploy import server
from inference.engines.lmdeploy.kv_budget import BLOCK_TOKENS
from inference.internvl2.checkpoint import load_model

RECORD: Path


def _method_of_lmdeploy(owner: str, name: str) -> Any:
    """Return the method `name` of the class `owner` from the installed lmdeploy/turbomind/turbomind.py."""
    file = Path(lmdeploy.__file__).parent / "turbomind" / "turbomind.py"
    (found,) = (
        each
        for each in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(each, ast.ClassDef) and each.name == owner
    )
    (method,) = (each for each in found.body if isinstance(each, ast.FunctionDef) and each.name == name)
    names: dict[str, Any] = {
        "torch": torch,
        "ForkingPickler": ForkingPickler,
        "pybase64": base64,
        "UpdateParamsRequest": object,
    }
    exec(compile(ast.Module([method], []), str(file), "exec"), names)
    return names[name]


class TurboMind:
    """The part of TurboMind's interface that lmdeploy's AsyncEngine needs."""

    def __init__(self, directory: str, engine_config: Any) -> None:
        self.model = load_model(Path(directory), dtype=torch.float32)
        self.engine_config = engine_config
        self._prompts: list[list[int | str]] = []
        engine_config.max_batch_size = engine_config.max_batch_size or 4
        engine_config.dtype = "bfloat16"

    @classmethod
    def from_pretrained(cls, directory: str, engine_config: Any, **_: Any) -> Self:
        return cls(directory, engine_config)

    def create_instance(self, cuda_stream_id: int = 0) -> TurboMindInstance:
        return TurboMindInstance(self, cuda_stream_id)

    def cached(self, input_ids: list[int], items: list[dict[str, Any]]) -> int:
        """Return how many leading tokens, in whole blocks, the prompt shares with an earlier one.

        Pictures are compared by fingerprint.
        """
        prompt: list[int | str] = list(input_ids)
        for item in items:
            positions = slice(item["offset"], item["offset"] + item["image_tokens"])
            prompt[positions] = [item["fingerprint"].hex()] * item["image_tokens"]
        longest = max((_common(prompt[:-1], earlier) for earlier in self._prompts), default=0)
        self._prompts.append(prompt)
        return longest // BLOCK_TOKENS * BLOCK_TOKENS

    # From lmdeploy's source file, because the package cannot be imported without a GPU.
    update_params = _method_of_lmdeploy("TurboMind", "update_params")
    devices = (-1,)

    def get_schedule_metrics(self) -> ScheduleMetrics:
        return ScheduleMetrics()

    async def get_health_status(self) -> dict[str, Any]:
        return {"alive": True, "message": "", "schedule_metrics": self.get_schedule_metrics()}

    def close(self) -> None:
        """Do nothing."""


class TurboMindInstance:
    """An instance that, like TurboMind's, turns token IDs into token IDs, one request at a time."""

    def __init__(self, engine: TurboMind, _stream: int) -> None:
        self._engine = engine

    async def async_cancel(self, session_id: int) -> None:
        """Do nothing, because nothing runs between two tokens."""

    async def async_stream_infer(
        self, session_id: int, *, input_ids: list[int], gen_config: Any, multimodal: Any = None, **_: Any
    ) -> AsyncIterator[EngineOutput]:
        items = multimodal or []
        line = {
            "input_ids": list(input_ids),
            "positions": [[item["offset"], item["image_tokens"]] for item in items],
            "fingerprints": [item.setdefault("fingerprint", b"").hex() for item in items],
            "pixels": [sha256(item["pixel_values"].view(torch.uint8).numpy().tobytes()).hexdigest() for item in items],
            "patches": [
                mean
                for item in items
                for mean in adaptive_avg_pool2d(item["pixel_values"].float(), 8).flatten().tolist()
            ],
            "shapes": [list(item["pixel_values"].shape) for item in items],
        }
        line["sampling"] = [gen_config.temperature, gen_config.top_k, gen_config.top_p, gen_config.repetition_penalty]
        with RECORD.open("a", encoding="utf-8") as record:
            record.write(json.dumps(line) + "\n")
        pixels = torch.cat([item["pixel_values"] for item in items]).float() if items else None
        cached = self._engine.cached(input_ids, items)
        new = await asyncio.to_thread(self._generate, input_ids, pixels, gen_config)
        for number, token in enumerate(new, 1):
            last = number == len(new)
            status = ResponseType.FINISH if last else ResponseType.SUCCESS
            yield EngineOutput(status, [token], req_metrics=RequestMetrics(time.time(), cached_tokens=cached))

    @torch.inference_mode()
    def _generate(self, input_ids: list[int], pixels: torch.Tensor | None, config: Any) -> list[int]:
        produced = self._engine.model.generate(
            pixel_values=pixels,
            input_ids=torch.tensor([input_ids]),
            max_new_tokens=config.max_new_tokens,
            do_sample=False,
        )
        tokens: list[int] = produced[0].tolist()
        return tokens


def _common(one: list[int | str], other: list[int | str]) -> int:
    """Return the length of the common prefix of two sequences."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def main() -> None:
    global RECORD
    RECORD = Path(sys.argv.pop(1))
    package = ModuleType("lmdeploy.turbomind")
    package.__dict__.update(is_available=lambda: True, TurboMind=TurboMind)
    inner = SimpleNamespace(TurboMindInstance=TurboMindInstance)
    sys.modules["lmdeploy.turbomind"] = package
    sys.modules["lmdeploy.turbomind.turbomind"] = inner  # type: ignore[assignment]
    # lmdeploy queries the GPU's memory and its support for bfloat16.
    torch.cuda.mem_get_info = lambda device=None: (2**30, 2**30)
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_properties = lambda device=None: SimpleNamespace(major=9)  # type: ignore[assignment,return-value]
    server.main()


if __name__ == "__main__":
    main()
