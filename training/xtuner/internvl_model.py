"""Worker: InternVL2 as XTuner trains it, fast and small.

Knows XTuner's `InternVL_V1_5` (quantisation, adapters, checkpoints are its own) and our model code, which the
directory it is pointed at carries. Leaves adapted layers to `lora`, the frozen vision tower to `features`, how much is
recomputed to `checkpointing`, data to `dataset` and numbers to `recipe`.

XTuner computes in float16 with float32 between the layers, attends with a mask, makes logits of every position, and
trains the projector in bfloat16, whose steps swallow small updates. Here what is frozen and what flows is bfloat16 on a
GPU (float32 on a CPU), what is trained is float32, attention is causal and nothing else, and logits are made where
something is learned.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from xtuner.model import InternVL_V1_5

from inference.internvl2.modeling_internvl2 import unprojected
from training.xtuner.activation_checkpointing import Checkpointing, layers_to_recompute
from training.xtuner.encoding import UNLEARNED
from training.xtuner.gpu_yield import Courtesy
from training.xtuner.lora import fused
from training.xtuner.vision_cache import Tower, precision


class InternVL2(InternVL_V1_5):
    """Low-rank adapters on linear layers of the language model, in NF4 or not, or the whole of it trained; low-rank
    adapters on those of the vision tower, or none of it trained; the projector trained or not.

    `tokens` is the greatest number of tokens in a batch; `checkpointing` says what is recomputed in the backward pass;
    `courtesy` is the file that says when an engine on the same machine goes first, if there is one.
    """

    def __init__(
        self,
        *,
        model_path: str,
        projector: bool = True,
        checkpointing: Checkpointing = "auto",
        tokens: int = 0,
        courtesy: str = "",
        **stock: Any,
    ) -> None:
        super().__init__(model_path=model_path, **stock)
        for module in self.model.modules():
            if isinstance(module, Linear4bit):
                module.compute_dtype = precision()
        self.model.mlp1.requires_grad_(projector)
        for weight in self.parameters():
            if weight.is_floating_point():
                weight.data = weight.data.to(torch.float32 if weight.requires_grad else precision())
        self._path = Path(model_path)
        self._tower: Tower | None = None
        if not any(weight.requires_grad for weight in self.model.vision_model.parameters()):
            # What it makes of most pictures lies in a file; for others `Tower` is loaded when the first one comes.
            self.model.vision_model = None
        # Trained in float32, computed in bfloat16; adapted layers see to that themselves.
        autocast = torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_available())
        self._around_eyes = autocast
        self._around_language = nullcontext() if self.use_llm_lora else autocast
        self._language.gradient_checkpointing_enable({"use_reentrant": False})
        recomputed = layers_to_recompute(self, self._language.config, tokens, checkpointing)
        self._language.model.checkpointed = recomputed
        self._courtesy = Courtesy.of(courtesy)
        if self._courtesy is not None:
            self._courtesy.attach(self._language.model.layers)

    @property
    def _language(self) -> Any:
        """InternLM2, with its adapters in place."""
        return self.model.language_model.get_base_model() if self.use_llm_lora else self.model.language_model

    def _parse_lora_config(self, lora_config: Any) -> Any:
        return fused(super()._parse_lora_config(lora_config))

    def forward(self, data: dict[str, Any], data_samples: Any = None, mode: str = "loss") -> dict[str, Tensor]:
        """The mean loss over the learned tokens of a batch.

        `input_ids` and `labels` are [B, N], padded on the right; `pixel_values` has for each sample either tiles
        [T, 3, S, S] or the vision tower's features [T, tokens, width]. Raises ValueError where those do not fill the
        picture tokens exactly; XTuner's own shifts them with a warning.
        """
        labels = data["labels"]
        # Taken out of the batch, so that it is gone before the language model needs the room.
        seen = torch.cat([self._seen(each) for each in data.pop("pixel_values")])
        with self._around_eyes:
            features = self._project(seen)
        with self._around_language:
            embeds = self.model.embed(data["input_ids"], features).to(precision())
            # Padding comes last: no token sees it, so attention needs no mask.
            hidden = self._language.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
            wanted = labels[:, 1:] != UNLEARNED
            logits = self._language.output(hidden[:, :-1][wanted])
        return {"loss": cross_entropy(logits.float(), labels[:, 1:][wanted])}

    def _project(self, seen: Tensor) -> Tensor:
        """Behind the projector; its own activations are kept if all layers keep theirs."""
        if not self._language.model.checkpointed:
            return self.model.mlp1(seen)
        return checkpoint(self.model.mlp1, seen, use_reentrant=False)

    def _seen(self, given: Tensor) -> Tensor:
        """Features of one sample, from its features or its tiles."""
        if given.dim() == 3:
            return given.to(precision())
        if self.model.vision_model is not None:
            return unprojected(self.model.vision_model, self.model.config, given.to(precision()))
        if self._tower is None:
            self._tower = Tower(self._path, self._courtesy)
        return self._tower(given)
