"""What a training worker is told and what it reports: JSON files and JSON lines.

Standard library only: both sides of the process border import it. The parent writes `job.json` into the
run directory and starts `python -m training.finetune job.json`; the worker prints one JSON `Progress` a line
on standard output and writes `outcome.json`. Knows nothing about XTuner or the ledger.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol, Self


class _Record:
    """JSON in and out for a flat frozen dataclass."""

    __slots__ = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        values: dict[str, Any] = json.loads(text)
        known = {each.name for each in fields(cls)}  # type: ignore[arg-type]
        unknown = values.keys() - known
        if unknown:
            raise ValueError(f"{cls.__name__}: unknown keys {sorted(unknown)}")
        return cls(**values)

    def write(self, path: Path) -> None:
        """Write atomically: a reader sees the whole record or none."""
        temporary = path.with_suffix(path.suffix + ".part")
        temporary.write_text(self.to_json() + "\n", encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        return cls.from_json(path.read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True)
class Job(_Record):
    """One fine-tuning run. Paths are absolute. Counts are samples, `max_length` is tokens.

    `data` is a LLaVA JSON file whose `image` entries are relative to `images`.
    """

    run: str
    base: str
    data: str
    images: str
    work: str
    system: str
    device: str = "auto"
    seed: int = 0
    epochs: float = 6
    batch: int = 4
    accumulation: int = 1
    learning_rate: float = 3e-5
    weight_decay: float = 0.05
    warmup: float = 0.03
    max_length: int = 8192
    rank: int = 128
    alpha: int = 256
    dropout: float = 0.05


@dataclass(frozen=True, slots=True)
class Progress(_Record):
    """One line on the worker's standard output. `seconds_left` is an estimate, None while unknown."""

    stage: str
    step: int = 0
    steps: int = 0
    loss: float | None = None
    seconds_left: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome(_Record):
    """How the worker ended. `adapter` is a PEFT directory, `scalars` XTuner's loss log; None unless `ok`.

    `reason` is empty when `ok`; otherwise one sentence an operator can act on.
    """

    ok: bool
    reason: str = ""
    adapter: str | None = None
    scalars: str | None = None
    steps: int = 0
    seconds: float = 0.0
    peak_memory: int = 0


class Trainer(Protocol):
    """Anything that turns a Job into an Outcome: the child process, or a fake in tests."""

    async def train(self, job: Job) -> Outcome:
        """Run to the end; cancelling the task ends the child. Never raises for a failed training."""
        ...
