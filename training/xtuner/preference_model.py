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
from torch.nn.utils.rnn import pad_sequence
from xtuner.dataset.collate_fns import default_collate_fn

from training.xtuner.accumulation import StepLoop, learned_tokens
from training.xtuner.encoding import IGNORE_INDEX
from training.xtuner.internvl_model import InternVL2
from training.xtuner.objectives import dpo_losses, kto_losses, kto_weights


def collate_answers(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Collate samples as XTuner does, including their second answers."""
    batch: dict[str, Any] = default_collate_fn(samples)
    others = default_collate_fn([{"input_ids": each["other_ids"], "labels": each["other_labels"]} for each in samples])
    batch["data"] |= {
        "other_ids": others["data"]["input_ids"],
        "other_labels": others["data"]["labels"],
        **{name: torch.tensor([each[name] for each in samples]) for name in ("row", "liked", "paired")},
    }
    return batch


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
        features = self.picture_features(data.pop("pixel_values"))
        losses = self._kto(data, features) if self.objective == "kto" else self._dpo(data, features)
        return {"loss": losses.sum() / learned_tokens(data["labels"])}

    def _kto(self, data: dict[str, Any], features: Tensor) -> Tensor:
        found = self._log_probabilities(data["input_ids"], data["labels"], features)
        ratios = found - self.reference[data["row"], 0]
        return kto_losses(ratios, data["liked"], self.kl, self._penalty, self._weights)

    def _dpo(self, data: dict[str, Any], features: Tensor) -> Tensor:
        """Return the DPO loss of each answer, [B].

        Answers without a rejected counterpart are trained by log-likelihood, as in supervised fine-tuning.
        """
        ids, labels = (
            pad_sequence([*data[name], *data[other]], batch_first=True, padding_value=padding)
            for name, other, padding in (("input_ids", "other_ids", 0), ("labels", "other_labels", IGNORE_INDEX))
        )
        chosen, rejected = self._log_probabilities(ids, labels, torch.cat([features, features])).chunk(2)
        known = self.reference[data["row"]]
        pairs = dpo_losses(chosen - known[:, 0], rejected - known[:, 1], self._penalty)
        return torch.where(data["paired"], pairs, -chosen)

    @torch.no_grad()
    def log_probabilities(self, data: dict[str, Any], ids: str = "input_ids", labels: str = "labels") -> Tensor:
        """Return the log-probability of each sample's answer, [B].

        `ids` and `labels` are the keys of the answer's token IDs and labels in `data`, by default those of the
        sample's own answer.
        """
        return self._log_probabilities(data[ids], data[labels], self.picture_features(data["pixel_values"]))

    def _log_probabilities(self, input_ids: Tensor, labels: Tensor, features: Tensor) -> Tensor:
        """Return the log-probability of each row's target tokens taken together, [B]."""
        losses = self.token_losses(input_ids, labels, features)
        row = (labels[:, 1:] != IGNORE_INDEX).nonzero()[:, 0]
        return -losses.new_zeros(len(labels)).index_add(0, row, losses)


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
                both = (model.log_probabilities(data), model.log_probabilities(data, "other_ids", "other_labels"))
                found[data["row"]] = torch.stack(both, dim=1)
        all_reduce(found)
        model.reference.copy_(found)

    def prepare_step(self, batches: Sequence[Any]) -> None:
        """Estimate KTO's reference point from the batches of a step."""
        model = self.model
        if model.objective != "kto":
            return
        with without_dropout(model):
            ratios = [
                model.log_probabilities(data, "other_ids", "other_labels") - model.reference[data["row"], 1]
                for data in map(self._on_device, batches)
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
