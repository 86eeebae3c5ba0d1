"""Ranges that depend on the sweep: sizes of images."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from anomtune.models.ranges import SizeRange
from anomtune.registry import METHODS

ONE_PASS = {"padim", "patchcore"}


@pytest.mark.parametrize(
    ("image_size", "step", "sides"),
    [
        (256, 32, [192, 256, 384, 512]),
        (96, 32, [64, 96, 160, 192]),
        (64, 32, [64, 96, 128]),
        (32, 32, [32, 64]),
        (256, 64, [192, 256, 384, 512]),
        (224, 64, [192, 256, 320, 448]),
    ],
)
def test_sizes_are_multiples_each_once(image_size: int, step: int, sides: list[int]) -> None:
    assert list(SizeRange(factors=(1, 1.5, 2, 0.75)).sides(image_size, step)) == sides


def test_a_range_of_sizes_says_what_it_is() -> None:
    assert str(SizeRange(factors=(0.75, 1, 1.5))) == "0.75, 1 or 1.5 of image_size"
    assert str(SizeRange(factors=(1,))) == "1 of image_size"


@pytest.mark.parametrize("factors", [(), (0.5, 2), (1, 0), (1, -1)])
def test_a_range_of_sizes_has_that_of_trial_0(factors: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="factors must be positive, and 1"):
        SizeRange(factors=factors)


def test_every_method_searches_its_input_size() -> None:
    for method in set(METHODS.declared()) - {"toy"}:
        kind = METHODS.get(method).Hyperparameters
        item = kind.search_space()["resolution"]
        if method in {"deep_svdd", "f_anogan", "spr", "ssae"}:
            assert item.choices, "their papers' sizes are their own"
            continue
        trained = (0.75, 1, 1.5)
        assert item == SizeRange(factors=(*trained, 2) if method in ONE_PASS else trained)
        assert kind().resolution is None
        assert (kind().input_size(96), kind(resolution=64).input_size(96)) == (96, 64)
