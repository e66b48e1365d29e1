"""`thumbtune doctor`: check the installation and the settings, and say how to fix what fails.

Each check is a function that yields findings and changes nothing.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryFile

from bot.cli.doctor.findings import Finding
from bot.cli.doctor.gpu import gpu_findings
from bot.cli.doctor.model import answer_findings, model_findings
from bot.config import DEFAULT_PATH, Settings
from bot.live_settings import LiveSettings, json_value
from bot.telegram.client import GUEST_MODE, TOKEN_CURE
from inference.engines.commands import Kind, resolve
from inference.engines.ray_version import ray_cure, ray_version
from inference.internvl2.checkpoint_check import weight_bytes
from storage.errors import StorageError
from storage.file_permissions import open_to_others
from storage.integrity import ledger_faults, live_model_fault, picture_faults, refuse_lost_ledger
from storage.ledger import FILE_NAME
from storage.model_store import ModelStore
from storage.picture_files import PictureStore
from storage.setting_changes import recorded_changes
from training.base_model_check import untrainable
from training.gate.factual_set import check_decidable, read_set
from training.job import TrainingError

PACKAGES = ("bot", "inference", "training", "storage")
ENGINE_PACKAGES = ("torch", "torchvision", "timm", "transformers", "safetensors")
TRAINER_PACKAGES = (
    "xtuner",
    "mmengine",
    "peft",
    "bitsandbytes",
    "datasets",
    "dadaptation",
    "prodigyopt",
    "tensorboard",
)


def examine(settings: Settings, *, answer: bool = False) -> list[Finding]:
    """Run all checks, in the order in which problems should be fixed.

    With `answer`, also start the engine and ask it a question.
    """
    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        _python,
        _own_packages,
        _engine_packages,
        _trainer_packages,
        gpu_findings,
        model_findings,
        *((answer_findings,) if answer else ()),
        _base_model,
        _sources,
        _storage,
        _factual_questions,
        _telegram,
    )
    return [finding for check in checks for finding in check(settings)]


def _python(_: Settings) -> Iterator[Finding]:
    found = ".".join(str(part) for part in sys.version_info[:3])
    ok = (3, 11) <= sys.version_info[:2] <= (3, 12)
    yield Finding("Python", ok, found, "" if ok else "use Python 3.11 or 3.12: make install PYTHON=python3.11")


def _own_packages(_: Settings) -> Iterator[Finding]:
    """Check that Python imports the project's own packages, not others of the same name.

    Another distribution may also have a package with a common name such as `bot`.
    """
    home = Path(__file__).resolve().parents[3]
    for package in PACKAGES:
        origin = importlib.import_module(package).__file__
        ok = origin is not None and Path(origin).resolve().parent.parent == home
        cure = "" if ok else f"another package called {package!r} shadows ours: use a clean environment (make install)"
        yield Finding(f"package {package}", ok, str(origin), cure)


def _packages(names: tuple[str, ...], cure: str) -> Iterator[Finding]:
    for name in names:
        try:
            yield Finding(name, True, version(name))
        except PackageNotFoundError:
            yield Finding(name, False, "not installed", cure)


def _ray(section: str, python: str) -> Iterator[Finding]:
    found = ray_version(python)
    yield Finding("ray", bool(found), found or f"not installed for {python or sys.executable}", ray_cure(section))


def _engine_packages(settings: Settings) -> Iterator[Finding]:
    kind = resolve(settings.inference)
    if kind is Kind.RAY:
        yield from _ray("inference", settings.inference.python)
    elif kind is not Kind.EXTERNAL and not settings.inference.python:
        yield from _packages(ENGINE_PACKAGES, "make install-gpu" if kind is Kind.LMDEPLOY else "make install")


def _trainer_packages(settings: Settings) -> Iterator[Finding]:
    if settings.training.engine == "ray":
        yield from _ray("training", settings.training.python)
    if settings.training.python:
        return
    yield from _packages(TRAINER_PACKAGES, "make install (chatting works without it; /retrain does not)")
    if settings.training.deepspeed:
        yield from _packages(("deepspeed",), "make install-gpu DEEPSPEED=1, or set training.deepspeed to 0")


def _base_model(settings: Settings) -> Iterator[Finding]:
    """Check that the base model can be trained."""
    base = settings.inference.checkpoint()
    wrong = untrainable(base) or ""
    said, _, cure = wrong.rpartition(": ")
    yield Finding("base model", not wrong, said or f"{base} can be trained", cure)


def _storage(settings: Settings) -> Iterator[Finding]:
    directory = settings.storage.dir.absolute()
    existing = next(each for each in (directory, *directory.parents) if each.exists())
    try:
        with TemporaryFile(dir=existing) as probe:
            probe.write(b"thumbtune")
            os.fsync(probe.fileno())
    except OSError as error:
        cure = "set storage.dir to a folder that this user may write to"
        yield Finding("storage", False, f"{directory}: {error.strerror}", cure)
        return
    free = shutil.disk_usage(existing).free / 1e9
    # A run needs room for the adapter, and for the merged model beside the live one.
    need = 2 * weight_bytes(settings.inference.checkpoint()) / 1e9 + settings.training.min_free_gigabytes
    cure = "" if free >= need else f"free {need - free:.1f} GB: a run needs {need:.1f} (twice the model and a reserve)"
    # The live model, the previous one and training.keep_models others are kept; existing ones need no more room.
    there = len(ModelStore(directory / "models").names()) if (directory / "models").is_dir() else 0
    to_come = max(0, settings.training.keep_models + 2 - there)
    growth = to_come * weight_bytes(settings.inference.checkpoint()) / 1e9
    grows = f"; merged models will need up to {growth:.1f} GB more (training.keep_models)" if to_come else ""
    yield Finding("disk", not cure, f"{free:.1f} GB free in {directory}{grows}", cure)
    loose = open_to_others(directory)
    cure = f"start the bot, or chmod -R go= {' '.join(map(str, loose))}" if loose else ""
    found = f"others can read {', '.join(each.name for each in loose)}" if loose else "only this user can read the data"
    yield Finding("permissions", not loose, found, cure)
    yield from _ledger(settings, directory)
    yield Finding("SQLite", sqlite3.sqlite_version_info >= (3, 37), sqlite3.sqlite_version, "")


def _sources(settings: Settings) -> Iterator[Finding]:
    """Check that the files in `training.sources` exist. Their rows are checked when a run begins."""
    for source in settings.training.sources:
        wrong = ""
        if not source.path.is_file():
            wrong = f"{source.path} is not a file"
        elif not source.folder.is_dir():
            wrong = f"{source.folder} is not a folder"
        yield Finding("source", not wrong, wrong or str(source.path), "correct training.sources" if wrong else "")


def _ledger(settings: Settings, directory: Path) -> Iterator[Finding]:
    """Check the ledger's file and the pictures listed in the ledger; the bot may be running."""
    path = directory / FILE_NAME
    try:
        refuse_lost_ledger(path)
    except StorageError as error:
        yield Finding("database", False, str(path), str(error))
        return
    if not path.exists():
        yield Finding("database", True, "none yet: the bot creates it")
        return
    restore = "stop the bot and put the latest backup (thumbtune backup) in its place"
    try:
        faults = ledger_faults(path)
        lost = picture_faults(path, PictureStore(directory / "pictures")) if not faults else []
    except StorageError as error:
        yield Finding("database", False, str(path), str(error))
        return
    yield Finding("database", not faults, "; ".join(faults) or f"{path} is intact", restore if faults else "")
    if not faults and (fault := live_model_fault(path)):
        cure = "restore its folder from a backup (--models), or switch to another model with thumbtune promote"
        yield Finding("live model", False, fault, cure)
    if not faults:
        yield from _page_settings(settings)
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        yield Finding("pictures", False, f"{lost[0]}{more}", "copy the pictures from the latest backup into the folder")


def _page_settings(settings: Settings) -> Iterator[Finding]:
    """Report the settings that the operator changed on the Settings page, and those that cannot be applied."""
    live = LiveSettings(settings, recorded_changes(settings.storage.dir / FILE_NAME))
    for key in live.changes:
        value = json.dumps(json_value(live.now, key), ensure_ascii=False)
        yield Finding("Settings page", True, f"{key} = {value}, instead of the value in the file or the environment")
    for key, reason in live.unfit.items():
        yield Finding("Settings page", True, f"{key} is not applied: {reason}", "undo it on the page")


def _factual_questions(settings: Settings) -> Iterator[Finding]:
    folder = settings.training.regression
    cure = "correct training.regression, or remove it"
    try:
        found = f"{len(read_set(folder))} in {folder}" if folder else ""
        cure = ""  # the next error names the next step
        check_decidable(folder, settings.training.max_loss_points)
    except TrainingError as error:
        yield Finding("factual questions", False, str(error), cure)
    else:
        if found:
            yield Finding("factual questions", True, found)


def _telegram(settings: Settings) -> Iterator[Finding]:
    if not settings.telegram.admins:
        cure = (
            "run thumbtune init, or send /start to your bot for your user ID and set THUMBTUNE_TELEGRAM__ADMINS='[…]'"
        )
        yield Finding("admins", True, "telegram.admins is empty: nobody can use /retrain or receive alerts", cure)
    if not settings.telegram.token.get_secret_value():
        found = "not set" if DEFAULT_PATH.exists() or settings.origins else f"not set, and no {DEFAULT_PATH} here"
        yield Finding("Telegram token", False, found, f"{TOKEN_CURE} (not needed for make demo)")
        return
    from aiogram.exceptions import AiogramError, TelegramAPIError, TelegramNetworkError  # they take seconds to import

    from bot.cli.telegram_account import UNREACHABLE_CURE, read_account

    api_base = settings.telegram.api_base
    try:
        bot = asyncio.run(read_account(api_base, settings.telegram.token.get_secret_value()))
    except AiogramError as error:
        problem = error.message if isinstance(error, TelegramAPIError) else str(error)
        cure = "check telegram.token and telegram.api_base"
        if isinstance(error, TelegramNetworkError):
            problem, cure = f"{api_base} does not answer ({problem})", UNREACHABLE_CURE
        yield Finding("Telegram", False, problem, cure)
        return
    yield Finding("Telegram", True, f"@{bot.username}")
    if settings.chat.guests and not bot.supports_guest_queries:
        cure = f"turn on guest mode: {GUEST_MODE}"
        yield Finding("guest mode", False, "chat.guests is on, but Telegram does not pass on guest queries", cure)
    if settings.chat.picture_threads and not bot.has_topics_enabled:
        cure = "turn on topics in private chats in the bot's settings in @BotFather"
        yield Finding("topics", False, "chat.picture_threads is on, but the bot has no topics in private chats", cure)
