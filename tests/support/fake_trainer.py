"""A stand-in for the interpreter of the training workers: `fake_trainer.py -m training.STEP JOB.json`.

A file named `cue` beside the job file selects the behaviour: `good` (progress, then an outcome), `bad`
(an outcome with a reason for failure), `die` (a complaint, then exit code 3), `killed` (SIGKILL to
itself), `timer` (kills itself with a signal that has no name), `hang` (progress, then silence), `pause`
(silence until there is a file named `go` beside the job file, then progress and an outcome), `noise`
(lines that do not report progress), `cramped` (out of memory until the batch is reduced to a quarter of
its original size). The process ends with its parent and dumps its stacks on request, as the real workers
do. torchrun starts several such processes.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from inference.process import stack_dump
from inference.process.parent_watch import watch_parent
from training.job import Job, Outcome, Progress, outcome_file


def say(line: str) -> None:
    """Print a line to the parent process, unbuffered."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def stuck() -> None:
    """Hang without further output."""
    time.sleep(600)


def main() -> int:
    """Do what the cue file selects and return the exit code."""
    watch_parent(grace=0.1)
    stack_dump.enable()
    job = Path(sys.argv[3])
    cue = (job.parent / "cue").read_text()
    (job.parent / f"pid{os.environ.get('RANK', '')}").write_text(str(os.getpid()))
    if cue == "noise":
        say("a library says hello")
        say('{"strange": 1}')
        say("[1]")
    for step in (1, 2, 3):
        say(Progress("training", step, 3, 1 / step, 3.0 - step).to_json())
    if cue == "hang":
        stuck()
    if cue == "pause":
        while not (job.parent / "go").exists():
            time.sleep(0.02)
        say(Progress("training", 3, 3).to_json())
    if cue == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if cue == "timer":
        os.kill(os.getpid(), signal.SIGRTMIN + 1)
    if cue == "die":
        sys.stderr.write("the cat sat on the keyboard\n")
        return 3
    if cue == "cramped" and (split := Job.read(job).split) < 4:
        Outcome(ok=False, reason=f"split {split}", too_large=True, seconds=20).write(outcome_file(job))
        return 0
    reason = "" if cue != "bad" else "row 3 is bad"
    Outcome(ok=not reason, reason=reason, adapter=None if reason else "adapter", steps=3, seconds=20).write(
        outcome_file(job)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
