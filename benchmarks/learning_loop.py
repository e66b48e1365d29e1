"""Run the learning loop without Telegram or an engine: ask, vote, retrain, ask again.

    python -m benchmarks.learning_loop --taste playful --seeds 3

A simulated user (person.py) sends pictures, asks one question and one follow-up about each, and votes.
The votes go through the real ledger and the real pipeline (XTuner, merge, evaluation, each in its own
process). Both the old and the new model are asked about unseen pictures, in unseen wordings. The script
prints one line per seed and the median duration of a run.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Final, Protocol

import torch
from rich.console import Console

from benchmarks.person import TASTES, SimulatedQuestion, Taste
from inference.chat_format.template import prompt_hash
from inference.images.perceptual_hash import perceptual_hash
from inference.internvl2.families import INTERNVL2
from inference.internvl2.tiny import CHECKPOINT
from inference.internvl2.tiny.answer_checks import correct
from inference.internvl2.tiny.drawing import draw
from inference.internvl2.tiny.shapes import Scene, random_scene
from inference.internvl2.tiny.words import Kind
from inference.messages import Picture, Prompt, Sampling, Turn
from storage.chat_records import Chat, Exchange, Person, StoredPicture
from storage.learning_records import Model, Rating, Run
from storage.ledger import Ledger
from storage.model_store import ModelStore
from storage.picture_files import PictureStore
from storage.state_machines import ModelState
from training.data.llava import Lesson
from training.gate.local_model import LocalModel
from training.job import Trainer
from training.job_specs import JobSpecs, TrainingPaths
from training.launcher import ChildTrainer
from training.pipeline import Pipeline
from training.run_plan import RunPlanner
from training.settings import TrainingSettings

PERSON: Final = 1
TEMPERATURE: Final = 0.8
TOP_P: Final = 0.8
MOST_TOKENS: Final = 64


@dataclass(frozen=True, slots=True)
class Score:
    """The scores of a model on unseen pictures, as shares from 0 to 1.

    `liked` is the share of liked answers; `colour` and `shape` are the shares of correct answers to
    questions about colours and shapes.
    """

    liked: float
    colour: float
    shape: float


class Speaker(Protocol):
    """A model, or a substitute for one, that answers in place of the bot's engine."""

    def answers(self, lessons: Sequence[Lesson], images: Path, sampling: Sampling) -> list[str]:
        """Return an answer to the last question of each lesson."""
        ...


class Bench:
    """A ledger, pictures and models in a folder laid out like the bot's, and users who take turns chatting."""

    def __init__(
        self,
        folder: Path,
        settings: TrainingSettings,
        base: Path = CHECKPOINT,
        *,
        people: int = 1,
        trainer: Trainer | None = None,
        answers: Path | None = None,
    ) -> None:
        self._people = people
        self._chats = 0
        self.base = base
        self.ledger = Ledger.open(folder)
        self.pictures = PictureStore(folder / "pictures")
        self.models = ModelStore(folder / "models")
        paths = TrainingPaths(base, folder / "runs", folder / "sources", answers)
        specs = JobSpecs(settings, paths, self.pictures.directory, INTERNVL2.system, tiles=0)
        planner = RunPlanner(self.ledger, self.models, specs)
        self.pipeline = Pipeline(planner, self.pictures, trainer or ChildTrainer(settings))

    async def open(self) -> None:
        """Record the base model and the users in the ledger."""
        await self.ledger.models.add(Model("base", str(self.base), ModelState.LIVE, None, 0.0))
        for person in range(PERSON, PERSON + self._people):
            await self.ledger.people.save(Person(person), Chat(person))

    async def keep(self, scene: Scene, rng: Random) -> tuple[str, tuple[int, int]]:
        """Draw a scene, store the drawing as a JPEG, and return the picture's name and size."""
        image = draw(scene, rng)
        data = io.BytesIO()
        image.save(data, "JPEG", quality=90)
        name = await self.pictures.put(data.getvalue())
        await self.ledger.pictures.add(
            StoredPicture(name, "image/jpeg", *image.size, len(data.getvalue()), perceptual_hash(image))
        )
        return name, image.size

    def file(self, name: str) -> str:
        """Return the path of the picture `name`, relative to the picture folder."""
        return str(self.pictures.path(name).relative_to(self.pictures.directory))

    def answers(self, model: Speaker, questions: Sequence[SimulatedQuestion]) -> list[str]:
        """Return the model's answers, sampled with the bot's settings."""
        lessons = [replace(each.lesson, turns=tuple(map(self._on_disk, each.lesson.turns))) for each in questions]
        return model.answers(lessons, self.pictures.directory, Sampling(TEMPERATURE, TOP_P, MOST_TOKENS, top_k=0))

    async def chat(self, model: Speaker, count: int, taste: Taste, seed: int, people: Sequence[int] = ()) -> int:
        """Send `count` pictures, ask twice about each, vote on every answer, and return the number of likes.

        The users whose IDs are in `people` take turns; by default, all users do.
        """
        people = people or range(PERSON, PERSON + self._people)
        rng = Random(f"chat {seed}")
        torch.manual_seed(seed)
        self._chats += 1
        first = [await self._ask(rng, number) for number in range(count)]
        likes = 0
        sessions = []
        follow_ups = []
        for number, (asked, said) in enumerate(zip(first, self.answers(model, first), strict=True)):
            person = people[number % len(people)]
            sessions.append(await self.ledger.sessions.restart(person, person))
            answer, vote = taste(asked, said, rng)
            likes += vote > 0
            update = 10_000 * self._chats + 10 * number
            await self._record(asked, answer, vote, session=sessions[number], person=person, update=update)
            follow_ups.append(asked.follow_up(answer, rng))
        for number, (asked, said) in enumerate(zip(follow_ups, self.answers(model, follow_ups), strict=True)):
            answer, vote = taste(asked, said, rng)
            likes += vote > 0
            person, update = people[number % len(people)], 10_000 * self._chats + 10 * number + 5
            await self._record(asked, answer, vote, session=sessions[number], person=person, update=update)
        return likes

    async def examine(self, directory: Path, count: int, seed: int, taste: Taste) -> Score:
        """Return the scores of the model in `directory` on `count` unseen pictures.

        The model is asked one question and one follow-up about each picture, in unseen wordings.
        """
        rng = Random(f"examination {seed}")
        torch.manual_seed(1000 + seed)
        model = LocalModel(directory)
        asked = [await self._ask(rng, number) for number in range(count)]
        said = self.answers(model, asked)
        again = [each.follow_up(answer, rng) for each, answer in zip(asked, said, strict=True)]
        asked, said = asked + again, said + self.answers(model, again)

        def share(kind: Kind) -> float:
            chosen = [
                correct(each.kind, each.scene, answer)
                for each, answer in zip(asked, said, strict=True)
                if each.kind == kind
            ]
            return sum(chosen) / len(chosen)

        liked = [taste(each, answer, rng)[1] > 0 for each, answer in zip(asked, said, strict=True)]
        return Score(sum(liked) / len(liked), share("colour"), share("shape"))

    async def retrain(self) -> tuple[Run, Model | None]:
        """Run the pipeline once and return the run and its model, if any."""

        async def quiet(run: Run) -> None:
            """Ignore the run's progress."""

        run = await self.ledger.runs.start("command")
        model = await self.pipeline.run(run, quiet)
        return await self.ledger.runs.get(run.id), model

    def _on_disk(self, turn: Turn) -> Turn:
        return replace(turn, pictures=tuple(Picture(b"", self.file(each.sha256)) for each in turn.pictures))

    async def _ask(self, rng: Random, number: int) -> SimulatedQuestion:
        scene = random_scene(rng)
        name, size = await self.keep(scene, rng)
        return SimulatedQuestion.first(scene, name, size, number, rng)

    async def _record(
        self, asked: SimulatedQuestion, answer: str, vote: int, *, session: int, person: int, update: int
    ) -> None:
        prompt = Prompt(INTERNVL2.system, asked.lesson.turns[:-1], chat="")
        newest = prompt.turns[-1]
        recorded = await self.ledger.exchanges.record(
            Exchange(
                session=session,
                chat=person,
                asker=person,
                update=update,
                question=newest.text,
                pictures=tuple(each.sha256 for each in newest.pictures),
                answer=answer,
                model="base",
                system=INTERNVL2.system,
                prompt_hash=prompt_hash(prompt),
                temperature=TEMPERATURE,
                top_p=TOP_P,
                max_new_tokens=MOST_TOKENS,
                seed=None,
                finish="stop",
                prompt_tokens=0,
                completion_tokens=0,
                cached_tokens=0,
                encoded_tiles=0,
                first_token_seconds=0.0,
                seconds=0.0,
                top_k=0,
            )
        )
        await self.ledger.votes.cast(Rating(recorded.id, person, vote, update + 1))


async def learn(folder: Path, given: argparse.Namespace, seed: int, console: Console) -> float:
    """Run the learning loop once in `folder`, print its result, and return the duration of the run in seconds.

    The figures after the run are those of the new model, even if it was rejected.
    """
    taste, base = TASTES[given.taste], given.model
    knobs = dict(each.split("=", 1) for each in given.knob)
    bench = Bench(folder, TrainingSettings.for_tiny(knobs=knobs), base)
    try:
        await bench.open()
        before = await bench.examine(base, given.unseen, seed, taste)
        pairs = await bench.chat(LocalModel(base), given.pictures, taste, seed)
        begun = time.monotonic()
        run, model = await bench.retrain()
        seconds = time.monotonic() - begun
        after = await bench.examine(base if model is None else Path(model.directory), given.unseen, seed, taste)
    finally:
        await bench.ledger.close()
    console.print(
        f"seed {seed}: {pairs} 👍, {seconds:.0f} s, {run.reason if model is None else model.state}; "
        f"liked {before.liked:.0%} → {after.liked:.0%}, colour {before.colour:.0%} → {after.colour:.0%}, "
        f"shape {before.shape:.0%} → {after.shape:.0%}"
    )
    if model is not None:
        console.print(f"  {model.report}")
    return seconds


def main() -> None:
    """Run the command-line interface."""
    parser = argparse.ArgumentParser(description="Ask, vote, retrain, ask again.")
    parser.add_argument("--taste", choices=TASTES, default="playful")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=30)
    parser.add_argument("--unseen", type=int, default=100)
    parser.add_argument("--model", type=Path, default=CHECKPOINT)
    parser.add_argument(
        "--knob", action="append", default=[], metavar="NAME=VALUE", help="replaces a hyperparameter of the recipe"
    )
    parser.add_argument("--keep", type=Path, help="folder for the ledger and the runs; default: a temporary one")
    given = parser.parse_args()
    console = Console(highlight=False, markup=False, soft_wrap=True)
    seconds = []
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(given.keep or temporary) / f"{given.taste}-{seed}"
            seconds.append(asyncio.run(learn(folder, given, seed, console)))
    console.print(f"median {statistics.median(seconds):.0f} s per run")


if __name__ == "__main__":
    main()
