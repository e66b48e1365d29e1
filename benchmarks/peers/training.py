"""Compare training of a full-size InternVL2 by thumbtune's worker, XTuner's own code, TRL and ms-swift.

    python -m benchmarks.peers.training --work DIR --official CODE [--cases stock,ours,kept,single] [--swift SITE]

The model has random weights in the official layout (written by random_checkpoint.py). The data consists of 64
JPEG pictures of 1280×960 pixels (13 tiles) with one question and answer each (`--answers`), used three times,
in batches of 4. Every case but `two` uses one GPU:

- `stock` is benchmarks/peers/xtuner_stock.py, run by XTuner's train tool on the official model code in CODE
  (the .py files of OpenGVLab/InternVL2-2B).
- `ours`, `kept`, `auto` and `single` run thumbtune's worker on the same rows, prompts and hyperparameters, in
  an order of their own. `ours` recomputes activations, `kept` keeps them, `auto` keeps what fits, and `single`
  has batch size 1.
- `trl`, `trl-kept` and `trl-official` run trl_training.py, which trains with TRL and PEFT on the same rows;
  `trl-kept` keeps the activations, and `trl-official` runs the official model code in CODE.
- `swift` runs ms-swift on the official model code in CODE, with LoRA of bfloat16 weights, because its 4-bit LoRA fails
  for this model; all other cases are QLoRA. SITE is a folder with ms-swift and what it needs for this code
  (`pip install --target SITE ms-swift==4.6.0 transformers==4.49.0 "trl<1"`).
- `one` and `two` run thumbtune's worker in one process and in two processes (each on its own GPU), with
  8 question-answer pairs per step.
- `alike` runs the configuration of `ours` with XTuner's tool, and with the projector in bfloat16, as in
  `stock`. Any difference that remains between the loss curves of `alike` and `stock` is due to
  floating-point arithmetic.

The script prints JSON lines: samples per second over all batches, seconds per batch, the peak GPU memory
of the whole process (measured as the increase since its start), and the losses. For thumbtune's worker,
the samples per second include the time to compute the pictures' features, if each picture is used
more than once.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, Final

from benchmarks.peers.load import picture
from benchmarks.peers.memory_sampler import Memory
from benchmarks.random_checkpoint import checkpoint, official
from training.data.row_parser import read_lessons
from training.job import Job, Progress
from training.xtuner.encoding import Encoder

SYSTEM: Final = "You are an AI assistant whose name is InternLM (书生·浦语)."
"""The system prompt that XTuner's dataset puts before every conversation; thumbtune's worker gets the same."""

REPEATS: Final = 3
DISTINCT: Final = 64
"""The number of different pictures. Any further ones are copies, each read and tiled separately."""

BATCH: Final = 4
CASES: Final[dict[str, dict[str, Any]]] = {
    "ours": {"checkpointing": True},
    "kept": {"checkpointing": False},
    "auto": {"checkpointing": "auto"},
    "single": {"checkpointing": True, "batch": 1, "epochs": 0.5},
    "one": {"checkpointing": False, "accumulation": 2},
    "two": {"checkpointing": False, "accumulation": 2},
}
PROCESSES: Final = {"two": 2}
_SWIFT: Final = f"""
    --model_type=internvl_chat --template=internvl2 --max_length=16384 --save_strategy=no --logging_steps=1
    --torch_dtype=bfloat16 --gradient_checkpointing=true
    --tuner_type=lora --lora_rank=128 --lora_alpha=256 --lora_dropout=0 --freeze_aligner=false
    --num_train_epochs={REPEATS} --per_device_train_batch_size={BATCH} --gradient_accumulation_steps=1
    --learning_rate=2e-5 --weight_decay=0.05 --warmup_ratio={1 / 48}
""".split()
_STOCK: Final = """\
import runpy, sys, tempfile, torch.distributed
# XTuner asks for its rank even in a single process.
torch.distributed.init_process_group("gloo", init_method="file://" + tempfile.mktemp(), rank=0, world_size=1)
runpy.run_module("xtuner.tools.train", run_name="__main__")
"""


def lay_out(base: Path, folder: Path, pictures: int, answers: int = 1) -> tuple[Path, Path]:
    """Write pictures and `answers` rows about each, and return the LLaVA file and the picture folder.

    Each row includes its length in tokens, because XTuner sorts rows by length.
    """
    images = folder / "pictures"
    images.mkdir(parents=True, exist_ok=True)
    rng = Random(0)
    words = [f"word{number}" for number in range(40)]
    rows: list[dict[str, Any]] = []
    for number in range(pictures):
        name = f"{number:04d}.jpg"
        if number < DISTINCT:
            (images / name).write_bytes(base64.b64decode(picture(number).partition(",")[2]))
        else:
            shutil.copyfile(images / f"{number % DISTINCT:04d}.jpg", images / name)
        for answer in range(answers):
            said = [
                {"from": "human", "value": f"<image>\nWhat is this{' in other words' * answer}?"},
                {"from": "gpt", "value": " ".join(rng.choices(words, k=30))},
            ]
            asked = {"id": f"{name}-{answer}", "image": [name], "image_wh": [[1280, 960]], "conversations": said}
            rows.append(asked)
    data = folder / "rows.json"
    data.write_text(json.dumps(rows), encoding="utf-8")
    encoder = Encoder(base)
    for row, lesson in zip(rows, read_lessons(data, images, system=SYSTEM), strict=True):
        row["length"] = len(encoder.encode(lesson).input_ids)
    data.write_text(json.dumps(rows), encoding="utf-8")
    return data, images


def scalars(log: Path) -> tuple[list[float], list[float]]:
    """Return the loss and the duration in seconds of each batch from XTuner's log."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in lines if "loss" in line], [line["time"] for line in lines if "loss" in line]


def result(
    case: str, samples: int, losses: list[float], times: list[float], *, peak: float, seen: float = 0.0
) -> dict[str, Any]:
    """Return the measurements of one case.

    The first two batches are included, although they wait for kernels to load.
    """
    return {
        "case": case,
        "samples_per_second": samples / (seen + sum(times)),
        "batch_seconds": statistics.median(times),
        "seeing_seconds": seen,
        "peak_gb": peak / 1e9,
        "losses": [round(loss, 4) for loss in losses],
    }


def run(line: list[str], log: Path, **environment: str) -> float:
    """Run a command with `environment` added and its output in the file `log`; return the peak GPU memory in bytes."""
    memory = Memory()
    with log.open("w", encoding="utf-8") as output:
        subprocess.run(line, check=True, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **environment})
    return memory.peak()


def newest(work: Path, pattern: str) -> Path:
    """Return the file below `work` that matches `pattern` and was written last."""
    return max(work.glob(pattern), key=lambda file: file.stat().st_mtime)


def stock(base: Path, code: Path, data: Path, images: Path, folder: Path, *, dropout: float) -> dict[str, Any]:
    """Train with XTuner's own code and return the measurements."""
    rows = len(json.loads(data.read_text(encoding="utf-8")))
    model = official(base, code, folder)
    work = folder / "stock"
    batches = rows * REPEATS // BATCH
    options = {
        "batches": batches,
        "model.model_path": model,
        "model.llm_lora.lora_dropout": dropout,
        "train_dataloader.dataset.model_path": model,
        "train_dataloader.dataset.data_paths": data,
        "train_dataloader.dataset.image_folders": images,
        "train_dataloader.dataset.repeat_times": REPEATS,
        "param_scheduler.1.end": batches,
    }
    line = [sys.executable, "-c", _STOCK, str(Path(__file__).parent / "xtuner_stock.py"), "--work-dir", str(work)]
    line += ["--cfg-options", *(f"{name}={value}" for name, value in options.items())]
    peak = run(line, folder / "stock.log")
    return result("stock", rows * REPEATS, *scalars(newest(work, "*/vis_data/scalars.json")), peak=peak)


def ours(case: str, base: Path, data: Path, images: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """Train with thumbtune's worker and return the measurements."""
    work = folder / case
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    job = replace(
        Job("1", str(base), str(data), str(images), work=str(work), system=SYSTEM),
        **{"epochs": REPEATS, "learning_rate": 2e-5, "warmup": 1 / 48, **changes},
    )
    job.write(work / "finetune.json")
    memory = Memory()
    processes = PROCESSES.get(case, 1)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    line = [sys.executable, *torchrun, "-m", "training.xtuner.finetune", str(work / "finetune.json")]
    stages: dict[str, float] = {}
    with (folder / f"{case}.log").open("w", encoding="utf-8") as log:
        # As the product sets it (training/launcher.py).
        environment = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        assert process.stdout is not None
        for said in process.stdout:
            stages.setdefault(Progress.from_json(said).stage, time.monotonic())
    if process.wait() or not json.loads((work / "finetune.outcome.json").read_text())["ok"]:
        raise RuntimeError((work / "finetune.outcome.json").read_text())
    losses, times = scalars(work / "losses.json")
    # The log has the mean time of a step's batches, which the processes share.
    times = [each * job.accumulation / processes for each in times]
    seen = stages["loading"] - stages.get("looking", stages["loading"])
    return result(case, len(times) * job.batch * job.accumulation, losses, times, peak=memory.peak(), seen=seen)


def trl(case: str, base: Path, data: Path, images: Path, folder: Path, *, code: Path, dropout: float) -> dict[str, Any]:
    """Train with TRL and PEFT, and return the measurements."""
    log = folder / f"{case}.jsonl"
    log.unlink(missing_ok=True)
    line = [sys.executable, "-m", "benchmarks.peers.trl_training", "--model", str(base), "--data", str(data)]
    line += ["--images", str(images), "--log", str(log), "--dropout", str(dropout)]
    line += ["--keep-activations"] if case == "trl-kept" else []
    line += ["--official", str(official(base, code, folder))] if case == "trl-official" else []
    peak = run(line, folder / f"{case}.log")
    losses, times = scalars(log)
    return result(case, len(times) * BATCH, losses, times, peak=peak)


def swift(base: Path, code: Path, data: Path, images: Path, folder: Path, *, site: Path, tiles: int) -> dict[str, Any]:
    """Train with ms-swift, recomputing activations and with LoRA on the projector too, and return the measurements."""
    rows = json.loads(data.read_text(encoding="utf-8"))
    with (folder / "swift.rows.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            asked, answered = (each["value"] for each in row["conversations"])
            messages = [("system", SYSTEM), ("user", asked.replace("<image>\n", "<image>")), ("assistant", answered)]
            line: dict[str, Any] = {"messages": [{"role": role, "content": text} for role, text in messages]}
            file.write(json.dumps({**line, "images": [str(images / name) for name in row["image"]]}) + "\n")
    work = folder / "swift"
    paths = {"model": official(base, code, folder), "dataset": folder / "swift.rows.jsonl", "output_dir": work}
    arguments = [*_SWIFT, *(f"--{name}={path}" for name, path in paths.items())]
    command = [sys.executable, "-m", "swift.cli.sft", *arguments]
    environment = {"PYTHONPATH": str(site), "MAX_NUM": str(tiles), "HF_HUB_OFFLINE": "1"}
    peak = run(command, folder / "swift.log", **environment)
    logged = [json.loads(line) for line in newest(work, "*/logging.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [each for each in logged if "loss" in each]
    # The log has the mean time of all steps so far.
    ends = [number * step["train_speed(s/it)"] for number, step in enumerate(steps, 1)]
    times = [after - before for before, after in itertools.pairwise([0.0, *ends])]
    return result("swift", len(rows) * REPEATS, [step["loss"] for step in steps], times, peak=peak)


def alike(folder: Path) -> dict[str, Any]:
    """Train with the configuration of `ours` and the model of `bfloat16_projector`; return the measurements."""
    line = [sys.executable, "-m", "xtuner.tools.train", str(folder / "ours" / "config.py")]
    line += ["--work-dir", str(folder / "alike"), "--cfg-options", "model.type=benchmarks.bfloat16_projector.Alike"]
    peak = run(line, folder / "alike.log")
    losses, times = scalars(newest(folder / "alike", "*/vis_data/scalars.json"))
    return result("alike", len(times) * BATCH, losses, times, peak=peak)


def main() -> None:
    """Run the cases one after another and print the measurements."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--official", type=Path)
    options.add_argument("--swift", type=Path, metavar="SITE")
    options.add_argument("--cases", default="stock,ours,kept,single")
    options.add_argument("--pictures", type=int, default=64)
    options.add_argument("--answers", type=int, default=1, help="questions and answers about each picture")
    options.add_argument("--size", default="2b")
    options.add_argument("--tiles", type=int, default=12)
    options.add_argument("--dropout", type=float, default=0.0)
    options.add_argument("--knobs", type=json.loads, default={}, help="JSON: fields of the job to change")
    given = options.parse_args()
    base = checkpoint(given.work, given.size, given.tiles)
    data, images = lay_out(base, given.work / f"data-{given.pictures}-{given.answers}", given.pictures, given.answers)
    for case in given.cases.split(","):
        if case == "stock":
            found = stock(base, given.official, data, images, given.work, dropout=given.dropout)
        elif case == "alike":
            found = alike(given.work)
        elif case == "swift":
            found = swift(base, given.official, data, images, given.work, site=given.swift, tiles=given.tiles)
        elif case.startswith("trl"):
            found = trl(case, base, data, images, given.work, code=given.official, dropout=given.dropout)
        else:
            found = ours(
                case, base, data, images, given.work, **{"dropout": given.dropout, **CASES[case], **given.knobs}
            )
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
