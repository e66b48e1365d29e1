"""Train from a configuration file, without the rest of a run, and print how many child processes remain.

python -m tests.support.lone_training CONFIG.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import psutil

from training.job import ignore
from training.xtuner.runner import train

if __name__ == "__main__":
    train(Path(sys.argv[1]), ignore)
    print(len(psutil.Process().children()), "processes left")  # noqa: T201
