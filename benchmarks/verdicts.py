"""Compare the acceptance rates of the tiny model's retraining runs with the expected results.

    python -m benchmarks.verdicts [--rows playful60 …] [--jobs 2]

In each run, simulated users (person.py) ask the live model about drawn pictures and vote according to a
taste, and the real pipeline learns from the votes: selection, XTuner, merge and evaluation, all in one
process, with one thread. Each finished run appends a JSON line to the results file; runs already in the
file are not repeated. The table shows how often runs were accepted, with Wilson's 95 % intervals, next
to the expected result. With `--table`, the script only prints the table.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from benchmarks.judge import rate
from benchmarks.learning_loop import PERSON, Bench
from benchmarks.person import TASTES
from inference.internvl2.tiny import CHECKPOINT
from storage.state_machines import ModelState
from training.evaluation_jobs import EvaluationJob, TasteJob
from training.gate.judge_candidate import evaluate
from training.gate.judge_taste import test
from training.gate.local_model import LocalModel
from training.gate.report import Report, Taste
from training.job import Job, MergeJob, Outcome, Progress, TrainingError, WorkerJob, ignore
from training.merge import merge
from training.run_folder import CANDIDATE
from training.settings import TrainingSettings
from training.xtuner.finetune import finetune

PEOPLE: Final = 20
UNSEEN: Final = 40
"""The number of pictures; the live and an accepted model are asked two questions about each."""

EVERY_LAYER: Final = {"targets": "", "learning_rate": 1e-3}
KEPT: Final = Path(tempfile.gettempdir()) / "thumbtune-verdicts"
"""The folder of the base model's answers to factual questions, which all runs share."""

RESULTS: Final = Path(__file__).parent / "results" / "verdicts.jsonl"


@dataclass(frozen=True, slots=True)
class Row:
    """A kind of run.

    Attributes:
        taste: The taste according to which the users vote.
        pictures: The number of pictures, each with two answers.
        seeds: The number of seeds.
        expected: The expected result, as text.
        knobs: The hyperparameters.
        runs: The maximum number of runs in a row.
        hostile: Whether one user has the opposite taste and votes as often as all the others together.
    """

    taste: str
    pictures: int
    seeds: int
    expected: str
    knobs: dict[str, Any] = field(default_factory=dict)
    runs: int = 1
    hostile: bool = False


ROWS: Final[dict[str, Row]] = {
    "coin60": Row("random", 30, 60, "accepted at most 6 of 60"),
    "coin60-every-layer": Row("random", 30, 60, "accepted at most 6 of 60", EVERY_LAYER),
    "coin12x10": Row("random", 6, 20, "any accepted in at most 4 of 20", runs=10),
    "everything60": Row("everything", 30, 20, "never accepted"),
    "playful60": Row("playful", 30, 20, "accepted 19 of 20"),
    "plain60": Row("plain", 30, 20, "accepted 19 of 20"),
    "playful36": Row("playful", 18, 20, "accepted 14 of 20, the rest undecided"),
    "plain36": Row("plain", 18, 20, "accepted 14 of 20, the rest undecided"),
    "smile120": Row("smile", 60, 20, "accepted 14 of 20, the rest undecided"),
    "short60": Row("short", 30, 20, "accepted only where short answers become more frequent"),
    "by-question60": Row("by-question", 30, 20, "never accepted"),
    "wrong60-every-layer": Row("wrong", 30, 20, "never accepted", EVERY_LAYER),
    "hostile60": Row("playful", 30, 20, "accepted 19 of 20, liked at least 88%", hostile=True),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one run, or of the last of several runs in a row.

    `before` and `after` are the shares of liked answers from the live and the accepted model, and `facts` is
    the share of correct answers from the accepted model. All three are from 0 to 1 and refer to unseen
    pictures; they are NaN if no model was accepted.
    """

    row: str
    seed: int
    decision: str
    reason: str
    run: int
    p_value: float
    agreement: float
    answers: int
    liked: int
    shown: int
    before: float
    after: float
    facts: float
    seconds: float


WORKERS: Final[dict[type, Callable[..., Outcome]]] = {
    Job: finetune,
    MergeJob: merge,
    TasteJob: test,
    EvaluationJob: evaluate,
}


class InProcess:
    """A trainer that carries out jobs in this process."""

    async def run(self, job: WorkerJob, on_progress: Callable[[Progress], None] = ignore) -> Outcome:
        """Carry out one job and return its outcome."""
        if isinstance(job, EvaluationJob):  # it would wait for the merge, which runs in this process too
            while not (Path(job.work) / CANDIDATE).exists():  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        begun = time.monotonic()
        try:
            with redirect_stdout(sys.stderr):
                return WORKERS[type(job)](job, on_progress)
        except TrainingError as error:
            return Outcome(ok=False, reason=str(error), seconds=time.monotonic() - begun)


async def carry_out(name: str, seed: int) -> Verdict:
    """Carry out runs of the kind `name` until one is accepted or the maximum number of runs is reached."""
    row = ROWS[name]
    begun = time.monotonic()
    settings = TrainingSettings.for_tiny(knobs=row.knobs, seed=seed, threads=1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bench = Bench(folder, settings, people=PEOPLE, trainer=InProcess(), answers=KEPT)
        try:
            await bench.open()
            live = LocalModel(CHECKPOINT)
            for number in range(1, row.runs + 1):
                if row.hostile:
                    liked = await _chat_with_a_hostile_user(bench, live, row, seed)
                else:
                    liked = await bench.chat(live, row.pictures, TASTES[row.taste], 100 * seed + number)
                run, model = await bench.retrain()
                if model is not None and model.state is ModelState.CANDIDATE:
                    break
            taste = Taste() if model is None else Report.from_json(model.report).taste
            before = after = facts = float("nan")
            if model is not None and model.state is ModelState.CANDIDATE:
                before, _ = await _examine(bench, CHECKPOINT, row.taste, seed)
                after, facts = await _examine(bench, Path(model.directory), row.taste, seed)
            return Verdict(
                row=name,
                seed=seed,
                decision="refused" if model is None else model.state.value,
                reason=str(run.reason if model is None else model.reason),
                run=number,
                p_value=taste.p_value,
                agreement=taste.agreement,
                answers=taste.answers,
                liked=liked,
                shown=2 * row.pictures,
                before=before,
                after=after,
                facts=facts,
                seconds=round(time.monotonic() - begun, 1),
            )
        finally:
            await bench.ledger.close()


async def _chat_with_a_hostile_user(bench: Bench, live: LocalModel, row: Row, seed: int) -> int:
    """Have a user who likes plain answers vote as often as all the others together; return the others' likes."""
    others = range(PERSON + 1, PERSON + PEOPLE)
    liked = await bench.chat(live, row.pictures // 2, TASTES[row.taste], 100 * seed + 1, others)
    await bench.chat(live, row.pictures, TASTES["plain"], 100 * seed + 2, [PERSON])
    return liked + await bench.chat(live, row.pictures - row.pictures // 2, TASTES[row.taste], 100 * seed + 3, others)


async def _examine(bench: Bench, directory: Path, taste: str, seed: int) -> tuple[float, float]:
    """Ask about unseen pictures; return the share of answers that suit `taste`, and the share that are correct.

    Correctness is checked only for questions about colours and shapes.
    """
    score = await bench.examine(directory, UNSEEN, seed, TASTES[taste])
    return score.liked, (score.colour + score.shape) / 2


def _work(name: str, seed: int) -> Verdict:
    import torch

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    return asyncio.run(carry_out(name, seed))


def read(file: Path) -> list[Verdict]:
    """Return the results of the finished runs in `file`."""
    return [Verdict(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def table(found: Iterable[Verdict]) -> Iterable[str]:
    """Yield a line of the table for each kind of run with at least one finished run."""
    done = list(found)
    for name, row in ROWS.items():
        own = [each for each in done if each.row == name]
        if not own:
            continue
        accepted = [each for each in own if each.decision == ModelState.CANDIDATE]
        share = rate(name, "accepted", len(accepted), len(own))
        others = {each.decision for each in own} - {ModelState.CANDIDATE.value}
        rest = ", ".join(f"{sum(each.decision == state for each in own)} {state}" for state in sorted(others))
        taught = ""
        if accepted:
            before, after, facts = (
                sum(getattr(each, name) for each in accepted) / len(accepted) for name in ("before", "after", "facts")
            )
            taught = f"; liked {before:.0%} → {after:.0%}, facts {facts:.0%}"
        yield (
            f"{name:20} {len(accepted):3} of {len(own):3} accepted ({share.low:.0%} to {share.high:.0%})"
            f"{', ' + rest if rest else ''}{taught}; expected: {row.expected}"
        )


def main() -> None:
    """Carry out the missing runs and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, help="maximum number of runs for each row")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    parser.add_argument("--minutes", type=float, default=1e6, help="time after which no run is started")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    options.out.touch()
    known = {(each.row, each.seed) for each in read(options.out)}
    wanted = [
        (name, seed)
        for name in options.rows
        for seed in range(min(ROWS[name].seeds, options.seeds or ROWS[name].seeds))
        if (name, seed) not in known
    ]
    ends = time.monotonic() + 60 * options.minutes
    if not options.table:
        waiting = iter(wanted)
        with (
            ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool,
            options.out.open("a", encoding="utf-8") as out,
        ):
            running = {pool.submit(_work, *each) for each in islice(waiting, options.jobs)}
            while running:
                finished = next(as_completed(running))
                running.remove(finished)
                if time.monotonic() < ends and (following := next(waiting, None)):
                    running.add(pool.submit(_work, *following))
                out.write(json.dumps(asdict(finished.result()), ensure_ascii=False) + "\n")
                out.flush()
    for line in table(read(options.out)):
        print(line)


if __name__ == "__main__":
    main()
