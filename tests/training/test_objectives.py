"""The losses of KTO and DPO, checked by hand and against another formula, and the signs of their gradients."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from training.xtuner.objectives import dpo_losses, kto_losses, kto_weights


def test_the_loss_of_kto_by_hand() -> None:
    """The KTO losses for β = 0.5, z₀ = 1, λ_D = 2 and λ_U = 3 equal values computed by hand.

    The value of an answer with the log-ratio r = 1 is half of the maximum. With r = 3, a liked answer's
    value is σ(1) times the maximum, and a disliked one's σ(−1) times.
    """
    ratios, liked = torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([True, True, False, False])
    losses = kto_losses(ratios, liked, 1.0, 0.5, (2.0, 3.0))
    sigmoid = 0.7310585786300049  # σ(1)
    assert losses.tolist() == pytest.approx([1.0, 2 * (1 - sigmoid), 3 * sigmoid, 1.5])


def test_the_loss_of_dpo_by_hand() -> None:
    """DPO's loss is log 2 for equal log-ratios, and log(1 + 1/e) for a margin of 2 with β = 0.5."""
    losses = dpo_losses(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]), 0.5)
    assert losses.tolist() == pytest.approx([math.log(2), math.log(1 + math.exp(-1))])


def test_the_losses_agree_with_another_formula() -> None:
    """The losses of KTO and DPO agree with a formula in terms of probabilities, implemented in numpy.

    The formula uses the odds of the model against the base, to the power β.
    """
    rng = np.random.default_rng(0)
    model, base = rng.uniform(0.01, 0.9, (2, 50)), rng.uniform(0.01, 0.9, (2, 50))
    liked, beta, kl, weights = rng.random(50) < 0.5, 0.3, 0.7, (1.5, 0.8)
    odds = (model / base) ** beta
    reference = math.exp(beta * kl)
    value = np.where(
        liked, weights[0] * odds[0] / (odds[0] + reference), weights[1] * reference / (odds[0] + reference)
    )
    ratios = torch.tensor(np.log(model) - np.log(base))
    found = kto_losses(ratios[0], torch.tensor(liked), kl, beta, weights)
    np.testing.assert_allclose(found.numpy(), np.where(liked, *weights) - value, rtol=1e-9)
    pairs = dpo_losses(ratios[0], ratios[1], beta)
    np.testing.assert_allclose(pairs.numpy(), -np.log(odds[0] / (odds[0] + odds[1])), rtol=1e-9)


def test_a_step_favours_liked_answers() -> None:
    """A step on KTO's loss makes liked answers likelier and disliked ones less likely.

    A step on DPO's loss makes the chosen answer likelier and the rejected one less likely.
    """
    ratios, liked = torch.zeros(2, requires_grad=True), torch.tensor([True, False])
    (slope,) = torch.autograd.grad(kto_losses(ratios, liked, 0.0, 0.1, (1.0, 1.0)).sum(), ratios)
    assert slope.tolist() == pytest.approx([-0.1 / 4, 0.1 / 4])
    pair = torch.zeros(2, requires_grad=True)
    (slope,) = torch.autograd.grad(dpo_losses(pair[:1], pair[1:], 0.1).sum(), pair)
    assert slope.tolist() == pytest.approx([-0.1 / 2, 0.1 / 2])


def test_evaluation_leaves_the_gradients_of_4_bit_weights() -> None:
    """Computing without dropout keeps gradients flowing through 4-bit weights.

    On CPUs with bfloat16 instructions, bitsandbytes repacks weights in evaluation mode, and their gradients
    are lost.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # XTuner's imports, not ours
        from bitsandbytes.nn import Linear4bit

        from training.xtuner.preference_model import without_dropout

    layer = Linear4bit(64, 64, bias=False, quant_type="nf4").to("cpu")
    layer.support_avx512bf16_for_cpu = True
    dropout = torch.nn.Dropout(0.9)
    model = torch.nn.Sequential(layer, dropout)
    with torch.no_grad(), without_dropout(model):
        model(torch.ones(4, 64))
        assert not dropout.training
    assert dropout.training
    given = torch.ones(4, 64, requires_grad=True)
    (slope,) = torch.autograd.grad(layer(given).sum(), given)
    assert slope.abs().sum() > 0


@pytest.mark.parametrize(
    ("liked", "disliked", "weights"),
    [(30, 30, (1, 1)), (30, 10, (1, 3)), (10, 40, (4, 1)), (500, 1, (1, 10)), (20, 0, (1, 1)), (0, 5, (1, 1))],
)
def test_both_kinds_weigh_the_same(liked: int, disliked: int, weights: tuple[float, float]) -> None:
    """Liked and disliked answers have the same total weight.

    To achieve this, each answer of the rarer kind weighs up to ten times as much as one of the other kind.
    """
    assert kto_weights(liked, disliked) == weights
