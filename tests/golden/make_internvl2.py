"""Script that makes tests/golden/internvl2.npz with the official code.

Run it with `python -m tests.golden.make_internvl2 OFFICIAL`, where OFFICIAL is the folder internvl_chat
of a checkout of github.com/OpenGVLab/InternVL, whose code needs timm, einops and peft in addition to
torch and transformers. None of the official code is part of this repository.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.golden import internvl2_cases as cases


def answers(model: Any, side: int) -> dict[str, torch.Tensor]:
    """Return the official model's features, logits, loss and gradient norms for the seeded inputs."""
    model.img_context_token_id = cases.PICTURE
    pixels = cases.pixel_values(side)
    ids, mask, positions, labels = cases.batch(model.num_image_token)
    flags = torch.ones(cases.TILES, 1)
    found: dict[str, torch.Tensor] = {"features": model.extract_feature(pixels)}
    output = model(
        pixel_values=pixels, input_ids=ids, attention_mask=mask, position_ids=positions, image_flags=flags,
        labels=labels, use_cache=False,
    )  # fmt: skip
    output.loss.backward()
    found["logits"], found["loss"] = output.logits, output.loss
    for name in ("vision_model", "mlp1", "language_model"):
        part = getattr(model, name).parameters()
        found[f"gradient.{name}"] = torch.stack([p.grad.norm() for p in part if p.grad is not None]).norm()
    return found


def cached(model: Any, side: int) -> torch.Tensor:
    """Return the logits of the first row's last ten positions, computed one by one after a prefill of the rest."""
    model.img_context_token_id = cases.PICTURE
    features = model.extract_feature(cases.pixel_values(side)[:2])
    ids = cases.batch(model.num_image_token)[0][:1]
    embeds = model.language_model.get_input_embeddings()(ids).clone()
    embeds[ids == cases.PICTURE] = features.flatten(0, 1)
    start = cases.LENGTH - 10
    output = model.language_model(inputs_embeds=embeds[:, :start], use_cache=True)
    logits = []
    for at in range(start, cases.LENGTH):
        output = model.language_model(
            inputs_embeds=embeds[:, at : at + 1], past_key_values=output.past_key_values, use_cache=True
        )
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


def main(official: Path) -> None:
    """Run the official code on every case and write its outputs to `internvl2.npz` next to this file."""
    sys.path.insert(0, str(official))
    from internvl.model.internvl_chat import (  # type: ignore[import-not-found, unused-ignore]
        InternVLChatConfig,
        InternVLChatModel,
    )

    def build(fields: dict[str, Any]) -> Any:
        # A model keeps the rotary base of its longest text, so each measurement uses a new one.
        model = InternVLChatModel(InternVLChatConfig(**copy.deepcopy(fields)), use_flash_attn=False)
        model.load_state_dict(cases.weights(model.state_dict()))
        return model.eval()

    found: dict[str, Any] = {}
    for name, fields in cases.CASES.items():
        side = fields["force_image_size"]
        for key, value in {**answers(build(fields), side), "cached": cached(build(fields), side)}.items():
            found[f"{name}.{key}"] = value.detach().numpy()
    np.savez_compressed(Path(__file__).parent / "internvl2.npz", **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
