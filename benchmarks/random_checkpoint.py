"""Checkpoints of any size with random weights, for benchmarks and load tests.

    python -m benchmarks.random_checkpoint --size 2b --out DIR

Only one shard of weights is in memory at a time. The weights depend on the seed and the kind of device, not on
the shard size. A model with random weights generates nonsense at the speed of a trained one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.random_tokenizers import make_phi3_tokenizer, make_qwen_tokenizer, make_tokenizer
from inference.chat_format.template import jinja_chat_template
from inference.internvl2.checkpoint import MODEL_CODE, share_weights, write_surroundings
from inference.internvl2.configuration_internvl2 import InternVLChatConfig
from inference.internvl2.families import read_family
from inference.internvl2.modeling_internvl2 import InternVLChatModel
from inference.internvl2.tiny import CHECKPOINT
from inference.internvl2.tokenizer import load_tokenizer


@dataclass(frozen=True, slots=True)
class Size:
    """The dimensions of a model.

    Widths are given in features. A `vocabulary` of 0 stands for the tokenizer's size, rounded up to a
    multiple of 64, and a `head` of 0 for the width divided by the number of heads. `language` is the class
    of the language model, and `tied` says whether its output layer shares the weights of the embeddings.
    """

    vision_width: int
    vision_heads: int
    vision_layers: int
    vision_inner: int
    width: int
    heads: int
    kv_heads: int
    layers: int
    inner: int
    vocabulary: int = 0
    image_size: int = 448
    big_vision: bool = False
    max_tiles: int = 12
    language: str = "InternLM2ForCausalLM"
    head: int = 0
    tied: bool = False

    @property
    def internlm2(self) -> bool:
        """Whether the language model is InternLM2."""
        return self.language == "InternLM2ForCausalLM"


_VISION = (1024, 16, 24, 4096)
_QWEN2 = Size(*_VISION, 896, 14, 2, 24, 4864, vocabulary=151655, language="Qwen2ForCausalLM")
_QWEN3 = Size(*_VISION, 1024, 16, 8, 28, 3072, vocabulary=151674, language="Qwen3ForCausalLM", head=128, tied=True)
# The official models with InternLM2, Qwen2, Qwen3 and Phi-3 (arXiv 2407.10671, 2412.15115, 2505.09388, 2404.14219), and
# one for CPU benchmarks (head size 64, as TurboMind needs).
SIZES = {
    "100m": Size(384, 6, 12, 1536, 1024, 16, 8, 8, 2816),
    "2b": Size(1024, 16, 24, 4096, 2048, 16, 8, 24, 8192, vocabulary=92553),
    "8b": Size(1024, 16, 24, 4096, 4096, 32, 8, 32, 14336, vocabulary=92553),
    "26b": Size(3200, 25, 45, 12800, 6144, 48, 8, 48, 16384, vocabulary=92553, big_vision=True),
    "qwen2-1b": _QWEN2,
    "qwen2-4b": replace(_QWEN2, width=2048, heads=16, layers=36, inner=11008, vocabulary=151674),
    "qwen2-8b": replace(_QWEN2, width=3584, heads=28, kv_heads=4, layers=28, inner=18944, vocabulary=151674),
    "qwen3-1b": _QWEN3,
    "qwen3-4b": replace(_QWEN3, width=2560, heads=32, layers=36, inner=9728),
    "qwen3-8b": replace(_QWEN3, width=4096, heads=32, layers=36, inner=12288, tied=False),
    "phi3-4b": Size(*_VISION, 3072, 32, 32, 32, 8192, vocabulary=32020, language="Phi3ForCausalLM"),
}

_TEMPLATES = {"InternLM2ForCausalLM": "internlm2-chat", "Phi3ForCausalLM": "phi3-chat"}


def configuration(size: Size, vocabulary: int) -> InternVLChatConfig:
    """Return a configuration like that of the official models, with the dimensions of `size`."""
    return InternVLChatConfig(
        vision_config={
            "architectures": ["InternVisionModel"],
            "hidden_size": size.vision_width,
            "num_attention_heads": size.vision_heads,
            "num_hidden_layers": size.vision_layers,
            "intermediate_size": size.vision_inner,
            "image_size": size.image_size,
            "norm_type": "rms_norm" if size.big_vision else "layer_norm",
            "qk_normalization": size.big_vision,
            "qkv_bias": not size.big_vision,
        },
        llm_config=_language_model(size, vocabulary),
        force_image_size=size.image_size,
        downsample_ratio=0.5,
        ps_version="v2",
        template=_TEMPLATES.get(size.language, "internvl2_5"),
        dynamic_image_size=True,
        use_thumbnail=True,
        min_dynamic_patch=1,
        max_dynamic_patch=size.max_tiles,
    )


def _language_model(size: Size, vocabulary: int) -> dict[str, Any]:
    fields = {
        "architectures": [size.language],
        "vocab_size": vocabulary,
        "hidden_size": size.width,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "num_hidden_layers": size.layers,
        "intermediate_size": size.inner,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    }
    if size.internlm2:
        return {**fields, "rms_norm_eps": 1e-5, "bias": False, "pad_token_id": 2}
    if size.language == "Phi3ForCausalLM":
        pairs = range(size.width // size.heads // 2)
        factors = {"short_factor": [1 + 0.02 * n for n in pairs], "long_factor": [1 + 1.3 * n for n in pairs]}
        return {
            **fields,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "rope_theta": 10000.0,
            "rope_scaling": {"type": "su", **factors},  # with invented factors
            "sliding_window": 262144,
            "pad_token_id": None,
        }
    return {**fields, **({"head_dim": size.head} if size.head else {}), "tie_word_embeddings": size.tied}


def write_random(
    size: Size,
    directory: Path,
    *,
    tokenizer: Any,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    shard: str = "512MB",
) -> int:
    """Write a complete checkpoint with random weights and return the number of weights.

    Raises:
        ValueError: The tokenizer has more tokens than `size.vocabulary`.
    """
    vocabulary = size.vocabulary or -(-len(tokenizer) // 64) * 64
    if vocabulary < len(tokenizer):
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, more than the vocabulary of {vocabulary}")
    config = configuration(size, vocabulary)
    if size.language == "Phi3ForCausalLM":
        config.llm_config.pad_token_id = tokenizer.pad_token_id
    with torch.device("meta"):
        model = InternVLChatModel(config).to(dtype)
    write_surroundings(config, tokenizer, directory, dtype=dtype)
    template = jinja_chat_template(read_family(directory), "")
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    state = model.state_dict()
    if size.tied:
        del state["language_model.lm_head.weight"]
    plan = split_torch_state_dict_into_shards(state, max_shard_size=shard)
    for file, names in plan.filename_to_tensors.items():
        save_file(_initial_weights(model, names, seed), directory / file, metadata={"format": "pt"})
    share_weights(directory)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return sum(tensor.numel() for tensor in state.values())


def _initial_weights(model: InternVLChatModel, names: Sequence[str], seed: int) -> dict[str, Tensor]:
    """Return the named weights, initialized by the model's own method with a separate seed for each module.

    The GPU is used if there is one, because initializing 2 billion weights on a CPU takes over a minute.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        for name in names:
            path, _, leaf = name.rpartition(".")
            owner = getattr(model, name.split(".", 1)[0])
            initialize = getattr(owner, "_init_weights", model._init_weights)
            module = model.get_submodule(path)
            module.to_empty(device=device, recurse=False)
            torch.manual_seed(zlib.crc32(f"{seed} {path}".encode()))
            initialize(module)
            weights[name] = getattr(module, leaf).detach().cpu()
            module.to_empty(device="meta", recurse=False)
    return weights


def default_tokenizer(size: Size, directory: Path) -> Any:
    """Return the tokenizer for a model of the given size: internvl2-tiny's, or one written to `directory`."""
    if size.internlm2:
        return load_tokenizer(CHECKPOINT)
    return make_phi3_tokenizer(directory) if size.language == "Phi3ForCausalLM" else make_qwen_tokenizer(directory)


def checkpoint(folder: Path, size: str, tiles: int = 12) -> Path:
    """Return the directory of a checkpoint with random weights and at most `tiles` tiles per picture.

    The weights are written on first use.
    """
    directory = folder / f"random-{size}"
    if not (directory / "config.json").is_file():
        vocabulary = folder / "vocabulary"
        known = SIZES[size]
        tokenizer = make_tokenizer(vocabulary) if known.internlm2 else default_tokenizer(known, vocabulary)
        write_random(known, directory, tokenizer=tokenizer)
    set_tiles(directory, tiles)
    return directory


def set_tiles(directory: Path, tiles: int) -> None:
    """Set the maximum number of tiles per picture in the checkpoint's config.json.

    Stock lmdeploy has no other setting for the number of tiles.
    """
    file = directory / "config.json"
    fields = json.loads(file.read_text(encoding="utf-8"))
    fields["max_dynamic_patch"] = tiles
    file.write_text(json.dumps(fields, indent=2), encoding="utf-8")


def official(base: Path, code: Path, folder: Path) -> Path:
    """Return a copy of the checkpoint `base` with the official model code in place of thumbtune's."""
    made = folder / "official"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    for file in base.iterdir():
        if file.name not in MODEL_CODE:
            (made / file.name).symlink_to(file)
    for file in code.glob("*.py"):
        shutil.copyfile(file, made / file.name)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {
        "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
        "AutoModel": "modeling_internvl_chat.InternVLChatModel",
        "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
    }
    (made / "config.json").unlink()
    (made / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return made


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="2b", help="the model to start from (default: 2b)")
    parser.add_argument("--out", type=Path, required=True, help="the output directory, created if missing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--tokenizer",
        type=Path,
        help="a directory with a tokenizer (default: a small one, or that of the language model)",
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument(
        "--shard", default="512MB", help="maximum size of a weight file, which bounds the memory needed"
    )
    for name, value in asdict(SIZES["2b"]).items():
        if type(value) is int:
            parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"instead of the size's {name}")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command-line interface."""
    options = _parser().parse_args(arguments)
    given = {name: getattr(options, name, None) for name in Size.__dataclass_fields__}
    size = replace(SIZES[options.size], **{name: value for name, value in given.items() if value is not None})
    count = write_random(
        size,
        options.out,
        tokenizer=load_tokenizer(options.tokenizer) if options.tokenizer else default_tokenizer(size, options.out),
        seed=options.seed,
        dtype=getattr(torch, options.dtype),
        shard=options.shard,
    )
    print(f"{options.out}: {count:,} random weights in {options.dtype}")


if __name__ == "__main__":
    main()
