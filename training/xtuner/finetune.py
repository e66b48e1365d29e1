"""Worker that runs one fine-tuning job with XTuner.

    python -m training.xtuner.finetune JOB.json

The worker checks every row, writes the configuration, runs XTuner, and leaves an adapter directory, the
loss curve and the outcome next to the job file. The adapters of the job's blocks are trained first. If
the job was interrupted, the worker resumes from the job's last checkpoint.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import resource
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from inference.internvl2.model_sizes import read_sizes
from storage.atomic_files import PART
from storage.translatable_reason import Reason
from training.base_model_check import untrainable
from training.data.row_parser import read_rows
from training.job import Job, Outcome, Progress, TrainingError, ignore
from training.memory_estimate import picture_tokens, training_memory
from training.run_folder import ADAPTER, BASE, CONFIG, CURVE, LOSSES, SCALARS
from training.worker import Say, diverged, explained, rank, too_little_memory, use_device, work, world_size
from training.xtuner.recipes import Recipe
from training.xtuner.resume import block_jobs, has_adapter, latest_checkpoint, prepare_state, remove_checkpoints
from training.xtuner.scalars import peak_memory

if TYPE_CHECKING:
    from training.data.mixture import Mixture
    from training.xtuner.runner import KeptModel


def finetune(job: Job, say: Say) -> Outcome:
    """Train, and return an outcome with the paths of the adapter, the loss log and the loss curve.

    Raises:
        TrainingError: Training is not possible or fails.
    """
    say(Progress("checking"))
    if rank() > 0 and "HF_MODULES_CACHE" in os.environ:
        # Processes that share a cache overwrite each other's files while they import them.
        os.environ["HF_MODULES_CACHE"] += f"-{rank()}"
    gpu = use_device(job.device, job.threads) == "cuda"
    if job.deepspeed and importlib.util.find_spec("deepspeed") is None:
        raise TrainingError("training.deepspeed: DeepSpeed is not installed; run make install-gpu DEEPSPEED=1")
    if job.optimizer == "paged_adamw_8bit" and not gpu:
        raise TrainingError("training.knobs.optimizer: paged_adamw_8bit needs a GPU; choose adamw")
    try:
        from training.xtuner.runner import OutOfMemory

        try:
            return _train(job, say, gpu=gpu)
        except OutOfMemory as error:
            if error.batch > 1:
                return Outcome(ok=False, reason=str(error), too_large=True)
            # The memory use of a user's own configuration is not known.
            raise too_little_memory(shortage(job) if gpu and not job.recipe else error.reason) from error
    except (ImportError, RuntimeError) as error:
        raise explained(error) from error


def shortage(job: Job) -> Reason:
    """Return the reason why a job does not fit on its GPU, including the memory that its smallest batch needs."""
    recipe = Recipe.model_validate({name: getattr(job, name) for name in Recipe.model_fields})
    sizes = read_sizes(Path(job.base))
    tokens = picture_tokens(sizes, recipe, job.tiles)
    needed = training_memory(
        sizes, recipe, batch=1, tokens=tokens, processes=job.processes, deepspeed=job.deepspeed
    ).peak
    return Reason(
        "not enough memory: one pair at a time takes about {needed} GB of GPU memory, estimated for a large picture",
        needed=f"{needed / 1e9:.1f}",
    )


def _train(job: Job, say: Say, *, gpu: bool) -> Outcome:
    from training.xtuner.distributed import process_group
    from training.xtuner.runner import KeptModel

    # A preference model is not kept, because it contains the reference values of its rows. With a user's configuration
    # or with DeepSpeed, training builds its own model.
    kept = KeptModel() if job.blocks and job.objective == "sft" and not (job.recipe or job.deepspeed) else None
    rows = [*job.blocks, sum(1 for _ in read_rows(Path(job.data))) if job.data else 0]
    with process_group(gpu=gpu):
        for number, each in enumerate(block_jobs(job)):
            if not has_adapter(each):
                _train_adapter(each, partial(_report_as_part, say, rows, number), kept, gpu=gpu)
                if rank() == 0:
                    remove_checkpoints(Path(each.work))
        trained = _train_adapter(job, partial(_report_as_part, say, rows, len(job.blocks)), kept, gpu=gpu)
    return trained if rank() > 0 else finish(job, trained, gpu=gpu)


def _report_as_part(say: Say, rows: Sequence[int], number: int, progress: Progress) -> None:
    """Report the progress of one training run as part of the progress of a series.

    `rows` lists the number of rows for each training run, and `number` is the index of the current one. Steps
    are counted in proportion to the rows.
    """
    before, own, whole = sum(rows[:number]), rows[number], sum(rows)
    if progress.stage == "training" and progress.steps and own < whole:
        done = progress.step / progress.steps * own
        left = progress.seconds_left
        if left is not None and done < own:
            left = round(left * (whole - before - done) / (own - done), 1)
        step, steps = (round(progress.steps * part / own) for part in (before + done, whole))
        progress = replace(progress, step=step, steps=steps, seconds_left=left)
    say(progress)


def _train_adapter(job: Job, say: Say, kept: KeptModel | None, *, gpu: bool) -> Outcome:
    """Train an adapter and write it into the job's folder.

    Raises:
        TrainingError: The adapter has weights that are not finite.
    """
    import torch
    import torch.distributed as dist

    from training.adapter import Adapter, save_adapter
    from training.xtuner.distributed import trained_weights
    from training.xtuner.runner import train
    from training.xtuner.vision_cache import compute_features

    folder = Path(job.work)
    unfinished = folder / f"{ADAPTER}{PART}"
    samples: dict[str, int] = {}
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        samples = _prepare_run(job, say, gpu=gpu)
    dist.barrier()
    if not job.recipe:
        compute_features(job, say)
        dist.barrier()
    say(Progress("loading"))
    model, steps = train(folder / CONFIG, say, latest_checkpoint(job), kept)
    trained = trained_weights(model)
    if rank() == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        save_adapter(model, trained, unfinished)
        if not Adapter(unfinished).finite():
            raise diverged()
        unfinished.rename(folder / ADAPTER)
    del model, trained
    gc.collect()  # the runner and its hooks refer to each other
    torch.cuda.empty_cache()
    return Outcome(ok=True, steps=steps, samples=samples)


def _prepare_run(job: Job, say: Say, *, gpu: bool) -> dict[str, int]:
    """Write the files that XTuner reads, and return the number of samples from each source."""
    from training.xtuner.config_file import StepPlan, config_text
    from training.xtuner.user_config import user_config_text, user_max_length
    from training.xtuner.vision_cache import request_features

    mixture = prepare_data(replace(job, max_length=user_max_length(job.recipe)) if job.recipe else job, say)
    if job.recipe:
        text = user_config_text(job, rows=mixture.rows, processes=world_size())
    else:
        plan = StepPlan.for_job(job, mixture.rows, world_size())
        text = config_text(job, plan, mixture, gpu=gpu)
        # For one pass, a cache would save nothing, and the features of a trained tower change.
        request_features(job, mixture.pictures if plan.repeats > 1 and not job.vision_rank else [])
    (Path(job.work) / CONFIG).write_text(text, encoding="utf-8")
    prepare_state(job)
    return mixture.samples


def prepare_data(job: Job, say: Say = ignore) -> Mixture:
    """Write the base model's directory and the training data, checking every row.

    The directory links to the weights of the given checkpoint and contains the project's own model code.
    Code from a downloaded checkpoint therefore never runs, either in this worker or when XTuner's tools read
    the configuration again.

    Raises:
        TrainingError: The base model cannot be trained, a row is invalid, or there are too few rows.
    """
    import torch

    from inference.internvl2.checkpoint import write_surroundings
    from inference.internvl2.configuration_internvl2 import InternVLChatConfig
    from inference.internvl2.tokenizer import load_tokenizer
    from training.data.mixture import mix

    given, prepared = Path(job.base), Path(job.work) / BASE
    if reason := untrainable(given):
        raise TrainingError(reason)
    config = InternVLChatConfig.from_pretrained(given)
    write_surroundings(config, load_tokenizer(given), prepared, dtype=config.dtype or torch.bfloat16)
    for weights in (*given.glob("*.safetensors"), *given.glob("*.safetensors.index.json")):
        link = prepared / weights.name
        link.unlink(missing_ok=True)
        link.symlink_to(weights.resolve())
    return mix(job, prepared, say)


def finish(job: Job, trained: Outcome, *, gpu: bool) -> Outcome:
    """Write the loss log and curve, remove the training checkpoints, and return the completed outcome.

    The outcome is `trained` with the paths of the files and the peak memory use added.
    """
    from training.plots import draw_curve

    folder = Path(job.work)
    log, curve = folder / LOSSES, folder / CURVE
    shutil.copyfile(folder / SCALARS, log)
    draw_curve(log, curve, Path(job.former) if job.former else None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # This comes last, so that training that is killed earlier can resume from the checkpoint.
    remove_checkpoints(folder)
    return replace(
        trained,
        adapter=str(folder / ADAPTER),
        scalars=str(log),
        curve=str(curve),
        peak_memory=peak_memory(log) if gpu else peak,
    )


if __name__ == "__main__":
    work(Job, finetune)
