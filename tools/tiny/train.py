"""Train internvl2-tiny from scratch: `python -m tools.tiny.train --out DIR --seed 0`.

A complete checkpoint in the official layout is written every minute, and the final one is evaluated. The
seed determines the tokenizer, the initial weights and every conversation, but not the order in which the
drawing processes deliver the conversations: two runs with the same seed yield models of equal quality,
but not identical weights. A GPU is used if there is one.

The shipped checkpoint was trained in three stages with the options below, for 10 minutes on one H200 and
then for 20 minutes on one CPU core. Between the stages, wordings were added to the training texts. On 2
CPU cores, all stages would take about 50 hours, estimated from 12 core-seconds per step with `--parts 1`.

    --out A --seed 0 --minutes 8.3 --parts 4 --workers 15 --pool 500        6,100 steps
    --out B --start A --seed 1 --minutes 1.85 --parts 4 --rate 6e-4         1,100 steps
    --out C --start A B --seed 2 --minutes 20 --parts 1 --rate 3e-4 --words-only  130 steps

With `--start DIR --steps 0`, nothing is trained; the checkpoint is only rewritten with the current
configuration.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from inference.chat_format.template import IMG_CONTEXT, jinja_chat_template
from inference.internvl2.checkpoint import load_model, write_checkpoint
from inference.internvl2.configuration_internvl2 import InternVLChatConfig
from inference.internvl2.families import INTERNVL2
from inference.internvl2.modeling_internvl2 import InternVLChatModel
from inference.internvl2.tiles import IMAGENET_MEAN, IMAGENET_STD
from inference.internvl2.tiny import CHECKPOINT
from inference.internvl2.tokenizer import load_tokenizer
from tools.tiny.batches import IGNORED, Batch, Batches, Pool
from tools.tiny.examine import examine
from tools.tiny.make_tokenizer import make_tokenizer

_SAVE_EVERY: Final = 60.0  # seconds
_REPORT_EVERY: Final = 15.0  # seconds
_WARM_UP: Final = 0.03  # share of the training
_CLIP: Final = 1.0


def make_model(tokenizer: Any, seed: int) -> InternVLChatModel:
    """Return a model with random float32 weights, the shipped configuration and the tokenizer's vocabulary."""
    config = InternVLChatConfig.from_pretrained(CHECKPOINT)
    config.llm_config.vocab_size = len(tokenizer)
    torch.manual_seed(seed)
    model = InternVLChatModel(config)
    model.img_context_token_id = tokenizer.convert_tokens_to_ids(IMG_CONTEXT)
    return model


def _mean(directories: list[Path]) -> InternVLChatModel:
    """Return a float32 model whose weights are the mean of the weights of several checkpoints."""
    models = [load_model(directory, dtype=torch.float32) for directory in directories]
    with torch.no_grad():
        for weights in zip(*(model.parameters() for model in models), strict=True):
            weights[0].copy_(torch.stack(weights).mean(0))
    return models[0]


def loss_of(model: InternVLChatModel, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of the answer tokens, computing logits only at their positions."""
    device = next(model.parameters()).device
    mean, deviation = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = (batch.tiles.to(device).permute(0, 3, 1, 2).float() / 255 - mean) / deviation
    embeds = model.embed(_padded(batch.ids, 0).to(device), model.extract_feature(pixels))
    hidden = model.language_model.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    targets = _padded(batch.labels, IGNORED).to(device)[:, 1:]
    learned = targets >= 0
    logits = model.language_model.output(hidden[:, :-1][learned])
    return functional.cross_entropy(logits.float(), targets[learned])


def _padded(rows: list[list[int]], filler: int) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=filler)


def train(model: InternVLChatModel, pool: Pool, given: argparse.Namespace, save: Callable[[], None]) -> None:
    """Train the model with AdamW and a cosine learning-rate schedule, calling `save` every minute.

    Training ends after `given.steps` steps or `given.minutes` minutes, whichever comes first.
    """
    device = next(model.parameters()).device
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    matrices = [weight for weight in learned if weight.dim() > 1]
    rest = [weight for weight in learned if weight.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=given.rate, betas=(0.9, 0.98), fused=device.type == "cuda")
    rng = Random(f"{given.seed}/sample")
    began = reported = saved = time.monotonic()
    losses: list[Tensor] = []
    model.train()
    for step in range(given.steps):
        now = time.monotonic()
        progress = max(step / given.steps, (now - began) / (60 * given.minutes))
        if progress >= 1:
            break
        factor = min(1.0, progress / _WARM_UP + 1e-3) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = given.rate * factor
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = loss_of(model, pool.sample(rng, given.parts))
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        if now - reported > _REPORT_EVERY:
            mean = torch.stack(losses).mean().item()
            print(
                f"{progress:6.1%} step {step} loss {mean:.4f} batches {pool.received} {now - began:.0f} s", flush=True
            )
            losses, reported = [], now
        if now - saved > _SAVE_EVERY:
            save()
            saved = now
    model.eval()


def main() -> None:
    """Train a model as specified on the command line and write its checkpoint."""
    parser = argparse.ArgumentParser(description="Train internvl2-tiny and write its checkpoint.")
    parser.add_argument("--out", type=Path, required=True, help="directory of the checkpoint")
    parser.add_argument(
        "--start", type=Path, nargs="+", help="continue from this checkpoint, or from the mean of several"
    )
    parser.add_argument("--words-only", action="store_true", help="freeze the vision tower")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=12_000, help="maximum number of steps")
    parser.add_argument("--minutes", type=float, default=600.0, help="maximum duration in minutes")
    parser.add_argument("--parts", type=int, default=8, help="batches joined in one step")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="highest learning rate")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw pictures")
    parser.add_argument("--pool", type=int, default=60, help="batches of each length kept in memory")
    parser.add_argument("--pictures", type=int, default=400, help="pictures for the final evaluation; 0 for none")
    given = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if given.start:
        tokenizer, model = load_tokenizer(given.start[0]), _mean(given.start).to(device)
    else:
        tokenizer = make_tokenizer(given.seed)
        model = make_model(tokenizer, given.seed).to(device)
    model.vision_model.requires_grad_(not given.words_only)
    count = sum(weight.numel() for weight in model.parameters())
    print(f"{count:,} parameters, {len(tokenizer)} tokens, on {device}", flush=True)

    def save() -> None:
        copy = make_model(tokenizer, given.seed)
        copy.load_state_dict(model.state_dict())
        write_checkpoint(copy.bfloat16(), tokenizer, given.out, chat_template=jinja_chat_template(INTERNVL2))

    with Pool(Batches(tokenizer, given.seed), workers=given.workers, size=given.pool) as pool:
        train(model, pool, given, save)
    save()
    if given.pictures:
        written = load_model(given.out, dtype=torch.float32, device=device)
        report = examine(written, tokenizer, pictures=given.pictures, seed=given.seed)
        print(report.table(), flush=True)


if __name__ == "__main__":
    main()
