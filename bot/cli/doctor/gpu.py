"""The GPU checks of `thumbtune doctor`: driver, cards and CUDA libraries; `gpu_memory` checks what fits on them.

torch and CUDA are not loaded into this process; the findings come from nvidia-smi and a child process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from bot.cli.doctor.findings import Finding
from bot.cli.doctor.gpu_memory import memory_findings
from bot.config import Settings
from inference.engines.commands import Kind, resolve
from inference.engines.lmdeploy import SUPPORTED_VERSION

DRIVER: Final = 580
"""The oldest driver branch that supports CUDA 13, for which the torch in requirements/gpu.txt is built (NVIDIA, "CUDA
Toolkit Release Notes", table of minimum driver versions)."""
CAPABILITY: Final = 7.5
"""The lowest compute capability (Turing) that CUDA 13 compiles for."""
_QUERY: Final = ("index", "name", "driver_version", "compute_cap", "memory.total", "memory.free")
_SMI_SECONDS: Final = 30
_PROBE_SECONDS: Final = 180
_NO_DRIVER: Final = (
    f"install NVIDIA's driver, {DRIVER} or newer; give a container access to the GPUs (docker run --gpus all)"
)
_NOT_NEEDED: Final = "; not needed for these settings"


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as reported by nvidia-smi. `total` and `free` are its memory in bytes."""

    index: int
    name: str
    driver: str
    capability: float
    total: float
    free: float


class NoGpu(Exception):
    """No GPU is visible. The message says what was found."""


def gpu_findings(settings: Settings) -> Iterator[Finding]:
    """Check the GPU driver and the cards and, for lmdeploy, the libraries and the GPU memory.

    A missing GPU is a failure only if the settings need a GPU.
    """
    serves = resolve(settings.inference) is Kind.LMDEPLOY
    wanted = serves or settings.training.device == "cuda" or bool(settings.training.gpus)
    gpus: list[Gpu] = []
    try:
        gpus = list_gpus()
    except NoGpu as error:
        yield Finding("GPU", not wanted, f"{error}{'' if wanted else _NOT_NEEDED}", _NO_DRIVER if wanted else "")
    for gpu in gpus:
        yield _gpu_finding(gpu, wanted)
    if gpus and (absent := set(settings.inference.gpus) - {gpu.index for gpu in gpus}):
        found = ", ".join(str(gpu.index) for gpu in gpus)
        yield Finding("inference.gpus", False, f"{sorted(absent)} not found", f"choose from: {found}")
    if serves:
        yield from _turbomind(settings)
    if wanted and gpus:
        yield from memory_findings(settings, {gpu.index: gpu.total for gpu in gpus})


def list_gpus() -> list[Gpu]:
    """Return the GPUs of this machine.

    Raises:
        NoGpu: No GPU is visible.
    """
    line = ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(line, capture_output=True, text=True, timeout=_SMI_SECONDS, check=False)
    except FileNotFoundError as error:
        raise NoGpu("no NVIDIA driver") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoGpu(f"nvidia-smi does not answer ({type(error).__name__})") from error
    if answer.returncode:
        output = (answer.stdout + answer.stderr).strip().splitlines()
        raise NoGpu(f"the driver does not answer ({output[0] if output else f'exit code {answer.returncode}'})")
    gpus = [_parsed(row) for row in answer.stdout.splitlines() if row.strip()]
    if not gpus:
        raise NoGpu("the driver finds no GPU")
    return gpus


def _parsed(row: str) -> Gpu:
    index, name, driver, capability, total, free = (part.strip() for part in row.split(","))
    return Gpu(int(index), name, driver, _number(capability), _number(total) * 2**20, _number(free) * 2**20)


def _number(text: str) -> float:
    """Parse a number from the output of nvidia-smi.

    An unknown value, which nvidia-smi prints as [N/A], becomes infinity, so that the checks pass.
    """
    try:
        return float(text)
    except ValueError:
        return float("inf")


def _gpu_finding(gpu: Gpu, wanted: bool) -> Finding:
    detail = f"{gpu.name}, {gpu.total / 1e9:.1f} GB, driver {gpu.driver}"
    cure = ""
    if _number(gpu.driver.split(".")[0]) < DRIVER:
        cure = f"update NVIDIA's driver to {DRIVER} or newer: this torch is built for CUDA 13"
    elif gpu.capability < CAPABILITY:
        cure = f"compute capability {gpu.capability} is too old for CUDA 13: use a card with {CAPABILITY} or higher"
    return Finding(f"GPU {gpu.index}", not (cure and wanted), detail, cure if wanted else "")


def _turbomind(settings: Settings) -> Iterator[Finding]:
    """Check that TurboMind can be loaded by the Python interpreter that the engine uses."""
    line = [settings.inference.python or sys.executable, "-m", "inference.engines.lmdeploy.probe"]
    try:
        child = subprocess.run(line, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)
        found: dict[str, str] = json.loads((child.stdout.strip().splitlines() or ["{}"])[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        yield Finding("TurboMind", False, f"{line[0]} cannot load it: {error}", "check inference.python")
        return
    if not found:
        last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        yield Finding("TurboMind", False, last, "check inference.python; make install-gpu")
        return
    if not found["lmdeploy"]:
        yield Finding("lmdeploy", False, "not installed", "make install-gpu")
        return
    fits = found["lmdeploy"] == SUPPORTED_VERSION
    cure = "" if fits else f"make install-gpu (the engine accepts lmdeploy=={SUPPORTED_VERSION} only)"
    yield Finding("lmdeploy", fits, f"{found['lmdeploy']} with torch {found['torch']}", cure)
    wrong = found["error"]
    yield Finding("TurboMind", not wrong, wrong or "loads", _cure(wrong, found["cuda"]) if wrong else "")


def _cure(error: str, cuda: str) -> str:
    """Return what to do about an error from loading TurboMind.

    `cuda` is torch's CUDA version, or an empty string for a CPU build.
    """
    if "libcuda.so" in error:
        return _NO_DRIVER
    if not cuda:
        return "torch is a CPU build: make clean install-gpu"
    for library, package in (
        ("libcublas", "nvidia-cublas-cu12"),
        ("libcudart", "nvidia-cuda-runtime-cu12"),
        ("libnccl", "nvidia-nccl-cu13"),
    ):
        if library in error:
            return f"make install-gpu (it installs {package}; CUDA need not be installed on the machine)"
    if "undefined symbol" in error:
        return "lmdeploy and torch do not match: make clean install-gpu"
    return "make install-gpu"
