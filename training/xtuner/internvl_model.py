"""XTuner's InternVL model, made faster and more memory-efficient.

Quantization, adapters and checkpoints are those of XTuner's `InternVL_V1_5` (0.2.0), on top of the model
code in `inference.internvl2`. XTuner computes in float16 with float32 between the layers, applies an
attention mask, computes the logits of every position, and trains the projector in bfloat16, which rounds
small updates away. In this module, frozen weights and activations are bfloat16 on a GPU (float32 on a
CPU), trained weights are float32, batches are packed (`training.xtuner.packing`), and logits are computed
only where there are labels.
"""

from __future__ import annotations

from collections.abc import Iterable
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
from training.job import TrainingError
from training.xtuner.activation_checkpointing import Checkpointing, layers_to_recompute
from training.xtuner.encoding import IGNORE_INDEX
from training.xtuner.fused_lora import use_fused_layers
from training.xtuner.gpu_yield import GpuYield
from training.xtuner.packing import GIVEN_ATTENTION, PackedAttention
from training.xtuner.partitioned_loading import partitioned_loading
from training.xtuner.quantized_loading import quantized_in_place
from training.xtuner.vision_cache import VisionTower, frozen_dtype


class InternVL2(InternVL_V1_5):
    """InternVL2, with the language model trained either through LoRA or in full.

    The language model may be quantized to NF4. Training the projector and LoRA on the vision tower is
    optional.
    """

    def __init__(
        self,
        *,
        model_path: str,
        projector: bool = True,
        checkpointing: Checkpointing = "auto",
        tokens: int = 0,
        yield_file: str = "",
        partitioned: bool = False,
        **stock: Any,
    ) -> None:
        """Load the model.

        Args:
            model_path: The prepared directory of the base model.
            projector: Whether to train the projector.
            checkpointing: Which layers recompute their activations in the backward pass.
            tokens: The number of tokens in the largest batch.
            partitioned: Whether DeepSpeed partitions all weights (ZeRO 3).
            yield_file: The file through which an engine on the same GPU asks for priority; empty for none.
            **stock: Arguments for XTuner's class.
        """
        vision = stock.get("visual_encoder_lora") is not None
        with partitioned_loading(vision=vision) if partitioned else quantized_in_place():
            super().__init__(model_path=model_path, **stock)
        adapted = any("lm_head.lora_" in name for name, _ in self.named_parameters())
        if adapted and self._language.config.tie_word_embeddings:
            raise TrainingError(
                "training.knobs.targets: the output layer of this model shares the weights of its embeddings: leave "
                "lm_head out"
            )
        for module in self.model.modules():
            if isinstance(module, Linear4bit):
                module.compute_dtype = frozen_dtype()
        self.model.mlp1.requires_grad_(projector)
        for weight in self.parameters():
            if weight.is_floating_point():
                # DeepSpeed computes in one type and keeps float32 copies of trained weights.
                full = weight.requires_grad and not partitioned
                weight.data = weight.data.to(torch.float32 if full else frozen_dtype())
        self._path = Path(model_path)
        self._tower: VisionTower | None = None
        if not any(weight.requires_grad for weight in self.model.vision_model.parameters()):
            # The features of most pictures are cached; `VisionTower` is loaded for the first one that is not.
            self.model.vision_model = None
        # Products with float32 weights are computed in bfloat16. The adapted layers cast their inputs themselves.
        autocast = torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_available())
        self._projector_context = autocast
        self._language_context = nullcontext() if self.use_llm_lora else autocast
        self._language.config._attn_implementation = GIVEN_ATTENTION
        self._language.gradient_checkpointing_enable({"use_reentrant": False})
        self._checkpointing = checkpointing
        self.choose_checkpointing(tokens)
        self._gpu_yield = GpuYield.open(yield_file)
        if self._gpu_yield is not None:
            self._gpu_yield.attach(self._language.model.layers)

    def choose_checkpointing(self, tokens: int) -> None:
        """Choose which layers recompute their activations, for batches of at most `tokens` tokens."""
        config = self._language.config
        adapter = self.model.language_model.peft_config["default"] if self.use_llm_lora else None
        self._recomputed = layers_to_recompute(self, config, adapter, tokens, self._checkpointing)
        for number, layer in enumerate(self._language.model.layers):
            layer.gradient_checkpointing = number < self._recomputed

    @property
    def _language(self) -> Any:
        """The language model, including its adapters."""
        return self.model.language_model.get_base_model() if self.use_llm_lora else self.model.language_model

    def _prepare_llm_for_lora(self, *arguments: Any, **named: Any) -> None:
        # A CPU takes seconds to draw the initial values of a large adapter.
        with torch.device("cuda") if self.quantization_llm and torch.cuda.is_available() else nullcontext():
            super()._prepare_llm_for_lora(*arguments, **named)

    def _parse_lora_config(self, lora_config: Any) -> Any:
        return use_fused_layers(super()._parse_lora_config(lora_config))

    def forward(self, data: dict[str, Any], data_samples: Any = None, mode: str = "loss") -> dict[str, Tensor]:
        """Return the mean loss over the target tokens of a batch from `packing.collate`."""
        return {"loss": self.token_losses(data).mean()}

    def _picture_features(self, pixel_values: Iterable[Tensor]) -> Tensor:
        """Return the projected features of all pictures in order, [T, tokens, width]."""
        seen = torch.cat([self._vision_features(each) for each in pixel_values])
        with self._projector_context:
            return self._project(seen)

    def token_losses(self, packed: dict[str, Any]) -> Tensor:
        """Return the negative log-likelihood of each target token of a packed batch in order, [targets] float32.

        The batch's `pixel_values`, which this method removes, are either tiles [T, 3, S, S] or the vision tower's
        features [T, tokens, width] for each group of samples that share their pictures.

        Raises:
            ValueError: The number of features differs from the number of picture tokens. (XTuner's own class
                only prints a warning, and the features end up in the wrong places.)
        """
        # Popped, so that the memory of the tiles is free before the language model runs.
        features = self._picture_features(packed.pop("pixel_values"))
        config = self._language.config
        groups = config.num_attention_heads // config.num_key_value_heads
        if self.model.config.short_length is not None:
            self._language.model.rotary_emb.long = packed["long"]
        with self._language_context:
            embeds = self.model.embed(packed["input_ids"], features).to(frozen_dtype())
            embeddings = self._language.get_input_embeddings()
            if not features.requires_grad and not any(each.requires_grad for each in embeddings.parameters()):
                # XTuner and PEFT require gradients of the embeddings, for reentrant checkpointing. Computing them takes
                # a backward pass through all layers, even if only the output layer is trained.
                embeds = embeds.detach()
            hidden = self._language.model(
                inputs_embeds=embeds,
                position_ids=packed["position_ids"],
                attention=PackedAttention(packed["prefixes"], groups, embeds),
                use_cache=False,
            ).last_hidden_state
            labels = packed["labels"][:, 1:]
            learned = labels != IGNORE_INDEX
            logits = self._language.get_output_embeddings()(hidden[:, :-1][learned])
        return cross_entropy(logits.float(), labels[learned], reduction="none")

    def _project(self, seen: Tensor) -> Tensor:
        """Apply the projector, recomputing its activations in the backward pass if any layer recomputes its own."""
        if not self._recomputed:
            return self.model.mlp1(seen)
        return checkpoint(self.model.mlp1, seen, use_reentrant=False)

    def _vision_features(self, pixel_values: Tensor) -> Tensor:
        """Return the vision features of a sample, computing them if `pixel_values` holds tiles."""
        if pixel_values.dim() == 3:
            return pixel_values.to(frozen_dtype())
        if self.model.vision_model is not None:
            return unprojected(self.model.vision_model, self.model.config, pixel_values.to(frozen_dtype()))
        if self._tower is None:
            self._tower = VisionTower(self._path, self._gpu_yield)
        return self._tower(pixel_values)
