"""Votes determine what the model learns: random votes teach nothing, and a taste is learned with any seed.

These tests run in `make soak`. `make test` runs test_loop.py and, in tests/training/test_finetune.py,
training on answers that show no taste.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from storage.state_machines import RunState
from tests.support.community import Community, Taste, playful

pytestmark = [pytest.mark.timeout(1200), pytest.mark.soak]


def no_taste(seed: int) -> Taste:
    """Return a random voter that likes playful and plain answers equally often.

    Sixty coin tosses often favour one manner; that would be a taste and would rightly be learned.
    """
    dice = random.Random(seed)
    waiting: dict[bool, bool | None] = {False: None, True: None}

    def vote(answer: str) -> bool:
        manner = playful(answer)
        second = waiting[manner]
        if second is not None:
            waiting[manner] = None
            return second
        liked = dice.random() < 0.5
        waiting[manner] = not liked
        return liked

    return vote


async def learn(folder: Path, python: str, seed: int, *, at_random: bool) -> tuple[str, float, float, float]:
    """Collect votes by taste or, if `at_random`, by chance; retrain once; and measure the result.

    Returns:
        The live model and the share of playful answers after the run, and the share of correct facts before
        and after the run.
    """
    async with Community(folder, python=python, training={"seed": seed}) as community:
        await community.bot.start()
        before = await community.examine(f"before-{seed}")
        await community.vote(f"seed-{seed}", no_taste(seed) if at_random else playful)
        run = await community.retrain()
        assert run.state is RunState.DONE, run.reason
        after = await community.examine(f"after-{seed}")
        return await community.live_model(), after.playful, before.facts, after.facts


@pytest.mark.parametrize("seed", [0, 1, 2])
async def test_votes_by_coin_are_refused(tmp_path: Path, warm_python: str, seed: int) -> None:
    """After a run on random votes, the base model stays live and 35 % to 65 % of its answers are playful."""
    live, share, _, _ = await learn(tmp_path, warm_python, seed, at_random=True)
    assert live == "base"
    assert 0.35 <= share <= 0.65


@pytest.mark.parametrize("seed", [1, 2])
async def test_other_seeds_learn_the_taste_too(tmp_path: Path, warm_python: str, seed: int) -> None:
    """With other pictures, votes and training seeds, at least nine of ten answers are playful after one run.

    The model is right about facts nearly as often as before.
    """
    live, share, before, after = await learn(tmp_path, warm_python, seed, at_random=False)
    assert live == "run-1"
    assert share >= 0.9
    assert after >= 0.95 * before
