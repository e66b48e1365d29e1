"""The model and the training loop for KTO and DPO, which compare the trained model with the base model.

Before the first step, the trained model equals the base model: an adapter adds nothing yet, and fully
trained weights have not changed. The base model's log-probabilities of all answers are computed at that
point and kept in the checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from bitsandbytes.nn import Linear4bit
from mmengine.dist import all_reduce, get_rank, get_world_size
from torch import Tensor

from training.xtuner.accumulation import StepLoop, learned_tokens
from training.xtuner.encoding import IGNORE_INDEX
from training.xtuner.internvl_model import InternVL2
from training.xtuner.objectives import dpo_losses, kto_losses, kto_weights
from training.xtuner.packing import pack


def collate_answers(samples: Sequence[dict[str, Any]], objective: Literal["kto", "dpo"]) -> dict[str, Any]:
    """Pack samples with their second answers.

    For DPO, both answers of each sample are in one packed batch: first all chosen answers, whose target tokens
    are in `labels`, then all rejected ones, whose target tokens are in `other_labels`. For KTO, the second answers
    are in a packed batch of their own, `other`.
    """
    names = {"input_ids": "other_ids", "labels": "other_labels", "long": "other_long"}
    others = [{**each, **{name: each[other] for name, other in names.items()}} for each in samples]
    if objective == "dpo":
        data = pack([*samples, *others])
        chosen, labels = data["sample_ids"] < len(samples), data["labels"]
        data["labels"] = labels.where(chosen, IGNORE_INDEX)
        data["other_labels"] = labels.where(~chosen, IGNORE_INDEX)
    else:
        data = pack(samples) | {"other": pack(others)}
    data |= {name: torch.tensor([each[name] for each in samples]) for name in ("row", "liked", "paired")}
    return {"data": data, "data_samples": None}


class PreferenceModel(InternVL2):
    """InternVL2 with the KTO or DPO loss over batches made by `collate_answers`.

    The loss is the sum of the answers' losses divided by the number of target tokens. `StepLoop` then makes
    the loss of a step the sum over its answers divided by its tokens, so that each answer in a step has the
    weight given in the papers.

    Attributes:
        reference: The base model's log-probabilities of the two answers of each row, [rows, 2]; NaN until
            known.
        objective: "kto" or "dpo".
        kl: KTO's reference point for the current step.
    """

    reference: Tensor

    def __init__(
        self, *, objective: Literal["kto", "dpo"], kl_penalty: float, rows: int, disliked: int, **settings: Any
    ) -> None:
        """Load the model.

        Args:
            objective: "kto" or "dpo".
            kl_penalty: The objective's β.
            rows: The number of rows in the dataset.
            disliked: The number of rows with disliked answers.
            **settings: Arguments for `InternVL2`.
        """
        super().__init__(**settings)
        self.objective = objective
        self._penalty = kl_penalty
        self._weights = kto_weights(rows - disliked, disliked)
        self.register_buffer("reference", torch.full((rows, 2), torch.nan))
        self.kl = 0.0

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the trained weights, as XTuner does, together with `reference`."""
        weights: dict[str, Any] = super().state_dict(*args, **kwargs)
        weights["reference"] = self.reference
        return weights

    def forward(self, data: dict[str, Any], data_samples: Any = None, mode: str = "loss") -> dict[str, Tensor]:
        """Return the sum of a batch's answer losses, divided by the number of its target tokens."""
        losses = self._kto(data) if self.objective == "kto" else self._dpo(data)
        return {"loss": losses.sum() / learned_tokens(data["labels"])}

    def _kto(self, data: dict[str, Any]) -> Tensor:
        found = self._answer_log_probabilities(data, len(data["row"]))
        ratios = found - self.reference[data["row"], 0]
        return kto_losses(ratios, data["liked"], self.kl, self._penalty, self._weights)

    def _dpo(self, data: dict[str, Any]) -> Tensor:
        """Return the DPO loss of each answer, [B].

        Answers without a rejected counterpart are trained by log-likelihood, as in supervised fine-tuning.
        """
        chosen, rejected = self._both_answers(data)
        known = self.reference[data["row"]]
        pairs = dpo_losses(chosen - known[:, 0], rejected - known[:, 1], self._penalty)
        return torch.where(data["paired"], pairs, -chosen)

    @torch.no_grad()
    def log_probabilities(self, data: dict[str, Any]) -> Tensor:
        """Return the log-probabilities of both answers of each sample, [B, 2]."""
        if self.objective == "dpo":
            return torch.stack(self._both_answers(data), dim=1)
        return torch.stack([self._answer_log_probabilities(data, len(data["row"])), self.other_answers(data)], dim=1)

    @torch.no_grad()
    def other_answers(self, data: dict[str, Any]) -> Tensor:
        """Return the log-probability of the second answer of each KTO sample, [B]."""
        return self._answer_log_probabilities(data["other"], len(data["row"]))

    def _both_answers(self, data: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of the chosen and the rejected answers of a DPO batch, each [B]."""
        both = {
            **data,
            "labels": data["labels"].maximum(data["other_labels"]),
            "pixel_values": data.pop("pixel_values"),
        }
        chosen, rejected = self._answer_log_probabilities(both, 2 * len(data["row"])).chunk(2)
        return chosen, rejected

    def _answer_log_probabilities(self, packed: dict[str, Any], answers: int) -> Tensor:
        """Return the log-probability of each sample's target tokens taken together, [answers]."""
        losses = self.token_losses(packed)
        owners = packed["sample_ids"][:, 1:][packed["labels"][:, 1:] != IGNORE_INDEX]
        return -losses.new_zeros(answers).index_add(0, owners, losses)


class PreferenceLoop(StepLoop):
    """A training loop that computes the base model's log-probabilities, and KTO's reference point at each step.

    The reference point is the mean log-ratio of mismatched answers (those of other rows), and at least 0.
    The mean is taken before the step, over all its batches and all processes, so that it does not depend on
    the batch size.
    """

    def run(self) -> Any:
        """Run the training, first computing the model's `reference` unless a resumed model already has it."""
        if self.model.reference.isnan().any():
            self._compute_reference()
        return super().run()

    def _compute_reference(self) -> None:
        dataset, model = self.dataloader.dataset, self.model
        found = torch.zeros_like(model.reference)
        with without_dropout(model):
            rows = range(get_rank(), dataset.rows, get_world_size())
            for start in range(0, len(rows), self.dataloader.batch_size):
                samples = [dataset[row] for row in rows[start : start + self.dataloader.batch_size]]
                data = self._on_device(self.dataloader.collate_fn(samples))
                found[data["row"]] = model.log_probabilities(data)
        all_reduce(found)
        model.reference.copy_(found)

    def prepare_step(self, batches: Sequence[Any]) -> None:
        """Estimate KTO's reference point from the batches of a step."""
        model = self.model
        if model.objective != "kto":
            return
        # Only this estimate needs the other answers, so they are not moved to the device again for the step.
        others = ({"data": {"other": each["data"].pop("other"), "row": each["data"]["row"]}} for each in batches)
        with without_dropout(model):
            ratios = [
                model.other_answers(data) - model.reference[data["row"], 1] for data in map(self._on_device, others)
            ]
        # Every process has the same number of samples.
        mean = torch.cat(ratios).mean()
        all_reduce(mean, "mean")
        model.kl = max(0.0, float(mean))

    def _on_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        moved: dict[str, Any] = self.model.data_preprocessor(batch, False)["data"]
        return moved


@contextmanager
def without_dropout(model: torch.nn.Module) -> Iterator[None]:
    """Disable dropout in a model that is being trained, for the duration of the context."""
    model.eval()
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # In evaluation mode on a CPU, bitsandbytes 0.50.2 repacks the weight into a format that has no gradients.
            module.training = True
    try:
        yield
    finally:
        model.train()
