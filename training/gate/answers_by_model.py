"""The answers of several models to the same questions; the models are loaded one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from training.command_jobs import AskingJob
from training.data.llava import Lesson
from training.gate.answer_backend import greedy
from training.job import TrainingError
from training.worker import Say, StageProgress, use_device


def answers_by_model(
    job: AskingJob, lessons: Sequence[Lesson], say: Say, *, losses: bool = False
) -> Iterator[tuple[str, list[str], list[float]]]:
    """Yield the name of each model of the job, and its greedily decoded answers to the questions of `lessons`.

    If `losses` is True, the third value is the list of the model's losses on the lessons' last answers, in nats
    per token; otherwise it is empty.

    Raises:
        TrainingError: A model cannot be loaded.
    """
    device = use_device(job.device, job.threads)
    from training.gate.local_model import LocalModel

    steps = StageProgress(say, "answering", len(job.models) * len(lessons))
    images = Path(job.images)
    for name, directory in job.models:
        try:
            model = LocalModel(Path(directory), device=device, tiles=job.tiles)
        except Exception as error:  # transformers and safetensors raise many types of exceptions
            raise TrainingError(f"{name} cannot be loaded from {directory}: {error}") from error
        answers = model.answers(
            lessons, images, greedy(job.max_new_tokens), on_batch=lambda texts: steps.add(len(texts))
        )
        given = model.log_probabilities(lessons, images) if losses else []
        del model  # frees the memory before the next one is loaded
        yield name, answers, [-each.nats / each.tokens for each in given]
