"""Score given answers with a model, or have it answer questions.

This module requires torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from cachetools import LRUCache
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from inference.chat_format.token_ids import stop_ids
from inference.internvl2.checkpoint import load_model
from inference.internvl2.growing_cache import GrowingCache
from inference.internvl2.model_sizes import read_sizes
from inference.internvl2.tokenizer import text_decoder
from inference.messages import Sampling
from training.adapter import Adapter
from training.data.llava import Lesson
from training.memory_estimate import tiles_per_pass
from training.xtuner.encoding import Encoder
from training.xtuner.gpu_yield import GpuYield

_BATCH: Final = 128
"""The maximum number of questions in a batch."""

_CPU_TOKENS: Final = 20_000
"""The maximum number of prompt tokens in a batch on a CPU."""

_GPU_TOKENS: Final = 120_000
"""The maximum number of prompt tokens in a batch on a GPU: those of 32 prompts with a picture of 13 tiles. A chat may
have to wait while one layer processes them."""

_LOADERS: Final = 8
"""The number of threads that split pictures into tiles, so that a GPU need not wait for them."""

_MARGIN: Final = 2
"""The assumed ratio of a batch's memory to that of its keys and values and the activations of one layer."""

_KEPT_PICTURES: Final = 64
"""The number of lessons whose picture features are kept, because several questions are often about the same picture."""


@dataclass(frozen=True, slots=True)
class LogProbability:
    """The log-probability of an answer, in nats, and the number of tokens in the answer."""

    nats: float
    tokens: int


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """The names of a prompt's pictures, and its token IDs."""

    pictures: tuple[str, ...]
    token_ids: tuple[int, ...]


class LocalModel:
    """A checkpoint loaded into this process, in bfloat16 on a GPU or in float32 on a CPU."""

    def __init__(
        self, directory: Path, *, device: str = "cpu", tiles: int = 0, gpu_yield: GpuYield | None = None
    ) -> None:
        self.encoder = Encoder(directory, tiles=tiles)
        self._directory = directory
        self._device = device
        sizes = read_sizes(directory)
        self._tiles = tiles_per_pass(sizes)
        self._token_bytes = _MARGIN * (sizes.key_value_bytes() + sizes.token_bytes)
        self._model = load_model(directory, dtype=torch.float32 if device == "cpu" else torch.bfloat16, device=device)
        self._text_of = text_decoder(self.encoder.tokenizer)
        self._ends = sorted(stop_ids(self._model.generation_config, self.encoder.tokenizer))
        self._features = LRUCache[tuple[Path, tuple[str, ...]], Tensor](_KEPT_PICTURES)
        self._changed = frozenset[str]()
        if gpu_yield is not None:
            gpu_yield.attach(self._model.vision_model.encoder.layers, backward=False)
            gpu_yield.attach(self._model.language_model.model.layers, backward=False)

    @torch.no_grad()
    def apply(self, adapter: Adapter) -> None:
        """Merge an adapter into the model's weights."""
        self._changed = adapter.names()
        for name in self._changed:
            weight = self._model.get_parameter(name)
            weight.copy_(adapter.applied(name, weight))
        self._features.clear()

    @torch.no_grad()
    def restore(self) -> None:
        """Undo `apply`, if it was called, by reading the changed weights from the checkpoint again."""
        if not self._changed:
            return
        for file in self._directory.glob("*.safetensors"):
            with safe_open(file, "pt") as weights:
                for name in self._changed.intersection(weights.keys()):
                    self._model.get_parameter(name).copy_(weights.get_tensor(name))
                    self._changed -= {name}
        if self._changed:
            raise ValueError(f"{self._directory} does not contain {min(self._changed)}")
        self._features.clear()

    @torch.inference_mode()
    def log_probabilities(self, lessons: Sequence[Lesson], images: Path) -> list[LogProbability]:
        """Return the log-probability of the last answer of each lesson, computing each prompt only once per batch."""
        scores: list[LogProbability] = []
        head = self._model.get_output_embeddings()
        prompts = self._tokenized(lessons)
        answers = [
            torch.tensor(self.encoder.encode(each).input_ids[len(prompt.token_ids) :], device=self._device)
            for each, prompt in zip(lessons, prompts, strict=True)
        ]
        lengths = [len(prompt.token_ids) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)]
        for chosen in self._batches(prompts, lengths):
            self._model.expect(max(lengths[chosen]))
            ids, mask, known = self._prefill(prompts[chosen], images)
            # Padding is at the end, where causal attention hides it from every token.
            inputs = pad_sequence([torch.cat([*pair]) for pair in zip(ids[:, -1:], answers[chosen], strict=True)], True)
            mask = torch.cat([mask, mask.new_ones(len(inputs), inputs.shape[1] - 1)], dim=1)
            states = self._model.language_model.get_decoder()(
                input_ids=inputs,
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1)[:, -inputs.shape[1] :],
                past_key_values=known,
                use_cache=True,
            ).last_hidden_state
            for row, answer in zip(states, answers[chosen], strict=True):
                losses = cross_entropy(head(row[: len(answer)]).float(), answer, reduction="sum")
                scores.append(LogProbability(-float(losses), len(answer)))
        return scores

    def _picture_features(self, pictures: Iterable[tuple[str, ...]], images: Path) -> Tensor | None:
        """Return the features of the pictures of several prompts in order, [T, tokens, width].

        The pictures of each prompt are given by their names in the folder `images`. If there are no pictures at all,
        return None.
        """
        keys = [(images, each) for each in pictures if each]
        found = {key: self._features[key] for key in keys if key in self._features}
        if missing := [key for key in dict.fromkeys(keys) if key not in found]:
            with ThreadPoolExecutor(1 if self._device == "cpu" else _LOADERS) as pool:
                loaded = list(pool.map(lambda key: self.encoder.pixel_values(key[1], images), missing))
            tiles = [each for each in loaded if each is not None]
            parts = torch.split(torch.cat(tiles), self._tiles)
            computed = [self._model.extract_feature(each.to(self._device, self._model.dtype)).cpu() for each in parts]
            found |= zip(missing, torch.split(torch.cat(computed), [len(each) for each in tiles]), strict=True)
            self._features.update(found)
        return torch.cat([found[key] for key in keys]).to(self._device) if keys else None

    def answers(self, lessons: Sequence[Lesson], images: Path, sampling: Sampling, **options: Any) -> list[str]:
        """Return the model's answer to the last question of each lesson. The arguments are those of `generate`."""
        return [text for text, _ in self.generate(lessons, images, sampling, **options)]

    def _batches(self, prompts: Sequence[TokenizedPrompt], lengths: Sequence[int]) -> Iterator[slice]:
        """Split prompts into batches whose tokens, including padding, fit into memory.

        A batch does not mix long and short sequences if the model computes them differently (`expect`). `lengths`
        lists the number of tokens of each prompt with its answer.
        """
        short = self._model.config.short_length or sys.maxsize
        most = most_computed = _CPU_TOKENS
        if self._device != "cpu":
            torch.cuda.empty_cache()  # memory that torch keeps does not count as free
            most, most_computed = torch.cuda.mem_get_info()[0] // self._token_bytes, _GPU_TOKENS
        start = longest = 0
        distinct = set[TokenizedPrompt]()
        for index, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
            longest = max(longest, length)
            distinct.add(prompt)
            number = index - start + 1
            full = number > _BATCH or number * longest > most or len(distinct) * longest > most_computed
            full |= (length > short) != (lengths[start] > short)
            if number > 1 and full:
                yield slice(start, index)
                start, longest, distinct = index, length, {prompt}
        if prompts:
            yield slice(start, len(prompts))

    @torch.inference_mode()
    def generate(
        self,
        lessons: Sequence[Lesson],
        images: Path,
        sampling: Sampling,
        *,
        on_batch: Callable[[list[str]], None] = lambda texts: None,
    ) -> list[tuple[str, bool]]:
        """Answer the last question of each lesson, in batches as large as memory allows.

        Decoding is greedy if the temperature is 0; otherwise tokens are sampled with torch's global generator.
        `on_batch` is called with the answers of each finished batch.

        Returns:
            For each lesson, the answer and whether it ended with an end token.
        """
        answers: list[tuple[str, bool]] = []
        prompts = self._tokenized(lessons)
        lengths = [len(each.token_ids) + sampling.max_new_tokens for each in prompts]
        for chosen in self._batches(prompts, lengths):
            self._model.expect(max(lengths[chosen]))
            ids, mask, known = self._prefill(prompts[chosen], images)
            drawn = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
            }
            produced = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=known,
                max_new_tokens=sampling.max_new_tokens,
                eos_token_id=self._ends,
                **(drawn if sampling.temperature > 0 else {"do_sample": False}),
            )
            ended = torch.isin(produced, torch.tensor(self._ends, device=produced.device)).any(dim=1).tolist()
            texts = [self._text_of(row).strip() for row in produced.tolist()]
            answers += zip(texts, ended, strict=True)
            on_batch(texts)
        return answers

    def _tokenized(self, lessons: Iterable[Lesson]) -> list[TokenizedPrompt]:
        return [TokenizedPrompt(each.pictures, tuple(self.encoder.prompt_ids(each))) for each in lessons]

    def _prefill(self, prompts: Sequence[TokenizedPrompt], images: Path) -> tuple[Tensor, Tensor, GrowingCache]:
        """Compute the keys and values of prompts, padded on the left; those of equal prompts are computed once.

        Returns:
            The token IDs and the attention mask, both [B, N], and the cache of all positions but the last.
        """
        numbers = {each: number for number, each in enumerate(dict.fromkeys(prompts))}
        rows = torch.tensor([numbers[each] for each in prompts], device=self._device)
        tokens = [torch.tensor(each.token_ids, device=self._device) for each in numbers]
        pad = self.encoder.tokenizer.pad_token_id
        ids = pad_sequence(tokens, batch_first=True, padding_value=pad, padding_side="left")
        mask = pad_sequence([torch.ones_like(each) for each in tokens], batch_first=True, padding_side="left")
        known = self._model(
            inputs_embeds=self._model.embed(ids, self._picture_features([each.pictures for each in numbers], images)),
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=GrowingCache(),
            use_cache=True,
            logits_to_keep=1,
        ).past_key_values
        known.crop(ids.shape[1] - 1)
        known.batch_select_indices(rows)
        return ids[rows], mask[rows], known


class ModelSlot:
    """A slot for at most one model in memory; the previous model is freed before another one is loaded.

    `options` are passed to `LocalModel`.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._directory: Path | None = None
        self._model: LocalModel | None = None

    def load(self, directory: Path) -> LocalModel:
        """Return the model in `directory`, reusing the most recently loaded model if it is the same."""
        if self._model is None or directory != self._directory:
            self._model = None
            self._model = LocalModel(directory, **self._options)
            self._directory = directory
        self._model.restore()
        return self._model

    def load_with(self, directory: Path, adapter: Path) -> LocalModel:
        """Return the model in `directory` with an adapter merged into it."""
        model = self.load(directory)
        model.apply(Adapter(adapter))
        return model
