"""Our InternVL2 model: its results compared with those of the official code, and further properties."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig

from inference.internvl2.configuration_internvl2 import InternVLChatConfig
from inference.internvl2.layers_internvl2 import attend_one
from inference.internvl2.modeling_internvl2 import InternVLChatModel
from tests.golden import internvl2_cases as cases

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "internvl2.npz")
NAMES = tuple(cases.CASES)
TOLERANCE = 1e-5
NEVER = cases.VOCABULARY  # an end token without a logit


def build(name: str) -> Any:
    """Return the model of the golden case `name`, in evaluation mode."""
    model = InternVLChatModel(InternVLChatConfig(**copy.deepcopy(cases.CASES[name])))
    model.load_state_dict(cases.weights(model.state_dict()))
    model.img_context_token_id = cases.PICTURE
    return model.eval()


def pixels(model: Any) -> Tensor:
    """Return the pixel values of the golden tiles at the tile size of `model`."""
    return cases.pixel_values(model.config.force_image_size)


def error(ours: Tensor, official: NDArray[np.float32]) -> float:
    """Return the largest difference between two tensors, relative to the largest official value."""
    return float(np.abs(ours.detach().numpy() - official).max() / np.abs(official).max())


def first_row(model: Any) -> Tensor:
    """Return the embeddings [1, N, width] of the golden batch's first row, including its pictures."""
    ids = cases.batch(model.num_image_token)[0][:1]
    embeds: Tensor = model.embed(ids, model.extract_feature(pixels(model)[:2]))
    return embeds


@pytest.mark.parametrize("name", NAMES)
def test_features_equal_the_official_ones(name: str) -> None:
    """Picture features equal the official ones in all golden cases.

    The cases cover both norms, queries and keys with and without normalization, both pixel shuffles, and
    resampled positions.
    """
    model = build(name)
    with torch.no_grad():
        assert error(model.extract_feature(pixels(model)), GOLDEN[f"{name}.features"]) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_logits_loss_and_gradients_equal_the_official_ones(name: str) -> None:
    """Logits, loss and gradients equal the official ones for a padded batch with pictures."""
    model = build(name)
    ids, mask, positions, labels = cases.batch(model.num_image_token)
    output = model(
        pixel_values=pixels(model), input_ids=ids, attention_mask=mask, position_ids=positions,
        image_flags=torch.ones(cases.TILES, 1), labels=labels,
    )  # fmt: skip
    output.loss.backward()
    real = mask.bool()
    assert error(output.logits[real], GOLDEN[f"{name}.logits"][real.numpy()]) < TOLERANCE
    assert output.loss.item() == pytest.approx(GOLDEN[f"{name}.loss"].item(), rel=TOLERANCE)
    for part in ("vision_model", "mlp1", "language_model"):
        norms = [p.grad.norm() for p in getattr(model, part).parameters() if p.grad is not None]
        assert torch.stack(norms).norm().item() == pytest.approx(GOLDEN[f"{name}.gradient.{part}"].item(), rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_cached_logits_equal_the_official_ones(name: str) -> None:
    """Logits of ten tokens, computed one by one after a prefill, equal the official ones.

    In one case the rotary base changes with each token.
    """
    model = build(name)
    with torch.no_grad():
        embeds = first_row(model)
        start = cases.LENGTH - 10
        cache = model.language_model(inputs_embeds=embeds[:, :start], use_cache=True).past_key_values
        logits = [
            model.language_model(inputs_embeds=embeds[:, at : at + 1], past_key_values=cache, use_cache=True).logits
            for at in range(start, cases.LENGTH)
        ]
    assert error(torch.cat(logits, dim=1), GOLDEN[f"{name}.cached"]) < TOLERANCE


def test_the_rotary_base_depends_on_the_call_only() -> None:
    """A short text has the same logits before and after a text beyond the trained positions is processed."""
    model = build("beyond_positions").language_model
    short, long = torch.arange(3, 13)[None], torch.arange(3, 43)[None]
    with torch.no_grad():
        before = model(input_ids=short).logits
        model(input_ids=long)
        assert torch.equal(model(input_ids=short).logits, before)


def test_prefill_in_pieces_equals_prefill_at_once() -> None:
    """Embeddings added to a cache piece by piece give the same logits as the whole text processed at once."""
    model = build("internvl2")
    with torch.no_grad():
        embeds = first_row(model)
        whole = model.language_model(inputs_embeds=embeds).logits
        cache = None
        for low, high in ((0, 7), (7, 8), (8, 30), (30, cases.LENGTH)):
            output = model.language_model(inputs_embeds=embeds[:, low:high], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            torch.testing.assert_close(output.logits, whole[:, low:high], rtol=1e-4, atol=1e-5)


def test_legacy_caches_are_accepted() -> None:
    """A tuple of keys and values per layer, as used by older code, is accepted as a cache."""
    model = build("internvl2").language_model
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        cache = model(input_ids=ids[:, :12]).past_key_values
        legacy = tuple((layer.keys, layer.values) for layer in cache.layers)
        rest = model(input_ids=ids[:, 12:], past_key_values=legacy).logits
    torch.testing.assert_close(rest, whole[:, 12:], rtol=1e-4, atol=1e-5)


def test_logits_to_keep() -> None:
    """With `logits_to_keep`, only the last logits or those at the given positions are computed."""
    model = build("internvl2").language_model
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        last = model(input_ids=ids, logits_to_keep=1).logits
        some = model(input_ids=ids, logits_to_keep=torch.tensor([4, 9])).logits
    assert last.shape[1] == 1
    torch.testing.assert_close(last, whole[:, -1:])
    torch.testing.assert_close(some, whole[:, [4, 9]])
    with pytest.raises(ValueError, match="logits_to_keep"):
        model(input_ids=ids, labels=ids, logits_to_keep=1)


def test_hidden_states_are_optional() -> None:
    """The hidden states of all layers are returned on request.

    The embeddings come first, and the input of the output layer comes last.
    """
    model = build("internvl2")
    ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        output = model(input_ids=ids, output_hidden_states=True)
        assert len(output.hidden_states) == 4
        assert torch.equal(output.hidden_states[0], model.embed(ids, None))
        torch.testing.assert_close(model.language_model.output(output.hidden_states[-1]), output.logits)
        assert model(input_ids=ids).hidden_states is None
        vision = model.vision_model(pixels(model), output_hidden_states=True)
        assert len(vision.hidden_states) == 4
        assert torch.equal(vision.hidden_states[-1], vision.last_hidden_state)


def test_greedy_generation_follows_the_logits() -> None:
    """Greedy generation chooses the most likely token at each step and returns only new tokens."""
    model = build("internvl2")
    ids = cases.batch(model.num_image_token)[0][:1]
    tiles = pixels(model)[:2]
    made = model.generate(pixel_values=tiles, input_ids=ids, max_new_tokens=6, do_sample=False, eos_token_id=NEVER)
    grown = ids
    with torch.no_grad():
        for _ in range(6):
            logits = model(pixel_values=tiles, input_ids=grown).logits
            grown = torch.cat([grown, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(made, grown[:, ids.shape[1] :])


def test_generate_accepts_features_instead_of_pixels() -> None:
    """`generate` gives the same answer for precomputed picture features as for the tiles."""
    model = build("internvl2")
    ids = cases.batch(model.num_image_token)[0][:1]
    tiles = pixels(model)[:2]
    settings = GenerationConfig(max_new_tokens=5, do_sample=False, pad_token_id=2)
    by_tiles = model.generate(pixel_values=tiles, input_ids=ids, generation_config=settings)
    features = model.extract_feature(tiles)
    assert torch.equal(by_tiles, model.generate(visual_features=features, input_ids=ids, generation_config=settings))


@pytest.mark.parametrize("name", NAMES[:3])
def test_padded_rows_generate_the_same_tokens_as_alone(name: str) -> None:
    """Each row of a left-padded batch generates the same tokens as on its own, even with beam search."""
    model = build(name)
    ids, mask, _, _ = cases.batch(model.num_image_token)
    tiles = pixels(model)
    for beams in (1, 2):
        settings = {
            "max_new_tokens": 4,
            "do_sample": False,
            "pad_token_id": 2,
            "num_beams": beams,
            "eos_token_id": NEVER,
        }
        together = model.generate(pixel_values=tiles, input_ids=ids, attention_mask=mask, **settings)
        first = model.generate(pixel_values=tiles[:2], input_ids=ids[:1], **settings)
        second = model.generate(pixel_values=tiles[2:], input_ids=ids[1:, mask[1].bool()], **settings)
        assert torch.equal(together, torch.cat([first, second]))


def test_generate_without_a_picture_stops_at_the_end_token() -> None:
    """Without a picture, `generate` stops at the end token of the model's generation configuration."""
    model = build("internvl2")
    ids = torch.arange(3, 13)[None]
    free = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False, eos_token_id=NEVER)
    model.generation_config = GenerationConfig(eos_token_id=[int(free[0, 1])], pad_token_id=2, max_new_tokens=4)
    stopped = model.generate(input_ids=ids)
    assert torch.equal(stopped, free[:, :2])


def test_features_must_match_the_picture_tokens() -> None:
    """If the numbers of picture tokens and picture features differ, an error states both numbers."""
    model = build("internvl2")
    ids = cases.batch(model.num_image_token)[0][:1]
    with pytest.raises(ValueError, match="8 <IMG_CONTEXT> tokens for 12 picture features"):
        model(pixel_values=pixels(model), input_ids=ids)
    model.img_context_token_id = None
    with pytest.raises(ValueError, match="img_context_token_id"):
        model(pixel_values=pixels(model), input_ids=ids)


def test_flagged_tiles_are_ignored() -> None:
    """Tiles flagged 0, such as those of text-only samples, have no effect on the logits."""
    model = build("internvl2")
    ids = cases.batch(model.num_image_token)[0][:1]
    with torch.no_grad():
        plain = model(pixel_values=pixels(model)[:2], input_ids=ids).logits
        flagged = model(pixel_values=pixels(model), input_ids=ids, image_flags=torch.tensor([1, 1, 0])).logits
    torch.testing.assert_close(flagged, plain)


@pytest.mark.parametrize(
    "trained",
    ["", "vision_model.encoder.layers.0.attn.qkv.weight", "language_model.model.layers.0.attention.wqkv.weight"],
)
def test_gradient_checkpointing_changes_no_gradient(trained: str) -> None:
    """Gradient checkpointing changes no gradient, whether all weights are trained or only one.

    The single weight comes after frozen weights, as in LoRA training.
    """

    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        model = build("internvl2").train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained in name)
        if checkpointing:
            model.gradient_checkpointing_enable()
        ids, mask, positions, labels = cases.batch(model.num_image_token)
        model(
            pixel_values=pixels(model), input_ids=ids, attention_mask=mask, position_ids=positions, labels=labels
        ).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(checkpointing=False), gradients(checkpointing=True)
    assert plain.keys() == checkpointed.keys()
    assert len(plain) == (1 if trained else len(list(build("internvl2").parameters())))
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, rtol=1e-4, atol=1e-6)


def test_stochastic_depth_applies_in_training_only() -> None:
    """Stochastic depth drops branches at random in training, but never in evaluation."""
    fields = copy.deepcopy(cases.CASES["internvl2"])
    fields["vision_config"]["drop_path_rate"] = 0.5
    model = InternVLChatModel(InternVLChatConfig(**fields))
    model.load_state_dict(cases.weights(model.state_dict()))
    with torch.no_grad():
        features = model.eval().extract_feature(pixels(model))
        assert error(features, GOLDEN["internvl2.features"]) < TOLERANCE
        torch.manual_seed(0)
        assert not torch.equal(model.train().extract_feature(pixels(model)), features)


def test_bfloat16_is_close() -> None:
    """Logits computed in bfloat16 are close to logits computed in float32."""
    model = build("internvl2")
    ids = cases.batch(model.num_image_token)[0][:1]
    with torch.no_grad():
        exact = model(pixel_values=pixels(model)[:2], input_ids=ids).logits
        rough = model.to(torch.bfloat16)(pixel_values=pixels(model)[:2], input_ids=ids).logits
    assert rough.dtype == torch.float32
    assert float((rough - exact).norm() / exact.norm()) < 0.05


def test_invalid_arguments_are_refused() -> None:
    """Invalid arguments raise an error.

    The cases are a call without input IDs or embeddings, a request for attention weights, a mask that is too
    short, and pixels without a batch dimension.
    """
    model = build("internvl2")
    ids = torch.arange(3, 13)[None]
    with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
        model.language_model()
    with pytest.raises(ValueError, match="attention weights"):
        model.language_model(input_ids=ids, output_attentions=True)
    with pytest.raises(ValueError, match="attention_mask covers 4 of 10"):
        model.language_model(input_ids=ids, attention_mask=torch.tensor([[0, 1, 1, 1]]))
    with pytest.raises(ValueError, match="batch of tiles"):
        model.extract_feature(torch.zeros(3, 56, 56))


@pytest.mark.parametrize("boolean", [True, False])
def test_the_attention_of_one_query_equals_torchs(boolean: bool) -> None:
    """The code path for single queries, used on a GPU, gives the same result as scaled_dot_product_attention."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 6, 1, 8), torch.randn(3, 2, 20, 8)[:, :, :11], torch.randn(3, 2, 20, 8)[:, :, :11]
    mask = torch.rand(3, 1, 1, 11) < 0.7
    given = mask if boolean else torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(attend_one(q, k, v, given), expected)
