"""Re-encode the pictures of sources, either during an import or in sources imported by earlier versions.

A re-encoded picture is called clean. In the source's picture folder it is named `ab/abcdef…`, after the
sha256 of its bytes.
"""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from inference.images.decoder import PictureDecoder
from inference.images.decoder_protocol import DecodeError
from inference.images.opening import MAX_PIXELS
from inference.messages import PictureError
from storage.atomic_files import PART, write_text
from training.data.imported_sources import ABOUT, PICTURES, ROWS, SourceInfo, source_folders
from training.data.llava import image_entry, image_files
from training.data.row_parser import read_rows

QUARANTINED: Final = "quarantined.jsonl"
"""The rows of an earlier version's import whose pictures cannot be re-encoded. They are never read."""

_NICENESS: Final = 19


def write_clean(home: Path, decoder: PictureDecoder, data: bytes) -> tuple[int, int, str]:
    """Write a re-encoded copy of `data` into the folder `home`, and return the copy's width, height and SHA-256.

    Raises:
        PictureError: The picture cannot be re-encoded.
        OSError: The file cannot be written.
    """
    try:
        clean = decoder.clean(data, MAX_PIXELS / 1e6)
    except DecodeError as refusal:
        raise PictureError(f"it cannot be imported: {refusal}") from refusal
    name = sha256(clean.data).hexdigest()
    target = home / name[:2] / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{name}.{uuid4().hex}{PART}")  # another process may clean the same picture
        part.write_bytes(clean.data)
        part.replace(target)
    return clean.width, clean.height, name


def clean_sources(directory: Path) -> None:
    """Re-encode the pictures of sources under `directory` if an earlier version imported them unchanged.

    Rows whose pictures cannot be re-encoded are moved to `QUARANTINED`. After a crash, a second call
    finishes the work.

    Raises:
        TrainingError: The rows of a source cannot be read.
        OSError: A file cannot be read or written.
    """
    for folder in source_folders(directory):
        try:
            about = SourceInfo.read(folder / ABOUT)
        except (OSError, ValueError, TypeError):
            continue  # `imported` reports a folder that is not a source
        if not about.clean:
            with PictureDecoder(_NICENESS) as decoder:
                _clean(folder, about, decoder)


def _clean(folder: Path, about: SourceInfo, decoder: PictureDecoder) -> None:
    home = folder / PICTURES
    found: dict[str, tuple[int, int, str] | None] = {}
    good: list[str] = []
    bad: list[str] = []
    for _, row in read_rows(folder / ROWS):
        (good if _clean_row(row, home, decoder, found) else bad).append(json.dumps(row, ensure_ascii=False) + "\n")
    if bad:
        write_text(folder / QUARANTINED, bad)
    write_text(folder / ROWS, good)
    kept = {each[2] for each in found.values() if each}
    replace(about, rows=len(good), pictures=len(kept), clean=True).write(folder / ABOUT)
    unread = {name.rpartition("/")[2] for name, each in found.items() if each is None}
    for file in home.glob("*/*"):
        if file.name not in kept | unread:
            file.unlink(missing_ok=True)


def _clean_row(row: Any, home: Path, decoder: PictureDecoder, found: dict[str, tuple[int, int, str] | None]) -> bool:
    """Replace a row's pictures with re-encoded ones if all can be re-encoded, and return whether they can."""
    names = image_files(row) if isinstance(row, dict) else []
    for name in names:
        if name not in found:
            try:
                found[name] = write_clean(home, decoder, (home / name).read_bytes())
            except (PictureError, FileNotFoundError):
                found[name] = None
    clean = [info for name in names if (info := found[name]) is not None]
    if len(clean) < len(names):
        return False
    if names:
        row["image"] = image_entry([f"{digest[:2]}/{digest}" for _, _, digest in clean])
        row["image_wh"] = [[width, height] for width, height, _ in clean]
    return True
