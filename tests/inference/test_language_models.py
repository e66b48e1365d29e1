"""Checkpoints whose language model is Qwen2, Qwen3 or Phi-3: InternVL2-1B and 4B, and small InternVL2.5 to 3.5."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    GenerationConfig,
    LlamaTokenizer,
    Phi3Config,
    Phi3ForCausalLM,
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
from inference.internvl2.configuration_internvl2 import InternVLChatConfig
from inference.internvl2.families import HERMES_2, INTERNVL2_5, LANGUAGE_MODELS, PHI3, read_family
from inference.internvl2.growing_cache import GrowingCache, JointCache
from inference.internvl2.tile_grid import Tiling
from inference.internvl2.tokenizer import load_tokenizer, text_decoder
from inference.messages import Prompt, Role, Sampling, Turn
from tests.support.small_checkpoints import write_small

MODELS: dict[str, dict[str, Any]] = {
    "qwen2": {"size": "qwen2-1b"},
    "qwen3": {"size": "qwen3-8b", "head": 24},
    "qwen3 with tied embeddings": {"size": "qwen3-1b", "head": 24},
    "phi3": {"size": "phi3-4b"},
}
LEGACY_PHI3: dict[str, Any] = {"size": "phi3-4b", "legacy": True}
SHORT = {"original_max_position_embeddings": 32, "max_position_embeddings": 1024}
"""Fields of a Phi-3 that uses its long rotary factors above 32 positions."""


@pytest.fixture(params=MODELS.values(), ids=list(MODELS))
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The directory of a small checkpoint with random weights."""
    return write_small(tmp_path / "checkpoint", **request.param)


def test_the_checkpoint_is_complete(checkpoint: Path) -> None:
    """A checkpoint with the files of its official tokenizer is complete without a tokenizer.json."""
    assert problems(checkpoint) == []
    for name in ("merges.txt", "tokenizer.model"):
        (checkpoint / name).unlink(missing_ok=True)
    assert problems(checkpoint) == ["tokenizer.json, tokenizer.model, or vocab.json with merges.txt is missing"]
    with pytest.raises(FileNotFoundError, match="has no tokenizer"):
        load_tokenizer(checkpoint)


def test_logits_are_those_of_the_language_model(checkpoint: Path) -> None:
    """The logits equal those of transformers' own model, loaded under the official names of the weights."""
    model = load_model(checkpoint, dtype=torch.float32)
    prefix = "language_model."
    stored = {name.removeprefix(prefix): each for name, each in load_file(checkpoint / "model.safetensors").items()
              if name.startswith(prefix)}  # fmt: skip
    fields = json.loads((checkpoint / "config.json").read_text())["llm_config"]
    kinds = {
        "Qwen2ForCausalLM": (Qwen2ForCausalLM, Qwen2Config),
        "Qwen3ForCausalLM": (Qwen3ForCausalLM, Qwen3Config),
        "Phi3ForCausalLM": (Phi3ForCausalLM, Phi3Config),
    }
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


_PHI3_TALK = (
    "<|system|>\nS<|end|><|user|>\n<img><IMG_CONTEXT></img>\nWhat is it?<|end|>"
    "<|assistant|>\nA cat.<|end|><|user|>\nSure?<|end|><|assistant|>\n"
)


@pytest.mark.parametrize(
    ("kind", "official"),
    [
        (
            {"family": HERMES_2},
            "<|im_start|>system\nS<|im_end|><|im_start|>user\n<img><IMG_CONTEXT></img>\nWhat is it?<|im_end|>"
            "<|im_start|>assistant\nA cat.<|im_end|><|im_start|>user\nSure?<|im_end|><|im_start|>assistant\n",
        ),
        (
            {"family": INTERNVL2_5},
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n<img><IMG_CONTEXT></img>\nWhat is it?<|im_end|>\n"
            "<|im_start|>assistant\nA cat.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n",
        ),
        ({"size": "phi3-4b"}, _PHI3_TALK),
        (LEGACY_PHI3, _PHI3_TALK),
    ],
    ids=["Hermes-2", "internvl2_5", "phi3-chat", "phi3-chat, legacy"],
)
def test_token_ids_are_those_of_the_official_conversation(kind: dict[str, Any], official: str, tmp_path: Path) -> None:
    """The token IDs equal those of the official format, for the official tokenizer class and for other servers'."""
    directory = write_small(tmp_path, **kind)
    family = read_family(directory)
    talk = (
        Turn(Role.USER, "What is it?", (sample_picture(),)),
        Turn(Role.ASSISTANT, "A cat."),
        Turn(Role.USER, "Sure?"),
    )
    ids, spans = token_ids(Prompt("S", talk, chat=""), [1], load_tokenizer(directory), family)
    tokenizer = (LlamaTokenizer if family is PHI3 else Qwen2Tokenizer).from_pretrained(directory)
    assert ids == tokenizer(official).input_ids == AutoTokenizer.from_pretrained(directory)(official).input_ids
    assert [ids[each.start] for each in spans] == [tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")]


@pytest.mark.parametrize(
    "kind", [{}, {"saved_whole": True}, {"size": "phi3-4b"}, LEGACY_PHI3], ids=["files", "whole", "phi3", "phi3 legacy"]
)
def test_the_context_window_counts_the_same_tokens(kind: dict[str, Any], tmp_path: Path) -> None:
    """The bot, which does not import transformers, counts as many tokens as the engine reads."""
    options = {**kind}
    saved_whole = options.pop("saved_whole", False)
    directory = write_small(tmp_path, **options)
    family = read_family(directory)
    tokenizer = load_tokenizer(directory)
    if saved_whole:
        tokenizer.backend_tokenizer.save(str(directory / "tokenizer.json"))
    window = Window(directory)
    for text in (
        "What is it?",
        "  It's 2026:\n\n\tcafe\u0301 ☕️ 好的，三只猫！ ",
        "a" * 50,
        "'LL we\r\n  see",
        "<|x|>▁ ▁",
    ):
        prompt = Prompt(text, (Turn(Role.USER, text, (sample_picture(),)), Turn(Role.USER, text)), chat="")
        size = window.count(prompt)
        ids, _ = token_ids(prompt, [1], tokenizer, family)
        one = window.count(Prompt(text, prompt.turns[1:], chat=""))
        none, _ = token_ids(Prompt(text, prompt.turns[1:], chat=""), [], tokenizer, family)
        assert one == len(none)
        assert (
            size - len(ids)
            == Tiling.from_config(json.loads((directory / "config.json").read_text())).count_tokens(
                *picture_size(sample_picture().data)
            )
            - 1
        )
        assert size <= upper_bound(prompt, size - len(ids) + 1)


@pytest.mark.parametrize(
    ("size", "official"),
    [("qwen2-1b", ("<|im_end|>", "<|endoftext|>")), ("phi3-4b", ("<|end|>", "<|assistant|>", "<|endoftext|>"))],
    ids=["qwen2", "phi3"],
)
@pytest.mark.parametrize("listed", [None, 5, [5, 6]])
def test_the_end_token_of_the_template_ends_an_answer(
    listed: int | list[int] | None, size: str, official: tuple[str, ...], tmp_path: Path
) -> None:
    """An answer ends at the template's end token even if the generation configuration does not list it."""
    tokenizer = load_tokenizer(write_small(tmp_path, size))
    ends = stop_ids(GenerationConfig(eos_token_id=listed), tokenizer)
    assert ends >= {tokenizer.convert_tokens_to_ids(token) for token in official}
    assert ends >= set(listed if isinstance(listed, list) else [] if listed is None else [listed])


def test_a_text_that_normalization_lengthens_is_bounded(tmp_path: Path) -> None:
    """The bound on a prompt's tokens, which is computed without a tokenizer, holds for Qwen's normalization too."""
    prompt = Prompt("S", (Turn(Role.USER, "\U0001d160" * 100),), chat="")
    assert Window(write_small(tmp_path)).count(prompt) <= upper_bound(prompt, 0)


def test_logits_are_float32(tmp_path: Path) -> None:
    """Logits are float32 for any data type of the weights, because sampling sums many small probabilities."""
    model = load_model(write_small(tmp_path), dtype=torch.bfloat16)
    assert model(input_ids=torch.tensor([[1, 2]])).logits.dtype == torch.float32


def test_an_unsupported_language_model_is_a_problem(tmp_path: Path) -> None:
    """A checkpoint with another language model is refused by name, although its chat template is known."""
    directory = write_small(tmp_path)
    file = directory / "config.json"
    config = json.loads(file.read_text())
    config["llm_config"]["architectures"] = ["LlamaForCausalLM"]
    file.write_text(json.dumps(config))
    (problem,) = problems(directory)
    assert problem.startswith("its language model is LlamaForCausalLM, but only InternLM2ForCausalLM, ")


def test_a_follow_up_uses_the_cache(checkpoint: Path) -> None:
    """The CPU engine answers a question about a picture, and uses its cache for a follow-up."""
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


@torch.inference_mode()
def test_conversations_of_different_lengths_in_one_batch(checkpoint: Path) -> None:
    """The logits after a further token of several conversations equal those of each conversation alone."""
    model = load_model(checkpoint)
    ids = torch.arange(100, 100 + 20)[None]
    lengths = (5, 19, 12)
    caches = [GrowingCache() for _ in lengths]
    for cache, length in zip(caches, lengths, strict=True):
        model(input_ids=ids[:, :length], past_key_values=cache)
    for step in range(2):
        joint = JointCache(caches)
        tokens = torch.tensor([[50], [60], [70]]) + step
        output = model(
            input_ids=tokens,
            attention_mask=joint.mask,
            position_ids=joint.lengths[:, None],
            past_key_values=joint,
        )
        for row, length in enumerate(lengths):
            before = ids[0, :length].tolist() + [int(tokens[row, 0]) - step + each for each in range(step + 1)]
            alone = model(input_ids=torch.tensor([before])).logits[0, -1]
            torch.testing.assert_close(output.logits[row, -1], alone, rtol=0, atol=1e-5)
    assert [int(each.get_seq_length()) for each in caches] == [each + 2 for each in lengths]


@pytest.mark.parametrize("length", [24, 40])
@torch.inference_mode()
def test_the_parts_of_a_sequence_are_rotated_alike(length: int, tmp_path: Path) -> None:
    """A sequence computed in parts has the same logits as the whole, with the short and with the long factors.

    The logits of the whole sequence equal those of transformers' own model.
    """
    model = load_model(write_small(tmp_path, "phi3-4b", llm=SHORT))
    ids = torch.arange(100, 100 + length)[None]
    whole = model(input_ids=ids).logits
    cache = GrowingCache()
    model.expect(length)
    parts = [model(input_ids=ids[:, at : at + 8], past_key_values=cache).logits for at in range(0, length, 8)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-5)
    alone: Any = Phi3ForCausalLM(model.config.llm_config).eval()
    alone.load_state_dict(model.language_model.state_dict())
    torch.testing.assert_close(alone(input_ids=ids).logits, whole, rtol=0, atol=1e-5)


def test_an_answer_that_makes_a_chat_long(tmp_path: Path) -> None:
    """If prompt and answer together are long, all positions are rotated with the factors for long sequences.

    Keys and values of the earlier, short chat are not used.
    """
    directory = write_small(tmp_path, "phi3-4b", llm=SHORT)
    tokenizer, model = load_tokenizer(directory), load_model(directory)
    with torch.no_grad():
        for weight in model.language_model.parameters():
            weight *= 6  # with smaller weights, answers hardly depend on positions
    question = (Turn(Role.USER, "What is it? A dog?"),)
    engine = ChatEngine(model, tokenizer, cache_bytes=10**8)
    try:
        prepared = [
            engine.preprocessor.prepare(
                Prompt("S", question, chat="", sampling=Sampling(temperature=0, max_new_tokens=n))
            )
            for n in (1, 30, 30)
        ]
        answers = [engine.answer(each) for each in prepared]
    finally:
        engine.close()
    ids = prepared[0].ids
    assert len(ids) < SHORT["original_max_position_embeddings"] < len(ids) + 30
    assert [result.usage.cached_tokens for _, result in answers] == [0, 0, len(ids) - 1]
    expected = list(ids)
    model.expect(len(ids) + 30)
    with torch.inference_mode():
        for _ in range(30):
            expected.append(int(model(input_ids=torch.tensor([expected])).logits[0, -1].argmax()))
    assert [text for text, _ in answers[1:]] == [text_decoder(tokenizer)(expected[len(ids) :])] * 2


def test_short_and_long_chats_at_once(tmp_path: Path) -> None:
    """A short and a long chat that are answered at the same time get the answers that each gets alone."""
    directory = write_small(tmp_path, "phi3-4b", llm=SHORT)
    tokenizer, model = load_tokenizer(directory), load_model(directory)
    with torch.no_grad():
        for weight in model.language_model.parameters():
            weight *= 6  # with smaller weights, answers hardly depend on positions
    engine = ChatEngine(model, tokenizer, cache_bytes=0)
    try:
        prompts = [
            Prompt("S", (Turn(Role.USER, "A dog?"),), chat="", sampling=Sampling(temperature=0, max_new_tokens=n))
            for n in (12, 30)
        ]
        assert len(engine.preprocessor.prepare(prompts[0]).ids) + 12 <= SHORT["original_max_position_embeddings"]
        alone = [engine.answer(engine.preprocessor.prepare(each))[0] for each in prompts]
        with ThreadPoolExecutor() as pool:
            together = list(pool.map(lambda each: engine.answer(engine.preprocessor.prepare(each))[0], prompts))
    finally:
        engine.close()
    assert together == alone
    assert not alone[1].startswith(alone[0])


def test_another_scaling_of_positions_is_refused() -> None:
    """A Phi-3 with YaRN scaling is refused, because transformers would silently compute LongRoPE."""
    fields = {"architectures": ["Phi3ForCausalLM"], "rope_scaling": {"type": "yarn"}}
    with pytest.raises(ValueError, match="yarn"):
        InternVLChatConfig(llm_config=fields)


@pytest.mark.parametrize(
    "literal",
    [
        *("<|endoftext|>", "<|vision_start|>", "<|object_ref_end|>", "<|fim_pad|>", "</tool_call>", "<think>"),
        *("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|placeholder1|>", "<|placeholder6|>"),
    ],
)
def test_the_special_tokens_of_qwen_and_phi3_are_broken_up(literal: str) -> None:
    """A literal that the tokenizers of Qwen or Phi-3 read as a special token becomes plain text."""
    assert literal not in harmless(f"Say {literal}!")
    assert harmless(f"Say {literal}!").replace("\u2060", "") == f"Say {literal}!"


@pytest.mark.parametrize("kind", [{"size": "phi3-4b"}, LEGACY_PHI3], ids=["phi3", "phi3 legacy"])
def test_no_token_of_phi3_is_special_in_a_text(kind: dict[str, Any], tmp_path: Path) -> None:
    """No token that a user writes out is read as a special token."""
    tokenizer = load_tokenizer(write_small(tmp_path, **kind))
    text = harmless(" ".join(tokenizer.get_added_vocab()))
    assert max(tokenizer(text, add_special_tokens=False).input_ids) < tokenizer.vocab_size
    assert "<unk>" not in tokenizer.tokenize(text)


def test_every_supported_language_model_has_a_class() -> None:
    """The checks accept exactly the language models that the configuration and the model can build."""
    assert LANGUAGE_MODELS == configuration_internvl2.LANGUAGE_MODELS
