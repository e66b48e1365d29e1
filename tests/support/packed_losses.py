"""Compare a packed batch with its samples computed one by one; print the lengths and the differences as JSON.

python -m tests.support.packed_losses CHECKPOINT FOLDER CHECKPOINTING
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from inference.messages import Role, Turn
from tests.support.adapted_model import adapted_model
from tests.support.lessons import drawn_job, drawn_lessons
from training.data.llava import write_rows
from training.xtuner.config_file import dataset
from training.xtuner.dataset import LessonDataset
from training.xtuner.distributed import process_group
from training.xtuner.finetune import prepare_data
from training.xtuner.packing import pack


def write_lessons(job: Any) -> None:
    """Write lessons with common pictures, with common turns, with two pictures, and without pictures."""
    first, second = drawn_lessons(Path(job.images), 2)
    asked, answered = first.turns
    again = Turn(Role.USER, "And what else is there?")
    longer = replace(first, name="longer", turns=(*first.turns, again, answered), learned=(False, False, False, True))
    both = replace(second, name="both", turns=(*first.turns, *second.turns), learned=(False, False, False, True))
    lessons = [
        first,
        second,
        replace(first, name="other question", turns=(replace(asked, text="Is it large?"), answered)),
        longer,
        both,
        replace(both, name="both again", turns=(*both.turns, again, answered), learned=(*[False] * 5, True)),
        replace(first, name="no picture", turns=(Turn(Role.USER, "Hello"), answered)),
        replace(first, name="no picture either", turns=(Turn(Role.USER, "Hello"), second.turns[1])),
        replace(first, name="other answer", turns=(asked, replace(answered, text=answered.text + " Or not?"))),
    ]
    write_rows(lessons, Path(job.data))


def main(base: str, folder: Path, checkpointing: bool) -> None:
    """Compute losses and gradients in both ways."""
    job = drawn_job(folder, 1, base=base)
    write_lessons(job)
    mixture = prepare_data(job)
    with process_group(gpu=False):
        model = adapted_model(job, None, checkpointing=checkpointing)
        options = dataset(job, repeats=1, max_length=job.max_length)
        del options["type"]
        rows = LessonDataset(**options, features=str(folder / "none"))
        samples = [rows[number] for number in range(mixture.rows)]
        trained = [each for each in model.parameters() if each.requires_grad]
        for name, each in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(each, std=0.02)  # otherwise lora_A has no gradient

        def losses(batch: dict[str, Any]) -> list[torch.Tensor]:
            found = model.token_losses(batch)
            owners = batch["sample_ids"][:, 1:][batch["labels"][:, 1:] != -100]
            return [found[owners == number] for number in range(int(owners.max()) + 1)]

        together = pack(samples)
        pictures = len(together["pixel_values"])
        packed = losses(together)
        gradients = torch.autograd.grad(torch.cat(packed).sum(), trained)
        alone = [losses(pack([each]))[0] for each in samples]
        sums = torch.autograd.grad(torch.cat(alone).sum(), trained)
    print(  # noqa: T201
        json.dumps(
            {
                "tokens": together["input_ids"].numel(),
                "alone": sum(len(each["input_ids"]) for each in samples),
                "pictures": pictures,
                "long": sum(each["long"] for each in samples),
                "targets": [len(each) for each in packed] == [len(each) for each in alone],
                "loss": max(float((one - two).abs().max()) for one, two in zip(packed, alone, strict=True)),
                "gradient": max(
                    float((one - two).norm() / two.norm()) for one, two in zip(gradients, sums, strict=True)
                ),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "True")
