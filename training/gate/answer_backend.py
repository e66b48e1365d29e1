"""The backend of an evaluation: models answer through their engines or, if they have none, in this process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from inference.messages import Sampling
from training.data.llava import Lesson
from training.evaluation_jobs import JudgingJob, RunningEngine
from training.gate.remote_model import RemoteModel
from training.job import TrainingError
from training.worker import use_device

if TYPE_CHECKING:
    from training.gate.local_model import ModelSlot


def greedy(max_new_tokens: int) -> Sampling:
    """Return sampling settings that always take the most likely token."""
    return Sampling(temperature=0, max_new_tokens=max_new_tokens)


class AnswerBackend:
    """A source of models' answers for one job of an evaluation; each model is given as a checkpoint directory.

    torch is imported, and a model loaded, only when a model without an engine answers or `slot` is used. Without
    `loading`, only engines answer.
    """

    def __init__(self, job: JudgingJob, *, loading: bool = True) -> None:
        self._job = job
        self._loading = loading
        engines = defaultdict[Path, list[RunningEngine]](list)
        for each in job.engines:
            engines[Path(each.directory)].append(each)
        self._remote = {directory: RemoteModel(found) for directory, found in engines.items()}

    @cached_property
    def slot(self) -> ModelSlot:
        """The slot for models that are loaded into this process."""
        from training.gate.local_model import ModelSlot
        from training.xtuner.gpu_yield import GpuYield

        return ModelSlot(device=self._device, tiles=self._job.tiles, gpu_yield=GpuYield.open(self._job.courtesy))

    @cached_property
    def _device(self) -> str:
        return use_device(self._job.device, self._job.threads)

    @property
    def kind(self) -> str:
        """What computes the answers: the kind of the engines or, if there are none, the device of this process."""
        return self._job.engines[0].kind if self._job.engines else self._device

    def served(self, directory: Path) -> bool:
        """Return whether an engine serves the model."""
        return directory in self._remote

    def answers(
        self, directory: Path, lessons: Sequence[Lesson], images: Path, most: int, on_answers: Callable[[int], None]
    ) -> list[str]:
        """Return a model's most likely answers, of at most `most` tokens each, to the last question of each lesson.

        Questions that the model's engine does not answer, for example after a crash, are answered in this process.
        `on_answers` is called with the number of further answers.

        Raises:
            TrainingError: A question is unanswered, and no model may be loaded.
        """
        found: list[str | None] = [None] * len(lessons)
        if directory in self._remote:
            found = self._remote[directory].answers(lessons, images, greedy(most), on_answers)
        missing = [lesson for lesson, each in zip(lessons, found, strict=True) if each is None]
        if not missing:
            return [each for each in found if each is not None]
        if not self._loading:
            raise TrainingError(f"{len(missing)} questions were not answered by the engine of {directory}")
        others = iter(self.slot.load(directory).answers(missing, images, greedy(most), on_batch=on_answers))
        return [next(others) if each is None else each for each in found]
