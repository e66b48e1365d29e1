"""The KTO and DPO losses, which compare the model's log-probabilities of answers with the base model's.

A log-ratio is log p_model(y|x) − log p_base(y|x), summed over the tokens of the answer.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor, where
from torch.nn.functional import logsigmoid

_MOST_UNEVEN: Final = 10.0
"""The largest weight of an answer. The KTO paper leaves out up to nine in ten liked answers."""


def kto_losses(ratios: Tensor, liked: Tensor, kl: float, penalty: float, weights: tuple[float, float]) -> Tensor:
    """Return the loss of each answer, [B].

    The value of an answer is λ_D σ(β(r − z₀)) if it is liked and λ_U σ(β(z₀ − r)) otherwise. The loss is λ,
    the largest possible value, minus the answer's value (Ethayarajh et al. 2024, KTO, arXiv 2402.01306).

    Args:
        ratios: The log-ratios r, [B].
        liked: Whether each answer is liked, [B] bool.
        kl: The reference point z₀: an estimate of the divergence from the base model, at least 0, without
            gradient.
        penalty: β.
        weights: λ_D and λ_U.
    """
    margins = penalty * (ratios - kl)
    desirable, undesirable = weights
    return where(liked, desirable * (-margins).sigmoid(), undesirable * margins.sigmoid())


def kto_weights(liked: int, disliked: int) -> tuple[float, float]:
    """Return λ_D and λ_U, which give liked and disliked answers the same total weight.

    The weights satisfy λ_D n_D = λ_U n_U, the lower end of the range in the KTO paper. The more common kind
    of answer has a weight of 1, and the rarer kind at most 10.
    """
    if not liked or not disliked:
        return 1.0, 1.0
    return max(1.0, min(disliked / liked, _MOST_UNEVEN)), max(1.0, min(liked / disliked, _MOST_UNEVEN))


def dpo_losses(chosen: Tensor, rejected: Tensor, penalty: float) -> Tensor:
    """Return the loss of each pair, [B]: −log σ(β(r_chosen − r_rejected)).

    Source: Rafailov et al. 2023, DPO, arXiv 2305.18290.

    Args:
        chosen: The log-ratios of the preferred answers, [B].
        rejected: The log-ratios of the rejected answers, [B].
        penalty: β.
    """
    return -logsigmoid(penalty * (chosen - rejected))
