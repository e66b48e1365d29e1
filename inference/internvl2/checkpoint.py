"""Loading and writing of InternVL2 checkpoint directories in the official layout.

A written directory can be loaded by `inference.internvl2`, by transformers' auto classes (the directory
contains the model code), by XTuner and by lmdeploy.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from inference.internvl2.checkpoint_check import has_llama_tokenizer
from inference.internvl2.configuration_internvl2 import InternVLChatConfig
from inference.internvl2.modeling_internvl2 import InternVLChatModel
from inference.internvl2.tiles import IMAGENET_MEAN, IMAGENET_STD
from inference.internvl2.tokenization_internlm2 import InternLM2Tokenizer
from inference.internvl2.tokenizer import END_TOKENS, PICTURE_TOKEN, load_tokenizer, token_id

MODEL_CODE = (
    "configuration_internvl2.py",
    "layers_internvl2.py",
    "modeling_internvl2.py",
    "modeling_intern_vit.py",
    "modeling_internlm2.py",
)
TOKENIZER_CODE = "tokenization_internlm2.py"
AUTO_MAP = {
    "AutoConfig": "configuration_internvl2.InternVLChatConfig",
    "AutoModel": "modeling_internvl2.InternVLChatModel",
    "AutoModelForCausalLM": "modeling_internvl2.InternVLChatModel",
}


def load_model(
    directory: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> InternVLChatModel:
    """Load a checkpoint's model in evaluation mode.

    The ID of the picture token is taken from the checkpoint's tokenizer. No code from the directory is run.

    Args:
        directory: The checkpoint.
        dtype: The data type of the weights, or None for the stored type.
        device: The device of the model.

    Raises:
        ValueError: Weights are missing, unexpected or of the wrong shape, or the language model is not
            supported.
    """
    model, report = InternVLChatModel.from_pretrained(
        directory, dtype="auto" if dtype is None else dtype, output_loading_info=True
    )
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if report[kind]:
            few = ", ".join(str(key) for key in sorted(report[kind])[:5])
            raise ValueError(f"{directory}: {len(report[kind])} {kind.replace('_', ' ')}: {few} …")
    model.img_context_token_id = token_id(load_tokenizer(directory), PICTURE_TOKEN)
    return model.to(device).eval()


def write_checkpoint(
    model: InternVLChatModel,
    tokenizer: Any,
    directory: str | Path,
    *,
    chat_template: str | None = None,
    max_shard_size: str = "5GB",
) -> None:
    """Write a complete checkpoint of `model` and its tokenizer.

    Args:
        model: The model.
        tokenizer: The model's tokenizer.
        directory: The directory, created if missing.
        chat_template: A Jinja template that replaces the tokenizer's own template.
        max_shard_size: The size above which the weights are split into several files with an index.

    Raises:
        ValueError: The tokenizer lacks InternVL2's special tokens.
    """
    directory = Path(directory)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    write_surroundings(model.config, tokenizer, directory, dtype=model.dtype, chat_template=chat_template)
    share_weights(directory)


def share_weights(directory: Path) -> None:
    """Give the weight files the same permissions as config.json.

    By default, safetensors makes files readable by their owner only.
    """
    mode = (directory / "config.json").stat().st_mode
    for file in directory.glob("*.safetensors"):
        file.chmod(mode)


def write_surroundings(
    config: InternVLChatConfig,
    tokenizer: Any,
    directory: str | Path,
    *,
    dtype: torch.dtype,
    chat_template: str | None = None,
) -> None:
    """Write all files of a checkpoint except its weights; see `write_checkpoint` for the arguments."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    known = tokenizer.get_added_vocab()
    ends = [known[token] for token in END_TOKENS if token in known] or [token_id(tokenizer, END_TOKENS[0])]
    token_id(tokenizer, PICTURE_TOKEN)
    fields = _official_fields(config, dtype)
    marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    fields["llm_config"].update({name: number for name, number in marks.items() if number is not None})
    _write_json(directory / "config.json", fields)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    ).save_pretrained(directory)
    side = config.force_image_size or config.vision_config.image_size
    _write_json(
        directory / "preprocessor_config.json",
        {
            "crop_size": side,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": list(IMAGENET_MEAN),
            "image_std": list(IMAGENET_STD),
            "resample": 3,
            "size": side,
        },
    )
    _write_tokenizer(tokenizer, directory, chat_template)
    copy_code(directory)


def copy_code(directory: Path) -> None:
    """Copy the model code into a checkpoint directory, and the tokenizer's code if the tokenizer needs it."""
    needed = [*MODEL_CODE]
    whole = has_llama_tokenizer(directory) or (directory / "tokenizer.json").is_file()
    if (directory / "tokenizer.model").is_file() and not whole:
        needed.append(TOKENIZER_CODE)
    for name in needed:
        with suppress(shutil.SameFileError):  # internvl2-tiny's directory contains links to the code
            shutil.copyfile(Path(__file__).parent / name, directory / name)


def _write_tokenizer(tokenizer: Any, directory: Path, chat_template: str | None) -> None:
    """Save the tokenizer, with the chat template in tokenizer_config.json, which every loader reads."""
    tokenizer.save_pretrained(directory, save_jinja_files=False)
    path = directory / "tokenizer_config.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    written.pop("auto_map", None)
    written["model_input_names"] = ["input_ids", "attention_mask"]
    if chat_template is not None:
        written["chat_template"] = chat_template
    if isinstance(tokenizer, InternLM2Tokenizer):
        written["auto_map"] = {"AutoTokenizer": [f"{Path(TOKENIZER_CODE).stem}.InternLM2Tokenizer", None]}
    _write_json(path, written)


def _official_fields(config: InternVLChatConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Return the content of config.json with every field of InternVL2, as in official checkpoints.

    Every field is written because loaders assume different defaults. Only the fields that transformers adds
    to every configuration are left out, by `to_diff_dict`.
    """
    fields = config.to_diff_dict()
    fields["vision_config"] = config.vision_config.to_diff_dict()
    fields["llm_config"] = config.llm_config.to_diff_dict()
    fields["architectures"] = ["InternVLChatModel"]
    fields["vision_config"]["architectures"] = ["InternVisionModel"]
    scaling = fields["llm_config"].get("rope_scaling") or {}
    if scaling.get("type") == "longrope":
        # The official Phi-3 code accepts only transformers' older name; transformers itself accepts both.
        fields["llm_config"]["rope_scaling"] = {**scaling, "type": "su"}
    for part in (fields, fields["vision_config"], fields["llm_config"]):
        part.pop("dtype", None)
        # All versions of transformers read this field; only 4.56 and later read "dtype".
        part["torch_dtype"] = str(dtype).removeprefix("torch.")
    fields["auto_map"] = AUTO_MAP
    return fields


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
