"""Worker: an adapter and its base become one complete checkpoint directory.

    python -m training.merge JOB.json

Every file of the base is kept as it is but the weights the adapter changes, which go through memory one tensor at a
time, and the chat template, which speaks the run's persona. A directory whose prompts would have other token ids
than the base's is refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from safetensors import safe_open

from inference.chat_format.template import jinja_chat_template
from storage.model_store import MANIFEST
from training.adapter import Adapter
from training.gate.prompt_parity import disagreement
from training.job import MergeJob, Outcome, Progress, TrainingError
from training.worker import Say, work

_CHUNK: Final = 1 << 24


def merge(job: MergeJob, say: Say) -> Outcome:
    """Fill the job's `out`. Raises `TrainingError` when the adapter does not belong to the base."""
    if job.threads:
        torch.set_num_threads(job.threads)
    base, out = Path(job.base), Path(job.out)
    adapter = Adapter(Path(job.adapter))
    weights = sorted(base.glob("*.safetensors"))
    known = {name for file in weights for name in _header(file)[0]}
    strange = adapter.names() - known
    if strange:
        raise TrainingError(f"the adapter changes {sorted(strange)[0]}, which {base} does not have")
    total, done = len(known), 0

    def count() -> None:
        nonlocal done
        done += 1
        if done == total or done % 20 == 0:
            say(Progress("merging", done, total))

    copy_surroundings(base, out, job.system, job.tiles)
    for file in weights:
        merge_file(file, out / file.name, adapter, count)
    differs = disagreement(base, out, job.system)
    if differs:
        raise TrainingError(f"the merged model would read other tokens than it was trained on: {differs}")
    return Outcome(ok=True)


def copy_surroundings(base: Path, out: Path, system: str, tiles: int = 0) -> None:
    """Copy all of a checkpoint but its weights and manifest; the chat template gets the persona.

    `tiles` above 0 is written into config.json, so that every server cuts pictures as the training did.
    """
    template = jinja_chat_template(system)
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


def merge_file(source: Path, target: Path, adapter: Adapter, on_tensor: Callable[[], None]) -> None:
    """Write `source` with the adapter applied, tensor by tensor, in the same order, types and layout.

    The safetensors format (github.com/huggingface/safetensors, "Format"): eight bytes of length, a JSON header
    with each tensor's place, the tensors. Raises `TrainingError` for a weight that is no longer a number.
    """
    tensors, start = _header(source)
    with source.open("rb") as reader, safe_open(source, "pt") as weights, target.open("wb") as writer:
        _copy(reader, writer, start)
        for name, place in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = place["data_offsets"]
            if name in adapter.names():
                merged = adapter.applied(name, weights.get_tensor(name)).contiguous()
                if not torch.isfinite(merged).all():
                    raise TrainingError(
                        f"the training diverged, {name} is not finite: lower training.knobs.learning_rate"
                    )
                reader.seek(end - begin, 1)
                writer.write(merged.view(torch.uint8).numpy().data)
            else:
                _copy(reader, writer, end - begin)
            on_tensor()


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The tensors of a safetensors file by name, and where the first of them begins, in bytes."""
    with file.open("rb") as reader:
        length = int.from_bytes(reader.read(8), "little")
        tensors = json.loads(reader.read(length))
    tensors.pop("__metadata__", None)
    return tensors, 8 + length


def _copy(reader: BinaryIO, writer: BinaryIO, size: int) -> None:
    while size:
        chunk = reader.read(min(size, _CHUNK))
        if not chunk:
            raise TrainingError(f"{reader.name} ends too early: fetch the base model again")
        writer.write(chunk)
        size -= len(chunk)


if __name__ == "__main__":
    work(MergeJob, merge)
