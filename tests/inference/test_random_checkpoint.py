"""Checkpoints with random weights are complete, reproducible and of the requested size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.random_checkpoint import SIZES, Size, configuration, main, write_random
from benchmarks.random_tokenizers import make_phi3_tokenizer
from inference.internvl2.checkpoint import load_model, write_surroundings
from inference.internvl2.modeling_internvl2 import InternVLChatModel
from inference.internvl2.tokenizer import load_tokenizer

TOKENIZER = Path(__file__).parents[1] / "golden" / "internlm2_tokenizer"
SMALL = Size(64, 1, 2, 96, 128, 2, 1, 2, 160, image_size=56, max_tiles=3)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    """Return all weights of a checkpoint, whether they are stored in one file or several."""
    found: dict[str, torch.Tensor] = {}
    for file in directory.glob("*.safetensors"):
        found.update(load_file(file))
    return found


def test_command_writes_a_model_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The checkpoint written by the command has the given dimensions, loads and generates tokens."""
    widths = {
        "vision-width": 64, "vision-heads": 1, "vision-layers": 2, "vision-inner": 96, "width": 128, "heads": 2,
        "kv-heads": 1, "layers": 2, "inner": 160, "vocabulary": 640, "image-size": 56, "max-tiles": 3,
    }  # fmt: skip
    options = [part for name, value in widths.items() for part in (f"--{name}", str(value))]
    main(["--size", "100m", "--out", str(tmp_path), "--tokenizer", str(TOKENIZER), *options])
    model = load_model(tmp_path)
    printed = capsys.readouterr().out
    assert f"{sum(p.numel() for p in model.parameters()):,} random weights in bfloat16" in printed
    assert model.dtype == torch.bfloat16
    assert model.config.llm_config.vocab_size == 640
    assert model.config.max_dynamic_patch == 3
    made = model.generate(input_ids=torch.tensor([[1, 5, 6]]), max_new_tokens=2, do_sample=False)
    assert made.shape == (1, 2)


def test_weights_depend_on_the_seed_only(tmp_path: Path) -> None:
    """The same seed gives the same weights for any shard size; another seed gives different weights."""
    tokenizer = load_tokenizer(TOKENIZER)
    count = write_random(SMALL, tmp_path / "one", tokenizer=tokenizer, seed=3)
    write_random(SMALL, tmp_path / "many", tokenizer=tokenizer, seed=3, shard="50KB")
    write_random(SMALL, tmp_path / "other", tokenizer=tokenizer, seed=4)
    one, many, other = (weights(tmp_path / name) for name in ("one", "many", "other"))
    assert sum(value.numel() for value in one.values()) == count
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)
    assert not torch.equal(one["language_model.output.weight"], other["language_model.output.weight"])
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    assert load_model(tmp_path / "many").num_image_token == 4


def test_weights_are_the_model_s_initial_ones(tmp_path: Path) -> None:
    """Norm weights are one, biases zero, matrices have the configured standard deviation, and layers differ."""
    write_random(SMALL, tmp_path, tokenizer=load_tokenizer(TOKENIZER), dtype=torch.float32)
    found = weights(tmp_path)
    assert torch.all(found["language_model.model.norm.weight"] == 1)
    assert torch.all(found["mlp1.3.bias"] == 0)
    assert found["vision_model.encoder.layers.1.ls1"].tolist() == pytest.approx([0.1] * SMALL.vision_width)
    for name in ("mlp1.1.weight", "vision_model.embeddings.position_embedding", "language_model.output.weight"):
        assert found[name].std().item() == pytest.approx(0.02, rel=0.05)
    layers = [found[f"language_model.model.layers.{n}.attention.wqkv.weight"] for n in range(2)]
    assert not torch.equal(*layers)


def test_the_vocabulary_must_hold_the_tokenizer(tmp_path: Path) -> None:
    """A vocabulary smaller than the tokenizer's is refused; the default is the tokenizer's size, rounded up."""
    tokenizer = load_tokenizer(TOKENIZER)
    with pytest.raises(ValueError, match="485 tokens, more than the vocabulary of 300"):
        write_random(Size(64, 1, 1, 64, 64, 1, 1, 1, 64, vocabulary=300), tmp_path, tokenizer=tokenizer)
    write_random(SMALL, tmp_path / "rounded", tokenizer=tokenizer)
    assert json.loads((tmp_path / "rounded" / "config.json").read_text())["llm_config"]["vocab_size"] == 512


@pytest.mark.parametrize("name", [name for name in SIZES if name not in ("26b", "phi3-4b")])
def test_sizes_suit_turbomind(name: str) -> None:
    """As TurboMind requires, vision and language attention heads have size 64 or 128; the pixel shuffle is v2."""
    config = configuration(SIZES[name], SIZES[name].vocabulary or 92553)
    assert config.vision_config.hidden_size // config.vision_config.num_attention_heads in (64, 128)
    width = config.llm_config.hidden_size // config.llm_config.num_attention_heads
    assert (SIZES[name].head or width) in (64, 128)
    assert config.ps_version == "v2"
    assert config.vision_config.image_size == config.force_image_size == 448


def test_phi3_has_its_official_size(tmp_path: Path) -> None:
    """The size phi3-4b has the official number of weights, special tokens, and name of the position embedding."""
    size = SIZES["phi3-4b"]
    tokenizer = make_phi3_tokenizer(tmp_path)
    official = {
        "<|endoftext|>": 32000, "<|assistant|>": 32001, "<|system|>": 32006, "<|end|>": 32007, "<|user|>": 32010,
        "<img>": 32011, "<IMG_CONTEXT>": 32013, "</box>": 32019,
    }  # fmt: skip
    assert official.items() <= tokenizer.get_added_vocab().items()
    assert len(tokenizer) == size.vocabulary
    config = configuration(size, size.vocabulary)
    with torch.device("meta"):
        model = InternVLChatModel(config)
    # Phi-3-mini has 3,821,079,552 (arXiv 2404.14219: 3.8B) with a vocabulary of 32064, in two matrices.
    language = sum(weight.numel() for weight in model.language_model.parameters())
    assert language == 3_821_079_552 - 2 * (32064 - 32020) * 3072
    write_surroundings(config, tokenizer, tmp_path, dtype=torch.bfloat16)
    written = json.loads((tmp_path / "config.json").read_text())["llm_config"]
    assert (written["rope_scaling"]["type"], len(written["rope_scaling"])) == ("su", 3)
