"""Votes determine what is learned: those of a coin are refused, other seeds learn the same.

In `make soak`: `make test` has test_loop.py, and lessons without a taste in tests/training/test_finetune.py.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from storage.states import RunState
from tests.support.community import Community, Taste, playful

pytestmark = [pytest.mark.timeout(1200), pytest.mark.soak]


def no_taste(seed: int) -> Taste:
    """Votes at random, but as many thumbs up for one manner as for the other.

    Sixty tosses of a coin often like one manner more: that would be a taste, and would rightly be learned.
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
    """Return the live model after one run, the share of playful answers then, and of right facts before and after."""
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
    """The base goes on answering, and the manner stays where it was: between 35 % and 65 % playful."""
    live, share, _, _ = await learn(tmp_path, warm_python, seed, at_random=True)
    assert live == "base"
    assert 0.35 <= share <= 0.65


@pytest.mark.parametrize("seed", [1, 2])
async def test_other_seeds_learn_the_taste_too(tmp_path: Path, warm_python: str, seed: int) -> None:
    """Other pictures, votes and seeds of training end at nine of ten playful, with the facts kept."""
    live, share, before, after = await learn(tmp_path, warm_python, seed, at_random=False)
    assert live == "run-1"
    assert share >= 0.9
    assert after >= 0.95 * before
