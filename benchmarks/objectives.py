"""Measure what each training objective learns from few votes.

    python -m benchmarks.objectives [--seeds 3] [--tastes playful]

The base model answers questions about drawn pictures with the bot's sampling settings, a simulated user
votes on every answer according to a fixed taste, and the tiny recipe trains on all votes with each
objective. The trained model then answers unseen questions. The script reports the share of answers in
the liked manner and the share of correct answers.

The objective `sft` learns from the liked answers, and `kto` from all answers. `dpo` spends the same
number of votes on half as many questions, each answered twice. It learns from the pairs in which only
one answer is liked, and from the remaining liked answers.

Everything runs in this process. Each finished training run appends a JSON line to the `--out` file; runs
already in the file are not repeated. The table shows means over seeds with 95 % intervals (Student's t).
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import product
from pathlib import Path
from random import Random
from statistics import mean
from typing import Final

import torch
from scipy import stats

from benchmarks.person import LIKES, SimulatedQuestion
from inference.internvl2.families import INTERNVL2
from inference.internvl2.tiny import CHECKPOINT
from inference.internvl2.tiny.answer_checks import correct
from inference.internvl2.tiny.drawing import draw
from inference.internvl2.tiny.shapes import random_scene
from inference.messages import Sampling
from training.data.llava import Lesson, Rejected, row_name, write_rows
from training.gate.local_model import LocalModel
from training.job import Job, MergeJob, ignore
from training.merge import merge
from training.settings import TrainingSettings
from training.xtuner.finetune import finetune

VOTES: Final = (12, 24, 36, 60)
OBJECTIVES: Final = ("sft", "kto", "dpo")
UNSEEN: Final = 200
"""The number of questions about new pictures after each training run."""

AS_THE_BOT: Final = Sampling(0.8, 0.8, 64, top_k=0)


@dataclass(frozen=True, slots=True)
class Measured:
    """The result of one training run.

    Attributes:
        share: The share of answers to unseen questions that are in the liked manner, from 0 to 1.
        facts: The share of answers to unseen questions that are correct, from 0 to 1.
    """

    taste: str
    objective: str
    votes: int
    seed: int
    knobs: str
    share: float
    facts: float
    liked: int
    pairs: int
    steps: int
    seconds: float

    @property
    def key(self) -> tuple[str, str, int, int, str]:
        """The training run's taste, objective, number of votes, seed and knobs."""
        return self.taste, self.objective, self.votes, self.seed, self.knobs


class Studio:
    """A folder of drawn pictures, with questions about them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ask(self, name: str, count: int) -> list[SimulatedQuestion]:
        """Draw `count` pictures, with `name` as the seed, and return a question about each."""
        rng = Random(name)
        asked = []
        for number in range(count):
            scene, data = random_scene(rng), io.BytesIO()
            image = draw(scene, rng)
            image.save(data, "JPEG", quality=90)
            digest = sha256(data.getvalue()).hexdigest()
            (self.folder / digest).write_bytes(data.getvalue())
            asked.append(SimulatedQuestion.first(scene, digest, image.size, number, rng))
        return asked

    def answers(self, model: LocalModel, asked: Sequence[SimulatedQuestion], seed: int) -> list[str]:
        """Return the model's answers, sampled with the bot's settings."""
        torch.manual_seed(seed)
        return model.answers([each.lesson for each in asked], self.folder, AS_THE_BOT)

    def examine(self, model: Path, taste: str, seed: int) -> tuple[float, float]:
        """Return the shares of the model's answers to the unseen questions for `seed` that are liked and correct."""
        asked = self.ask(f"unseen {seed}", UNSEEN)
        said = self.answers(LocalModel(model), asked, 1000 + seed)
        right = [correct(each.kind, each.scene, answer) for each, answer in zip(asked, said, strict=True)]
        return mean(map(LIKES[taste], asked, said)), mean(right)


def lessons_of(objective: str, asked: Sequence[SimulatedQuestion], answers: Sequence[str], taste: str) -> list[Lesson]:
    """Return the lessons for `objective`, in the order of `answers`, with votes according to `taste`."""
    lessons = [
        replace(each.lesson.answered(answer), name=row_name(number), liked=LIKES[taste](each, answer))
        for number, (each, answer) in enumerate(zip(asked, answers, strict=True))
        if answer
    ]
    if objective == "kto":
        return lessons
    liked = [each for each in lessons if each.liked]
    if objective == "sft":
        return liked
    disliked = {each.turns[:-1]: each for each in lessons if not each.liked}
    found = []
    for each in liked:
        worse = disliked.get(each.turns[:-1])
        found.append(each if worse is None else replace(each, rejected=Rejected(worse.name, worse.turns[-1].text)))
    return found


def train(
    work: Path, images: Path, lessons: Iterable[Lesson], settings: TrainingSettings, seed: int
) -> tuple[Path, int]:
    """Train on `lessons`, merge, and return the model's directory and the number of optimizer steps."""
    write_rows(lessons, work / "train.json")
    job = Job(
        run="1",
        base=str(CHECKPOINT),
        data=str(work / "train.json"),
        images=str(images),
        work=str(work),
        system=INTERNVL2.system,
        device="cpu",
        threads=1,
        seed=seed,
        **settings.resolved("tiny").model_dump(),
    )
    with redirect_stdout(io.StringIO()):
        outcome = finetune(job, ignore)
    merged = work / "merged"
    merged.mkdir()
    merge(
        MergeJob("1", job.base, str(outcome.adapter), str(merged), work=job.work, system=INTERNVL2.system, threads=1),
        ignore,
    )
    return merged, outcome.steps


def measure(taste: str, objective: str, votes: int, seed: int, knobs: dict[str, object]) -> Measured:
    """Collect votes, train, and measure the model's answers to unseen questions."""
    begun = time.monotonic()
    settings = TrainingSettings.for_tiny(objective=objective, knobs=knobs, device="cpu", threads=1)
    with tempfile.TemporaryDirectory() as folder:
        studio, work = Studio(Path(folder, "pictures")), Path(folder, "run")
        studio.folder.mkdir()
        work.mkdir()
        asked = studio.ask(f"votes {seed}", votes // 2 if objective == "dpo" else votes)
        asked *= 2 if objective == "dpo" else 1
        answers = studio.answers(LocalModel(CHECKPOINT), asked, seed)
        lessons = lessons_of(objective, asked, answers, taste)
        merged, steps = train(work, studio.folder, lessons, settings, seed)
        share, facts = studio.examine(merged, taste, seed)
    return Measured(
        taste,
        objective,
        votes,
        seed,
        json.dumps(knobs, sort_keys=True),
        share=share,
        facts=facts,
        liked=sum(each.liked for each in lessons),
        pairs=sum(each.rejected is not None for each in lessons),
        steps=steps,
        seconds=round(time.monotonic() - begun, 1),
    )


def measure_base(taste: str, seed: int) -> Measured:
    """Measure the base model's answers to the unseen questions for `seed`."""
    with tempfile.TemporaryDirectory() as folder:
        share, facts = Studio(Path(folder)).examine(CHECKPOINT, taste, seed)
    return Measured(taste, "base", 0, seed, "{}", share, facts, 0, 0, 0, 0.0)


def read(file: Path) -> list[Measured]:
    """Return the measurements in `file`."""
    return [Measured(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def interval(values: Sequence[float]) -> str:
    """Format the mean of `values` in percent, with its 95 % interval over seeds.

    The interval is clipped to the range from 0 to 100 %, and omitted for a single value.
    """
    centre = mean(values)
    if len(values) < 2:
        return f"{100 * centre:5.1f} %"
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return f"{100 * centre:5.1f} % ({100 * low:.0f} to {100 * high:.0f})"


def table(measured: Sequence[Measured]) -> str:
    """Return a table with a line for each combination of taste, number of votes, objective and knobs."""
    groups: dict[tuple[str, int, str, str], list[Measured]] = {}
    for each in measured:
        groups.setdefault((each.taste, each.votes, each.objective, each.knobs), []).append(each)
    lines = [f"{'taste':8} {'votes':>5} {'':5} {'liked manner':22} {'right':22} {'seeds':>5} {'steps':>5}  knobs"]
    for (taste, votes, objective, knobs), group in sorted(groups.items()):
        lines.append(
            f"{taste:8} {votes:5} {objective:5} {interval([each.share for each in group]):22} "
            f"{interval([each.facts for each in group]):22} {len(group):5} {mean(each.steps for each in group):5.0f}"
            f"  {'' if knobs == '{}' else knobs}"
        )
    return "\n".join(lines)


def main() -> None:
    """Carry out the missing training runs and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tastes", nargs="+", default=["playful"], choices=LIKES)
    parser.add_argument("--objectives", nargs="+", default=OBJECTIVES, choices=OBJECTIVES)
    parser.add_argument("--votes", nargs="+", type=int, default=VOTES)
    parser.add_argument("--knobs", type=json.loads, default={}, help="hyperparameters as JSON")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "objectives.jsonl")
    parser.add_argument("--table", action="store_true", help="only print what has been measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    options.out.touch()
    done = {each.key for each in read(options.out)}

    def add(found: Measured) -> None:
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(found)) + "\n")

    wanted = [] if options.table else product(range(options.seeds), options.tastes)
    for seed, taste in wanted:
        if (taste, "base", 0, seed, "{}") not in done:
            add(measure_base(taste, seed))
        for votes, objective in product(options.votes, options.objectives):
            if (taste, objective, votes, seed, json.dumps(options.knobs, sort_keys=True)) not in done:
                add(measure(taste, objective, votes, seed, options.knobs))
    print(table(read(options.out)))


if __name__ == "__main__":
    main()
