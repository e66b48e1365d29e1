"""Writing and loading checkpoint directories of InternVL2 models."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.random_checkpoint import SIZES, configuration
from inference.internvl2.checkpoint import MODEL_CODE, load_model, write_checkpoint
from inference.internvl2.configuration_internvl2 import InternVLChatConfig
from inference.internvl2.modeling_internvl2 import InternVLChatModel
from inference.internvl2.tokenizer import load_tokenizer, token_id
from tests.golden import internvl2_cases as cases

TOKENIZER = Path(__file__).parents[1] / "golden" / "internlm2_tokenizer"
ROOT = Path(__file__).parents[2]


def fields() -> dict[str, Any]:
    """Return the configuration of a small model with a vocabulary that fits the test tokenizer."""
    found = copy.deepcopy(cases.CASES["internvl2"])
    found["llm_config"]["vocab_size"] = 512
    found.update(dynamic_image_size=True, use_thumbnail=True, max_dynamic_patch=4)
    return found


@pytest.fixture
def model() -> Any:
    """A small model with random weights."""
    torch.manual_seed(0)
    return InternVLChatModel(InternVLChatConfig(**fields())).eval()


def logits(model: Any) -> torch.Tensor:
    """Return the logits of `model` for a fixed prompt with a picture."""
    token = model.img_context_token_id
    ids = torch.tensor([[1, 7, 9, *([token] * model.num_image_token), 11, 12]])
    with torch.no_grad():
        found: torch.Tensor = model(pixel_values=cases.pixel_values(56)[:1], input_ids=ids).logits
    return found


def test_a_written_checkpoint_loads_unchanged(model: Any, tmp_path: Path) -> None:
    """A checkpoint written and loaded again gives the same logits and has the tokenizer's picture token."""
    tokenizer = load_tokenizer(TOKENIZER)
    write_checkpoint(model, tokenizer, tmp_path)
    again = load_model(tmp_path)
    model.img_context_token_id = token_id(tokenizer, "<IMG_CONTEXT>")
    assert torch.equal(logits(again), logits(model))
    assert load_model(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert not again.training


def test_layout_is_the_official_one(model: Any, tmp_path: Path) -> None:
    """A written checkpoint has all the files of an official one.

    It also has the end tokens and configuration fields that other loaders need.
    """
    tokenizer = load_tokenizer(TOKENIZER)
    write_checkpoint(model, tokenizer, tmp_path, chat_template="{{ messages }}")
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {
        *MODEL_CODE, "config.json", "generation_config.json", "preprocessor_config.json", "model.safetensors",
        "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "tokenization_internlm2.py",
    }  # fmt: skip
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [token_id(tokenizer, name) for name in ("<|im_end|>", "<|im_start|>")]
    described = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert described["chat_template"] == "{{ messages }}"
    assert described["model_input_names"] == ["input_ids", "attention_mask"]
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "config.json").stat().st_mode
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["size"] == 56
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["InternVLChatModel"]
    assert config["auto_map"]["AutoModel"] == "modeling_internvl2.InternVLChatModel"
    assert config["llm_config"]["architectures"] == ["InternLM2ForCausalLM"]
    assert config["llm_config"]["rope_scaling"] == {"type": "dynamic", "factor": 2.0}
    assert config["llm_config"]["use_cache"] is True, "defaults are written out"
    assert config["vision_config"]["hidden_act"] == "gelu"
    assert {part["torch_dtype"] for part in (config, config["llm_config"], config["vision_config"])} == {"float32"}
    expected = {"vision_model.embeddings.class_embedding", "mlp1.3.bias", "language_model.output.weight"}
    assert expected <= load_file(tmp_path / "model.safetensors").keys()


AUTO = """
import sys, torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
directory = sys.argv[1]
torch.set_num_threads(int(sys.argv[3]))  # with other threads, sums are rounded differently
assert "inference" not in sys.modules
config = AutoConfig.from_pretrained(directory, trust_remote_code=True)
assert type(config).__name__ == "InternVLChatConfig" and config.llm_config.vocab_size == 512
for fast in (True, False):
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=True, use_fast=fast)
    assert type(tokenizer).__name__ == "InternLM2Tokenizer"
token = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
expected = torch.load(sys.argv[2])
for auto in (AutoModel, AutoModelForCausalLM):
    model = auto.from_pretrained(directory, trust_remote_code=True, config=config).eval()
    model.img_context_token_id = token
    ids = torch.tensor([[1, 7, 9, *([token] * model.num_image_token), 11, 12]])
    with torch.no_grad():
        assert torch.equal(model(pixel_values=expected["pixels"], input_ids=ids).logits, expected["logits"])
made = model.generate(pixel_values=expected["pixels"], input_ids=ids, max_new_tokens=3, do_sample=False)
assert made.shape[1] <= 3
ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"])
assert model.generation_config.eos_token_id == ends
sys.stdout.write("loaded")
"""


def test_auto_classes_load_it_without_this_package(model: Any, tmp_path: Path) -> None:
    """In another process, transformers' auto classes load a written checkpoint with the checkpoint's own code."""
    checkpoint = tmp_path / "checkpoint"
    tokenizer = load_tokenizer(TOKENIZER)
    write_checkpoint(model, tokenizer, checkpoint)
    model.img_context_token_id = token_id(tokenizer, "<IMG_CONTEXT>")
    torch.save({"pixels": cases.pixel_values(56)[:1], "logits": logits(model)}, tmp_path / "expected.pt")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    arguments = [str(checkpoint), str(tmp_path / "expected.pt"), str(torch.get_num_threads())]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", AUTO, *arguments],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout == "loaded", done.stderr


def test_large_checkpoints_are_sharded(model: Any, tmp_path: Path) -> None:
    """A checkpoint larger than the shard size is written as several weight files with an index."""
    write_checkpoint(model, load_tokenizer(TOKENIZER), tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    again = load_model(tmp_path)
    model.img_context_token_id = again.img_context_token_id
    assert torch.equal(logits(again), logits(model))


def test_official_fields_are_kept(tmp_path: Path) -> None:
    """A config.json with unused and older official fields can be read, and writing it keeps these fields."""
    official = fields()
    official.update(_name_or_path="OpenGVLab/InternVL2-2B", torch_dtype="bfloat16", transformers_version=None)
    official["auto_map"] = {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"}
    official["system_message"] = "hello"
    official["llm_config"].update(attn_implementation="flash_attention_2", top_k=50, is_encoder_decoder=False)
    official["vision_config"].update(use_flash_attn=True, num_beams=1, _attn_implementation_autoset=True)
    (tmp_path / "config.json").write_text(json.dumps({**official, "model_type": "internvl_chat"}))
    config = InternVLChatConfig.from_pretrained(tmp_path)
    assert config.system_message == "hello"
    model = InternVLChatModel(config)
    assert model.config.vision_config.use_flash_attn is True
    write_checkpoint(model, load_tokenizer(TOKENIZER), tmp_path / "written")
    written = json.loads((tmp_path / "written" / "config.json").read_text())
    assert written["system_message"] == "hello"
    assert written["auto_map"]["AutoConfig"] == "configuration_internvl2.InternVLChatConfig"


@pytest.mark.parametrize("family", ["Phi4ForCausalLM", "LlamaForCausalLM"])
def test_other_language_models_are_refused(family: str, tmp_path: Path) -> None:
    """An unsupported language model raises an error that names the model and the supported ones."""
    official = fields()
    official["llm_config"]["architectures"] = [family]
    (tmp_path / "config.json").write_text(json.dumps({**official, "model_type": "internvl_chat"}))
    with pytest.raises(
        ValueError, match=f"{family}, which is not supported; the supported ones are InternLM2ForCausalLM, Qwen2"
    ):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("llm_config", "rope_scaling", {"type": "yarn", "factor": 2.0}, "rope_scaling"),
        ("llm_config", "rope_scaling", {"type": "linear", "factor": 0.5}, "rope_scaling"),
        ("llm_config", "num_key_value_heads", 3, "divide"),
        ("vision_config", "norm_type", "batch_norm", "norm_type"),
        ("vision_config", "num_attention_heads", 5, "multiple"),
        (None, "use_llm_lora", 16, "not merged"),
        (None, "ps_version", "v3", "ps_version"),
    ],
)
def test_invalid_fields_are_named(part: str | None, field: str, value: object, message: str) -> None:
    """An invalid configuration raises an error that names the field."""
    wrong = fields()
    (wrong if part is None else wrong[part])[field] = value
    with pytest.raises(ValueError, match=message):
        InternVLChatModel(InternVLChatConfig(**wrong))


def test_wrong_weights_are_refused(model: Any, tmp_path: Path) -> None:
    """A missing, unexpected or wrongly shaped weight raises an error that names it."""
    write_checkpoint(model, load_tokenizer(TOKENIZER), tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    save_file({name: value for name, value in whole.items() if name != "mlp1.1.weight"}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"missing keys: mlp1\.1\.weight"):
        load_model(tmp_path)
    save_file({**whole, "mlp1.9.weight": torch.zeros(2)}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"unexpected keys: mlp1\.9\.weight"):
        load_model(tmp_path)
    save_file({**whole, "mlp1.1.weight": torch.zeros(2, 2)}, file, {"format": "pt"})
    with pytest.raises((ValueError, RuntimeError), match=r"mlp1\.1\.weight|mismatch"):
        load_model(tmp_path)


def test_old_rotary_buffers_are_ignored(model: Any, tmp_path: Path) -> None:
    """A checkpoint that contains rotary buffers can be loaded."""
    write_checkpoint(model, load_tokenizer(TOKENIZER), tmp_path)
    file = tmp_path / "model.safetensors"
    buffer = {"language_model.model.layers.0.attention.rotary_emb.inv_freq": torch.zeros(8)}
    save_file({**load_file(file), **buffer}, file, {"format": "pt"})
    assert load_model(tmp_path).num_image_token == 4


def test_a_tokenizer_without_the_picture_token_is_refused(model: Any, tmp_path: Path) -> None:
    """A checkpoint cannot be written with a tokenizer that lacks InternVL2's special tokens."""
    tokenizer = load_tokenizer(TOKENIZER)
    described = tmp_path / "plain"
    tokenizer.save_pretrained(described)
    config = json.loads((described / "tokenizer_config.json").read_text())
    for entry in config["added_tokens_decoder"].values():
        entry["content"] = entry["content"].replace("<IMG_CONTEXT>", "<OTHER>")
    config["additional_special_tokens"] = []
    (described / "tokenizer_config.json").write_text(json.dumps(config))
    for name in ("added_tokens.json", "special_tokens_map.json"):
        (described / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match="<IMG_CONTEXT>"):
        write_checkpoint(model, load_tokenizer(described), tmp_path / "out")


def test_full_size_has_the_official_number_of_weights() -> None:
    """InternVL2-2B has 2,205,754,368 weights with the official names."""
    with torch.device("meta"):
        full = InternVLChatModel(configuration(SIZES["2b"], 92553))
    state = full.state_dict()
    assert sum(weight.numel() for weight in state.values()) == 2_205_754_368
    assert state["language_model.model.layers.23.attention.wqkv.weight"].shape == (4096, 2048)
    assert state["vision_model.encoder.layers.23.attn.qkv.bias"].shape == (3072,)
    assert full.num_image_token == 256
