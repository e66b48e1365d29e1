"""The protocol between the decoder's parent and child processes: messages on the pipe and their values.

A request consists of `REQUEST` (the file's length and the limit in megapixels) and the file. A response
consists of `RESPONSE` (the lengths of the JSON and the picture), the JSON, and the encoded clean
picture. This module uses only the standard library.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

LONGEST_SIDE: Final = 4096
"""The maximum width and height in pixels; larger pictures are scaled down. The model sees at most 12 tiles of 448
pixels."""

READY: Final = b"\x06"
REQUEST: Final = struct.Struct("<Id")
RESPONSE: Final = struct.Struct("<II")


class Refusal(StrEnum):
    """A reason for refusing a file."""

    NOT_A_PICTURE = "not a picture"
    BROKEN = "damaged or cut off"
    TOO_MANY_PIXELS = "too many pixels"
    TOO_COSTLY = "more time or memory than a picture may take"


class DecodeError(Exception):
    """A file was refused.

    Attributes:
        reason: The reason for the refusal.
        killed: Whether the child process ended while decoding the file.
    """

    def __init__(self, reason: Refusal, *, killed: bool = False) -> None:
        super().__init__(str(reason))
        self.reason = reason
        self.killed = killed


@dataclass(frozen=True, slots=True)
class CleanPicture:
    """A re-encoded picture: upright, opaque, in sRGB, without metadata, as a baseline JPEG or a PNG.

    The values of `width` and `height` are in pixels; `phash` is the picture's 64-bit perceptual hash in
    hexadecimal.
    """

    data: bytes
    media_type: str
    width: int
    height: int
    phash: str
