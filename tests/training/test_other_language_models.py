"""Training and merging of checkpoints whose language model is Qwen2, Qwen3 or Phi-3."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from inference.internvl2.checkpoint import load_model
from inference.internvl2.checkpoint_check import problems
from tests.support.lessons import SYSTEM, drawn_job, settings
from tests.support.small_checkpoints import write_small
from training.adapter import Adapter
from training.base_model_check import untrainable
from training.gate.prompt_parity import disagreement
from training.job import MergeJob, ignore
from training.launcher import ChildTrainer
from training.merge import merge
from training.xtuner.scalars import losses

pytestmark = pytest.mark.long


_PHI3_LAYERS = r".*\.(qkv_proj|o_proj|gate_up_proj|down_proj)|lm_head"


@pytest.mark.parametrize(
    ("size", "method", "targets"),
    [
        ("qwen2-1b", "qlora", "lm_head"),
        ("qwen3-1b", "qlora", ""),
        ("qwen3-1b", "full", ""),
        ("phi3-4b", "qlora", _PHI3_LAYERS),
        ("phi3-4b", "lora", _PHI3_LAYERS),
        ("phi3-4b", "full", ""),
    ],
    ids=["qwen2 qlora of the output layer", "qwen3 qlora", "qwen3 full", "phi3 qlora", "phi3 lora", "phi3 full"],
)
async def test_what_was_trained_is_merged(
    size: str, method: str, targets: str, tmp_path: Path, warm_python: str
) -> None:
    """The loss falls, and exactly the trained weights differ in the merged checkpoint, which is complete."""
    base = write_small(tmp_path / "base", size)
    assert untrainable(base) is None
    (tmp_path / "run").mkdir()
    job = drawn_job(
        tmp_path / "run", 8, base=str(base), method=method, targets=targets, projector=not targets, learning_rate=3e-3
    )
    outcome = await ChildTrainer(settings(python=warm_python)).run(job)
    assert outcome.ok, outcome.reason
    values = [loss for _, loss in losses(Path(str(outcome.scalars)))]
    assert values[-1] < values[0] - 0.3, values
    merged = tmp_path / "merged"
    merged.mkdir()
    merging = MergeJob("1", job.base, str(outcome.adapter), str(merged), work=job.work, system=SYSTEM)
    assert merge(merging, ignore).ok
    assert problems(merged) == []
    before, after = load_model(base).state_dict(), load_model(merged).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    trained = Adapter(Path(str(outcome.adapter))).names()
    if method == "full":  # the output layer shares the weights of the embeddings
        trained |= {"language_model.lm_head.weight"}
    assert changed == trained
    if targets == _PHI3_LAYERS:
        assert len(changed) == 4 * 3 + 1
    assert disagreement(base, merged, SYSTEM, []) == ""


async def test_a_shared_output_layer_cannot_be_adapted(tmp_path: Path, warm_python: str) -> None:
    """Training that would adapt an output layer that shares the weights of the embeddings is refused at once."""
    base = write_small(tmp_path / "base", "qwen3-1b")
    (tmp_path / "run").mkdir()
    job = drawn_job(tmp_path / "run", 4, base=str(base), targets="lm_head")
    outcome = await ChildTrainer(settings(python=warm_python)).run(job)
    assert not outcome.ok and "leave lm_head out" in str(outcome.reason)
