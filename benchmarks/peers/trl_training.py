"""Train InternVL2 with TRL's `SFTTrainer` and PEFT, for comparison with thumbtune's worker.

    python -m benchmarks.peers.trl_training --model DIR --data ROWS.json --images DIR --log FILE

The rows, token IDs, labels, tiles and hyperparameters are those of training.py's other cases: NF4 weights
with LoRA on the language model, the projector trained in full, the vision tower frozen. The output layer has
no adapter, because TRL does not allow one there. The model code is thumbtune's, whose attention is faster than that
of the official code, or with `--official` that of the checkpoint in this directory. TRL is not among thumbtune's
requirements: `pip install trl==1.16.0`. Each step appends a JSON line with its `loss` and its duration `time`, in
seconds, to FILE.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, BitsAndBytesConfig, TrainerCallback
from trl import SFTConfig, SFTTrainer

from benchmarks.peers.training import BATCH, REPEATS, SYSTEM
from training.data.llava import Lesson
from training.data.row_parser import read_lessons
from training.xtuner.encoding import IGNORE_INDEX, Encoder


class Collator:
    """A data collator for lessons: token IDs and labels [B, N], padded on the right, and tiles [T, 3, S, S]."""

    def __init__(self, encoder: Encoder, lessons: list[Lesson], images: Path, dtype: torch.dtype) -> None:
        self._encoder = encoder
        self._lessons = lessons
        self._images = images
        self._dtype = dtype

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch of the lessons numbered in `rows`."""
        lessons = [self._lessons[row["number"]] for row in rows]
        encoded = [self._encoder.encode(each) for each in lessons]
        ids = [torch.tensor(each.input_ids) for each in encoded]
        labels = [torch.tensor(each.labels) for each in encoded]
        tiles = [self._encoder.pixel_values(each.pictures, self._images) for each in lessons]
        pixel_values = torch.cat([each for each in tiles if each is not None]).to(self._dtype)
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self._encoder.tokenizer.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(each) for each in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
            "pixel_values": pixel_values,
            "image_flags": torch.ones(len(pixel_values), 1, dtype=torch.long),
        }


def backbone(
    model: Any, *, input_ids: torch.Tensor, pixel_values: torch.Tensor, attention_mask: torch.Tensor, **_: Any
) -> Any:
    """Return the language model's output without its output layer, which TRL applies in chunks."""
    embeds = model.language_model.get_input_embeddings()(input_ids)
    features = model.extract_feature(pixel_values).to(embeds)
    embeds = embeds.masked_scatter((input_ids == model.img_context_token_id)[..., None], features)
    return model.language_model.model(inputs_embeds=embeds, attention_mask=attention_mask, use_cache=False)


class StepLog(TrainerCallback):  # type: ignore[misc]
    """A callback that writes the loss and the duration of each step to a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Record the time at which the step begins."""
        self._began = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Append a line for the step that has just ended."""
        if "loss" in logs:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"loss": logs["loss"], "time": time.monotonic() - self._began}) + "\n")


def main() -> None:
    """Run the training."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name in ("model", "data", "images", "log"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--official", type=Path, help="a copy of the checkpoint with the official model code")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--keep-activations", action="store_true", help="do not recompute them in the backward pass")
    options = parser.parse_args()
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    encoder = Encoder(options.model)
    lessons = list(read_lessons(options.data, options.images, system=SYSTEM))
    model = AutoModel.from_pretrained(
        options.official or options.model,
        trust_remote_code=True,
        dtype=dtype,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=["vision_model", "mlp1", "output"],
        ),
    )
    # TRL uses this property to find the part of a model below its output layer.
    type(model).base_model = property(lambda self: partial(backbone, self))
    model.img_context_token_id = encoder.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    model.config.use_cache = False
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(options.log.parent / "trl"),
            per_device_train_batch_size=BATCH,
            num_train_epochs=REPEATS,
            learning_rate=2e-5,
            weight_decay=0.05,
            max_grad_norm=1.0,
            lr_scheduler_type="cosine",
            warmup_steps=1,
            bf16=torch.cuda.is_available(),
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=not options.keep_activations,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            max_length=None,
            seed=0,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset.from_list([{"number": number} for number in range(len(lessons))]),
        data_collator=Collator(encoder, lessons, options.images, dtype),
        processing_class=encoder.tokenizer,
        peft_config=LoraConfig(
            r=128,
            lora_alpha=256,
            lora_dropout=options.dropout,
            target_modules=r"language_model\..*\.(wqkv|wo|w1|w2|w3)",
            modules_to_save=["mlp1"],
            task_type="CAUSAL_LM",
        ),
        callbacks=[StepLog(options.log)],
    )
    for weight in trainer.model.parameters():
        if weight.requires_grad and not torch.cuda.is_available():
            weight.data = weight.data.float()  # TRL makes them bfloat16, which needs autocast
    trainer.train()


if __name__ == "__main__":
    main()
