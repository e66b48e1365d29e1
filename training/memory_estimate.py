"""An estimate of the GPU memory that training needs, from the sizes of the model and the hyperparameters.

The formulas describe what `training.xtuner` keeps; tests/training/test_memory_estimate.py compares them with
measurements. This module imports neither torch nor XTuner.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from inference.internvl2.model_sizes import ModelSizes, StoredWeight, Transformer, count
from training.xtuner.recipes import Recipe

_WORK_BYTES: Final = 1_100_000_000
"""The memory that a training process uses besides its large tensors: CUDA context, libraries, workspaces of matrix
products, logits, and fragmentation. Measured with InternVL2-2B on an H200 (benchmarks/README.md)."""

_NF4_BYTES: Final = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes per weight in NF4 with double quantization (arXiv 2305.14314): four bits, an 8-bit scale for each block of 64
weights, and a float32 scale for every 256 blocks."""

_OTHER_MODELS: Final = 1.25
"""The ratio of the activations that transformers' layers keep to ours; the largest measured is 1.23, for Qwen3-0.6B."""

AVERAGES: Final = {"adamw": 8, "paged_adamw_8bit": 2, "dadapt_adam": 12, "prodigy": 16}
"""Bytes of an optimizer's state per weight: two moments in float32, or in 8 bits; D-Adaptation keeps one more tensor,
Prodigy two."""

_BUCKET: Final = 500_000_000
"""The number of weights whose gradients DeepSpeed reduces at a time (`reduce_bucket_size`, DeepSpeed 0.18.9,
runtime/zero/config.py)."""

_LIVE: Final = 1_000_000_000
"""The number of weights that ZeRO 3 keeps gathered at a time (`stage3_max_live_parameters`, same source)."""

_TILES_BYTES: Final = 800_000_000
"""The limit on the memory for the activations of the tiles that pass through the vision tower at a time."""

_MOST_TILES: Final = 26
"""The maximum number of tiles in one pass of the vision tower; those of two large pictures keep a large GPU busy."""


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """The memory of a training process on its GPU, in bytes.

    Attributes:
        frozen: The memory for weights that are not trained.
        trained: The memory for trained weights, their gradients and the optimizer's state.
        activations: The memory for the activations of a batch.
        work: The memory for everything else.
        before: The peak before the first batch, while computing the vision features or loading the model.
    """

    frozen: int
    trained: int
    activations: int
    work: int
    before: int

    @property
    def peak(self) -> int:
        """The process's peak memory in bytes."""
        return max(self.before, self.frozen + self.trained + self.activations + self.work)


def training_memory(
    sizes: ModelSizes,
    recipe: Recipe,
    *,
    batch: int,
    tokens: int = 0,
    recomputing: bool = True,
    processes: int = 1,
    deepspeed: int = 0,
) -> TrainingMemory:
    """Estimate the memory of each of `processes` training processes.

    Args:
        sizes: The sizes of the base model.
        recipe: The hyperparameters.
        batch: The number of samples per batch.
        tokens: The number of tokens per sample; 0 for the number that `picture_tokens` returns.
        recomputing: Whether all layers recompute their activations, or none do.
        processes: The number of processes that train together, each on its own GPU.
        deepspeed: The stage of DeepSpeed's ZeRO, or 0 to train without DeepSpeed.
    """
    tokens = batch * (tokens or picture_tokens(sizes, recipe)) * (2 if recipe.objective == "dpo" else 1)
    trained = trained_weights(sizes, recipe)
    frozen, share = _frozen_bytes(sizes, recipe), processes if deepspeed == 3 else 1
    rank = 0 if recipe.method == "full" else recipe.rank
    each = whole_layer(sizes.language, sizes.model_type, rank=rank, dropout=recipe.dropout)
    kept = 2 * sizes.language.width if recomputing else each
    activations = tokens * (sizes.language.layers * kept + each * recomputing)
    if recipe.vision_rank:
        per_patch = whole_layer(sizes.vision, "intern_vit", rank=recipe.vision_rank, dropout=recipe.dropout)
        tiles = tokens // sizes.tile_tokens
        activations += tiles * (sizes.patches + 1) * sizes.vision.layers * per_patch
    work = work_bytes(sizes.vocabulary, sizes.language.width) + _deepspeed_buffers(trained, deepspeed)
    if deepspeed == 3:
        work += 2 * min(_LIVE, count(sizes.language_weights))
    tower = 2 * count(sizes.vision_weights)
    before = tower + tiles_per_pass(sizes) * sizes.tower_bytes + _WORK_BYTES
    if recipe.method == "qlora":
        before = max(before, _WORK_BYTES + tower + frozen + 2 * count(_unquantized(sizes)))
    return TrainingMemory(
        frozen=frozen // share,
        trained=round(
            trained
            * bytes_per_trained_weight(
                recipe.optimizer, full=recipe.method == "full", processes=processes, deepspeed=deepspeed
            )
        ),
        activations=round(activations),
        work=work,
        before=before,
    )


def picture_tokens(sizes: ModelSizes, recipe: Recipe, tiles: int = 0) -> int:
    """Return the number of tokens in a sample with one large picture, and a question and answer of 128 tokens.

    `tiles` is the limit on tiles without the thumbnail, or 0 for the model's own.
    """
    most = min(sizes.most_tiles, tiles + (tiles > 1)) if tiles else sizes.most_tiles
    return min(recipe.max_length, most * sizes.tile_tokens + 128)


def trained_weights(sizes: ModelSizes, recipe: Recipe) -> int:
    """Return the number of weights that a recipe trains."""
    number = count(sizes.projector_weights) if recipe.projector else 0
    number += _adapter(sizes.linear(sizes.vision_weights), recipe.vision_rank)
    if recipe.method == "full":
        return number + count(sizes.language_weights)
    # Without targets, XTuner 0.2.0 adapts all linear layers except one named lm_head.
    targets = recipe.targets or ".*(?<!lm_head)"
    linear = [each for each in sizes.linear(sizes.language_weights) if re.fullmatch(targets, _module(each))]
    return number + _adapter(linear, recipe.rank)


def whole_layer(model: Transformer, model_type: str, *, rank: int = 0, dropout: float = 0.0) -> float:
    """Return the bytes of a token's activations that a layer keeps for the backward pass, in bfloat16.

    A layer keeps the inputs of both norms, of all projections and of all products; the queries, keys and
    values; and, in a gated MLP, both branches, the activation and the product. Each adapter keeps its
    low-rank product and, with dropout, a byte for each of its inputs.
    """
    gated = model_type != "intern_vit"
    stock = _OTHER_MODELS if gated and model_type != "internlm2" else 1
    kept = 2 * stock * (10 * model.width + (4 if gated else 2) * model.inner)
    adapters = 5 * 2 * rank + (4 * model.width + model.inner) * (dropout > 0) * (rank > 0)
    return kept + adapters


def bytes_per_trained_weight(optimizer: str, *, full: bool, processes: int = 1, deepspeed: int = 0) -> float:
    """Return the bytes for a trained weight, its gradient and the optimizer's state on one GPU.

    Without DeepSpeed, all are in float32. Fully trained weights also have a bfloat16 copy for autocast, and
    several processes each keep a copy of the gradients for the reduction. With DeepSpeed, weights and gradients are in
    bfloat16, and the optimizer has float32 copies of its share of the weights and, in a step of stages 1 and
    2, of the gradients.
    """
    averages = AVERAGES[optimizer]
    if not deepspeed:
        return 8 + averages + 2 * full + 4 * (processes > 1)
    whole = 2 * (deepspeed < 2) + 2 * (deepspeed < 3)
    shared = 4 + averages + (4 - whole) + 4 * (deepspeed < 3)
    return whole + shared / processes


def work_bytes(vocabulary: int, width: int) -> int:
    """Return the bytes that a process uses besides weights and activations.

    The largest matrix, the output layer, is copied to bfloat16 for its product.
    """
    return _WORK_BYTES + 2 * vocabulary * width


def tiles_per_pass(sizes: ModelSizes) -> int:
    """Return how many tiles pass through the vision tower at a time."""
    return max(1, min(_MOST_TILES, _TILES_BYTES // sizes.tower_bytes))


def _module(weight: StoredWeight) -> str:
    """Return the name of a weight's layer within the language model, in the form used in `Recipe.targets`."""
    return weight.name.removeprefix("language_model.").removesuffix(".weight")


def _adapter(linear: list[StoredWeight], rank: int) -> int:
    """Return the number of weights of the adapters of linear layers."""
    return sum(rank * sum(each.shape) for each in linear)


def _unquantized(sizes: ModelSizes) -> list[StoredWeight]:
    """Return the language model's weights that QLoRA leaves in 16 bits: embeddings, norms and biases."""
    quantized = {each.name for each in sizes.linear(sizes.language_weights)}
    return [each for each in sizes.language_weights if each.name not in quantized]


def _frozen_bytes(sizes: ModelSizes, recipe: Recipe) -> int:
    number = 0 if recipe.projector else 2 * count(sizes.projector_weights)
    if recipe.vision_rank or recipe.epochs <= 1:
        # With one epoch, features are not cached, and the tower computes them during training.
        number += 2 * count(sizes.vision_weights)
    if recipe.method == "lora":
        number += 2 * count(sizes.language_weights)
    elif recipe.method == "qlora":
        number += round(_NF4_BYTES * count(sizes.linear(sizes.language_weights))) + 2 * count(_unquantized(sizes))
    return number


def _deepspeed_buffers(trained: int, deepspeed: int) -> int:
    """Return the bytes of the buffers in which DeepSpeed collects gradients.

    With `overlap_comm`, stages 1 and 2 fill one while the other is reduced.
    """
    if not deepspeed:
        return 0
    return 2 * min(_BUCKET, trained) * (1 if deepspeed == 3 else 2)
