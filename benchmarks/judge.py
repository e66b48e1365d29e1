"""Simulate the error rates and the power of the tests that decide on candidates and canaries.

    python -m benchmarks.judge [--draws 10000] [--json FILE]

The simulations include:

- Facts: a candidate truly loses some percentage points on factual questions. In addition, only the
  candidate is right on 1.5 % of the questions, and only the live model on another 1.5 %.
- Canary: twenty raters whose habits differ (standard deviation 0.15) cast a hundred votes each. Half of
  the conversations are with the canary; the live model is liked 70 % of the time.
- Votes by coin flip: several runs in a row get new random votes, and every answer becomes more likely,
  as happens when training sharpens a model.

Each rate is given with its 95 % interval (Wilson).
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from training.evidence.combining import bonferroni, spent_alpha
from training.evidence.non_inferiority import decided
from training.evidence.proportions import wilson_interval
from training.evidence.sequential import ENOUGH, HORIZON_VOTES, betting_path
from training.evidence.sequential import MARGIN as CANARY_MARGIN
from training.evidence.taste_tests import Labelled, Ranked, permutation_p_value, rank_p_value
from training.gate.factual_set import LOOKS

MARGIN = 0.02
"""Share of facts that may be lost."""

RATERS = 20
VOTES = HORIZON_VOTES


@dataclass(frozen=True, slots=True)
class Rate:
    """The rate of an outcome, with its 95 % interval and the number of samples needed to decide.

    Rates are from 0 to 1. `median` and `ninth_decile` are quantiles of the number of samples.
    """

    case: str
    outcome: str
    rate: float
    low: float
    high: float
    median: float | None = None
    ninth_decile: float | None = None


def rate(case: str, outcome: str, times: int, draws: int, needed: list[int] | None = None) -> Rate:
    """Return `times` / `draws` as a rate with Wilson's interval and quantiles of the samples needed."""
    low, high = wilson_interval(times, draws)
    median, ninth = np.quantile(needed, [0.5, 0.9]) if needed else (None, None)
    return Rate(case, outcome, times / draws, low, high, median, ninth)


def facts(draws: int, rng: np.random.Generator) -> Iterator[Rate]:
    """Yield how often candidates that lose points on facts are accepted, and after how many questions."""
    for loss in (0.0, 0.01, 0.02, 0.05):
        accepted, needed = 0, []
        for _ in range(draws):
            kinds = rng.choice(3, size=LOOKS[-1], p=[loss + 0.015, 0.015, 1 - loss - 0.03])
            lost, gained = np.cumsum(kinds == 0), np.cumsum(kinds == 1)
            for look in LOOKS:
                verdict = decided(LOOKS, look, int(lost[look - 1]), int(gained[look - 1]), MARGIN)
                if verdict is not None:
                    accepted += verdict
                    needed.append(look)
                    break
        yield rate(f"facts, {100 * loss:.0f} points lost", "accepted", accepted, draws, needed)


def canary(draws: int, rng: np.random.Generator) -> Iterator[Rate]:
    """Yield how often a canary is rolled back or promoted when the evidence is checked after every vote."""
    for better in (-0.1, 0.0, 0.1):
        rolled_back, promoted = [], []
        for _ in range(draws):
            differences, at_vote = paired(better, rng)
            harm = first(betting_path([-each for each in differences], 0.0))
            no_worse = first(betting_path(differences, CANARY_MARGIN))
            if harm is not None and (no_worse is None or harm <= no_worse):
                rolled_back.append(at_vote[harm])
            elif no_worse is not None:
                promoted.append(at_vote[no_worse])
        case = f"canary {100 * better:+.0f} points"
        yield rate(case, "rolled back", len(rolled_back), draws, rolled_back)
        yield rate(case, "promoted", len(promoted), draws, promoted)


def paired(better: float, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Draw votes and pair each rater's votes on the canary with the same rater's votes on the live model.

    Returns:
        The difference within each pair, and the number of votes cast by the time the pair was complete.
    """
    raters, of_canary = rng.integers(RATERS, size=VOTES), rng.random(VOTES) < 0.5
    habits = rng.normal(0, 0.15, RATERS)
    chances = np.clip(0.7 + habits[raters] + better * of_canary, 0.01, 0.99)
    liked = rng.random(VOTES) < chances
    waiting: dict[tuple[int, bool], list[bool]] = {}
    differences, at_vote = [], []
    for vote, (rater, canary_vote, like) in enumerate(
        zip(raters.tolist(), of_canary.tolist(), liked.tolist(), strict=True)
    ):
        other = waiting.get((rater, not canary_vote))
        if other:
            earlier = other.pop(0)
            differences.append(int(like) - int(earlier) if canary_vote else int(earlier) - int(like))
            at_vote.append(vote + 1)
        else:
            waiting.setdefault((rater, canary_vote), []).append(like)
    return differences, at_vote


def first(path: np.ndarray) -> int | None:
    """Return the index of the first value in `path` that is enough evidence for a verdict, or None."""
    reached = np.flatnonzero(path >= ENOUGH)
    return int(reached[0]) if len(reached) else None


def duels(draws: int, rng: np.random.Generator) -> Iterator[Rate]:
    """Yield how often a verdict is reached within 300 duels when the evidence is checked after each duel."""
    for chance in (0.5, 0.65):
        needed = []
        for _ in range(draws):
            won = np.where(rng.random(300) < chance, 1.0, -1.0).tolist()
            if (decided_by := first(betting_path(won, 0.0))) is not None:
                needed.append(decided_by + 1)
        yield rate(f"duels, {100 * chance:.0f} % won", "decided", len(needed), draws, needed)


def coins(draws: int, runs: int = 10, votes: int = 12) -> Iterator[Rate]:
    """Yield how often at least one candidate in a sequence of runs is accepted although votes are coin flips.

    Answers become more likely on average, whatever the votes on them.
    """
    rng = random.Random(1)
    any_accepted = 0
    for _ in range(draws):
        for run in range(1, runs + 1):
            drawn = [(rng.gauss(1, 0.5), rng.random() < 0.5, str(rng.randrange(RATERS))) for _ in range(votes)]
            by_rank = rank_p_value(
                [Ranked(gain, tuple(rng.gauss(1, 0.5) for _ in range(4)), liked) for gain, liked, _ in drawn], rng
            )
            by_label = permutation_p_value([Labelled(*each) for each in drawn], rng, 999)
            if bonferroni(by_rank, *([] if by_label is None else [by_label])) <= spent_alpha(run):
                any_accepted += 1
                break
    yield rate(f"{runs} runs of {votes} coin votes", "any accepted", any_accepted, draws)


def main() -> None:
    """Run the simulations, print a table, and write JSON if a file is named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="a file for the result as JSON")
    options = parser.parse_args()
    rng = np.random.default_rng(1)
    few = max(1, options.draws // 10)
    found = [*facts(few, rng), *canary(options.draws, rng), *duels(few, rng), *coins(max(1, options.draws // 50))]
    for each in found:
        needed = "" if each.median is None else f"   needed: median {each.median:.0f}, 90 % {each.ninth_decile:.0f}"
        print(f"{each.case:26} {each.outcome:12} {each.rate:7.1%} ({each.low:.1%} to {each.high:.1%}){needed}")
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
