"""The engines used by evaluations: the live model's, and one for the candidate, which serves no conversations."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from bot.admin.model_switch import ModelSwitch
from inference.engines.commands import Kind, concurrency, resolve
from inference.messages import InferenceError
from inference.serving.deployment import Deployment
from inference.settings import InferenceSettings
from training.evaluation_jobs import RunningEngine

_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""The memory limit in bytes of a container, or `max` (cgroups, version 2)."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class JudgingEngines:
    """Provides the engines of a deployment to the evaluations of a pipeline."""

    deployment: Deployment
    switch: ModelSwitch
    settings: InferenceSettings

    def of(self, model: str, directory: Path) -> list[RunningEngine]:
        """Return the running engines of a model; engines of the live model keep half of their capacity for users."""
        kind = resolve(self.settings)
        share = 2 if model == self.deployment.status().model else 1
        return [
            RunningEngine(
                directory=str(directory),
                name=model,
                url=worker.client.base_url,
                key=worker.key,
                kind=kind,
                tiles=self.settings.tiles,
                at_once=max(1, concurrency(kind, self.settings, worker.cache_tokens) // share),
                token_timeout=self.settings.token_timeout,
                first_words=str(self.deployment.first_words),
            )
            for worker in self.deployment.workers_of(model)
        ]

    def fit_beside_workers(self, directory: Path) -> bool:
        """Return whether a candidate's engine fits into memory while a worker has loaded the model in `directory`.

        On a GPU, a worker uses all free memory. On a CPU, three copies of the weights, which have twice the size of the
        file, may take half of the free memory, or of a container's limit.
        """
        weights = sum(each.stat().st_size for each in directory.glob("*.safetensors"))
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
        with suppress(OSError, ValueError):  # "max" without a limit
            memory = min(memory, int(_CONTAINER_LIMIT.read_bytes()))
        return resolve(self.settings) is Kind.CPU and 3 * 2 * weights <= memory / 2

    async def start(self, model: str, directory: Path) -> None:
        """Start the engine of a candidate; if that fails, the evaluation loads the model itself.

        The caller must call `ModelSwitch.stop_after_evaluation` after the evaluation.
        """
        try:
            await self.switch.start_for_evaluation(model, directory)
        except InferenceError as error:
            log.warning(
                "no engine for the candidate; the evaluation loads the model itself", model=model, error=str(error)
            )
