"""Checkpoint directories in the official layout: read one into a model, write one complete.

A written directory loads through `inference.internvl2`, through transformers' auto classes (our model code travels
with it), through XTuner and through lmdeploy. Knows nothing of prompts: the chat template is handed in.
"""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PretrainedConfig

from inference.internvl2.configuration_internvl2 import InternVLChatConfig
from inference.internvl2.modeling_internvl2 import InternVLChatModel
from inference.internvl2.tiles import IMAGENET_MEAN, IMAGENET_STD
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
    """The model of a checkpoint directory, in evaluation mode, its picture token set from the tokenizer beside it.

    `dtype` None keeps the stored type. No code from the directory runs. Raises ValueError if weights are missing,
    of other shapes than the configuration says, or not ours, or if the language model is not InternLM2.
    """
    model, report = InternVLChatModel.from_pretrained(
        directory, dtype="auto" if dtype is None else dtype, output_loading_info=True
    )
    for complaint in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if report[complaint]:
            few = ", ".join(str(key) for key in sorted(report[complaint])[:5])
            raise ValueError(f"{directory}: {len(report[complaint])} {complaint.replace('_', ' ')}: {few} …")
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
    """Write a complete checkpoint of `model` and its tokenizer into `directory` (made if missing).

    One `model.safetensors`, or several with an index above `max_shard_size`. `chat_template` (Jinja) replaces the
    tokenizer's own. Raises ValueError if the tokenizer lacks InternVL2's special tokens.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    write_surroundings(model.config, tokenizer, directory, dtype=model.dtype, chat_template=chat_template)
    share_weights(directory)


def share_weights(directory: Path) -> None:
    """Give the weight files, which safetensors writes for their owner alone, the permissions of config.json."""
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
    """Write everything of a checkpoint but its weights. As `write_checkpoint`."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    ends = [token_id(tokenizer, token) for token in END_TOKENS]
    token_id(tokenizer, PICTURE_TOKEN)
    fields = _official_fields(config, dtype)
    fields["llm_config"].update(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
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
    """Put the present model code into a checkpoint directory, and the tokenizer's where it needs code."""
    needed = [*MODEL_CODE]
    if (directory / "tokenizer.model").is_file() and not (directory / "tokenizer.json").is_file():
        needed.append(TOKENIZER_CODE)
    for name in needed:
        shutil.copyfile(Path(__file__).parent / name, directory / name)


def _write_tokenizer(tokenizer: Any, directory: Path, chat_template: str | None) -> None:
    """Save the tokenizer; the chat template goes into tokenizer_config.json, where every reader looks."""
    tokenizer.save_pretrained(directory, save_jinja_files=False)
    path = directory / "tokenizer_config.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    written.pop("auto_map", None)
    written["model_input_names"] = ["input_ids", "attention_mask"]
    if chat_template is not None:
        written["chat_template"] = chat_template
    if not tokenizer.is_fast:
        written["auto_map"] = {"AutoTokenizer": [f"{Path(TOKENIZER_CODE).stem}.InternLM2Tokenizer", None]}
    _write_json(path, written)


def _official_fields(config: InternVLChatConfig, dtype: torch.dtype) -> dict[str, Any]:
    """config.json as the official checkpoints write it: every field in full, for readers with other defaults."""
    fields = _all_fields(config)
    fields["vision_config"] = _all_fields(config.vision_config)
    fields["llm_config"] = _all_fields(config.llm_config)
    fields["architectures"] = ["InternVLChatModel"]
    fields["vision_config"]["architectures"] = ["InternVisionModel"]
    fields["llm_config"]["architectures"] = ["InternLM2ForCausalLM"]
    for part in (fields, fields["vision_config"], fields["llm_config"]):
        part.pop("dtype", None)
        # Understood by every version of transformers; "dtype" only since 4.56.
        part["torch_dtype"] = str(dtype).removeprefix("torch.")
    fields["auto_map"] = AUTO_MAP
    return fields


def _all_fields(config: PretrainedConfig) -> dict[str, Any]:
    """The parameters of a configuration's constructor, defaults included, and whatever else it was given."""
    named = [name for name in inspect.signature(type(config).__init__).parameters if hasattr(config, name)]
    fields = {name: getattr(config, name) for name in named}
    fields.update(config.to_diff_dict())
    fields["model_type"] = config.model_type
    return fields


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
