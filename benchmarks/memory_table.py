"""Print how much GPU memory chatting and training need, by model size, as `thumbtune doctor` computes it.

    python -m benchmarks.memory_table

No GPU is needed: the sizes come from checkpoints whose weight files are sparse, with headers but no weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.random_checkpoint import SIZES, Size, configuration, default_tokenizer
from inference.engines.lmdeploy.kv_budget import FEWEST_BLOCKS, USABLE, ModelMemory
from inference.internvl2.checkpoint import write_surroundings
from inference.internvl2.model_sizes import read_sizes
from inference.internvl2.modeling_internvl2 import InternVLChatModel
from training.memory_estimate import training_memory
from training.xtuner.recipes import RECIPES, Recipe

CHATS = 2
"""The number of 8192-token conversations that fit in an engine's cache."""

PREFILL = 8192
"""The number of prompt tokens that an engine processes in one iteration."""


def write_sparse(size: Size, directory: Path) -> None:
    """Write a checkpoint in bfloat16 that has all files of a complete one; the weights are zeros in a sparse file."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = default_tokenizer(size, directory)
    config = configuration(size, size.vocabulary or len(tokenizer))
    with torch.device("meta"):
        state = InternVLChatModel(config).state_dict()
    if size.tied:
        del state["language_model.lm_head.weight"]
    header, end = {}, 0
    for name, weight in state.items():
        start, end = end, end + 2 * weight.numel()
        header[name] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    write_surroundings(config, tokenizer, directory, dtype=torch.bfloat16)


def needed(directory: Path) -> list[float]:
    """Return the GPU memory in bytes needed for chat, QLoRA alone, chat alongside QLoRA, and two engines."""
    model, recipe = ModelMemory.of(directory, kv_bits=16), Recipe.model_validate(RECIPES["food"])
    engine = model.engine(CHATS * FEWEST_BLOCKS, PREFILL)
    qlora = training_memory(read_sizes(directory), recipe, batch=1).peak
    return [each / USABLE for each in (engine, qlora, engine + qlora, 2 * engine)]


def main() -> None:
    """Run the command-line interface."""
    table = Table("model", "chat", "QLoRA alone", "chat beside QLoRA", "two engines")
    for name, size in SIZES.items():
        with TemporaryDirectory() as folder:
            write_sparse(size, Path(folder))
            table.add_row(name, *(f"{each / 1e9:.0f} GB" for each in needed(Path(folder))))
    Console(file=sys.stdout, width=100).print(table)


if __name__ == "__main__":
    main()
