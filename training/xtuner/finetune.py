"""Worker: run one fine-tuning job with XTuner.

    python -m training.xtuner.finetune JOB.json

Checks every row first, writes the configuration, runs XTuner's Runner and leaves an adapter directory, the loss
curve and the outcome beside the job. Goes on from the last checkpoint where an earlier process left one of the same
training.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from training.job import Job, Outcome, Progress, TrainingError, ignore
from training.run_folder import ADAPTER, BASE, CONFIG, CURVE, LOSSES
from training.trainable import untrainable
from training.worker import LESS_MEMORY, Say, explained, rank, together, use_device, work

if TYPE_CHECKING:
    from training.data.mixture import Mixture


def prepare(job: Job, say: Say = ignore) -> tuple[Path, Mixture]:
    """Check every row and lay out what XTuner reads: the base directory and the data. Raises `TrainingError`.

    The base is a directory of links to the given checkpoint's weights with our model code beside them, so that no
    code of a downloaded checkpoint runs, here or when XTuner's tools run the configuration again.
    """
    from training.data.mixture import mix

    base = _with_our_code(Path(job.base), Path(job.work) / BASE)
    return base, mix(job, base, say)


def _with_our_code(given: Path, made: Path) -> Path:
    import torch

    from inference.internvl2.checkpoint import write_surroundings
    from inference.internvl2.configuration_internvl2 import InternVLChatConfig
    from inference.internvl2.tokenizer import load_tokenizer

    if wrong := untrainable(given):
        raise TrainingError(wrong)
    config = InternVLChatConfig.from_pretrained(given)
    stored = config.dtype or torch.bfloat16
    write_surroundings(config, load_tokenizer(given), made, dtype=stored)
    for weights in (*given.glob("*.safetensors"), *given.glob("*.safetensors.index.json")):
        link = made / weights.name
        link.unlink(missing_ok=True)
        link.symlink_to(weights.resolve())
    return made


def finetune(job: Job, say: Say) -> Outcome:
    """Train; the outcome names the adapter, the log of losses and the curve. Raises `TrainingError`."""
    say(Progress("checking"))
    if rank() > 0 and "HF_MODULES_CACHE" in os.environ:
        # Several would write the same files and read each other's halves.
        os.environ["HF_MODULES_CACHE"] += f"-{rank()}"
    gpu = use_device(job.device, job.threads) == "cuda"
    if job.deepspeed and importlib.util.find_spec("deepspeed") is None:
        raise TrainingError("training.deepspeed: DeepSpeed is not installed; run make install-gpu DEEPSPEED=1")
    if job.optimizer == "paged_adamw_8bit" and not gpu:
        raise TrainingError("training.knobs.optimizer: paged_adamw_8bit needs a GPU; choose adamw")
    try:
        from training.xtuner.runner import OutOfMemory

        try:
            return _trained(job, say, gpu=gpu)
        except OutOfMemory as error:
            if error.batch > 1:
                return Outcome(ok=False, reason=str(error), too_large=True)
            raise TrainingError(f"{error}: {LESS_MEMORY}") from error
    except (ImportError, RuntimeError) as error:
        raise explained(error) from error


def _lay_out(job: Job, say: Say, *, gpu: bool) -> dict[str, int]:
    """Check the rows, write the configuration and make room; return how many rows are of which source."""
    from training.xtuner.config_file import Plan, config_text
    from training.xtuner.resume import begin
    from training.xtuner.user_config import own_config_text, own_max_length
    from training.xtuner.vision_pass import kept, want

    base, mixture = prepare(replace(job, max_length=own_max_length(job.recipe)) if job.recipe else job, say)
    if job.recipe:
        text = own_config_text(job, base=base, data=mixture.file, rows=mixture.rows, processes=together())
    else:
        plan = Plan.of(job, mixture.rows, together())
        text = config_text(
            job, plan, base=base, data=mixture.file, longest=mixture.longest, features=kept(job), gpu=gpu
        )
        # Seen once, it is seen when it is learned from. A tower that is trained sees something else each time.
        want(job, mixture.pictures if plan.repeats > 1 and not job.vision_rank else [])
    (Path(job.work) / CONFIG).write_text(text, encoding="utf-8")
    begin(job)
    return mixture.samples


def _trained(job: Job, say: Say, *, gpu: bool) -> Outcome:
    from training.adapter import Adapter, save_adapter
    from training.xtuner.distributed import gathered, joined, wait
    from training.xtuner.resume import checkpoint
    from training.xtuner.runner import train
    from training.xtuner.vision_pass import look

    folder = Path(job.work)
    adapter = folder / ADAPTER
    samples: dict[str, int] = {}
    with joined(gpu=gpu):
        if rank() == 0:
            samples = _lay_out(job, say, gpu=gpu)
        wait()
        if not job.recipe:
            look(job, folder / BASE, say)
            wait()
        say(Progress("loading"))
        trained = train(folder / CONFIG, say, checkpoint(job))
        with gathered(trained.model):
            if rank() == 0:
                save_adapter(trained.model, adapter)
    if rank() > 0:
        return Outcome(ok=True)
    if not Adapter(adapter).finite():
        raise TrainingError("the training diverged: lower training.knobs.learning_rate")
    return finished(job, trained.scalars, trained.steps, samples, gpu=gpu)


def finished(job: Job, scalars: Path, steps: int, samples: dict[str, int], *, gpu: bool) -> Outcome:
    """Lay down the log of losses and the curve, and remove what only the training needed; what is told of it all."""
    from training.xtuner.curve import draw
    from training.xtuner.resume import remove
    from training.xtuner.scalars import most_memory

    folder = Path(job.work)
    log, curve = folder / LOSSES, folder / CURVE
    shutil.copyfile(scalars, log)
    draw(log, curve, Path(job.former) if job.former else None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # Last: whoever comes to nothing before goes on from here. The same numbers lie in the adapter directory; XTuner's
    # tools make the checkpoint again from the configuration.
    remove(folder)
    return Outcome(
        ok=True,
        adapter=str(folder / ADAPTER),
        scalars=str(log),
        curve=str(curve),
        steps=steps,
        peak_memory=most_memory(log) if gpu else peak,
        samples=samples,
    )


if __name__ == "__main__":
    work(Job, finetune)
