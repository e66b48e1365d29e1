"""The sizes of a checkpoint's parts, read from config.json and the headers of the weight files.

Memory estimates need these sizes, but not the weights themselves. This module uses only the standard
library.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from inference.internvl2.checkpoint_check import HEADER_LIMIT

_VISION: Final = "vision_model."
_PROJECTOR: Final = "mlp1."
_LANGUAGE: Final = "language_model."
_EMBEDDINGS: Final = ("tok_embeddings.weight", "embed_tokens.weight")
_HEADS: Final = ("language_model.output.", "language_model.lm_head.")


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A tensor in a weight file.

    Attributes:
        name: The tensor's name in the checkpoint.
        shape: The tensor's shape.
        stored: The tensor's size in the file, in bytes.
    """

    name: str
    shape: tuple[int, ...]
    stored: int

    @property
    def count(self) -> int:
        """The number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Transformer:
    """The dimensions of the vision tower or the language model.

    Attributes:
        width: The number of features per token.
        inner: The number of features inside the MLP.
        layers: The number of layers.
    """

    width: int
    inner: int
    layers: int


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """The dimensions of a model and the sizes of its weights.

    Attributes:
        weights: All stored weights.
        vision: The dimensions of the vision tower.
        language: The dimensions of the language model.
        model_type: The type of the language model in config.json, for example "internlm2".
        key_value_heads: The number of key/value heads.
        head: The number of features per head.
        vocabulary: The number of tokens in the vocabulary.
        patches: The number of patches per tile.
        tile_tokens: The number of prompt tokens per tile.
        most_tiles: The maximum number of tiles per picture, including the thumbnail.
    """

    weights: tuple[StoredWeight, ...]
    vision: Transformer
    language: Transformer
    model_type: str
    key_value_heads: int
    head: int
    vocabulary: int
    patches: int
    tile_tokens: int
    most_tiles: int

    def part(self, prefix: str) -> list[StoredWeight]:
        """Return the weights whose names begin with `prefix`."""
        return [each for each in self.weights if each.name.startswith(prefix)]

    @property
    def vision_weights(self) -> list[StoredWeight]:
        """The weights of the vision tower."""
        return self.part(_VISION)

    @property
    def projector_weights(self) -> list[StoredWeight]:
        """The weights of the projector between the vision tower and the language model."""
        return self.part(_PROJECTOR)

    @property
    def language_weights(self) -> list[StoredWeight]:
        """The weights of the language model, including its embeddings and its output layer."""
        return self.part(_LANGUAGE)

    @property
    def embeddings(self) -> StoredWeight:
        """The token embeddings."""
        return next(each for each in self.language_weights if each.name.endswith(_EMBEDDINGS))

    @property
    def tied(self) -> bool:
        """Whether the output layer shares the weights of the embeddings, so that the files contain them only once."""
        return not any(each.name.startswith(_HEADS) for each in self.weights)

    def linear(self, weights: list[StoredWeight]) -> list[StoredWeight]:
        """Return the matrices of linear layers, each [out, in], among `weights`."""
        return [each for each in weights if len(each.shape) == 2 and each.name != self.embeddings.name]

    def key_value_bytes(self, bits: int = 16) -> int:
        """Return the size in bytes of one token's keys and values in all layers, with `bits` bits per value.

        Below 16 bits, each head also has a scale and a zero point in half precision.
        """
        each = self.head * bits + 32 * (bits < 16)
        return 2 * self.language.layers * self.key_value_heads * each // 8

    @property
    def tower_bytes(self) -> int:
        """The memory in bytes that the vision tower uses per tile, besides its weights and without gradients."""
        return (self.patches + 1) * pass_bytes(self.vision, branches=1)

    @property
    def token_bytes(self) -> int:
        """The memory in bytes that the language model uses per token, besides keys and values and without gradients."""
        return pass_bytes(self.language, branches=3)


def pass_bytes(model: Transformer, *, branches: int) -> int:
    """Return the memory, in bytes, for a token's 16-bit activations in one layer.

    `branches` is the number of tensors of the MLP's inner width: one, or three in a gated MLP (both branches
    and their product). The other ten tensors have the model's width: residual stream, norm, queries, keys and
    values, attention and projections. For InternVL2-2B, TurboMind was measured to use 90 kB per token
    (benchmarks/README.md); this function returns 90,112 bytes.
    """
    return 2 * (10 * model.width + branches * model.inner)


def read_sizes(directory: Path) -> ModelSizes:
    """Read the sizes of the checkpoint in `directory`.

    Raises:
        OSError, KeyError, ValueError: The directory does not contain a checkpoint.
    """
    config: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    vision, language = config["vision_config"], config["llm_config"]
    heads = language["num_attention_heads"]
    patches = ((config.get("force_image_size") or vision["image_size"]) // vision["patch_size"]) ** 2
    most = config.get("max_dynamic_patch") or 1
    weights = tuple(_stored(directory))
    if not any(each.name.startswith(_LANGUAGE) and each.name.endswith(_EMBEDDINGS) for each in weights):
        raise ValueError(f"{directory} contains no language model weights")
    return ModelSizes(
        weights=weights,
        vision=_dimensions(vision),
        language=_dimensions(language),
        model_type=str(language.get("model_type", "")),
        key_value_heads=language.get("num_key_value_heads") or heads,
        head=language.get("head_dim") or language["hidden_size"] // heads,
        vocabulary=language["vocab_size"],
        patches=patches,
        tile_tokens=int(patches * config.get("downsample_ratio", 0.5) ** 2),
        most_tiles=most + (most > 1 and bool(config.get("use_thumbnail"))),
    )


def _dimensions(config: dict[str, Any]) -> Transformer:
    return Transformer(config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"])


def _stored(directory: Path) -> Iterator[StoredWeight]:
    """Yield all tensors, with their names, shapes and sizes.

    The format is eight bytes with the header's length, a JSON header and the tensors
    (github.com/huggingface/safetensors, "Format").
    """
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as reader:
            length = int.from_bytes(reader.read(8), "little")
            if length > HEADER_LIMIT:
                raise ValueError(f"{file} is not a safetensors file")
            header = json.loads(reader.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                yield StoredWeight(name, tuple(entry["shape"]), end - start)


def stored_bytes(weights: list[StoredWeight]) -> int:
    """Return the total size of `weights` in bytes."""
    return sum(each.stored for each in weights)


def count(weights: list[StoredWeight]) -> int:
    """Return the total number of elements in `weights`."""
    return sum(each.count for each in weights)
