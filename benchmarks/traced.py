"""Run a module while profiling the GPU and Python's main thread in the same process.

    python -m benchmarks.traced REPORT.json MODULE ARGUMENT…

SIGUSR1 begins a measurement. SIGUSR2 ends it and appends a JSON line to REPORT.json: the wall time, the
share of the time in which a GPU kernel ran (CUPTI through torch.profiler, which includes TurboMind's
kernels), the time spent copying between host and GPU, the kernels that took longest, and the main
thread's stacks (sampled every 2 ms).
"""

from __future__ import annotations

import json
import runpy
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import torch

_LISTED = 12
_SAMPLE_SECONDS = 0.002
_PAUSE_NS = 2_000_000_000

Event = tuple[int, int, str]
"""Start and end in nanoseconds, and the name."""


class Measurement:
    """A measurement between two signals, with `begin` and `end` as the signal handlers."""

    def __init__(self, report: Path) -> None:
        self._report = report
        self._profile: Any = None
        self._seen: Counter[str] = Counter()
        self._sampling = threading.Event()
        self._main = threading.main_thread().ident

    def begin(self, *_: object) -> None:
        """Start the GPU profiler and the sampling of the main thread."""
        self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        self._profile.start()
        self._begun = time.monotonic()
        self._seen.clear()
        self._sampling.set()
        threading.Thread(target=self._sample, daemon=True).start()

    def end(self, *_: object) -> None:
        """Stop the profiler and the sampling, and append the results to the report."""
        self._sampling.clear()
        torch.cuda.synchronize()
        wall = time.monotonic() - self._begun
        self._profile.stop()
        events = [
            (event.start_ns(), event.start_ns() + event.duration_ns(), event.name())
            for event in self._profile.profiler.kineto_results.events()
            if event.device_type() == torch._C._autograd.DeviceType.CUDA
        ]
        kernels = [event for event in events if not event[2].startswith(("Memcpy", "Memset"))]
        copies = [event for event in events if event[2].startswith("Memcpy")]
        by_name: Counter[str] = Counter()
        for start, end, name in kernels:
            by_name[name[:90]] += end - start
        line = {
            "wall": round(wall, 3),
            "bursts": [burst(part) for part in bursts(events)],
            "copies": round(union(copies) / 1e9, 3),
            "kernels": {name: round(spent / 1e9, 4) for name, spent in by_name.most_common(_LISTED)},
            "main_thread": dict(self._seen.most_common(_LISTED * 2)),
        }
        with self._report.open("a", encoding="utf-8") as report:
            report.write(json.dumps(line) + "\n")

    def _sample(self) -> None:
        while self._sampling.is_set():
            frame: FrameType | None = sys._current_frames().get(self._main or 0)
            names: list[str] = []
            while frame is not None and len(names) < 4:
                names.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}")
                frame = frame.f_back
            self._seen[" < ".join(names)] += 1
            time.sleep(_SAMPLE_SECONDS)


def union(events: list[Event]) -> int:
    """Return the number of nanoseconds during which at least one of the events was running."""
    total, reached = 0, 0
    for start, end, _ in sorted(events):
        total += max(end - max(start, reached), 0)
        reached = max(reached, end)
    return total


def bursts(events: list[Event]) -> list[list[Event]]:
    """Split the events into groups wherever the GPU was idle for more than `_PAUSE_NS` nanoseconds."""
    groups: list[list[Event]] = []
    reached = 0
    for event in sorted(events):
        if not groups or event[0] - reached > _PAUSE_NS:
            groups.append([])
        groups[-1].append(event)
        reached = max(reached, event[1])
    return groups


def burst(events: list[Event]) -> dict[str, float]:
    """Return the seconds that a burst lasted, and the share of that time during which kernels ran.

    A burst lasts from the start of its first event to the end of its last.
    """
    kernels = [event for event in events if not event[2].startswith(("Memcpy", "Memset"))]
    seconds = (max(end for _, end, _ in events) - events[0][0]) / 1e9
    return {"seconds": round(seconds, 3), "kernels_share": round(union(kernels) / 1e9 / seconds, 4)}


def main() -> None:
    """Run the given module as `__main__`, with the signal handlers installed."""
    _, report, module, *arguments = sys.argv
    measurement = Measurement(Path(report))
    signal.signal(signal.SIGUSR1, measurement.begin)
    signal.signal(signal.SIGUSR2, measurement.end)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__")


if __name__ == "__main__":
    main()
