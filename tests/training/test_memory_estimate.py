"""The computed memory of training compared with measurements, and the needs of larger models and several GPUs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from inference.internvl2.checkpoint import load_model
from inference.internvl2.model_sizes import ModelSizes, count, read_sizes
from inference.internvl2.tiny import CHECKPOINT
from tests.support.small_checkpoints import write_small
from training.job import Job
from training.memory_estimate import tiles_per_pass, trained_weights, training_memory
from training.xtuner.finetune import shortage
from training.xtuner.recipes import Recipe

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
TOLERANCE = 0.15
NO_DROPOUT = Recipe(dropout=0)
LARGE, SMALL = 3425, 1889
"""The number of tokens in a sample of the benchmark, with a picture of 13 or 7 tiles."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A measured training run of InternVL2-2B: the case in the results, the number of tokens, and the method.

    All are from benchmarks/results on an H200. `gigabytes` is the peak of the whole process (nvidia-smi), or that of
    torch's tensors only.
    """

    gigabytes: float
    tokens: int
    batch: int = 4
    recomputing: bool = False
    processes: int = 1
    recipe: Recipe = NO_DROPOUT


def _training(case: str) -> float:
    lines = (RESULTS / "training_h200.jsonl").read_text(encoding="utf-8").splitlines()
    found: dict[str, Any] = next(each for each in map(json.loads, lines) if each["case"] == case)
    return float(found["peak_gb"])


def _sharing() -> float:
    return float(json.loads((RESULTS / "sharing_h200.json").read_text(encoding="utf-8"))["peak_bytes"]) / 1e9


ONE_EPOCH = Recipe(dropout=0, epochs=1)
MEASURED = {
    "recomputing": Measured(_training("ours"), LARGE, recomputing=True),
    "batches of one": Measured(_training("single"), LARGE, batch=1, recomputing=True),
    "keeping activations": Measured(_training("kept"), LARGE),
    "with dropout": Measured(_training("kept, dropout 0.05"), LARGE, recipe=Recipe()),
    "one epoch": Measured(_training("auto, 2000 pictures, 1 epoch"), LARGE, recipe=ONE_EPOCH),
    "one epoch of small pictures": Measured(
        _training("auto, 2000 pictures of at most 6 tiles, 1 epoch"), SMALL, recipe=ONE_EPOCH
    ),
    "two cards": Measured(_training("two"), LARGE, processes=2),
    "beside an engine, tensors only": Measured(_sharing(), LARGE, recipe=Recipe()),
    # The number of tiles was not recorded. With 13, no run could have kept its activations in 18 GB.
    "LoRA, two cards": Measured(
        _training("LoRA, two cards"), SMALL, batch=2, processes=2, recipe=Recipe(dropout=0, method="lora")
    ),
}


@pytest.fixture(scope="module")
def sizes(sparse_checkpoint: Callable[[str], Path]) -> Callable[[str], ModelSizes]:
    """Return a function that reads the sizes of an official model."""
    return lambda name: read_sizes(sparse_checkpoint(name))


@pytest.mark.parametrize("case", MEASURED)
def test_computed_and_measured_memory(sizes: Callable[[str], ModelSizes], case: str) -> None:
    """The computed peak is within 15 % of the measured one."""
    real = MEASURED[case]
    computed = training_memory(
        sizes("2b"),
        real.recipe,
        batch=real.batch,
        tokens=real.tokens,
        recomputing=real.recomputing,
        processes=real.processes,
    )
    assert computed.peak / 1e9 == pytest.approx(real.gigabytes, rel=TOLERANCE), computed


@pytest.mark.parametrize("targets", ["", "output", r".*\.(wqkv|wo)"])
def test_adapters_have_the_weights_that_peft_makes(targets: str) -> None:
    """The computed number of an adapter's weights equals that of PEFT's adapter for the same layers."""
    model = load_model(CHECKPOINT).language_model
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules=targets or linear))
    trained = sum(each.numel() for each in adapted.parameters() if each.requires_grad)
    assert trained_weights(read_sizes(CHECKPOINT), Recipe(rank=8, targets=targets, projector=False)) == trained


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # by importing XTuner
def test_without_targets_an_output_layer_named_lm_head_has_no_adapter(tmp_path: Path) -> None:
    """For Qwen2, the adapter covers the layers that XTuner chooses: all linear layers except lm_head."""
    from xtuner.model.utils import find_all_linear_names

    base = write_small(tmp_path / "base")
    model = load_model(base).language_model
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules=find_all_linear_names(model)))
    trained = sum(each.numel() for each in adapted.parameters() if each.requires_grad)
    assert trained_weights(read_sizes(base), Recipe(rank=8, projector=False)) == trained


def test_full_fine_tuning_trains_the_language_model_and_the_projector() -> None:
    """Full fine-tuning trains all weights but the vision tower's."""
    sizes = read_sizes(CHECKPOINT)
    assert trained_weights(sizes, Recipe(method="full")) == count(list(sizes.weights)) - count(sizes.vision_weights)


def test_the_largest_model_in_full_on_eight_cards(sizes: Callable[[str], ModelSizes]) -> None:
    """InternVL2-26B can be fine-tuned in full on eight cards of 80 GB with ZeRO 3, but with no lower stage.

    Each card has an eighth of 16 bytes for each of the 19.98 billion trained weights: weight and gradient in
    bfloat16, and the weight and two averages in float32. The rest is for gathered layers, activations and
    buffers.
    """
    model, full = sizes("26b"), Recipe(method="full", max_length=8192)
    by_stage = {stage: training_memory(model, full, batch=1, processes=8, deepspeed=stage) for stage in (1, 2, 3)}
    assert by_stage[3].trained == pytest.approx(16 * 19.978e9 / 8, rel=0.001)
    assert 40e9 < by_stage[3].trained + by_stage[3].activations < 44e9
    assert by_stage[3].peak < 0.92 * 80e9 / 1.15, "within the tolerance"
    assert by_stage[1].peak > by_stage[2].peak > 80e9
    assert training_memory(model, full, batch=1).peak > 300e9


def test_each_stage_partitions_more(sizes: Callable[[str], ModelSizes]) -> None:
    """Each stage of ZeRO needs less memory for trained weights than the one before; stage 3 shares frozen ones too."""
    full, lora = Recipe(method="full"), Recipe(method="lora")
    trained = [training_memory(sizes("8b"), full, batch=1, processes=4, deepspeed=stage).trained for stage in range(4)]
    assert trained == sorted(trained, reverse=True)
    frozen = [training_memory(sizes("8b"), lora, batch=1, processes=4, deepspeed=stage).frozen for stage in (2, 3)]
    assert frozen[0] == pytest.approx(4 * frozen[1], rel=0.001)


def test_methods_differ_in_memory(sizes: Callable[[str], ModelSizes]) -> None:
    """QLoRA needs less memory than LoRA, and LoRA less than full fine-tuning; an 8-bit optimizer saves some."""
    qlora, lora, full = (
        training_memory(sizes("8b"), Recipe(method=method), batch=1).peak for method in ("qlora", "lora", "full")
    )
    assert qlora < lora < full
    assert training_memory(sizes("8b"), Recipe(optimizer="paged_adamw_8bit"), batch=1).peak < qlora


def test_the_reason_of_a_training_without_enough_memory(sparse_checkpoint: Callable[[str], Path]) -> None:
    """If not even a batch of one pair fits into memory, the error states how much memory it takes."""
    job = Job("1", str(sparse_checkpoint("2b")), "", "", work="", system="")
    assert "takes about 5.9 GB" in str(shortage(job))
    assert "takes about 36" in str(shortage(replace(job, method="full")))


def test_tiles_of_a_large_tower_pass_in_smaller_groups(sizes: Callable[[str], ModelSizes]) -> None:
    """InternViT-6B computes fewer tiles per pass, so its activations take as much memory as the small tower's."""
    assert tiles_per_pass(sizes("2b")) == 26
    assert tiles_per_pass(sizes("26b")) == 8
