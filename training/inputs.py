"""The fingerprint of what a run learns from and is judged by: if it has not changed, there is nothing new to learn.

Training is seeded, so such a run would train the same model, and would only be another attempt at the evaluation.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from storage.learning_records import Preference, RatedExchange, Run, Trust
from storage.ledger import Ledger
from training.data.sources import imported
from training.job import TrainingError
from training.job_specs import JobSpecs

_WITHOUT_EFFECT: Final = {
    *("schedule", "device", "gpus", "processes", "hosts", "rendezvous", "deepspeed", "threads", "python"),
    *("while_training", "keep_models", "min_free_gigabytes", "features_gigabytes", "silence", "timeout"),
    *("min_rated", "min_raters", "rater_age", "recipe", "knobs", "objective", "canary", "approve"),
}
"""Settings that only change when, where or whether a run takes place, or that act through the votes or the recipe."""


async def preferences(ledger: Ledger, specs: JobSpecs, trust: Trust) -> list[Preference]:
    """Return the pairs of a better and a worse answer if the objective learns from them, else an empty list."""
    return await ledger.votes.preferences(trust) if specs.recipe.objective == "dpo" else []


def fingerprint(rated: Iterable[RatedExchange], specs: JobSpecs, pairs: Iterable[Preference] = ()) -> str:
    """Return the hash of what a run learns from and of all settings that shape a model.

    It contains the numbers of votes, but not the ids of people. Nor does it contain the live model, which earlier runs
    made from the same data.

    Args:
        rated: The rated exchanges.
        specs: The settings.
        pairs: What `preferences` returns; they may change without a vote.

    Raises:
        TrainingError: A setting or a source is not valid.
    """
    settings = specs.settings
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
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


async def unchanged_since(ledger: Ledger, specs: JobSpecs, trust: Trust) -> Run | None:
    """Return the last run with a verdict if a run that starts now would learn from the same data, else None.

    A mistake in a setting or a source counts as a change, so that the run reports it.
    """
    last = await ledger.runs.last_verdict()
    if last is None:
        return None
    run, known = last
    rated = await ledger.votes.rated_exchanges(trust)
    with suppress(TrainingError, OSError):
        if await asyncio.to_thread(fingerprint, rated, specs, await preferences(ledger, specs, trust)) == known:
            return run
    return None


def _version(file: Path) -> list[int]:
    """Return the size and the time of the last change of a file, or an empty list if it does not exist."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return []
    return [found.st_size, found.st_mtime_ns]
