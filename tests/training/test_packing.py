"""Samples about the same pictures share their first tokens, with the same losses and gradients as separate samples."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from inference.internvl2.tiny import CHECKPOINT
from tests.support.small_checkpoints import write_small
from training.xtuner.encoding import IGNORE_INDEX
from training.xtuner.packing import _MOST_RESTS, SharedPrefix, pack


def sample(ids: list[int], answer: int, pictures: str = "a", end: int = 4) -> dict[str, Any]:
    """Return a sample whose last `answer` tokens are its answer."""
    labels = [IGNORE_INDEX] * (len(ids) - answer) + ids[len(ids) - answer :]
    names = tuple(pictures)
    return {
        "input_ids": ids,
        "labels": labels,
        "pixel_values": pictures,
        "pictures": names,
        "pictures_end": end,
        "long": False,
    }


def test_common_tokens_are_packed_once() -> None:
    """What samples have in common before their answers is there once; every answer token is still predicted."""
    beginning = [1, 9, 9, 9]
    packed = pack(
        [
            sample([*beginning, 5, 6, 7], 2),
            sample([1, 9, 9, 9, 5, 6, 7], 2, "b"),
            sample([*beginning, 5, 6, 8, 2], 3),
            sample([1, 5, 6], 1, "", 0),
            sample([1, 5, 7], 1, "", 0),
        ]
    )
    assert packed["input_ids"].tolist() == [[*beginning, 5, 6, 7, 5, 6, 8, 2, *beginning, 5, 6, 7, 1, 5, 6, 1, 5, 7]]
    assert packed["position_ids"].tolist() == [[0, 1, 2, 3, *[4, 5, 6], *[4, 5, 6, 7], *range(7), 0, 1, 2, 0, 1, 2]]
    assert packed["prefixes"] == [SharedPrefix(4, (3, 4)), SharedPrefix(7), SharedPrefix(3), SharedPrefix(3)]
    assert packed["pixel_values"] == ["a", "b", "", ""]
    learned = packed["labels"] != IGNORE_INDEX
    owners, tokens = packed["sample_ids"][learned].tolist(), packed["labels"][learned].tolist()
    assert list(zip(owners, tokens, strict=True)) == [
        (0, 6),
        (0, 7),
        (2, 6),
        (2, 8),
        (2, 2),
        (1, 6),
        (1, 7),
        (3, 6),
        (4, 7),
    ]


def test_pictures_in_later_turns_are_not_shared() -> None:
    """Samples with the same pictures but different tokens before the last of them are computed separately."""
    packed = pack([sample([1, 9, 5, 9, 6], 1, "aa"), sample([1, 9, 6, 9, 6], 1, "aa")])
    assert packed["prefixes"] == [SharedPrefix(5), SharedPrefix(5)]


def test_pictures_after_a_learned_answer_are_not_shared() -> None:
    """Each sample keeps its own pictures if an answer before the last one is learned, as in imported conversations."""
    twice = [sample([1, 9, 5, 6, 9, 7], 3, "aa", 5)] * 2
    packed = pack(twice)
    assert packed["prefixes"] == [SharedPrefix(6), SharedPrefix(6)]
    assert packed["pixel_values"] == ["aa", "aa"]


def test_a_group_has_few_tokens_that_are_not_shared() -> None:
    """Samples whose remaining tokens would need a large mask are divided into several groups."""
    rest = [5] * (_MOST_RESTS // 2 - 1)
    packed = pack([sample([1, 9, 9, 9, 100 + number, *rest], 2) for number in range(5)])
    assert [len(each.rests) for each in packed["prefixes"]] == [2, 2, 0]
    assert len(packed["pixel_values"]) == 3


def test_long_samples_share_nothing_with_short_ones() -> None:
    """Phi-3 computes long samples with other rotary factors, so they share no tokens with short ones."""
    short = sample([1, 9, 9, 9, 5, 6], 1)
    packed = pack([short, {**short, "long": True}])
    assert packed["prefixes"] == [SharedPrefix(6), SharedPrefix(6)]
    assert packed["long"].tolist() == [[False] * 6 + [True] * 6]


def short_positions(folder: Path) -> Path:
    """Write internvl2-tiny with fewer positions than a packed batch has tokens; longer sequences scale theirs."""
    shutil.copytree(CHECKPOINT, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["llm_config"] |= {
        "max_position_embeddings": 256,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("size", ["tiny", "tiny, few positions", "qwen2-1b", "qwen3-1b", "phi3-4b", "phi3-4b, long"])
def test_losses_and_gradients_are_those_of_separate_samples(tmp_path: Path, warm_python: str, size: str) -> None:
    """A packed batch has fewer tokens than its samples, and the same losses and gradients, also when recomputing."""
    if size.startswith("tiny"):
        base = short_positions(tmp_path / "base") if "few" in size else CHECKPOINT
    elif "long" in size:
        # Some of the samples are longer than that, and are computed with other rotary factors.
        base = write_small(tmp_path / "base", "phi3-4b", llm={"original_max_position_embeddings": 110})
    else:
        base = write_small(tmp_path / "base", size)
    (tmp_path / "run").mkdir()
    line = [warm_python, "-m", "tests.support.packed_losses", str(base), str(tmp_path / "run"), str(size != "qwen2-1b")]
    ended = subprocess.run(line, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["tokens"] < 0.85 * found["alone"]
    assert found["pictures"] < 8, "of nine samples"
    assert (0 < found["long"] < 9) is ("long" in size)
    assert found["targets"]
    assert found["loss"] < 1e-4
    assert found["gradient"] < 1e-4
