"""The crop of a fundus photo to the eye."""

from __future__ import annotations

import numpy as np
from PIL import Image

from anomtune.datasets.io.fundus import _resize, crop_fundus


def test_crop_takes_the_largest_region_around_its_centroid() -> None:
    photo = np.zeros((100, 160, 3), np.uint8)
    photo[0:10, 0:10] = 255  # A label in the corner is smaller than the eye.
    photo[20:60, 100:140] = (10, 10, 11)  # 31 in all: bright enough.
    square = crop_fundus(photo)
    assert square.shape == (512, 512, 3)
    # 40 pixels and 5 on each side: 50 pixels become 512. Truncation shifts the centre, 39.5, by a
    # half, so 6 pixels lie before the eye and 4 behind it.
    for axis in (0, 1):
        bright = np.flatnonzero(square.any(axis=(axis, 2)))
        assert abs(bright[0] - 6 * 10.24) < 6
        assert abs(bright[-1] + 1 - 46 * 10.24) < 6
    assert square.max() == 11
    photo[20:60, 100:140] = 10  # 30 in all: dark.
    assert crop_fundus(photo).max() == 255


def test_crop_beyond_the_photo_is_black() -> None:
    photo = np.full((20, 60, 3), 200, np.uint8)
    square = crop_fundus(photo)
    assert square.shape == (512, 512, 3)
    # A square of 70: the 20 rows of the photo lie in its middle.
    assert not square[:170].any()
    assert not square[340:].any()
    assert square[256, 256].tolist() == [200, 200, 200]


def test_crop_resizes_by_interpolation_of_four() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    small = Image.fromarray(image)
    # Pillow does not smooth when it enlarges: there the two agree.
    expected = np.asarray(small.resize((512, 512), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(_resize(image, 512).astype(int) - expected).max() <= 1
