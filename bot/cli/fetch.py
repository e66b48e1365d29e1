"""`thumbtune fetch`: download a checkpoint into a folder that appears only when complete and verified.

Files are downloaded into `DIR.incomplete`, which is renamed to `DIR` once every file is present and
verified. The folder also records the commit to which the branch or tag pointed when the download began,
and an interrupted download continues with that commit.
"""

from __future__ import annotations

import asyncio
import json
import shlex
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from bot.cli.terminal import notes, results
from inference.hub.download import download
from inference.hub.listing import ORIGIN, Hub, HubError, Listing, list_files
from storage.model_manifest import MANIFEST, verify
from storage.model_store import ModelStore

REPO = "OpenGVLab/InternVL2-2B"
_INCOMPLETE = ".incomplete"


async def fetch(directory: Path, source: Hub, repo: str, revision: str) -> None:
    """Download a checkpoint with `download_checkpoint`, and print instructions for using it."""
    directory = directory.absolute()
    await download_checkpoint(directory, source, repo, revision)
    results.print(
        f'Now set model = "{directory}" under [inference] in config.toml, or\n'
        f"  export THUMBTUNE_INFERENCE__MODEL={shlex.quote(str(directory))}\n"
        "and run `thumbtune doctor`, or try it: "
        f"thumbtune demo --engine lmdeploy --model {shlex.quote(str(directory))}"
    )


async def download_checkpoint(directory: Path, source: Hub, repo: str, revision: str) -> None:
    """Download a checkpoint to `directory`, continuing an interrupted download if there is one.

    A checkpoint that is already complete is only verified.

    Raises HubError or StorageError, with a message that says what to do.
    """
    if (directory / MANIFEST).is_file():
        await asyncio.to_thread(verify, directory)
        results.print(
            f"{directory} is complete{_origin_text(directory)}: every file matches its manifest. "
            "Nothing was downloaded; for another repository or revision, choose another folder."
        )
        return
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise HubError(f"{directory} contains something else: choose a folder that does not exist yet.")
    store = ModelStore(directory.parent)
    store.path(directory.name)  # before the download, refuse a name that cannot be published
    incomplete = directory.with_name(directory.name + _INCOMPLETE)
    request = {"source": source.value, "repo": repo, "revision": revision}
    origin = _read_origin(incomplete)
    commit = origin["commit"] if {**origin, **request} == origin else ""
    listing = await list_files(source, repo, commit or revision)
    results.print(f"{repo} at {listing.revision}: {len(listing.files)} files, {listing.size / 1e9:.2f} GB")
    try:
        incomplete.mkdir(parents=True, exist_ok=True)
        (incomplete / ORIGIN).write_text(json.dumps({**request, "commit": listing.revision}) + "\n", encoding="utf-8")
    except OSError as error:
        raise HubError(
            f"{incomplete} cannot be written ({error}): choose a folder that this user may write to."
        ) from error
    await _download(listing, incomplete)
    if directory.exists():
        directory.rmdir()
    await asyncio.to_thread(_delete_unlisted, listing, incomplete)
    await asyncio.to_thread(store.publish, incomplete, directory.name)
    results.print(f"{directory} is complete{_origin_text(directory)}; every file was verified.")


async def _download(listing: Listing, folder: Path) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=notes) as bar:
        task = bar.add_task("", total=listing.size)
        await download(listing, folder, lambda path, done: bar.update(task, description=path, completed=done))


def _delete_unlisted(listing: Listing, folder: Path) -> None:
    """Delete the files that an earlier download of another revision left in `folder`."""
    listed = {ORIGIN, *(each.path for each in listing.files)}
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in listed:
            path.unlink()


def _read_origin(folder: Path) -> dict[str, str]:
    """Return the recorded origin of a downloaded folder, or an empty dict if there is no record."""
    try:
        origin = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    names = ("source", "repo", "revision", "commit")
    return {name: str(origin[name]) for name in names} if isinstance(origin, dict) and origin.keys() >= {*names} else {}


def _origin_text(directory: Path) -> str:
    origin = _read_origin(directory)
    return f" ({origin['repo']} at {origin['commit']})" if origin else ""
