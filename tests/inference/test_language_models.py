"""Checkpoints whose language model is Qwen2 or Qwen3: InternVL2-1B, and the small ones of InternVL2.5, 3 and 3.5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    GenerationConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from inference.chat_format.context_window import Window
from inference.chat_format.template import harmless, upper_bound
from inference.chat_format.token_ids import stop_ids, token_ids
from inference.engines.cpu.engine import ChatEngine
from inference.images.opening import picture_size
from inference.images.sample_picture import sample_picture
from inference.internvl2 import configuration_internvl2
from inference.internvl2.checkpoint import load_model
from inference.internvl2.checkpoint_check import problems
from inference.internvl2.families import HERMES_2, INTERNVL2_5, LANGUAGE_MODELS, ModelFamily
from inference.internvl2.tile_grid import Tiling
from inference.internvl2.tokenizer import load_tokenizer
from inference.messages import Prompt, Role, Sampling, Turn
from tests.support.qwen import write_qwen

MODELS: dict[str, dict[str, Any]] = {
    "qwen2": {"size": "qwen2-1b"},
    "qwen3": {"size": "qwen3-8b", "head": 24},
    "qwen3 with tied embeddings": {"size": "qwen3-1b", "head": 24},
}


@pytest.fixture(params=MODELS.values(), ids=list(MODELS))
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The directory of a small checkpoint with random weights."""
    return write_qwen(tmp_path / "checkpoint", **request.param)


def test_the_checkpoint_is_complete(checkpoint: Path) -> None:
    """A checkpoint with the files of a byte-level BPE tokenizer is complete without a tokenizer.json."""
    assert problems(checkpoint) == []
    (checkpoint / "merges.txt").unlink()
    assert problems(checkpoint) == ["tokenizer.json, tokenizer.model, or vocab.json with merges.txt is missing"]
    with pytest.raises(FileNotFoundError, match="has no tokenizer"):
        load_tokenizer(checkpoint)


def test_logits_are_those_of_the_language_model(checkpoint: Path) -> None:
    """The logits equal those of transformers' own model, loaded by the official names of the weights."""
    model = load_model(checkpoint, dtype=torch.float32)
    prefix = "language_model."
    stored = {name.removeprefix(prefix): each for name, each in load_file(checkpoint / "model.safetensors").items()
              if name.startswith(prefix)}  # fmt: skip
    fields = json.loads((checkpoint / "config.json").read_text())["llm_config"]
    kinds = {"Qwen2ForCausalLM": (Qwen2ForCausalLM, Qwen2Config), "Qwen3ForCausalLM": (Qwen3ForCausalLM, Qwen3Config)}
    reference, configuration = kinds[fields["architectures"][0]]
    alone: Any = reference(configuration(**fields)).eval()
    if fields["tie_word_embeddings"]:
        assert "lm_head.weight" not in stored
        stored["lm_head.weight"] = stored["model.embed_tokens.weight"]
    alone.load_state_dict(stored)
    token = model.img_context_token_id
    ids = torch.tensor([[7, 9, *([token] * model.num_image_token), 11, 12]])
    with torch.no_grad():
        features = model.extract_feature(torch.randn(1, 3, 56, 56))
        embeds = alone.get_input_embeddings()(ids)
        embeds[0, 2:-2] = features[0]
        torch.testing.assert_close(
            model(inputs_embeds=model.embed(ids, features)).logits, alone(inputs_embeds=embeds).logits.float(),
            rtol=0, atol=1e-4,
        )  # fmt: skip


def test_other_software_loads_the_checkpoint(checkpoint: Path) -> None:
    """transformers' auto classes load the checkpoint with the code in its directory."""
    loaded = AutoModel.from_pretrained(checkpoint, trust_remote_code=True, dtype=torch.float32)
    mine = load_model(checkpoint, dtype=torch.float32)
    ids = torch.tensor([[7, 9, 11]])
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, mine(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("family", "official"),
    [
        (
            HERMES_2,
            "<|im_start|>system\nS<|im_end|><|im_start|>user\n<img><IMG_CONTEXT></img>\nWhat is it?<|im_end|>"
            "<|im_start|>assistant\nA cat.<|im_end|><|im_start|>user\nSure?<|im_end|><|im_start|>assistant\n",
        ),
        (
            INTERNVL2_5,
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n<img><IMG_CONTEXT></img>\nWhat is it?<|im_end|>\n"
            "<|im_start|>assistant\nA cat.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
    ids=["Hermes-2", "internvl2_5"],
)
def test_token_ids_are_those_of_the_official_conversation(family: ModelFamily, official: str, tmp_path: Path) -> None:
    """The token IDs equal those of the official format, which has no `<s>`, by the official tokenizer's class."""
    directory = write_qwen(tmp_path, family=family)
    talk = (
        Turn(Role.USER, "What is it?", (sample_picture(),)),
        Turn(Role.ASSISTANT, "A cat."),
        Turn(Role.USER, "Sure?"),
    )
    ids, spans = token_ids(Prompt("S", talk, chat=""), [1], load_tokenizer(directory), family)
    tokenizer = Qwen2Tokenizer.from_pretrained(directory)
    assert ids == tokenizer(official).input_ids
    assert [ids[each.start] for each in spans] == [tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")]


@pytest.mark.parametrize("saved_whole", [False, True])
def test_the_context_window_counts_the_same_tokens(saved_whole: bool, tmp_path: Path) -> None:
    """The bot, which has no transformers loaded, counts as many tokens as the engine will read."""
    directory = write_qwen(tmp_path)
    tokenizer = load_tokenizer(directory)
    if saved_whole:
        tokenizer.backend_tokenizer.save(str(directory / "tokenizer.json"))
    window = Window(directory)
    for text in ("What is it?", "  It's 2026:\n\n\tcafe\u0301 ☕️ 好的，三只猫！ ", "a" * 50, "'LL we\r\n  see"):
        prompt = Prompt(text, (Turn(Role.USER, text, (sample_picture(),)), Turn(Role.USER, text)), chat="")
        size = window.count(prompt)
        ids, _ = token_ids(prompt, [1], tokenizer, INTERNVL2_5)
        one = window.count(Prompt(text, prompt.turns[1:], chat=""))
        none, _ = token_ids(Prompt(text, prompt.turns[1:], chat=""), [], tokenizer, INTERNVL2_5)
        assert one == len(none)
        assert (
            size - len(ids)
            == Tiling.from_config(json.loads((directory / "config.json").read_text())).count_tokens(
                *picture_size(sample_picture().data)
            )
            - 1
        )


@pytest.mark.parametrize("listed", [None, 5, [5, 6]])
def test_the_end_token_of_the_template_ends_an_answer(listed: int | list[int] | None, tmp_path: Path) -> None:
    """An answer ends at `<|im_end|>` even if the generation configuration does not list it."""
    tokenizer = load_tokenizer(write_qwen(tmp_path))
    ends = stop_ids(GenerationConfig(eos_token_id=listed), tokenizer)
    assert ends >= {tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")}
    assert ends >= set(listed if isinstance(listed, list) else [] if listed is None else [listed])


def test_a_text_that_normalization_lengthens_is_bounded(tmp_path: Path) -> None:
    """The bound on a prompt's tokens, which is computed without a tokenizer, holds for Qwen's normalization too."""
    prompt = Prompt("S", (Turn(Role.USER, "\U0001d160" * 100),), chat="")
    assert Window(write_qwen(tmp_path)).count(prompt) <= upper_bound(prompt, 0)


def test_logits_are_float32(tmp_path: Path) -> None:
    """Logits are float32 for any data type of the weights, because sampling sums many small probabilities."""
    model = load_model(write_qwen(tmp_path), dtype=torch.bfloat16)
    assert model(input_ids=torch.tensor([[1, 2]])).logits.dtype == torch.float32


def test_an_unsupported_language_model_is_a_problem(tmp_path: Path) -> None:
    """A checkpoint with another language model is refused by name, although its chat template is known."""
    directory = write_qwen(tmp_path)
    file = directory / "config.json"
    config = json.loads(file.read_text())
    config["llm_config"]["architectures"] = ["LlamaForCausalLM"]
    file.write_text(json.dumps(config))
    (problem,) = problems(directory)
    assert problem.startswith("its language model is LlamaForCausalLM, and only InternLM2ForCausalLM, ")


def test_a_chat_goes_on(checkpoint: Path) -> None:
    """The CPU engine answers a question about a picture, and a follow-up from its cache."""
    engine = ChatEngine.open(checkpoint, dtype=torch.float32, cache_bytes=10**8)
    try:
        question = Turn(Role.USER, "What is this?", (sample_picture(),))
        sampling = Sampling(temperature=0, max_new_tokens=8)
        first, result = engine.answer(engine.preprocessor.prepare(Prompt("S", (question,), chat="", sampling=sampling)))
        talk = (question, Turn(Role.ASSISTANT, first), Turn(Role.USER, "Sure?"))
        _, further = engine.answer(engine.preprocessor.prepare(Prompt("S", talk, chat="", sampling=sampling)))
    finally:
        engine.close()
    assert result.usage.completion_tokens and further.usage.cached_tokens >= result.usage.prompt_tokens
    assert further.usage.encoded_tiles == 0


@pytest.mark.parametrize(
    "literal", ["<|endoftext|>", "<|vision_start|>", "<|object_ref_end|>", "<|fim_pad|>", "</tool_call>", "<think>"]
)
def test_the_special_tokens_of_qwen_are_broken_up(literal: str) -> None:
    """A literal that Qwen's tokenizers read as a special token becomes plain text."""
    assert literal not in harmless(f"Say {literal}!")
    assert harmless(f"Say {literal}!").replace("\u2060", "") == f"Say {literal}!"


def test_every_supported_language_model_has_a_class() -> None:
    """The names that the checks accept are those that the configuration and the model can build."""
    assert LANGUAGE_MODELS == configuration_internvl2.LANGUAGE_MODELS
