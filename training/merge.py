"""Worker that merges an adapter and its base model into a complete checkpoint directory.

    python -m training.merge JOB.json

The base model's files are copied, with two exceptions: the weights that the adapter changes are computed
in memory, a few tensors at a time, and the chat's system prompt is written into the chat template. Merging
fails if the new checkpoint turns prompts into different token IDs than the base model does.
"""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from safetensors import safe_open

from inference.chat_format.template import jinja_chat_template
from inference.internvl2.families import read_family
from storage.atomic_files import PIECE, write_through
from storage.model_manifest import MANIFEST
from storage.translatable_reason import Reason
from training.adapter import Adapter
from training.gate.prompt_parity import disagreement
from training.job import MergeJob, Outcome, TrainingError
from training.worker import Say, StageProgress, work

_THREADS: Final = 4
"""The number of weights merged at a time. Each takes eight bytes of memory per value, half of them for float32."""


def merge(job: MergeJob, say: Say) -> Outcome:
    """Merge the adapter and the base model into the job's `out` directory.

    Raises:
        TrainingError: The adapter does not fit the base model, or the result is unusable.
    """
    if job.threads:
        torch.set_num_threads(job.threads)
    base, out = Path(job.base), Path(job.out)
    adapter = Adapter(Path(job.adapter))
    weights = sorted(base.glob("*.safetensors"))
    known = {name for file in weights for name in _header(file)[0]}
    unknown = adapter.names() - known
    if unknown:
        raise TrainingError(f"the adapter changes {sorted(unknown)[0]}, which {base} does not have")
    steps = StageProgress(say, "merging", len(known))
    copy_surroundings(base, out, job.system, job.tiles)
    for file in weights:
        merge_file(file, out / file.name, adapter, steps)
    differs = disagreement(base, out, job.system)
    if differs:
        raise TrainingError(f"the merged model's token IDs differ from those it was trained on: {differs}")
    return Outcome(ok=True)


def copy_surroundings(base: Path, out: Path, system: str, tiles: int = 0) -> None:
    """Copy a checkpoint without its weights and manifest, and set the chat template's default system prompt.

    A positive `tiles` is written into config.json, so that every server splits pictures as training did.
    """
    template = jinja_chat_template(read_family(base), system)
    for file in sorted(each for each in base.rglob("*") if each.is_file()):
        name = file.relative_to(base)
        if file.suffix == ".safetensors" or name.name == MANIFEST or "__pycache__" in name.parts:
            continue
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name.name == "tokenizer_config.json":
            config = json.loads(file.read_text(encoding="utf-8"))
            config["chat_template"] = template
            text = json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
            target.write_text(text, encoding="utf-8")
        elif tiles and str(name) == "config.json":
            config = json.loads(file.read_text(encoding="utf-8"))
            config["max_dynamic_patch"] = tiles
            target.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        elif name.name == "chat_template.jinja":
            target.write_text(template, encoding="utf-8")
        else:
            shutil.copyfile(file, target)


def merge_file(source: Path, target: Path, adapter: Adapter, steps: StageProgress) -> None:
    """Write `source` to `target` with the adapter applied, keeping the order, types and layout of the tensors.

    A safetensors file (github.com/huggingface/safetensors, "Format") consists of the header's length in
    eight bytes, a JSON header with the offsets of each tensor, and the tensors.

    Raises:
        TrainingError: A merged weight is not finite, or the file is incomplete.
    """
    tensors, start = _header(source)
    with (
        source.open("rb") as reader,
        target.open("wb") as writer,
        safe_open(source, "pt") as weights,
        ThreadPoolExecutor(min(_THREADS, torch.get_num_threads())) as threads,
    ):

        def write(name: str) -> None:
            begin, end = (start + offset for offset in tensors[name]["data_offsets"])
            if name in adapter.names():
                merged = adapter.applied(name, weights.get_tensor(name))
                if not torch.stack(torch.aminmax(merged)).isfinite().all():
                    raise TrainingError(
                        Reason(
                            "the training diverged ({name} is not finite): lower training.knobs.learning_rate",
                            name=name,
                        )
                    )
                write_through(writer.fileno(), merged.view(torch.uint8).numpy().data, begin)
            else:
                _copy(reader, writer, begin, end)

        _copy(reader, writer, 0, start)
        for _ in threads.map(write, tensors):
            steps.add(1)


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """Return the header entries of a safetensors file by tensor name, and the byte offset of the first tensor."""
    with file.open("rb") as reader:
        length = int.from_bytes(reader.read(8), "little")
        tensors = json.loads(reader.read(length))
    tensors.pop("__metadata__", None)
    return tensors, 8 + length


def _copy(reader: BinaryIO, writer: BinaryIO, begin: int, end: int) -> None:
    """Copy the bytes from `begin` to `end` of a file to the same place in another."""
    while begin < end:
        chunk = os.pread(reader.fileno(), min(end - begin, PIECE), begin)
        if not chunk:
            raise TrainingError(f"{reader.name} ends too early: fetch the base model again")
        write_through(writer.fileno(), chunk, begin)
        begin += len(chunk)


if __name__ == "__main__":
    work(MergeJob, merge)
