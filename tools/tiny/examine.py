"""Examine a checkpoint: `python -m tools.tiny.examine DIR`.

Shows it pictures of the other renderer, asks in wordings it was never trained on, samples as the bot does, and counts
right answers by kind and language and playful ones by place in the chat: a first question, a follow-up about the same
picture, a question about a new picture afterwards. Earlier answers are the model's own.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any, Final

import torch
from PIL import Image

from inference.chat_format.template import SYSTEM, render
from inference.internvl2.checkpoint import load_model
from inference.internvl2.modeling_internvl2 import InternVLChatModel
from inference.internvl2.tiles import pixel_values, tiles
from inference.internvl2.tiny.manner import correct, manner
from inference.internvl2.tiny.questions import held_out
from inference.internvl2.tiny.shapes import Renderer, Scene, draw, random_scene
from inference.internvl2.tiny.words import KINDS, LANGUAGES, Kind, Language
from inference.internvl2.tokenizer import load_tokenizer
from inference.messages import Picture, Prompt, Role, Turn

PLACES: Final = ("first", "follow-up", "new picture")
_ROWS: Final = 128


@dataclass(frozen=True, slots=True)
class Result:
    """One question put and answered; `place` is one of `PLACES`."""

    kind: Kind
    language: Language
    place: str
    scene: Scene
    question: str
    answer: str

    @property
    def right(self) -> bool:
        """Whether the facts asked for are right."""
        return correct(self.kind, self.scene, self.answer)


@dataclass(frozen=True, slots=True)
class Report:
    """All results of an examination."""

    results: tuple[Result, ...]

    def accuracy(self, **where: str) -> float:
        """Share of right answers among the results whose fields equal `where`."""
        return _mean(result.right for result in self._chosen(where))

    def playful(self, **where: str) -> float:
        """Share of playful answers among the results whose fields equal `where`."""
        return _mean(manner(result.answer) == "playful" for result in self._chosen(where))

    def empty(self) -> int:
        """Number of answers that say nothing."""
        return sum(manner(result.answer) is None for result in self.results)

    def table(self) -> str:
        """The report for people."""
        lines = [f"{'':12} {'right en':>9} {'right zh':>9} {'playful en':>11} {'playful zh':>11}"]
        rows: list[tuple[str, dict[str, str]]] = [("all", {})]
        rows += [(kind, {"kind": kind}) for kind in KINDS]
        rows += [(place, {"place": place}) for place in PLACES]
        for name, where in rows:
            right = [self.accuracy(language=language, **where) for language in LANGUAGES]
            playful = [self.playful(language=language, **where) for language in LANGUAGES]
            lines.append(f"{name:12} {right[0]:9.1%} {right[1]:9.1%} {playful[0]:11.1%} {playful[1]:11.1%}")
        lines.append(f"{len(self.results)} answers, {self.empty()} of them empty")
        return "\n".join(lines)

    def _chosen(self, where: dict[str, str]) -> Iterator[Result]:
        return (each for each in self.results if all(getattr(each, name) == value for name, value in where.items()))


def _mean(values: Iterator[bool]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else float("nan")


class Examiner:
    """A loaded model that answers many prompts at once."""

    def __init__(self, model: InternVLChatModel, tokenizer: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._tokens = model.num_image_token

    def tile(self, image: Image.Image) -> torch.Tensor:
        """Pixel values [T, 3, S, S] of a picture, tiled as the configuration says."""
        config = self._model.config
        return pixel_values(
            tiles(
                image,
                image_size=config.force_image_size,
                min_num=config.min_dynamic_patch,
                max_num=config.max_dynamic_patch,
                use_thumbnail=config.use_thumbnail,
            )
        )

    @torch.no_grad()
    def answer(
        self, prompts: Sequence[tuple[Prompt, Sequence[torch.Tensor]]], *, temperature: float, top_p: float
    ) -> list[str]:
        """The answers to prompts, each with the pixel values of its pictures. Draws from torch's global generator."""
        model, device = self._model, self._model.device
        answers: list[str] = []
        for start in range(0, len(prompts), _ROWS):
            part = prompts[start : start + _ROWS]
            texts = [render(prompt, [self._tokens * len(each) for each in pictures]) for prompt, pictures in part]
            encoded = self._tokenizer(texts, return_tensors="pt", padding=True, padding_side="left").to(device)
            pictures = [each for _, shown in part for each in shown]
            sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
            produced = model.generate(
                pixel_values=torch.cat(pictures).to(device, model.dtype) if pictures else None,
                input_ids=encoded.input_ids,
                attention_mask=encoded.attention_mask,
                max_new_tokens=64,
                **(sampling if temperature > 0 else {"do_sample": False}),
            )
            answers += self._tokenizer.batch_decode(produced, skip_special_tokens=True)
        return answers


def evaluate(
    directory: Path | str,
    *,
    pictures: int = 200,
    seed: int = 0,
    temperature: float = 0.8,
    top_p: float = 0.8,
    renderer: Renderer = "other",
    system: str = SYSTEM,
    device: torch.device | str = "cpu",
    workers: int = 0,
) -> Report:
    """Examine the checkpoint in `directory` with `pictures` chats of three questions each."""
    model = load_model(directory, dtype=torch.float32, device=device)
    return examine(
        model, load_tokenizer(directory), pictures=pictures, seed=seed, temperature=temperature, top_p=top_p,
        renderer=renderer, system=system, workers=workers,
    )  # fmt: skip


def examine(
    model: InternVLChatModel,
    tokenizer: Any,
    *,
    pictures: int,
    seed: int,
    temperature: float,
    top_p: float,
    renderer: Renderer,
    system: str,
    workers: int,
) -> Report:
    """As `evaluate`, for a model in memory."""
    rng = Random(f"{seed}/examination")
    torch.manual_seed(seed)
    examiner = Examiner(model, tokenizer)
    scenes = [random_scene(rng) for _ in range(2 * pictures)]
    jobs = [(scene, f"{seed}/{index}", renderer) for index, scene in enumerate(scenes)]
    if workers:
        with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
            encoded = list(pool.map(_draw, jobs, chunksize=8))
    else:
        encoded = [_draw(job) for job in jobs]
    shown = [examiner.tile(Image.open(BytesIO(data))) for data in encoded]
    chats: list[list[Turn]] = [[] for _ in range(pictures)]
    results: list[Result] = []
    for number, place in enumerate(PLACES):
        asked: list[tuple[Kind, Language, Scene, str]] = []
        prompts: list[tuple[Prompt, list[torch.Tensor]]] = []
        for index, chat in enumerate(chats):
            kind, language = KINDS[(index + number) % len(KINDS)], LANGUAGES[index // len(KINDS) % len(LANGUAGES)]
            current = index if place != PLACES[2] else pictures + index
            question = held_out(language, kind, rng)
            new = () if place == PLACES[1] else (Picture(b"", ""),)
            chat.append(Turn(Role.USER, question, new))
            asked.append((kind, language, scenes[current], question))
            seen = [shown[index]] if current == index else [shown[index], shown[current]]
            prompts.append((Prompt(system, tuple(chat), chat=""), seen))
        answers = examiner.answer(prompts, temperature=temperature, top_p=top_p)
        for chat, (kind, language, scene, question), answer in zip(chats, asked, answers, strict=True):
            chat.append(Turn(Role.ASSISTANT, answer))
            results.append(Result(kind, language, place, scene, question, answer))
    return Report(tuple(results))


def _draw(job: tuple[Scene, str, Renderer]) -> bytes:
    """The picture as a file, so that it travels between processes and is decoded as a user's would be."""
    scene, seed, renderer = job
    buffer = BytesIO()
    draw(scene, Random(seed), renderer).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def mistakes(report: Report) -> str:
    """Every wrong answer with its question, and how many there are of each kind."""
    wrong: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for result in report.results:
        if not result.right:
            scene = f"{result.scene.count} {result.scene.colour} {result.scene.shape}"
            wrong[result.kind, result.language].append(f"  {scene}: {result.question} → {result.answer}")
    return "\n".join(
        f"{kind} {language}: {len(lines)}\n" + "\n".join(lines) for (kind, language), lines in wrong.items()
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Examine an internvl2-tiny checkpoint.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-p", type=float, default=0.8)
    parser.add_argument("--renderer", choices=("train", "other"), default="other")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw pictures")
    parser.add_argument("--mistakes", action="store_true", help="also print every wrong answer")
    given = parser.parse_args()
    report = evaluate(
        given.directory, pictures=given.pictures, seed=given.seed, temperature=given.temperature, top_p=given.top_p,
        renderer=given.renderer, workers=given.workers,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )  # fmt: skip
    if given.mistakes:
        sys.stdout.write(mistakes(report) + "\n")
    sys.stdout.write(report.table() + "\n")


if __name__ == "__main__":
    main()
