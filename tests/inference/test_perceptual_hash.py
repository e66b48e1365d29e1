"""The perceptual hash of pictures; the expected hashes are those of ImageHash 4.3.2 (`imagehash.phash`)."""

from __future__ import annotations

import pytest
from PIL import Image

from inference.images.opening import open_picture
from inference.images.perceptual_hash import perceptual_hash
from inference.internvl2.tiny.samples import sample_pictures

SAMPLES = {
    "three-red-stars": "b9a3b228c794cccb",
    "two-blue-circles": "db9c854b1a14e5e9",
    "one-yellow-heart": "8b83302ccec698ff",
    "five-green-triangles": "de269d8cf44b3303",
}


@pytest.mark.parametrize("name", SAMPLES)
def test_hashes_are_those_of_imagehash(name: str) -> None:
    """A picture has the hash that ImageHash computes, so that it compares with stored ones."""
    assert perceptual_hash(open_picture(sample_pictures()[name])) == SAMPLES[name]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (64, 48), "teal"), "8000000000000000"),
        (Image.new("L", (9, 9), 0), "0000000000000000"),
        (Image.linear_gradient("L"), "8000800080008000"),
        (Image.radial_gradient("L"), "ee989837e69ac819"),
    ],
    ids=["one colour", "black", "gradient", "circle"],
)
def test_rounding_errors_do_not_count(image: Image.Image, expected: str) -> None:
    """A picture in which many frequencies are missing has the same hash as well."""
    assert perceptual_hash(image) == expected
