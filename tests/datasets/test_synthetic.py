"""The built-in dataset and the artificial damage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from anomtune.datasets import synthetic
from anomtune.datasets.drawing.scenes import PRODUCTS
from anomtune.datasets.folder import Folder
from anomtune.datasets.splits.damage import MECHANISMS, check_without, damage, damaged_copies
from anomtune.datasets.synthetic import Synthetic, _draw
from anomtune.errors import DataError

DATASET = Synthetic()


def test_five_categories_of_160_images() -> None:
    assert DATASET.categories() == ("board", "grain", "stone", "washer", "weave")
    for category in DATASET.categories():
        samples, problems = DATASET.scan(category)
        assert problems == ()
        assert [s.key for s in samples] == sorted({s.key for s in samples})
        assert sum(s.part == "train" for s in samples) == 40
        assert sum(s.part == "test" and not s.anomalous for s in samples) == 60
        assert len(PRODUCTS[category].defects) == 3


@pytest.mark.slow
@pytest.mark.parametrize("category", DATASET.categories())
def test_masks_are_sane_and_images_differ(category: str) -> None:
    seen = set()
    for sample in DATASET.scan(category)[0]:
        image = DATASET.read_image(category, sample.key)
        assert image.shape == (128, 128, 3)
        assert 3 < image.std() < 110
        seen.add(image.tobytes())
        if sample.mask:
            share = DATASET.read_mask(category, sample.mask).mean()
            assert 10 / 128**2 <= share < 0.1
    assert len(seen) == 160


def test_every_image_can_be_drawn_alone_and_again() -> None:
    for category in DATASET.categories():
        key = "test/good/003.png"
        first = DATASET.read_image(category, key)
        _draw.cache_clear()
        assert (DATASET.read_image(category, key) == first).all()


@pytest.mark.parametrize(
    ("category", "mean"),
    [
        ("board", 107.002),
        ("grain", 134.207),
        ("stone", 137.183),
        ("washer", 76.823),
        ("weave", 126.532),
    ],
)
def test_drawings_are_pinned(category: str, mean: float) -> None:
    # Cached categories are found by VERSION: raise it whenever this changes.
    image = DATASET.read_image(category, "train/good/000.png")
    assert image.mean() == pytest.approx(mean, abs=0.01)


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes the dataset a short one, of five images for each kind of them."""

    def forget() -> None:
        synthetic._samples.cache_clear()
        synthetic._draw.cache_clear()

    for name in ("N_TRAIN", "N_TEST_GOOD", "N_PER_DEFECT"):
        monkeypatch.setattr(synthetic, name, 5)
    forget()
    yield
    forget()


@pytest.mark.slow
@pytest.mark.usefixtures("few_images")
def test_written_tree_is_the_same_dataset(tmp_path: Path) -> None:
    DATASET.write(tmp_path / "out")
    folder = Folder(tmp_path / "out")
    assert folder.categories() == DATASET.categories()
    for category in folder.categories():
        assert folder.scan(category) == DATASET.scan(category)
    key, mask = "test/chip/004.png", "ground_truth/chip/004_mask.png"
    assert (folder.read_image("washer", key) == DATASET.read_image("washer", key)).all()
    assert (folder.read_mask("washer", mask) == DATASET.read_mask("washer", mask)).all()


def test_unknown_names() -> None:
    with pytest.raises(DataError, match="it has board"):
        DATASET.scan("wood")
    for call in (DATASET.read_image, DATASET.read_mask):
        with pytest.raises(DataError, match=r"no (image|mask) 'x'"):
            call("grain", "x")


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("what", ["product", "flat", "black", "grey", "wide"])
def test_damage_is_visible_local_and_deterministic(mechanism: str, what: str) -> None:
    image = DATASET.read_image("board", "train/good/000.png")
    if what == "flat":
        image = np.full((64, 64, 3), 200, np.uint8)
    elif what == "black":
        image = np.zeros((64, 64, 3), np.uint8)
    elif what == "grey":
        image = np.repeat(image[..., :1], 3, axis=2)
    elif what == "wide":
        image = image[:40]
    for seed in range(6):
        made = [damage(image, mechanism, np.random.default_rng(seed)) for _ in range(2)]
        assert (made[0].image == made[1].image).all()
        result = made[0]
        assert result.image.dtype == np.uint8
        assert result.image.shape == image.shape
        assert (result.image[~result.mask].astype(int) - image[~result.mask] <= 2).all()
        difference = np.abs(result.image.astype(int) - image).max(axis=2)
        assert np.count_nonzero(difference >= 12) >= 4
        assert 0 < result.mask.mean() < 0.4
        if what == "grey":
            assert np.ptp(result.image, axis=2).max() == 0, "grey stays grey"


def test_damage_says_what_was_done() -> None:
    flat = np.full((64, 64, 3), 200, np.uint8)
    fallen_back = damage(flat, "blur", np.random.default_rng(0))
    assert (fallen_back.image != flat).any()
    assert fallen_back.mechanism == "occlusion"


def test_mechanisms_take_turns() -> None:
    image = DATASET.read_image("stone", "train/good/000.png")
    names = [c.mechanism for turn in range(2) for c in damaged_copies(image, turn, 1)]
    assert sorted(names) == sorted(MECHANISMS)


@pytest.mark.parametrize(
    ("without", "left"),
    [
        (["elastic"], ["cut_paste", "blur", "occlusion", "texture", "roughen"]),
        (["occlusion", "texture", "elastic", "cut_paste"], ["blur", "roughen"]),
    ],
)
def test_damage_can_be_left_out(without: list[str], left: list[str]) -> None:
    image = DATASET.read_image("stone", "train/good/000.png")
    copies = [damaged_copies(image, turn, turn, without) for turn in range(5)]
    assert all(len(group) == 3 for group in copies)
    assert {c.mechanism for group in copies for c in group} == set(left)
    assert len({c.image.tobytes() for group in copies for c in group}) == 15


@pytest.mark.parametrize(
    ("without", "fallback"),
    [([], "occlusion"), (["occlusion"], "texture"), (["texture", "occlusion"], "roughen")],
)
@pytest.mark.parametrize("level", [0, 200, 255])
def test_no_fallback_brings_back_what_was_left_out(
    without: list[str], fallback: str, level: int
) -> None:
    flat = np.full((64, 64, 3), level, np.uint8)
    for turn in range(6):
        for copy in damaged_copies(flat, turn, turn, without):
            assert copy.mechanism not in without
            assert np.count_nonzero(np.abs(copy.image.astype(int) - flat).max(2) >= 12) >= 4
    names = [c.mechanism for turn in range(2) for c in damaged_copies(flat, turn, 1, without)]
    assert "blur" not in names
    assert fallback in names


@pytest.mark.parametrize(
    ("without", "told"),
    [
        (["scratch"], "no damage 'scratch'; there is cut_paste, blur"),
        (["occlusion", "texture", "roughen"], "leaves cut_paste and blur and elastic to damage"),
        ([n for n in MECHANISMS if n != "roughen"], "leaves roughen to damage"),
        (list(MECHANISMS), "leaves nothing to damage"),
    ],
)
def test_enough_damage_must_be_left(without: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check_without(without)
