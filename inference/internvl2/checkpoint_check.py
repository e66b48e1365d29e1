"""Validation of InternVL2 checkpoint directories: whether they are complete and in the official layout.

Only file names, JSON files and the headers of weight files are checked. Python files are ignored,
because no engine or training run executes code from a checkpoint. This module uses only the standard
library.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from inference.internvl2.families import LANGUAGE_MODELS, UnknownFamily, family_of, language_model_of

INDEX: Final = "model.safetensors.index.json"
_NEEDED: Final = ("config.json", "generation_config.json", "tokenizer_config.json")
TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer.model")
"""Files that each contain a complete tokenizer."""

BPE_FILES: Final = ("vocab.json", "merges.txt")
"""The two files of a byte-level BPE tokenizer."""

_ARCHITECTURE: Final = "InternVLChatModel"
HEADER_LIMIT: Final = 100_000_000
"""The format's limit on the size of a safetensors header, in bytes."""


def problems(directory: Path) -> list[str]:
    """Return a list of phrases, one for each missing or damaged part; it is empty for a complete checkpoint.

    The check reads only a few kilobytes.
    """
    if not directory.is_dir():
        return ["there is no such directory"]
    return [*_file_problems(directory), *_weight_problems(directory)]


def weight_bytes(directory: Path) -> int:
    """Return the total size of the weights in bytes, which is the same on disk and in memory."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def has_tokenizer(directory: Path) -> bool:
    """Return whether `directory` contains the files of a tokenizer."""
    whole = any((directory / name).is_file() for name in TOKENIZER_FILES)
    return whole or all((directory / name).is_file() for name in BPE_FILES)


def has_llama_tokenizer(directory: Path) -> bool:
    """Return whether the checkpoint uses the slow LlamaTokenizer, as Phi-3 does.

    The official code reads its `tokenizer.model` even if there is a `tokenizer.json` (`use_fast=False`).
    """
    named = (_read(directory / "tokenizer_config.json") or {}).get("tokenizer_class")
    return str(named).startswith("LlamaTokenizer") and (directory / "tokenizer.model").is_file()


def _file_problems(directory: Path) -> Iterator[str]:
    for name in _NEEDED:
        if not (directory / name).is_file():
            # Without the end tokens in generation_config.json, an answer would not end.
            yield f"{name} is missing"
        elif _read(directory / name) is None:
            yield f"{name} is not JSON"
    if not has_tokenizer(directory):
        yield f"{', '.join(TOKENIZER_FILES)}, or {' with '.join(BPE_FILES)} is missing"
    config = _read(directory / "config.json")
    if config and _ARCHITECTURE not in config.get("architectures", ()):
        yield f"config.json describes {config.get('architectures')}, not an {_ARCHITECTURE}"
    elif config:
        try:
            family_of(config)
        except UnknownFamily as unknown:
            yield str(unknown)
        named = language_model_of(config)
        if named not in LANGUAGE_MODELS:
            yield f"its language model is {named}, but only {', '.join(LANGUAGE_MODELS)} are supported"


def _weight_problems(directory: Path) -> Iterator[str]:
    files = {path.name for path in directory.glob("*.safetensors")}
    index = directory / INDEX
    if index.is_file():
        weight_map = (_read(index) or {}).get("weight_map")
        if not weight_map:
            yield f"{INDEX} is not JSON, or has no weight_map"
        for name in sorted(set((weight_map or {}).values()) - files):
            yield f"{name} is missing ({INDEX} names it)"
    elif not files:
        yield "*.safetensors is missing"
    for name in sorted(files):
        if problem := _safetensors_problem(directory / name):
            yield f"{name} {problem}"


def _safetensors_problem(path: Path) -> str:
    """Return a phrase saying what is wrong with a safetensors file, or an empty string if the file is valid.

    The phrase does not include the file's name. The format is eight bytes with the header's length, a JSON
    header with the offsets of each tensor, and the tensors (github.com/huggingface/safetensors, "Format").
    """
    size = path.stat().st_size
    with path.open("rb") as reader:
        length = int.from_bytes(reader.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_LIMIT):
            return "is cut off, or not a safetensors file"
        try:
            header: dict[str, Any] = json.loads(reader.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return "has a damaged header"
    whole = 8 + length + max(ends, default=0)
    return "" if size == whole else f"has {size} bytes instead of {whole}"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
