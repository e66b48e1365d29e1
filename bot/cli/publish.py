"""`thumbtune publish`: upload a trained model, or its adapter, to the Hugging Face hub with its model card.

Only files of known kinds are uploaded. A folder with any other file is refused, so that nothing leaves the
machine by accident.
"""

from __future__ import annotations

import asyncio
import filecmp
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.markup import escape

from bot.cli.terminal import CommandRefused, confirm, notes, results
from bot.config import Settings
from storage.learning_records import Model
from storage.ledger import Ledger
from storage.model_manifest import CARD, read_manifest, verify
from training.gate.report import Report
from training.job import Job
from training.model_card import base_repository, model_card
from training.number_format import size
from training.run_folder import ADAPTER, FINETUNE_JOB, REPORT, kept_file

MODEL_FILES: Final = frozenset({".safetensors", ".json", ".py", ".model", ".txt", ".jinja", ".md"})
"""The suffixes of the files of a checkpoint."""

NAMED_FILES: Final = frozenset({"LICENSE", "NOTICE", ".gitattributes"})
ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_FILES: Final = frozenset({ADAPTER_CONFIG, "adapter_model.safetensors", "whole.safetensors", CARD})
"""The names of the files of an adapter, in its folder and in `vision/`."""

Files = dict[str, Path | bytes]
"""The files to upload, keyed by their paths in the repository; each value is a local file or the content."""


@dataclass(frozen=True, slots=True)
class Publication:
    """A request to publish a model.

    Attributes:
        model: The ID of the model.
        repo: The repository on the hub, `OWNER/NAME`.
        adapter: Whether to upload the adapter only.
        public: Whether everyone may see the repository.
    """

    model: str
    repo: str
    adapter: bool = False
    public: bool = False


async def publish(ledger: Ledger, settings: Settings, request: Publication, yes: bool) -> None:
    """Upload a model that a run has trained, after a confirmation that lists the files.

    Raises:
        CommandRefused: The model cannot be published, the hub refuses it, or the upload is not confirmed.
        StorageError: The model is unknown or damaged.
    """
    model = await ledger.models.get(request.model)
    if model.run is None:
        raise CommandRefused(
            f"{model.id} was not trained here: choose a model that a run created (`thumbtune models`)."
        )
    run = await ledger.runs.get(model.run)
    if request.adapter:
        files = await asyncio.to_thread(adapter_files, model, Path(run.directory))
    else:
        files = await asyncio.to_thread(merged_files, model, Path(run.directory), settings.inference.checkpoint())
    total = sum(len(each) if isinstance(each, bytes) else each.stat().st_size for each in files.values())
    kind = "public" if request.public else "private"
    notes.print(f"{len(files)} files, {size(total)}: {escape(', '.join(files))}", soft_wrap=True)
    notes.print("A model can be made to repeat its training data. No picture and no vote is uploaded.")
    confirm(f"Upload {model.id} to {request.repo}, a {kind} repository?", yes=yes)
    results.print(await asyncio.to_thread(_upload, files, request))


def merged_files(model: Model, run: Path, base: Path) -> Files:
    """Return the files of a merged model to upload.

    Files of other kinds that the base model has as well, such as example pictures, are left out.

    Raises:
        CommandRefused: The model has no files or no card, or the folder contains other files.
        Damaged: The folder has changed since it was published.
    """
    if not model.directory:
        raise CommandRefused(
            f"Only the adapter of {model.id} is kept: publish it with --adapter, or promote the model first."
        )
    if kept_file(str(run), CARD) is None:
        raise CommandRefused(
            f"{model.id} has no model card, like every model from an earlier version: publish it with --adapter."
        )
    directory = Path(model.directory)
    verify(directory, model.manifest_hash)
    files: Files = {}
    strange = []
    for name in sorted(read_manifest(directory).files):
        path = directory / name
        if path.suffix in MODEL_FILES or path.name in NAMED_FILES:
            files[name] = path
        elif not ((base / name).is_file() and filecmp.cmp(path, base / name, shallow=False)):
            strange.append(name)
    _refuse(strange, directory)
    return files


def adapter_files(model: Model, run: Path) -> Files:
    """Return the files of a run's adapter to upload, with a card and without paths of this machine.

    Raises:
        CommandRefused: The adapter or the run's files are missing, or the folder contains other files.
    """
    folder = run / ADAPTER
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    if not found:
        raise CommandRefused(f"The adapter of {model.id} is missing: choose another model.")
    _refuse([name for name in found if name.removeprefix("vision/") not in ADAPTER_FILES], folder)
    try:
        job, report = Job.read(run / FINETUNE_JOB), Report.read(run / REPORT)
    except (OSError, ValueError, TypeError) as error:
        raise CommandRefused(f"{run} cannot be read ({error}), so no card can be written for {model.id}.") from error
    files: Files = {}
    for name, path in found.items():
        if path.name == ADAPTER_CONFIG:
            config = json.loads(path.read_bytes())
            config["base_model_name_or_path"] = base_repository(Path(job.base))
            files[name] = f"{json.dumps(config, indent=2, sort_keys=True)}\n".encode()
        elif path.name != CARD:
            files[name] = path
    files[CARD] = model_card(model.id, job, report, adapter=True).encode()
    return files


def _refuse(strange: list[str], folder: Path) -> None:
    if strange:
        raise CommandRefused(
            f"{folder} contains more than a model: {', '.join(strange[:5])}. Nothing was uploaded; move them elsewhere."
        )


def _upload(files: Files, request: Publication) -> str:
    """Create the repository if needed, upload the files in one commit, and return the commit's address."""
    # Otherwise every request names the frameworks installed here. huggingface_hub reads the variable when imported.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import requests
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT", ENDPOINT).rstrip("/"))
    try:
        try:
            if api.model_info(request.repo).private is False and not request.public:
                raise CommandRefused(f"{request.repo} is public: use --public if everyone may see the model.")
        except RepositoryNotFoundError:
            api.create_repo(request.repo, private=not request.public)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        return str(api.create_commit(request.repo, operations, commit_message=f"Upload {request.model}").commit_url)
    except HFValidationError as error:
        raise CommandRefused(f"{request.repo!r} is not a valid repository name: use OWNER/NAME.") from error
    except (requests.RequestException, OSError, RuntimeError, ValueError) as error:
        raise CommandRefused(
            f"The hub did not accept the model ({error}): check HF_TOKEN, which needs write permission, and try again."
        ) from error
