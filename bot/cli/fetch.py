"""`thumbtune fetch`: a checkpoint from a hub into a folder, with a progress bar; whole, checked, or not at all.

Knows the folder's life: it grows beside its name and takes it once every file is there and was checked. The commit that
a branch or tag stood for at the first run is noted in the folder, and a run that goes on keeps to it. Which files, and
how they come, is inference's.
"""

from __future__ import annotations

import asyncio
import json
import shlex
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from bot.cli.terminal import notes
from inference.hub.download import bring
from inference.hub.listing import HubError, Listing, Source, listing
from storage.model_store import MANIFEST, ModelStore, verify

REPO = "OpenGVLab/InternVL2-2B"
_COMING = ".incomplete"
_NOTE = "fetched-from.json"


async def fetch(directory: Path, source: Source, repo: str, revision: str, console: Console) -> None:
    """Make `directory` the checkpoint, or continue to; a complete one is only checked against its own manifest.

    Raises HubError or StorageError, both with the next step.
    """
    directory = directory.absolute()
    if (directory / MANIFEST).is_file():
        await asyncio.to_thread(verify, directory)
        console.print(
            f"{directory} is here already{_noted(directory)}: every file is as its manifest has it. "
            "Nothing was fetched and no hub asked; for another repository or revision name another folder.",
            highlight=False,
            soft_wrap=True,
        )
        _say_what_next(directory, console)
        return
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise HubError(f"{directory} holds something else: name a folder that does not exist yet.")
    store = ModelStore(directory.parent)
    store.path(directory.name)  # refuses a name that could not be published, before gigabytes have come
    coming = directory.with_name(directory.name + _COMING)
    asked = {"source": source.value, "repo": repo, "revision": revision}
    noted = _note_in(coming)
    known = noted["commit"] if {**noted, **asked} == noted else ""
    found = await listing(source, repo, known or revision)
    console.print(
        f"{repo} at {found.revision}: {len(found.files)} files, {found.size / 1e9:.2f} GB",
        highlight=False,
        soft_wrap=True,
    )
    try:
        coming.mkdir(parents=True, exist_ok=True)
        (coming / _NOTE).write_text(json.dumps({**asked, "commit": found.revision}) + "\n", encoding="utf-8")
    except OSError as error:
        raise HubError(f"{coming} cannot be written ({error}): take a folder that this user may write to.") from error
    await _bring(found, coming)
    if directory.exists():
        directory.rmdir()
    await asyncio.to_thread(_drop_strangers, found, coming)
    await asyncio.to_thread(store.publish, coming, directory.name)
    console.print(f"{directory} is complete{_noted(directory)}, every file checked.", highlight=False, soft_wrap=True)
    _say_what_next(directory, console)


async def _bring(found: Listing, coming: Path) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=notes) as bar:
        task = bar.add_task("", total=found.size)
        await bring(found, coming, lambda path, done: bar.update(task, description=path, completed=done))


def _drop_strangers(found: Listing, coming: Path) -> None:
    """Delete what an earlier run of another revision left."""
    wanted = {_NOTE, *(each.path for each in found.files)}
    for path in coming.rglob("*"):
        if path.is_file() and path.relative_to(coming).as_posix() not in wanted:
            path.unlink()


def _note_in(folder: Path) -> dict[str, str]:
    """What a fetched folder was fetched from; empty where it does not say so."""
    try:
        note = json.loads((folder / _NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    names = ("source", "repo", "revision", "commit")
    return {name: str(note[name]) for name in names} if isinstance(note, dict) and note.keys() >= {*names} else {}


def _noted(directory: Path) -> str:
    note = _note_in(directory)
    return f" ({note['repo']} at {note['commit']})" if note else ""


def _say_what_next(directory: Path, console: Console) -> None:
    console.print(
        f'Now set model = "{directory}" under [inference] in config.toml, or\n'
        f"  export THUMBTUNE_INFERENCE__MODEL={shlex.quote(str(directory))}\n"
        "and see `thumbtune doctor`, or try it: "
        f"thumbtune demo --engine lmdeploy --model {shlex.quote(str(directory))}",
        highlight=False,
        soft_wrap=True,
    )
