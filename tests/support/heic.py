"""HEIC files as cameras write them: a picture in sensor orientation, with boxes that rotate and mirror it.

`golden/sideways.heic` is such a file without those boxes; this module adds them. The boxes `irot` and
`imir` are defined in ISO/IEC 23008-12 (HEIF), 6.5.10 and 6.5.12, and the boxes that contain them in
ISO/IEC 14496-12.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

SIDEWAYS: Final = (Path(__file__).parents[1] / "golden" / "sideways.heic").read_bytes()
"""64 x 48 pixels, white with a black block in the upper left corner, stored rotated to the left as 48 x 64, with EXIF
orientation 6."""


def turned(data: bytes, quarters: int = 0, mirror: int | None = None) -> bytes:
    """Return `data` with boxes that turn the picture left by `quarters` quarter turns and mirror it.

    A `mirror` of 0 swaps top and bottom, 1 left and right. The file must have one primary item whose
    properties are listed last, as in `SIDEWAYS`.
    """
    boxes = [_box(b"irot", bytes([quarters]))] if quarters else []
    boxes += [] if mirror is None else [_box(b"imir", bytes([mirror]))]
    for box in boxes:
        data = _with_property(data, box)
    return data


def _with_property(data: bytes, box: bytes) -> bytes:
    """Return `data` with `box` appended to `ipco` and an essential reference to the box appended to `ipma`."""
    properties, associations, iloc = data.index(b"ipco") - 4, data.index(b"ipma") - 4, data.index(b"iloc") - 4
    number = _number_of_boxes(data[properties + 8 : properties + _size(data, properties)]) + 1
    end = associations + _size(data, associations)
    last = _last_entry(data, associations)
    made = bytearray(data[:associations] + box + data[associations:end] + bytes([0x80 | number]) + data[end:])
    associations += len(box)
    made[last + len(box)] += 1
    grown = len(box) + 1
    for position, more in (
        (data.index(b"meta") - 4, grown),
        (data.index(b"iprp") - 4, grown),
        (properties, len(box)),
        (associations, 1),
    ):
        struct.pack_into(">I", made, position, _size(made, position) + more)
    _shift(made, iloc, grown)
    return bytes(made)


def _shift(made: bytearray, iloc: int, by: int) -> None:
    """Add `by` to the file offsets (construction method 0) of the items' data, which follows the boxes.

    The box `iloc` must have version 1, 4-byte base offsets, offsets and lengths, and one extent per item.
    """
    count = struct.unpack_from(">H", made, iloc + 14)[0]
    for entry in range(iloc + 16, iloc + 16 + 20 * count, 20):
        if struct.unpack_from(">H", made, entry + 2)[0] == 0:
            struct.pack_into(">I", made, entry + 6, _size(made, entry + 6) + by)


def _last_entry(data: bytes, ipma: int) -> int:
    """Return the position of the last item's property count.

    The box `ipma` must have 2-byte item IDs and 1-byte properties.
    """
    position = ipma + 16
    for _ in range(struct.unpack_from(">I", data, ipma + 12)[0] - 1):
        position += 3 + data[position + 2]
    return position + 2


def _number_of_boxes(data: bytes) -> int:
    number = position = 0
    while position < len(data):
        position, number = position + _size(data, position), number + 1
    return number


def _size(data: bytes | bytearray, position: int) -> int:
    return int(struct.unpack_from(">I", data, position)[0])


def _box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body
