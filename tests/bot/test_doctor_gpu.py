"""The doctor on machines with GPUs, using fake programs for nvidia-smi and the engine's interpreter."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from bot.cli.doctor.checks import examine
from bot.cli.doctor.findings import Finding
from bot.cli.doctor.gpu import gpu_findings
from bot.cli.doctor.model import answer_findings, model_findings
from inference.engines.lmdeploy import SUPPORTED_VERSION
from inference.internvl2.tiny import CHECKPOINT
from tests.support.doctoring import finding_of, settings_in
from tests.support.small_checkpoints import write_small

H200 = "0, NVIDIA H200, 580.95.05, 9.0, 143771, 143000"
SMALL = "0, NVIDIA GeForce RTX 3060, 590.10, 8.6, 12288, 11900"
WHOLE = {"lmdeploy": SUPPORTED_VERSION, "torch": "2.12.1+cu130", "cuda": "13.0", "error": ""}


@pytest.fixture(autouse=True)
def bare_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point PATH at an empty folder to hide the machine's own nvidia-smi, and return the folder."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    return programs


def _program(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def _cards(folder: Path, *rows: str) -> None:
    _program(folder / "nvidia-smi", "\n".join(f"echo '{row}'" for row in rows) or "exit 0")


def _found(folder: Path, said: dict[str, str] | None = None, **inference: object) -> list[Finding]:
    """Return the findings for lmdeploy when the engine's interpreter prints `said` (default: a good setup)."""
    python = _program(folder / "python", f"echo 'a warning'\necho '{json.dumps(said or WHOLE)}'")
    settings = settings_in(folder, inference={"engine": "lmdeploy", "python": python, **inference})
    return list(gpu_findings(settings))


def test_a_good_machine(tmp_path: Path, bare_path: Path) -> None:
    """On a good machine, the driver, card, libraries and memory pass their checks."""
    _cards(bare_path, H200)
    findings = _found(tmp_path)
    memory = ["GPU 0: chat", "GPU 0: swap", "GPU 0: training"]
    assert [each.name for each in findings] == ["GPU 0", "lmdeploy", "TurboMind", *memory]
    assert all(each.ok and not each.cure for each in findings), findings


def test_no_gpu_is_no_fault_where_none_is_asked_for(tmp_path: Path) -> None:
    """A missing GPU is no fault for the CPU engine, but is one for lmdeploy or for training on cuda."""
    assert finding_of(list(gpu_findings(settings_in(tmp_path))), "GPU").ok
    for settings in (
        settings_in(tmp_path, inference={"engine": "lmdeploy"}),
        settings_in(tmp_path, training={"device": "cuda"}),
    ):
        found = next(gpu_findings(settings))
        assert not found.ok and "driver" in found.cure


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'NVIDIA-SMI has failed because it could not communicate with the driver.'; exit 9", "NVIDIA-SMI has"),
        ("exit 0", "the driver finds no GPU"),
    ],
)
def test_a_driver_in_trouble(tmp_path: Path, bare_path: Path, script: str, words: str) -> None:
    """If nvidia-smi fails, its output is shown; if it lists no GPU, the doctor says so."""
    _program(bare_path / "nvidia-smi", script)
    found = finding_of(_found(tmp_path), "GPU")
    assert not found.ok and words in found.detail and "580" in found.cure


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("0, NVIDIA A100, 570.86.10, 8.0, 81920, 81000", "update NVIDIA's driver to 580"),
        ("0, Tesla V100, 580.10, 7.0, 32768, 32000", "too old"),
    ],
)
def test_an_old_driver_or_card(tmp_path: Path, bare_path: Path, row: str, words: str) -> None:
    """A driver or a card that does not support CUDA 13 is reported before the engine fails on it."""
    _cards(bare_path, row)
    found = finding_of(_found(tmp_path), "GPU 0")
    assert not found.ok and words in found.cure


@pytest.mark.parametrize(
    ("error", "cuda", "words"),
    [
        ("libcublas.so.12: cannot open shared object file: No such file or directory", "13.0", "nvidia-cublas-cu12"),
        ("libcuda.so.1: cannot open shared object file: No such file or directory", "13.0", "NVIDIA's driver"),
        ("libcudart.so.12: cannot open shared object file: No such file or directory", "", "make clean install-gpu"),
        ("_turbomind.so: undefined symbol: _ZN3c10", "13.0", "do not match"),
    ],
)
def test_a_missing_library_is_named(tmp_path: Path, bare_path: Path, error: str, cuda: str, words: str) -> None:
    """The loader's error for a missing library is shown with the package that contains the library."""
    _cards(bare_path, H200)
    found = finding_of(_found(tmp_path, {**WHOLE, "error": error, "cuda": cuda}), "TurboMind")
    assert not found.ok and error in found.detail and words in found.cure


def test_lmdeploy_is_not_there(tmp_path: Path, bare_path: Path) -> None:
    """Without lmdeploy, the doctor names the install command; without an interpreter, the setting to change."""
    _cards(bare_path, H200)
    said = {"lmdeploy": "", "torch": "", "cuda": "", "error": "lmdeploy is not installed"}
    assert finding_of(_found(tmp_path, said), "lmdeploy").cure == "make install-gpu"
    settings = settings_in(tmp_path, inference={"engine": "lmdeploy", "python": str(tmp_path / "nowhere")})
    assert "inference.python" in finding_of(list(gpu_findings(settings)), "TurboMind").cure
    settings = settings_in(
        tmp_path, inference={"engine": "lmdeploy", "python": _program(tmp_path / "dies", "echo boom >&2; kill -9 $$")}
    )
    found = finding_of(list(gpu_findings(settings)), "TurboMind")
    assert not found.ok and found.detail == "boom"


def test_another_lmdeploy_is_named_with_the_accepted_one(tmp_path: Path, bare_path: Path) -> None:
    """If a different lmdeploy release is installed, the doctor names the only one that the engine accepts."""
    _cards(bare_path, H200)
    found = finding_of(_found(tmp_path, {**WHOLE, "lmdeploy": "0.19.0"}), "lmdeploy")
    assert not found.ok and "0.19.0" in found.detail and f"lmdeploy=={SUPPORTED_VERSION}" in found.cure


def test_a_gpu_that_is_not_there(tmp_path: Path, bare_path: Path) -> None:
    """The doctor reports GPU numbers in inference.gpus that the machine does not have."""
    _cards(bare_path, H200)
    found = finding_of(_found(tmp_path, gpus=[0, 3]), "inference.gpus")
    assert not found.ok and "[3]" in found.detail


def test_a_path_that_lmdeploy_misreads(tmp_path: Path) -> None:
    """The doctor reports a model path containing a word that makes lmdeploy choose the wrong model class.

    The CPU engine is not affected.
    """
    model = tmp_path / "my-llava-friend"
    shutil.copytree(CHECKPOINT, model)
    settings = settings_in(tmp_path, inference={"engine": "lmdeploy", "model": str(model)})
    assert "llava" in finding_of(list(model_findings(settings)), "model path").detail
    settings = settings_in(tmp_path, inference={"engine": "cpu", "model": str(model)})
    assert [each.name for each in model_findings(settings)] == ["model"]


def test_a_language_model_that_turbomind_lacks(tmp_path: Path) -> None:
    """The doctor reports a language model that lmdeploy's engine does not serve, and what is possible instead."""
    model = write_small(tmp_path / "model", "phi3-4b")
    settings = settings_in(tmp_path, inference={"engine": "lmdeploy", "model": str(model)})
    found = finding_of(list(model_findings(settings)), "language model")
    assert not found.ok and "does not support Phi3ForCausalLM" in found.detail
    assert "--backend pytorch" in found.cure
    settings = settings_in(tmp_path, inference={"engine": "cpu", "model": str(model)})
    assert [(each.name, each.ok) for each in model_findings(settings)] == [("model", True)]


async def test_the_engine_answers_when_asked(tmp_path: Path) -> None:
    """`doctor --answer` starts the configured engine, shows its answer, and leaves no process running."""
    settings = settings_in(tmp_path, inference={"engine": "cpu"})
    findings = await asyncio.to_thread(examine, settings, answer=True)
    found = finding_of(findings, "answer")
    assert found.ok, found
    assert "first token" in found.detail


async def test_an_engine_that_does_not_start_is_a_finding(tmp_path: Path) -> None:
    """The finding for an engine that does not start shows the engine's last output."""
    python = _program(tmp_path / "python", "echo 'no such kernel' >&2; exit 3")
    settings = settings_in(tmp_path, inference={"engine": "cpu", "python": python})
    [found] = await asyncio.to_thread(lambda: list(answer_findings(settings)))
    assert not found.ok and "no such kernel" in found.detail
