"""Worker: InternVL2 as XTuner trains it, fast and small.

Knows XTuner's `InternVL_V1_5` (quantisation, adapters, checkpoints are its own) and our model code, which the
directory it is pointed at carries. Leaves data to `dataset` and numbers to `recipe`.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers.modeling_outputs import CausalLMOutputWithPast
from xtuner.model import InternVL_V1_5

from training.encoding import UNLEARNED


class InternVL2(InternVL_V1_5):
    """Low-rank adapters on linear layers of the language model, in NF4 or not, or the whole of it trained; low-rank
    adapters on those of the vision tower, or none of it trained.

    XTuner computes in float16 and its stock projector trains in bfloat16, whose steps swallow small updates; here the
    quantised layers compute in bfloat16 on a GPU and in float32 on a CPU, and what is trained is float32.
    """

    def __init__(self, *, projector: bool = True, checkpointing: bool = True, **stock: Any) -> None:
        super().__init__(**stock)
        gpu = torch.cuda.is_available()
        for module in self.model.modules():
            if isinstance(module, Linear4bit):
                module.compute_dtype = torch.bfloat16 if gpu else torch.float32
        self.model.vision_model.to(torch.bfloat16 if gpu else torch.float32)
        self.model.mlp1.to(torch.float32).requires_grad_(projector)
        if not self.quantization_llm:
            self.model.language_model.to(torch.bfloat16 if gpu else torch.float32)
        for trained in self.parameters():
            if trained.requires_grad:
                trained.data = trained.data.to(torch.float32)
        self.autocast = torch.autocast("cuda", torch.bfloat16, enabled=gpu)
        if not checkpointing:
            self.gradient_checkpointing_disable()

    def _llm_forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        image_flags: Tensor,
        labels: Tensor,
        **_unused: Any,
    ) -> CausalLMOutputWithPast:
        """The mean loss over the learned tokens; logits are made for those positions only.

        Tiles [T, 3, S, S], ids, mask, positions and labels [B, N], flags [T] (0 for the zeros of a text without
        pictures). XTuner's own needs a process group and, when a picture does not fit its places, shifts features
        with a warning; ours raises.
        """
        language = self.model.language_model
        if self.use_llm_lora:
            language = language.get_base_model()
        with self.autocast:
            features = self.model.extract_feature(pixel_values)[image_flags.flatten() == 1]
            hidden = language.model(
                inputs_embeds=self.model.embed(input_ids, features),
                attention_mask=attention_mask,
                position_ids=position_ids,
                use_cache=False,
            ).last_hidden_state
            wanted = labels[:, 1:] != UNLEARNED
            logits = language.output(hidden[:, :-1][wanted])
        loss = cross_entropy(logits.float(), labels[:, 1:][wanted])
        return CausalLMOutputWithPast(loss=loss, logits=logits)
