"""Compute the gradients of one row; print whether the layers took part, whether any is missing, and their number.

python -m tests.support.one_backward_pass FOLDER TARGETS
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from inference.internvl2.tiny import CHECKPOINT
from tests.support.adapted_model import adapted_model
from tests.support.lessons import drawn_job
from training.xtuner.distributed import process_group
from training.xtuner.encoding import IGNORE_INDEX
from training.xtuner.finetune import prepare_data
from training.xtuner.packing import collate


def main(folder: Path, targets: str) -> None:
    """Train the layers named `targets`, in a model whose other weights are frozen."""
    job = drawn_job(folder, 1, base=str(CHECKPOINT))
    prepare_data(job)
    with process_group(gpu=False):
        model = adapted_model(job, [targets], projector=False)
        hidden: list[torch.Tensor] = []
        model._language.model.norm.register_forward_hook(lambda _module, _inputs, output: hidden.append(output))
        ids = [1, *([model.model.img_context_token_id] * 16), 70, 71, 72]
        sample = {
            "input_ids": ids,
            "labels": [each if each < 73 else IGNORE_INDEX for each in ids],
            "pixel_values": torch.randn(1, 16, model.model.mlp1[0].normalized_shape[0]),
            "pictures": ("picture",),
            "pictures_end": 17,
            "long": False,
        }
        model(**collate([sample]))["loss"].backward()
    gradients = [each.grad for each in model.parameters() if each.requires_grad]
    print(hidden[0].requires_grad, any(each is None for each in gradients), len(gradients))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
