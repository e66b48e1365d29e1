"""Measure how each phase of a retraining run slows the chats of users on the same GPU.

    python -m benchmarks.sharing --work DIR [--json FILE] [--people 8] [--pictures 256] [--no-courtesy]
    python -m benchmarks.sharing --work DIR --engine cpu --people 2 --pictures 12 --alone 15

Simulated users chat through thumbtune's `Deployment`, like the bot's users, and the run uses the
product's workers. With `--engine lmdeploy`, the chats and the run share one GPU and use full-size random
weights (written into DIR on first use). `--engine cpu` is a small variant with the tiny model, to check
that the benchmark works. Each user sends a picture and asks about it, and switches to a new picture now
and then. The users chat first without a run and then during one. The run computes the features of its
pictures, trains, merges and evaluates.

The script prints a table of the wait times for the first word in each phase, with the ratio of each phase's
95th percentile to the 95th percentile without a run, and writes the results as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.engine_crowd import EngineCrowd, SeenAnswer, waits
from benchmarks.lmdeploy_swap import gpu_megabytes
from benchmarks.peers.training import SYSTEM, lay_out
from benchmarks.random_checkpoint import checkpoint
from inference.internvl2.tiny import CHECKPOINT
from inference.serving.deployment import Deployment
from inference.settings import InferenceSettings
from training.evaluation_jobs import Candidate, EvaluationJob, TasteJob
from training.job import Job, MergeJob, Outcome, Progress, checked
from training.launcher import ChildTrainer
from training.run_folder import CANDIDATE, JUDGED_ROWS
from training.settings import TrainingSettings

ALONE: Final = "alone"
PHASES: Final = {"looking": "features", "training": "training", "merging": "merge", "evaluating": "evaluation"}
"""The phases, by the names of the stages that workers report. Loading and checking fall between phases."""

TURNS: Final = {"first turns": False, "follow-ups": True}
HELD_OUT: Final = 8
WARM_UP: Final = 12.0


class Phases:
    """The times at which the phases of a run began and ended, taken from its workers' progress reports."""

    def __init__(self) -> None:
        self.spans: dict[str, tuple[float, float]] = {}
        self._now = ""

    def note(self, progress: Progress) -> None:
        """Process a progress report; a change of stage ends the current phase."""
        stage = PHASES.get(progress.stage, "")
        if stage != self._now:
            self.end()
            self.begin(stage)
        if progress.step and progress.step == progress.steps:
            self.end()

    def begin(self, phase: str) -> None:
        """Begin a phase, or none if `phase` is empty."""
        self._now = phase
        if phase and phase not in self.spans:
            self.spans[phase] = (time.monotonic(), float("inf"))

    def end(self) -> None:
        """End the current phase, if any."""
        if self._now:
            self.spans[self._now] = (self.spans[self._now][0], time.monotonic())


def summary(seen: Sequence[SeenAnswer], spans: dict[str, tuple[float, float]]) -> dict[str, dict[str, Any]]:
    """Return the waits in each phase, with the ratio of each 95th percentile to the one without a run."""
    found: dict[str, dict[str, Any]] = {}
    for phase, span in spans.items():
        found[phase] = {"seconds": round(span[1] - span[0], 1)}
        for name, follow_up in TURNS.items():
            numbers = waits(seen, span, follow_up=follow_up)
            alone = found[ALONE].get(name, {}).get("p95")
            if phase != ALONE and alone and "p95" in numbers:
                numbers["ratio"] = round(numbers["p95"] / alone, 2)
            found[phase][name] = numbers
    return found


def table(phases: dict[str, dict[str, Any]]) -> Table:
    """Return the summary of the phases as a table."""
    heads = [f"{name}: {column}" for name in TURNS for column in ("number", "median s", "95 % s", "ratio")]
    made = Table("phase", "seconds", *heads)
    for phase, found in phases.items():
        cells = [found[name].get(key, "–") for name in TURNS for key in ("number", "median", "p95", "ratio")]
        made.add_row(phase, str(found["seconds"]), *map(str, cells))
    return made


def jobs(base: Path, options: argparse.Namespace, courtesy: str) -> tuple[Job, MergeJob, TasteJob, EvaluationJob]:
    """Return the run's jobs, with new folders."""
    work, merged = options.work / "sharing", options.work / "sharing-merged"
    for folder in (work, merged):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    data, images = lay_out(base, options.work / f"data-{options.engine}-{options.pictures}", options.pictures)
    rows = json.loads(data.read_text(encoding="utf-8"))
    (work / JUDGED_ROWS).write_text(json.dumps(rows[:HELD_OUT]), encoding="utf-8")
    device = "cpu" if options.engine == "cpu" else "cuda"
    training = replace(
        Job("1", str(base), str(data), str(images), work=str(work), system=SYSTEM, device=device),
        courtesy=courtesy,
        epochs=2,
        save_steps=0,
        **options.knobs,
    )
    merging = MergeJob("1", str(base), "", str(merged), work=str(work), system=SYSTEM)
    common: dict[str, Any] = {
        "run": "1",
        "live": str(base),
        "data": str(work / JUDGED_ROWS),
        "images": str(images),
        "work": str(work),
        "system": SYSTEM,
        "device": device,
        "courtesy": courtesy,
    }
    return training, merging, TasteJob(**common, adapter=""), EvaluationJob(**common, candidate=str(merged))


async def carry_out(
    training: Job, merging: MergeJob, testing: TasteJob, judging: EvaluationJob, phases: Phases
) -> Outcome:
    """Train, merge and evaluate as the pipeline does without engines, and return the outcome of the training."""
    trainer = ChildTrainer(TrainingSettings())
    trained = checked(await trainer.run(training, phases.note))
    phases.begin("merge")
    checked(await trainer.run(replace(merging, adapter=str(trained.adapter)), phases.note))
    phases.begin("evaluation")
    checked(await trainer.run(replace(testing, adapter=str(trained.adapter)), phases.note))
    Candidate().write(Path(judging.work) / CANDIDATE)
    checked(await trainer.run(judging, phases.note))
    phases.end()
    return trained


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Have users chat first while no run is active and then during one, and return the measurements."""
    base = CHECKPOINT if options.engine == "cpu" else checkpoint(options.work, "2b")
    settings = InferenceSettings.model_validate({"engine": options.engine, "model": str(base), **options.settings})
    deployment = Deployment(settings, "first", base, logs=options.work)
    courtesy = str(deployment.first_words.resolve()) if options.courtesy else ""
    work = await asyncio.to_thread(jobs, base, options, courtesy)
    phases = Phases()
    await deployment.start()
    crowd = EngineCrowd(deployment, range(options.people), options.tokens)
    found: dict[str, Any] = {"engine": options.engine, "people": options.people, "courtesy": options.courtesy}
    try:
        await asyncio.sleep(WARM_UP)
        phases.begin(ALONE)
        await asyncio.sleep(options.alone)
        phases.end()
        if options.engine != "cpu":
            found["megabytes_alone"] = gpu_megabytes()
        trained = await carry_out(*work, phases)
    finally:
        await crowd.stop()
        await deployment.stop()
    found |= {"steps": trained.steps, "peak_bytes": trained.peak_memory, "errors": crowd.errors}
    return found | {"phases": summary(crowd.seen, phases.spans)}


def main() -> None:
    """Run the command-line interface."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for the checkpoint and the logs")
    parser.add_argument("--json", type=Path, help="a file for the result (default: standard output)")
    parser.add_argument("--engine", choices=("lmdeploy", "cpu"), default="lmdeploy")
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pictures", type=int, default=256, help="training rows, with one picture each")
    parser.add_argument("--alone", type=float, default=45.0, help="seconds of chat before the run")
    parser.add_argument(
        "--courtesy",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let the run yield to waiting users, as the bot does",
    )
    parser.add_argument("--settings", type=json.loads, default={}, help="other keys of [inference], as JSON")
    parser.add_argument("--knobs", type=json.loads, default={}, help="other fields of the job, as JSON")
    options = parser.parse_args()
    options.work = options.work.absolute()
    options.work.mkdir(parents=True, exist_ok=True)
    found = asyncio.run(run(options))
    Console(stderr=True, width=160).print(table(found["phases"]))
    text = json.dumps(found, indent=2)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
