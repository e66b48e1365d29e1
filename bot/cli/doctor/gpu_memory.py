"""The memory checks of `thumbtune doctor`, which calculate whether chat, a swap and training fit on the GPUs.

The checks cover the GPUs in the settings or, if none are listed, the smallest GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isinf

from bot.cli.doctor.findings import Finding
from bot.config import Settings
from inference.engines.commands import Kind, resolve
from inference.engines.lmdeploy.kv_budget import (
    BLOCK_TOKENS,
    FEWEST_BLOCKS,
    USABLE,
    ModelMemory,
    NoRoom,
    blocks_within,
    default_blocks,
    prefill_tokens,
)
from inference.internvl2.model_sizes import ModelSizes, read_sizes
from training.memory_estimate import picture_tokens, training_memory
from training.xtuner.recipes import SELF_TUNING, Recipe


@dataclass(frozen=True, slots=True)
class _Engine:
    """An engine on a GPU: the model's sizes, the number of KV blocks, and the prompt tokens per iteration."""

    model: ModelMemory
    blocks: int
    prefill: int

    @property
    def size(self) -> int:
        return self.model.engine(self.blocks, self.prefill)


def memory_findings(settings: Settings, totals: dict[int, float]) -> Iterator[Finding]:
    """Check what fits into the memory of each GPU that the settings use.

    `totals` contains the memory in bytes of each GPU by its number.
    """
    known = {index: int(total) for index, total in totals.items() if not isinf(total)}
    if not known:
        return
    smallest = (min(known, key=lambda index: known[index]),)
    serving = settings.inference.gpus or smallest if resolve(settings.inference) is Kind.LMDEPLOY else ()
    training = settings.training.gpus or smallest if settings.training.device != "cpu" else ()
    for index in sorted(known.keys() & {*serving, *training}):
        engine = None
        try:
            if index in serving:
                engine = _engine(settings, known[index])
                yield from _chat(settings, index, known[index], engine)
            if index in training and settings.training.user_config is None:
                beside = engine if settings.training.while_training == "share" else None
                yield _training(settings, index, known[index], beside)
        except NoRoom as error:
            yield Finding(f"GPU {index}: chat", False, f"{_gb(known[index])} GB", str(error))
        except (OSError, ValueError, KeyError):
            return  # model_findings reports damaged checkpoints


def _engine(settings: Settings, total: int) -> _Engine:
    """Return the engine for a GPU with `total` bytes of memory, sized for a single engine if two do not fit."""
    sizes = settings.inference.lmdeploy
    model = ModelMemory.of(settings.inference.checkpoint(), sizes.kv_bits, sizes.tensor_parallel)
    prefill = sizes.prefill_tokens or prefill_tokens(total)
    if sizes.blocks:
        return _Engine(model, sizes.blocks, prefill)
    try:
        blocks = default_blocks(model, total, engines=settings.inference.side_by_side, prefill=prefill)
    except NoRoom:
        blocks = default_blocks(model, total, engines=1, prefill=prefill)
    return _Engine(model, blocks, prefill)


def _chat(settings: Settings, index: int, total: int, engine: _Engine) -> Iterator[Finding]:
    fits = engine.size <= total
    yield Finding(
        f"GPU {index}: chat",
        fits,
        f"the engine takes {_gb(engine.size)} of {_gb(total)} GB: {_gb(engine.model.weights)} for weights, "
        f"{_gb(engine.blocks * BLOCK_TOKENS * engine.model.token)} for {engine.blocks * BLOCK_TOKENS} tokens of "
        "conversations, the rest as workspace",
        "" if fits else "lower inference.lmdeploy.blocks",
    )
    given = settings.inference.lmdeploy.blocks is not None
    if settings.inference.side_by_side == 1:
        # A single engine takes the whole card unless the number of its blocks is set.
        each = engine.size if given else engine.model.engine(FEWEST_BLOCKS, engine.prefill)
        two = 2 * each <= USABLE * total
        found = 'one model at a time (inference.swap = "cold"); two engines ' + ("would fit" if two else "do not fit")
        yield Finding(f"GPU {index}: swap", True, found)
    elif 2 * engine.size <= total:
        yield Finding(f"GPU {index}: swap", True, f"two engines side by side take {_gb(2 * engine.size)} GB")
    elif fits:
        cure = 'set inference.swap = "cold"' + (" or lower inference.lmdeploy.blocks" if given else "")
        found = f"a second engine of {_gb(engine.size)} GB does not fit beside the first"
        yield Finding(f"GPU {index}: swap", False, found, cure)


def _training(settings: Settings, index: int, total: int, beside: _Engine | None) -> Finding:
    """Check whether training fits, either `beside` an engine or alone."""
    base, name = settings.inference.checkpoint(), f"GPU {index}: training"
    sizes, recipe = read_sizes(base), settings.training.recipe_for(base)
    pairs = recipe.batch * recipe.accumulation // settings.training.world_size
    batch = max(1, min(recipe.batch, pairs))
    least, wanted = (_needed(settings, sizes, recipe, number) for number in (1, batch))
    whole = int(USABLE * total)
    room = max(0, whole - beside.size) if beside else whole
    where = "beside the engine" if beside else "for it"
    found = f"{recipe.method} takes {_gb(wanted)} GB for {batch} pairs at a time"
    found += f" ({_gb(least)} for one)" if batch > 1 else ""
    found += f"; {_gb(room)} GB are left {where}"
    if room >= wanted:
        return Finding(name, True, found)
    if beside and whole >= least:
        cure = 'set training.while_training = "pause"'
        blocks = blocks_within(beside.model, whole - wanted, prefill=beside.prefill)
        cure += f", or inference.lmdeploy.blocks = {blocks}" if blocks >= FEWEST_BLOCKS else ""
        return Finding(name, room >= least, found, cure)
    if room >= least:
        return Finding(name, True, f"{found}, so a run will continue with smaller batches")
    return Finding(name, False, found, _smaller(sizes, recipe, whole))


def _needed(settings: Settings, sizes: ModelSizes, recipe: Recipe, batch: int) -> int:
    return training_memory(
        sizes,
        recipe,
        batch=batch,
        tokens=picture_tokens(sizes, recipe, settings.inference.tiles or 0),
        processes=settings.training.world_size,
        deepspeed=settings.training.deepspeed,
    ).peak


def _smaller(sizes: ModelSizes, recipe: Recipe, room: int) -> str:
    """Describe the settings with which training fits into `room` bytes on each GPU."""
    cures = []
    qlora = recipe.model_copy(update={"method": "qlora"})
    if recipe.method != "qlora" and training_memory(sizes, qlora, batch=1).peak <= room:
        cures.append('set training.knobs.method = "qlora"')
    # ZeRO stage 3 cannot partition 4-bit weights.
    spread = recipe.model_copy(update={"method": "full" if recipe.method == "full" else "lora"})
    cards = (number for number in (2, 4, 8) if _spread(sizes, spread, number) <= room)
    if recipe.objective == "sft" and recipe.optimizer not in SELF_TUNING and (number := next(cards, 0)):
        method = ' and knobs.method = "lora"' if recipe.method == "qlora" else ""
        cures.append(f"train on {number} such cards (training.gpus) with training.deepspeed = 3{method}")
    return ", or ".join(cures) or "use a larger card or a smaller model"


def _spread(sizes: ModelSizes, recipe: Recipe, cards: int) -> int:
    return training_memory(sizes, recipe, batch=1, processes=cards, deepspeed=3).peak


def _gb(number: float) -> str:
    return f"{number / 1e9:.1f}"
