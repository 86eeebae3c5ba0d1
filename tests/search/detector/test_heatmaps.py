"""What heat maps promise whoever looks at them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from anomtune.search.detector.heatmaps import outline, overlay, png_bytes, sheet

GREY = np.full((16, 16, 3), 90, np.uint8)


def lightness(picture: np.ndarray) -> np.ndarray:
    return picture @ np.array([0.2126, 0.7152, 0.0722])


def test_where_nothing_is_anomalous_the_image_is_seen_as_it_is():
    usual = np.linspace(-5, 1, 256, dtype=np.float32).reshape(16, 16)
    assert np.array_equal(overlay(GREY, usual, 1.0, 2.0), GREY)


def test_the_more_anomalous_the_lighter():
    black = np.zeros((1, 256, 3), np.uint8)
    picture = overlay(black, np.linspace(0, 1, 256, dtype=np.float32)[None], 0, 1)
    steps = np.diff(lightness(picture)[0])
    assert steps.min() > -0.5  # rounding to 8 bits
    assert lightness(picture)[0, -1] > 150


def test_the_image_shows_through_the_strongest_colour():
    stripes = GREY.copy()
    stripes[:, ::2] = 200
    picture = overlay(stripes, np.full((16, 16), 7.0, np.float32), 0, 1)
    assert (np.abs(picture[:, ::2].astype(int) - picture[:, 1::2]) > 15).all()


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_any_range_gives_a_picture(low, high):
    maps = np.array([[low, high], [0.0, 1e30]], np.float32)
    picture = overlay(GREY[:2, :2], maps, low, high)
    assert picture.shape == (2, 2, 3)
    assert picture.dtype == np.uint8


def test_an_outline_surrounds_the_mask_and_hides_nothing_of_it():
    mask = np.zeros((16, 16), bool)
    mask[5:9, 6:10] = True
    picture = outline(GREY, mask)
    changed = (picture != GREY).any(axis=2)
    assert not changed[mask].any()
    assert changed.sum() == 16
    assert changed[4, 6:10].all()
    assert (GREY == 90).all(), "the image was written to"
    assert np.array_equal(outline(GREY, np.zeros((16, 16))), GREY)
    assert np.array_equal(outline(GREY, np.ones((16, 16))), GREY)


def test_a_sheet_has_its_pictures_in_place_and_white_between_them():
    one, two, three = (np.full((4, 6, 3), value, np.uint8) for value in (10, 20, 30))
    picture = sheet([[one, two], [three]])
    assert np.array_equal(picture[:4, :6], one)
    assert np.array_equal(picture[:4, -6:], two)
    assert np.array_equal(picture[-4:, :6], three)
    assert (picture[-4:, 6:] == 255).all()
    assert (picture[4:-4] == 255).all()


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 7, 3)])
def test_a_png_holds_every_pixel(shape):
    picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(picture)))), picture)
