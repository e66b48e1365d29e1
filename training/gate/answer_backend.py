"""The backend of an evaluation: models answer through their engines or, if they have none, in this process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from inference.messages import Sampling
from training.evaluation_jobs import JudgingJob
from training.gate.remote_model import ModelQuestion, OnAnswer, RemoteModels
from training.job import TrainingError
from training.worker import use_device

if TYPE_CHECKING:
    from training.gate.local_model import ModelSlot


def greedy(max_new_tokens: int) -> Sampling:
    """Return sampling settings that always take the most likely token."""
    return Sampling(temperature=0, max_new_tokens=max_new_tokens)


class AnswerBackend:
    """A source of models' answers for one job of an evaluation; each model is given as a checkpoint directory.

    torch is imported, and a model loaded, only when a model without an engine answers or `slot` is used.

    Args:
        job: The job.
        may_load: Returns whether models may be loaded to answer questions. It is called before that, and may wait for
            memory.
    """

    def __init__(self, job: JudgingJob, *, may_load: Callable[[], bool] = lambda: True) -> None:
        self._job = job
        self._may_load = may_load
        self._remote = RemoteModels(job.engines)

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
        return directory in self._remote.directories

    def answers(self, questions: Sequence[ModelQuestion], on_answer: OnAnswer) -> list[str]:
        """Return the answer to each question.

        Questions that no engine answers, for example after a crash, are answered in this process, one model after the
        other.

        Raises:
            TrainingError: A question is unanswered, and no model may be loaded.
        """
        found: list[str | None] = [None] * len(questions)
        if self._job.engines:
            found = self._remote.answers(questions, on_answer)
        missing = defaultdict[Path, dict[tuple[Path, Sampling], list[int]]](lambda: defaultdict(list))
        for number, (each, answer) in enumerate(zip(questions, found, strict=True)):
            if answer is None:
                missing[each.directory][each.images, each.sampling].append(number)
        for directory, groups in missing.items():
            if not self._may_load():
                left = sum(map(len, groups.values()))
                raise TrainingError(f"{left} questions were not answered by the engine of {directory}")
            for (images, sampling), numbers in groups.items():
                following = iter(numbers)

                def keep(texts: Sequence[str], following: Iterator[int] = following) -> None:
                    for number, text in zip(islice(following, len(texts)), texts, strict=True):
                        found[number] = text
                        on_answer(number, text)

                lessons = [questions[number].lesson for number in numbers]
                self.slot.load(directory).answers(lessons, images, sampling, on_batch=keep)
        return [each for each in found if each is not None]
