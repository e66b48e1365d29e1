"""A model's likelihood of given answers, and its own answers to given questions. Needs torch; knows no verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch.nn.functional import cross_entropy

from inference.internvl2.checkpoint import load_model
from training.data.llava import Lesson
from training.xtuner.encoding import IGNORE_INDEX, Encoder
from training.xtuner.gpu_yield import GpuYield

PHOTOS: Final = 4
"""So many questions about photos are answered at a time: one of 13 tiles is 3,300 tokens."""

_ROWS: Final = 32


@dataclass(frozen=True, slots=True)
class Likelihood:
    """The negative log-likelihood of some answers, in nats, and over how many tokens."""

    nats: float
    tokens: int

    @property
    def mean(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens


class Speaker:
    """One checkpoint in memory, on a GPU in bfloat16 or on a CPU in float32."""

    def __init__(
        self, directory: Path, *, device: str = "cpu", tiles: int = 0, courtesy: GpuYield | None = None
    ) -> None:
        """Load the checkpoint; `courtesy` is where it steps aside."""
        self.encoder = Encoder(directory, tiles=tiles)
        self._device = device
        self._model = load_model(directory, dtype=torch.float32 if device == "cpu" else torch.bfloat16, device=device)
        if courtesy is not None:
            courtesy.attach(self._model.vision_model.encoder.layers, backward=False)
            courtesy.attach(self._model.language_model.model.layers, backward=False)

    @torch.inference_mode()
    def likelihood(self, lessons: Sequence[Lesson], images: Path) -> Likelihood:
        """Over the learned answers of the lessons, each given its own conversation."""
        nats, tokens = 0.0, 0
        for lesson in lessons:
            encoded = self.encoder.encode(lesson)
            labels = torch.tensor(encoded.labels[1:], device=self._device)
            learned = labels != IGNORE_INDEX
            pixels = self.encoder.pixel_values(lesson, images)
            logits = self._model(
                pixel_values=None if pixels is None else pixels.to(self._device, self._model.dtype),
                input_ids=torch.tensor([encoded.input_ids], device=self._device),
                use_cache=False,
                logits_to_keep=learned.nonzero().flatten(),
            ).logits[0]
            nats += float(cross_entropy(logits.float(), labels[learned], reduction="sum"))
            tokens += int(learned.sum())
        return Likelihood(nats, tokens)

    @torch.inference_mode()
    def answers(
        self,
        lessons: Sequence[Lesson],
        images: Path,
        *,
        most_tokens: int,
        rows: int = _ROWS,
        temperature: float = 0.0,
        top_p: float = 1.0,
        on_batch: Callable[[int], None] = lambda done: None,
    ) -> list[str]:
        """Answers to the last questions of the lessons; `temperature` 0 is greedy, else torch's generator draws.

        `rows` questions are answered at a time; `on_batch` is told of each such number that is done.
        """
        spoken: list[str] = []
        for start in range(0, len(lessons), rows):
            part = lessons[start : start + rows]
            prompts = [torch.tensor(self.encoder.prompt_ids(each)) for each in part]
            looked = [self.encoder.pixel_values(each, images) for each in part]
            pixels = [each for each in looked if each is not None]
            pad = self.encoder.tokenizer.pad_token_id
            ids = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_value=pad, padding_side="left")
            mask = torch.nn.utils.rnn.pad_sequence(
                [torch.ones_like(each) for each in prompts], batch_first=True, padding_side="left"
            )
            sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
            produced = self._model.generate(
                pixel_values=torch.cat(pixels).to(self._device, self._model.dtype) if pixels else None,
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                max_new_tokens=most_tokens,
                **(sampling if temperature > 0 else {"do_sample": False}),
            )
            texts = self.encoder.tokenizer.batch_decode(produced, skip_special_tokens=True)
            spoken += [text.strip() for text in texts]
            on_batch(len(texts))
        return spoken
