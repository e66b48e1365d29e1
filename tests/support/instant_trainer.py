"""A stand-in for the interpreter of the training workers that writes output files at once, without a model.

Run as `instant_trainer.py -m training.STEP JOB.json`. A file named `cue` beside the run directories
selects the outcome: `good` (the default), `worse` (the evaluation rejects the candidate), `harmful` (the
evaluation rejects the candidate because it has forgotten too much), `few` (there are too few votes to
decide), `silent` (the candidate's engine does not start), `frail` (the candidate's engine starts only
once), `slow` (the candidate's engine takes two seconds to start), `bad` (training fails with a reason),
`hang` (progress, then nothing more). Candidates are served by tests/support/fake_engine.py. In a blind
comparison, every model answers with its name, except to questions that end in "1?"; with the cue `bad`,
the comparison fails.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from inference.process.parent_watch import watch_parent
from storage.translatable_reason import Reason
from training.command_jobs import BlindJob
from training.evaluation_jobs import Candidate, EvaluationJob
from training.gate.report import Decision, Report, Taste
from training.job import RATED, Job, MergeJob, Outcome, Progress, ignore, outcome_file
from training.run_folder import CANDIDATE
from training.worker import wait_for

WORSE = Reason(
    "no difference was found between the answers that people liked and the others, in {answers} rated answers",
    answers=45,
)


FORGETFUL = Reason("{number} of its answers are empty or repeat themselves", number=40)
FEW = Reason("{answers} rated answers are too few to tell", answers=12)


def finetune(job: Job, cue: str) -> Outcome:
    """Report progress, write an adapter and return the outcome."""
    for step in (1, 2, 3):
        sys.stdout.write(Progress("training", step, 3, 1 / step, 3.0 - step).to_json() + "\n")
        sys.stdout.flush()
    if cue == "hang":
        time.sleep(600)
    adapter = Path(job.work) / "adapter"
    adapter.mkdir(exist_ok=True)
    (adapter / "adapter.safetensors").write_bytes(b"adapter")
    rows = len(json.loads(Path(job.data).read_bytes()))
    return Outcome(ok=cue != "bad", reason="row 3 is bad" if cue == "bad" else "", adapter=str(adapter), steps=3,
                   samples={RATED: rows})  # fmt: skip


def merge(job: MergeJob, cue: str) -> Outcome:
    """Write a model directory that the fake engine can serve."""
    (Path(job.out) / "model.safetensors").write_bytes(f"weights of run {job.run}".encode())
    starts: dict[str, dict[str, object]] = {
        "silent": {"start": "exit"},
        "frail": {"start": "exit_second"},
        "slow": {"late": 2},
    }
    serving: dict[str, object] = {"quiet": True, **starts.get(cue, {})}
    (Path(job.out) / "cue.json").write_text(json.dumps(serving))
    return Outcome(ok=True)


def evaluate(job: EvaluationJob, cue: str) -> Outcome:
    """Wait for the candidate, and write the evaluation report with the verdict that `cue` selects."""
    wait_for(Path(job.work) / CANDIDATE, ignore)
    decision, reason = {
        "worse": (Decision.REJECTED, WORSE),
        "harmful": (Decision.REJECTED, FORGETFUL),
        "few": (Decision.UNDECIDED, FEW),
    }.get(cue, (Decision.ACCEPTED, ""))
    taste = Taste(answers=45, liked=20, raters=3, agreement=0.75, low=0.65, high=0.85, p_value=0.001, alpha=0.03)
    report = Report(
        decision,
        reason,
        harmful=cue == "harmful",
        taste=taste,
        questions=150,
        live_correct=0.9,
        correct=0.9,
        effort=Candidate.read(Path(job.work) / CANDIDATE).effort,
    )
    report.write(Path(job.work) / "report.json")
    return Outcome(ok=True)


def answer_blind(job: BlindJob, cue: str) -> Outcome:
    """Write the answers of two models to the same questions."""
    answers = [
        ["Equal." if question.endswith("1?") else f"Words of {name}." for name, _ in job.models]
        for _, question in job.asked
    ]
    Path(job.out).write_text(json.dumps(answers))
    return Outcome(ok=cue != "bad", reason="no memory" if cue == "bad" else "")


def main() -> int:
    """Run the step named on the command line."""
    watch_parent(grace=0.1)
    module, file = sys.argv[sys.argv.index("-m") + 1], Path(sys.argv[-1])  # before it: what a fork client is given
    step = module.rpartition(".")[2]
    if step == "fork_server":  # there is nothing to preload
        print("ready", flush=True)  # noqa: T201
        sys.stdin.read()
        return 0
    told = file.parent.parent / ("runs/cue" if step == "blind_answers" else "cue")
    cue = told.read_text() if told.exists() else "good"
    if step == "finetune":
        outcome = finetune(Job.read(file), cue)
    elif step == "merge":
        outcome = merge(MergeJob.read(file), cue)
    elif step == "blind_answers":
        outcome = answer_blind(BlindJob.read(file), cue)
    elif step in ("opening_answers", "judge_taste"):
        outcome = Outcome(ok=True)
    else:
        outcome = evaluate(EvaluationJob.read(file), cue)
    outcome.write(outcome_file(file))
    return 0


if __name__ == "__main__":
    sys.exit(main())
