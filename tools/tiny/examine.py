"""Evaluate a checkpoint of internvl2-tiny: `python -m tools.tiny.examine DIR`.

The pictures come from a renderer that is not used in training, the questions are held out from training,
and answers are sampled with the bot's settings. The report gives the shares of correct and playful
answers by kind of question, language and position in the chat: a first question, a follow-up about the
same picture, or a question about a new picture. Earlier answers in a chat are the model's own.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import torch
from PIL import Image

from inference.chat_format.template import render
from inference.internvl2.checkpoint import load_model
from inference.internvl2.families import INTERNVL2
from inference.internvl2.modeling_internvl2 import InternVLChatModel
from inference.internvl2.tile_grid import Tiling
from inference.internvl2.tiles import pixel_values, tiles
from inference.internvl2.tiny.answer_checks import correct, manner
from inference.internvl2.tiny.drawing import draw
from inference.internvl2.tiny.held_out_questions import held_out
from inference.internvl2.tiny.shapes import Scene, random_scene
from inference.internvl2.tiny.words import KINDS, LANGUAGES, Kind, Language
from inference.internvl2.tokenizer import load_tokenizer
from inference.messages import Picture, Prompt, Role, Sampling, Turn

POSITIONS: Final = ("first", "follow-up", "new picture")
_BATCH: Final = 128  # prompts
_AS_THE_BOT: Final = Sampling(max_new_tokens=64, top_k=0)


@dataclass(frozen=True, slots=True)
class ExaminedAnswer:
    """A question with the model's answer; `position` is one of `POSITIONS`."""

    kind: Kind
    language: Language
    position: str
    scene: Scene
    question: str
    answer: str

    @property
    def right(self) -> bool:
        """Whether the answer names the correct facts."""
        return correct(self.kind, self.scene, self.answer)


@dataclass(frozen=True, slots=True)
class ExaminationReport:
    """All results of an evaluation."""

    results: tuple[ExaminedAnswer, ...]

    def accuracy(self, **where: str) -> float:
        """Return the share of correct answers among the results whose fields have the values in `where`."""
        return _mean(result.right for result in self._chosen(where))

    def playful(self, **where: str) -> float:
        """Return the share of playful answers among the results whose fields have the values in `where`."""
        return _mean(manner(result.answer) == "playful" for result in self._chosen(where))

    def empty(self) -> int:
        """Return the number of empty answers."""
        return sum(manner(result.answer) is None for result in self.results)

    def table(self) -> str:
        """Return the report as a plain-text table."""
        lines = [f"{'':12} {'right en':>9} {'right zh':>9} {'playful en':>11} {'playful zh':>11}"]
        rows: list[tuple[str, dict[str, str]]] = [("all", {})]
        rows += [(kind, {"kind": kind}) for kind in KINDS]
        rows += [(position, {"position": position}) for position in POSITIONS]
        for name, where in rows:
            right = [self.accuracy(language=language, **where) for language in LANGUAGES]
            playful = [self.playful(language=language, **where) for language in LANGUAGES]
            lines.append(f"{name:12} {right[0]:9.1%} {right[1]:9.1%} {playful[0]:11.1%} {playful[1]:11.1%}")
        lines.append(f"{len(self.results)} answers, {self.empty()} of them empty")
        return "\n".join(lines)

    def _chosen(self, where: dict[str, str]) -> Iterator[ExaminedAnswer]:
        return (each for each in self.results if all(getattr(each, name) == value for name, value in where.items()))


def _mean(values: Iterator[bool]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else float("nan")


class Examiner:
    """A loaded model that answers prompts in batches."""

    def __init__(self, model: InternVLChatModel, tokenizer: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._tokens = model.num_image_token

    def tile(self, image: Image.Image) -> torch.Tensor:
        """Return the pixel values [T, 3, S, S] of a picture, tiled according to the model's configuration."""
        return pixel_values(tiles(image, Tiling.from_config(self._model.config.to_dict())))

    @torch.no_grad()
    def answer(
        self, prompts: Sequence[tuple[Prompt, Sequence[torch.Tensor]]], sampling: Sampling = _AS_THE_BOT
    ) -> list[str]:
        """Return the answers to `prompts`, each of which comes with the pixel values of its pictures.

        A temperature of 0 selects greedy decoding; other temperatures use torch's global random generator.
        """
        model, device = self._model, self._model.device
        answers: list[str] = []
        for start in range(0, len(prompts), _BATCH):
            part = prompts[start : start + _BATCH]
            texts = [
                render(prompt, [self._tokens * len(each) for each in pictures], INTERNVL2) for prompt, pictures in part
            ]
            encoded = self._tokenizer(texts, return_tensors="pt", padding=True, padding_side="left").to(device)
            pictures = [each for _, shown in part for each in shown]
            drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
            produced = model.generate(
                pixel_values=torch.cat(pictures).to(device, model.dtype) if pictures else None,
                input_ids=encoded.input_ids,
                attention_mask=encoded.attention_mask,
                max_new_tokens=sampling.max_new_tokens,
                **(drawn if sampling.temperature > 0 else {"do_sample": False}),
            )
            answers += self._tokenizer.batch_decode(produced, skip_special_tokens=True)
        return answers


def examine(
    model: InternVLChatModel,
    tokenizer: Any,
    *,
    pictures: int,
    seed: int = 0,
    sampling: Sampling = _AS_THE_BOT,
    system: str = INTERNVL2.system,
) -> ExaminationReport:
    """Evaluate a model in `pictures` chats of three questions each, and return the results."""
    rng = Random(f"{seed}/examination")
    torch.manual_seed(seed)
    examiner = Examiner(model, tokenizer)
    scenes = [random_scene(rng) for _ in range(2 * pictures)]
    shown = [examiner.tile(draw(scene, Random(f"{seed}/{index}"))) for index, scene in enumerate(scenes)]
    chats: list[list[Turn]] = [[] for _ in range(pictures)]
    results: list[ExaminedAnswer] = []
    for number, position in enumerate(POSITIONS):
        asked: list[tuple[Kind, Language, Scene, str]] = []
        prompts: list[tuple[Prompt, list[torch.Tensor]]] = []
        for index, chat in enumerate(chats):
            kind, language = KINDS[(index + number) % len(KINDS)], LANGUAGES[index // len(KINDS) % len(LANGUAGES)]
            current = index if position != POSITIONS[2] else pictures + index
            question = held_out(language, kind, rng)
            new = () if position == POSITIONS[1] else (Picture(b"", ""),)
            chat.append(Turn(Role.USER, question, new))
            asked.append((kind, language, scenes[current], question))
            seen = [shown[index]] if current == index else [shown[index], shown[current]]
            prompts.append((Prompt(system, tuple(chat), chat=""), seen))
        answers = examiner.answer(prompts, sampling)
        for chat, (kind, language, scene, question), answer in zip(chats, asked, answers, strict=True):
            chat.append(Turn(Role.ASSISTANT, answer))
            results.append(ExaminedAnswer(kind, language, position, scene, question, answer))
    return ExaminationReport(tuple(results))


def mistakes(report: ExaminationReport) -> str:
    """Return a listing of every wrong answer with its question, grouped by kind and language."""
    wrong: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for result in report.results:
        if not result.right:
            scene = f"{result.scene.count} {result.scene.colour} {result.scene.shape}"
            wrong[result.kind, result.language].append(f"  {scene}: {result.question} → {result.answer}")
    return "\n".join(
        f"{kind} {language}: {len(lines)}\n" + "\n".join(lines) for (kind, language), lines in wrong.items()
    )


def main() -> None:
    """Evaluate the checkpoint given on the command line and print the report."""
    parser = argparse.ArgumentParser(description="Evaluate an internvl2-tiny checkpoint.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mistakes", action="store_true", help="also print every wrong answer")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report = examine(
        load_model(given.directory, dtype=torch.float32, device=device),
        load_tokenizer(given.directory),
        pictures=given.pictures,
        seed=given.seed,
    )
    if given.mistakes:
        print(mistakes(report))
    print(report.table())


if __name__ == "__main__":
    main()
