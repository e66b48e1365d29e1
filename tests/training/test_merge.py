"""Merging adds alpha / rank · B A to each adapted weight W and leaves everything else unchanged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from inference.chat_format.template import jinja_chat_template
from inference.internvl2.checkpoint import load_model
from inference.internvl2.families import INTERNVL2
from inference.internvl2.tiny import CHECKPOINT
from inference.internvl2.tokenizer import load_tokenizer
from storage.model_manifest import write_manifest
from tests.support.lessons import SYSTEM
from training.adapter import WHOLE, Adapter
from training.gate.prompt_parity import disagreement
from training.job import MergeJob, Progress, TrainingError
from training.merge import copy_surroundings, merge

LAYER = "model.layers.0.attention.wqkv"
WEIGHT = f"language_model.{LAYER}.weight"
RANK, ALPHA = 2, 6


def write_adapter(directory: Path, *, layer: str = LAYER, scale: float = 0.1, projector: bool = False) -> Adapter:
    """Write a random adapter in PEFT's format for `layer` of internvl2-tiny, and optionally for the projector."""
    directory.mkdir(exist_ok=True)
    height, width = weights()[WEIGHT].shape
    generator = torch.Generator().manual_seed(1)
    factors = {
        f"base_model.model.{layer}.lora_A.weight": torch.randn(RANK, width, generator=generator) * scale,
        f"base_model.model.{layer}.lora_B.weight": torch.randn(height, RANK, generator=generator) * scale,
    }
    save_file(factors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    if projector:
        save_file({"mlp1.1.bias": weights()["mlp1.1.bias"] + 1}, directory / WHOLE)
    return Adapter(directory)


def weights(directory: Path = CHECKPOINT) -> dict[str, torch.Tensor]:
    """Return all weights of a checkpoint directory."""
    return {name: value for file in directory.glob("*.safetensors") for name, value in load_file(file).items()}


def job(tmp_path: Path, base: Path = CHECKPOINT) -> MergeJob:
    """Return a job that merges the adapter in `tmp_path` into `base`."""
    out = tmp_path / "out"
    out.mkdir()
    return MergeJob("1", str(base), str(tmp_path / "adapter"), str(out), work=str(tmp_path), system=SYSTEM)


def test_the_merged_config_has_the_tiles_of_the_training(tmp_path: Path) -> None:
    """The merged model's configuration has the maximum number of tiles set for training.

    Without a limit, the base model's maximum is kept.
    """
    write_adapter(tmp_path / "adapter")
    merging = job(tmp_path)
    assert merge(replace(merging, tiles=3), lambda _: None).ok
    base, merged = (json.loads((Path(each) / "config.json").read_text()) for each in (CHECKPOINT, merging.out))
    assert merged == {**base, "max_dynamic_patch": 3}
    assert base["max_dynamic_patch"] != 3


def test_the_product_is_added_and_the_rest_unchanged(tmp_path: Path) -> None:
    """Merging changes an adapted weight to W + alpha / rank · B A in its own dtype and replaces the projector.

    All other weights stay bit for bit the same.
    """
    write_adapter(tmp_path / "adapter", projector=True)
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    down, up = (factors[f"base_model.model.{LAYER}.lora_{side}.weight"] for side in "AB")
    said: list[Progress] = []
    merging = job(tmp_path)
    assert merge(merging, said.append).ok
    before, after = weights(), weights(Path(merging.out))
    assert list(after) == list(before)
    expected = (before[WEIGHT].float() + ALPHA / RANK * (up @ down)).to(before[WEIGHT].dtype)
    assert torch.equal(after[WEIGHT], expected)
    assert not torch.equal(after[WEIGHT], before[WEIGHT])
    assert torch.equal(after["mlp1.1.bias"], before["mlp1.1.bias"] + 1)
    for name in before.keys() - {WEIGHT, "mlp1.1.bias"}:
        assert torch.equal(after[name], before[name]), name
    assert said[-1] == Progress("merging", len(before), len(before), seconds_left=0.0)


def test_the_directory_is_complete(tmp_path: Path) -> None:
    """The merged directory has all files of the base except the manifest, and the model can be loaded.

    The files are identical except for the weights and the system prompt.
    """
    base = tmp_path / "base"
    shutil.copytree(CHECKPOINT, base)
    write_manifest(base)
    write_adapter(tmp_path / "adapter")
    merging = job(tmp_path, base)
    merge(merging, lambda progress: None)
    out = Path(merging.out)
    names = {file.name for file in base.iterdir() if file.is_file()} - {"manifest.json"}
    assert {file.name for file in out.iterdir()} == names
    for name in names - {"model.safetensors", "tokenizer_config.json"}:
        assert (out / name).read_bytes() == (base / name).read_bytes(), name
    assert load_tokenizer(out).chat_template == jinja_chat_template(INTERNVL2, SYSTEM)
    assert load_model(out).img_context_token_id == load_model(base).img_context_token_id


def test_a_sharded_base_stays_sharded(tmp_path: Path) -> None:
    """A model merged from a sharded base has weight files with the same names and a valid index."""
    base = tmp_path / "base"
    shutil.copytree(CHECKPOINT, base)
    load_model(CHECKPOINT).save_pretrained(base, max_shard_size="2MB")
    (base / "model.safetensors").unlink()
    shards = sorted(file.name for file in base.glob("*.safetensors"))
    assert len(shards) > 1
    write_adapter(tmp_path / "adapter")
    merging = job(tmp_path, base)
    merge(merging, lambda progress: None)
    assert sorted(file.name for file in Path(merging.out).glob("*.safetensors")) == shards
    assert (Path(merging.out) / "model.safetensors.index.json").is_file()
    assert load_model(merging.out) is not None


def test_an_adapter_of_another_model_is_an_error(tmp_path: Path) -> None:
    """An adapter for a layer that the base lacks raises an error that names the layer, and nothing is merged."""
    write_adapter(tmp_path / "adapter", layer="model.layers.77.attention.wqkv")
    with pytest.raises(TrainingError, match=r"layers\.77"):
        merge(job(tmp_path), lambda progress: None)


def test_an_adapter_is_merged_on_the_device_of_the_weight(tmp_path: Path) -> None:
    """An adapter, which is read into the CPU's memory, can be merged into weights on another device."""
    adapter = write_adapter(tmp_path / "adapter")
    for name in sorted(adapter.names()):
        weight = load_model(CHECKPOINT).get_parameter(name).to("meta")
        assert adapter.applied(name, weight).device == weight.device


def test_a_diverged_adapter_is_an_error(tmp_path: Path) -> None:
    """An adapter with non-finite weights raises an error and does not become a model."""
    adapter = write_adapter(tmp_path / "adapter", scale=float("nan"))
    assert not adapter.finite()
    with pytest.raises(TrainingError, match="not finite"):
        merge(job(tmp_path), lambda progress: None)


def test_other_kinds_of_adapters_are_errors(tmp_path: Path) -> None:
    """An adapter that is not plain LoRA, such as DoRA, raises an error."""
    write_adapter(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_dora": True}))
    with pytest.raises(ValueError, match="not a plain LoRA adapter"):
        Adapter(tmp_path / "adapter")


def test_a_directory_with_other_prompts_is_found(tmp_path: Path) -> None:
    """Two model directories disagree if their tokenizers split text differently or their chat templates differ.

    A directory and its copy agree.
    """
    other = tmp_path / "other"
    shutil.copytree(CHECKPOINT, other)
    assert disagreement(CHECKPOINT, other, SYSTEM) == ""
    config = other / "tokenizer_config.json"
    written = json.loads(config.read_text(encoding="utf-8"))
    template = written["chat_template"]
    config.write_text(json.dumps({**written, "chat_template": template.replace("assistant", "bot")}))
    assert "chat template" in disagreement(CHECKPOINT, other, SYSTEM)
    config.write_text(json.dumps(written))
    pieces = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    pieces["model"]["merges"] = []
    (other / "tokenizer.json").write_text(json.dumps(pieces))
    assert "tokenizers" in disagreement(CHECKPOINT, other, SYSTEM)


def test_a_merged_checkpoint_keeps_its_family(tmp_path: Path) -> None:
    """A merged InternVL2.5 checkpoint keeps its chat template and produces the same token IDs as its base."""
    base = Path(shutil.copytree(CHECKPOINT, tmp_path / "base"))
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps(config | {"template": "internvl2_5"}), encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    copy_surroundings(base, out, SYSTEM)
    assert disagreement(base, out, SYSTEM) == ""
    assert disagreement(CHECKPOINT, out, SYSTEM) == "", "a candidate of another family than the live model's is judged"
    shutil.copy(CHECKPOINT / "tokenizer_config.json", out)
    assert disagreement(base, out, SYSTEM).startswith("the chat template of")
