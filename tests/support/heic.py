"""HEIC files as cameras write them: a picture as the sensor lay, and boxes that say how to turn and mirror it.

`golden/sideways.heic` is such a file without these boxes; they are put in here. ISO/IEC 23008-12 (HEIF), 6.5.10 and
6.5.12, has `irot` and `imir`, ISO/IEC 14496-12 the boxes around them.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

SIDEWAYS: Final = (Path(__file__).parents[1] / "golden" / "sideways.heic").read_bytes()
"""64 x 48 pixels, white with a black block in the upper left corner, which lie turned to the left, as 48 x 64; its EXIF
says so (orientation 6)."""


def turned(data: bytes, quarters: int = 0, mirror: int | None = None) -> bytes:
    """The file with `quarters` turns to the left and then, perhaps, `mirror`: 0 swaps top and bottom, 1 left and right.

    Expects a file of one primary item whose properties are listed last, as in `SIDEWAYS`.
    """
    boxes = [_box(b"irot", bytes([quarters]))] if quarters else []
    boxes += [] if mirror is None else [_box(b"imir", bytes([mirror]))]
    for box in boxes:
        data = _with_property(data, box)
    return data


def _with_property(data: bytes, box: bytes) -> bytes:
    """Append a box to `ipco` and name it, as essential, at the end of `ipma`."""
    properties, associations, iloc = data.index(b"ipco") - 4, data.index(b"ipma") - 4, data.index(b"iloc") - 4
    number = _number_of_boxes(data[properties + 8 : properties + _size(data, properties)]) + 1
    end = associations + _size(data, associations)
    last = _last_entry(data, associations)
    made = bytearray(data[:associations] + box + data[associations:end] + bytes([0x80 | number]) + data[end:])
    associations += len(box)
    made[last + len(box)] += 1
    grown = len(box) + 1
    for place, more in (
        (data.index(b"meta") - 4, grown),
        (data.index(b"iprp") - 4, grown),
        (properties, len(box)),
        (associations, 1),
    ):
        struct.pack_into(">I", made, place, _size(made, place) + more)
    _shift(made, iloc, grown)
    return bytes(made)


def _shift(made: bytearray, iloc: int, by: int) -> None:
    """Let what lies in the file itself (construction method 0), behind all this, begin so much later.

    `iloc` is of version 1, with base offsets, offsets and lengths of 4 bytes, and one extent an item.
    """
    count = struct.unpack_from(">H", made, iloc + 14)[0]
    for entry in range(iloc + 16, iloc + 16 + 20 * count, 20):
        if struct.unpack_from(">H", made, entry + 2)[0] == 0:
            struct.pack_into(">I", made, entry + 6, _size(made, entry + 6) + by)


def _last_entry(data: bytes, ipma: int) -> int:
    """Where the number of properties of the last item stands; `ipma` has ids of 2 bytes and properties of 1."""
    place = ipma + 16
    for _ in range(struct.unpack_from(">I", data, ipma + 12)[0] - 1):
        place += 3 + data[place + 2]
    return place + 2


def _number_of_boxes(data: bytes) -> int:
    number = place = 0
    while place < len(data):
        place, number = place + _size(data, place), number + 1
    return number


def _size(data: bytes | bytearray, place: int) -> int:
    return int(struct.unpack_from(">I", data, place)[0])


def _box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body
