"""Worker: what the vision tower sees before a run, so that it need not in every epoch; each process sees its share.

Knows the run's directory and how many processes there are. How a picture is seen and kept is `features`'.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from training.job import Job, Progress
from training.run_folder import FEATURES
from training.worker import Say, rank, together

_WANTED: Final = "wanted"


def kept(job: Job) -> Path:
    """The folder of a run's features."""
    return Path(job.work) / FEATURES


def want(job: Job, pictures: Sequence[str]) -> None:
    """Say, as the first process, which pictures are worth keeping; nothing of an earlier try is."""
    shutil.rmtree(kept(job), ignore_errors=True)
    kept(job).mkdir()
    (kept(job) / _WANTED).write_text(json.dumps(pictures), encoding="utf-8")


def look(job: Job, base: Path, say: Say) -> None:
    """See this process's share of the wanted pictures, as far as its share of the room goes; a word for each.

    `base` is a checkpoint directory. Raises `PictureError` and OSError.
    """
    from training.xtuner.encoding import Sight
    from training.xtuner.vision_cache import write

    wanted = json.loads((kept(job) / _WANTED).read_text(encoding="utf-8"))
    room = min(job.features_gigabytes * 1e9, 0.5 * shutil.disk_usage(kept(job)).free)
    if share := wanted[rank() :: together()]:
        write(
            kept(job) / f"{rank()}.bin",
            base=base,
            images=Path(job.images),
            pictures=share,
            sight=Sight.of(base, job.tiles),
            room=room / together(),
            courtesy=job.courtesy,
            on_picture=lambda: say(Progress("looking")),
            threads=job.threads or max(1, min(8, len(os.sched_getaffinity(0)) // together())),
        )
