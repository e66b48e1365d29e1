"""Several trainings one after the other in one process, since XTuner's import takes longer than they do.

    python -m tests.support.trainings JOB.json …

Leaves beside each job what the real worker leaves.
"""

from __future__ import annotations

import sys
from pathlib import Path

from training.job import Job, ignore, outcome_file
from training.xtuner.finetune import finetune


def main() -> None:
    """Carry out the jobs named on the command line."""
    for each in map(Path, sys.argv[1:]):
        finetune(Job.read(each), ignore).write(outcome_file(each))


if __name__ == "__main__":
    main()
