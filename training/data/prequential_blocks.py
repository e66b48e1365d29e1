"""Divide the rated answers on which a run is evaluated into blocks, for prequential (test-then-train) evaluation.

The answers of each block but the first judge a model trained on the blocks before it, which has not seen
their labels, while the model that may go live still learns from all answers. The verdict applies to the
recipe and to the taste that the votes express. Each block's result is valid given all votes in the blocks
before it. Symmetric cross-validation offers no such guarantee, because its models share labels (prequential
analysis; Dawid 1984, J. R. Stat. Soc. A 147:278).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from training.data.rated_lessons import Pair
from training.data.seen_prompt import rebuilt_prompt

BLOCKS: Final = 4
"""The maximum number of blocks. The first one is used only for training."""

BLOCK_ANSWERS: Final = 6
"""The minimum number of answers in a block."""

FEWEST: Final = 2 * BLOCK_ANSWERS
"""The minimum number of answers for evaluating a run: one block for training and one for evaluation."""

ENOUGH_TO_HOLD_OUT: Final = 200
"""With more usable answers, the newest are held out to evaluate the final model; blocks would only take time."""


@dataclass(frozen=True, slots=True)
class Live:
    """The live model and the exchanges on which it was trained."""

    model: str
    taught: frozenset[int] = frozenset()


NO_MODEL: Final = Live("")


@dataclass(frozen=True, slots=True)
class Block:
    """Answers used to evaluate a model trained on the first `trained` pairs of a run."""

    trained: int
    judged: tuple[Pair, ...]


def judging_answers(pairs: Iterable[Pair], live: Live) -> list[Pair]:
    """Return the pairs whose answers can be used to evaluate a run.

    Such answers were given by the live model and were not in its training data, and their prompts can be
    reconstructed.
    """
    return [
        each
        for each in pairs
        if each.rated.exchange.model == live.model
        and each.id not in live.taught
        and not each.rated.corrected
        and rebuilt_prompt(each.rated) is not None
    ]


def forward_blocks(
    groups: Sequence[list[Pair]],
    lessons: Collection[int],
    judging: Collection[int],
    held_out: float,
    only: Collection[int] | None = None,
) -> tuple[list[Pair], list[Block]]:
    """Order the pairs to train on, and divide the judging answers into blocks.

    Args:
        groups: All pairs, grouped so that pairs about the same or nearly the same picture stay together.
        lessons: The IDs of the pairs to train on.
        judging: The IDs of the pairs that can be used for the evaluation.
        held_out: The share of the judging answers to hold out if there are more than `ENOUGH_TO_HOLD_OUT`.
        only: The IDs of the pairs that may be trained on, liked or not; None for all.

    Returns:
        The pairs to train on and the blocks. Groups without judging answers come first, followed by the
        others in chronological order; groups with nothing that may be trained on come last. There are no blocks
        if too few answers can be used. Pairs about held-out pictures are not trained on.
    """

    def judges(group: Iterable[Pair]) -> list[Pair]:
        return [each for each in group if each.id in judging]

    def order(group: Iterable[Pair]) -> tuple[bool, int]:
        numbers = {each.id for each in group}
        return only is not None and numbers.isdisjoint(only), max(numbers)

    older = [each for group in groups if not judges(group) for each in group]
    timed = sorted((group for group in groups if judges(group)), key=order)
    number = sum(len(judges(group)) for group in timed)
    if number > ENOUGH_TO_HOLD_OUT:
        parts = _parts(timed, judging, [1 - held_out])
        train = [each for each in (*older, *parts[0]) if each.id in lessons]
        return train, [Block(len(train), tuple(judges(parts[1])))]
    count = min(BLOCKS, number // BLOCK_ANSWERS)
    train, blocks = [each for each in older if each.id in lessons], []
    for index, part in enumerate(_parts(timed, judging, [step / count for step in range(1, count)])):
        if index and train:
            blocks.append(Block(len(train), tuple(judges(part))))
        train += [each for each in part if each.id in lessons]
    return train, blocks


def _parts(groups: Sequence[list[Pair]], judging: Collection[int], edges: Sequence[float]) -> list[list[Pair]]:
    """Split the groups at the shares `edges` of the judging answers, and sort each part by ID."""
    number = sum(each.id in judging for group in groups for each in group)
    parts: list[list[Pair]] = [[] for _ in (*edges, 1.0)]
    done = 0
    for group in groups:
        parts[sum(done >= edge * number for edge in edges)] += group
        done += sum(each.id in judging for each in group)
    return [sorted(part, key=lambda pair: pair.id) for part in parts]
