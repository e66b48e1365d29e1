"""Plan a run: check that it can start, select its training data, and detect whether its inputs have changed.

Training is seeded, so a run on unchanged inputs would train the same model and merely repeat the
evaluation. A fingerprint of the training and evaluation inputs shows whether the inputs have changed.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from inference.internvl2.checkpoint_check import weight_bytes
from inference.internvl2.model_sizes import read_sizes
from storage.learning_records import BASE, EQUAL_TRUST, Preference, RatedExchange, Run, Trust
from storage.ledger import Ledger
from storage.model_store import ModelStore
from storage.translatable_reason import Reason
from training.base_model_check import untrainable
from training.data.imported_sources import imported
from training.data.prequential_blocks import Live
from training.data.rated_lessons import with_rejected
from training.data.selection import TRAIN, WORSE, Selection, TooLittle, select_pairs
from training.gate.factual_set import check_decidable
from training.job import TrainingError
from training.job_specs import JobSpecs
from training.memory_estimate import AVERAGES, trained_weights
from training.run_folder import run_folders
from training.settings import Source
from training.xtuner.recipes import Recipe
from training.xtuner.resume import state_bytes

_WITHOUT_EFFECT: Final = {
    *("schedule", "engine", "ray", "device", "gpus", "processes", "deepspeed", "threads", "python"),
    *("while_training", "keep_models", "min_free_gigabytes", "features_gigabytes", "silence", "timeout"),
    *("min_rated", "min_raters", "rater_age", "recipe", "knobs", "objective", "canary", "approve"),
}
"""Settings that only change when, where or whether a run takes place, or that act through the votes or the recipe."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The data and the hyperparameters of a run that is about to start.

    Attributes:
        selection: The selected pairs.
        sources: The sources to mix in.
        recipe: The hyperparameters, or the user's configuration file that sets them.
        specs: The specifications of the run's jobs; they hold the settings that the run keeps.
        fingerprint: The hash of all inputs.
        reviews: The ID of the newest review that the selection takes into account.
    """

    selection: Selection
    sources: tuple[Source, ...]
    recipe: Recipe | Path
    specs: JobSpecs
    fingerprint: str = ""
    reviews: int = 0


@dataclass(frozen=True, slots=True)
class RunPlanner:
    """A planner for a bot's runs."""

    ledger: Ledger
    models: ModelStore
    specs: JobSpecs
    trust: Trust = EQUAL_TRUST

    async def plan(self, only: frozenset[int] | None = None) -> RunPlan:
        """Check that a run can start, and select the data that it trains on.

        Args:
            only: The IDs of the exchanges that the run may learn from; None for no limit.

        Raises:
            TrainingError: The run cannot start; the message says what to do next.
        """
        settings, paths = self.specs.settings, self.specs.paths
        if wrong := untrainable(paths.base):
            raise TrainingError(wrong)
        check_disk(self.specs, self.models.directory)
        check_decidable(settings.regression, settings.max_loss_points)
        sources = _resolved([*settings.sources, *imported(paths.sources)])
        reviews = await self.ledger.reviews.newest()
        rated, pairs = await self._rated(reviews)
        return RunPlan(
            await self._select(rated, pairs, only, reviews),
            tuple(sources),
            settings.user_config or self.specs.recipe,
            self.specs,
            await asyncio.to_thread(fingerprint, rated, self.specs, pairs, only),
            reviews,
        )

    async def unchanged_since(self) -> Run | None:
        """Return the last run with a verdict if a new run would have the same inputs, else None.

        An invalid setting or source counts as a change, so that the new run starts and reports the problem.
        """
        last = await self.ledger.runs.last_verdict()
        if last is None:
            return None
        run, known = last
        with suppress(TrainingError, OSError):
            rated, pairs = await self._rated()
            if await asyncio.to_thread(fingerprint, rated, self.specs, pairs) == known:
                return run
        return None

    async def _rated(self, reviews: int | None = None) -> tuple[list[RatedExchange], list[Preference]]:
        """Return the rated exchanges and, for DPO only, the pairs of a better and a worse answer.

        The reviews up to the one with the ID `reviews` count, or all of them if it is None.
        """
        rated = await self.ledger.votes.rated_exchanges(self.trust, reviews)
        paired = self.specs.recipe.objective == "dpo"
        return rated, await self.ledger.votes.preferences(self.trust, reviews) if paired else []

    async def _select(
        self, rated: list[RatedExchange], preferences: list[Preference], only: frozenset[int] | None, reviews: int
    ) -> Selection:
        settings = self.specs.settings
        live = await self.ledger.models.live()
        name = BASE if live is None else live.id
        taught = frozenset[int]()
        if live is not None and live.run is not None:
            frozen = await self.ledger.run_selections.of(live.run)
            taught = frozenset(exchange for exchange, split in frozen if split in (TRAIN, WORSE))
        newcomers = await self.ledger.votes.newcomers(self.trust)
        select = partial(
            select_pairs,
            rated,
            {each.sha256: each.phash for each in await self.ledger.pictures.all()},
            settings,
            live=Live(name, taught),
            objective=self.specs.recipe.objective,
            max_length=settings.max_tokens(self.specs.paths.base),
            newcomers=newcomers,
            only=only,
        )
        try:
            selection = await asyncio.to_thread(select)
        except TooLittle:
            if newcomers is None:
                raise
            # The selection fails again, but the error says what will be missing once the votes of newcomers count.
            everybody = replace(self.trust, newcomer_seconds=0.0)
            rated_later = await self.ledger.votes.rated_exchanges(everybody, reviews)
            selection = await asyncio.to_thread(select, rated_later=rated_later)
        shown, liked = await self.ledger.votes.shown(name, selection.judging_raters)
        train = tuple(with_rejected(selection.train, preferences))
        return replace(selection, train=train, shown=shown, liked_of_shown=liked)


def check_disk(specs: JobSpecs, models: Path) -> None:
    """Check that the disk that holds the folder `models` has enough space for a run.

    A merged model is as large as the base model. A trained weight takes 4 bytes in the adapter and in each
    checkpoint, which also has the optimizer's state. mmengine removes the oldest checkpoint before it writes
    another, and always leaves one at the end (mmengine 0.10.6, hooks/checkpoint_hook.py). The state of
    earlier runs counts as free space, because it is removed when a new run starts.

    Raises:
        TrainingError: There is too little space.
    """
    base, recipe = weight_bytes(specs.paths.base), specs.recipe
    trained = trained_weights(read_sizes(specs.paths.base), recipe)
    kept = recipe.keep_checkpoints if recipe.save_steps else 1
    checkpoint = 4 + AVERAGES[recipe.optimizer]
    needed = base + trained * (checkpoint * kept + 4) + specs.settings.min_free_gigabytes * 1e9
    free = shutil.disk_usage(models).free
    free += sum(state_bytes(each) for each in run_folders(specs.paths.runs))
    if free < needed:
        raise TrainingError(
            Reason(
                "Only {free} GB are free on the disk that holds {directory}, but a run needs {needed} GB: remove "
                "old models, or lower training.min_free_gigabytes",
                free=f"{free / 1e9:.1f}",
                directory=str(models),
                needed=f"{needed / 1e9:.1f}",
            )
        )


def fingerprint(
    rated: Iterable[RatedExchange],
    specs: JobSpecs,
    pairs: Iterable[Preference] = (),
    only: frozenset[int] | None = None,
) -> str:
    """Return the hash of the data that a run learns from and of all settings that affect the model.

    The hash covers answers and vote counts, but not user IDs. It also leaves out the live model,
    because earlier runs made that model from the same data.

    Args:
        rated: The rated exchanges.
        specs: The job specifications, which include the settings.
        pairs: The pairs of a better and a worse answer that the run learns from. Duels, corrections and edits
            change them even if the votes on answers stay the same.
        only: The IDs of the exchanges that the run may learn from; None for no limit.

    Raises:
        TrainingError: A setting or a source is invalid.
    """
    settings = specs.settings
    rated = list(rated)
    recipe: Any = specs.recipe.model_dump()
    if settings.user_config:
        recipe = settings.user_config.read_text(encoding="utf-8")
    parts = {
        "rated": sorted((each.exchange.id, each.exchange.answer, each.ups, each.downs) for each in rated),
        "pairs": sorted((each.chosen.exchange.id, each.rejected) for each in pairs),
        "settings": settings.model_dump(mode="json", exclude=_WITHOUT_EFFECT),
        "recipe": recipe,
        "prompt": [str(specs.paths.base), specs.system, specs.tiles],
        "sources": [
            [each.model_dump(mode="json"), _version(each.path)]
            for each in (*settings.sources, *imported(specs.paths.sources))
        ],
        "facts": settings.regression and _version(settings.regression / "questions.json"),
    }
    if only is not None and not only.issuperset(each.exchange.id for each in rated):
        parts["only"] = sorted(only)
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _resolved(sources: list[Source]) -> list[Source]:
    """Return the sources with absolute paths.

    Raises:
        TrainingError: The file or the picture folder of a source does not exist.
    """
    for each in sources:
        if not each.path.is_file():
            raise TrainingError(f"training.sources: there is no file {each.path.absolute()}")
        if not each.folder.is_dir():
            raise TrainingError(f"training.sources: {each.path} has no picture folder {each.folder.absolute()}")
    return [each.model_copy(update={"path": each.path.resolve(), "images": each.folder.resolve()}) for each in sources]


def _version(file: Path) -> list[int]:
    """Return a file's size and modification time, or an empty list if the file does not exist."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return []
    return [found.st_size, found.st_mtime_ns]
