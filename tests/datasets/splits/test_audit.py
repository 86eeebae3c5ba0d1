"""The audit says everything that is wrong, at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomtune.datasets.base import Published, Sample
from anomtune.datasets.folder import Folder
from anomtune.datasets.splits.audit import audit, find_missing, inspect
from anomtune.datasets.synthetic import Synthetic
from anomtune.errors import DataError


def test_clean_folder(tree: Path) -> None:
    found = inspect(Folder(tree))
    assert found.problems == ()
    (counts,) = found.counts
    assert (counts.n_train, counts.n_test_normal, counts.n_test_anomalous) == (6, 4, 7)
    assert counts.defects == (("dent", 3), ("scratch", 4))
    assert counts.n_masks == 7
    assert counts.smallest == counts.largest == (20, 16)


def test_everything_at_once(tree: Path, picture: Callable[..., Image.Image]) -> None:
    part = tree / "part"
    (part / "train/good/000.png").write_bytes(b"")
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(part / "train/good/001.png")
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(part / "train/good/002.png")
    Image.new("L", (3, 3), 255).save(part / "ground_truth/dent/000_mask.png")
    Image.new("L", (20, 16), 0).save(part / "ground_truth/dent/001_mask.png")
    Image.new("L", (20, 16), 255).save(part / "ground_truth/scratch/001_mask.png")
    inverted = Image.new("L", (20, 16), 255)
    inverted.paste(0, (6, 6, 10, 10))
    inverted.save(part / "ground_truth/scratch/002_mask.png")
    (part / "ground_truth/dent/002_mask.png").write_bytes(b"x")
    (part / "test/scratch/000.png").unlink()
    shutil.copy(part / "train/good/003.png", part / "test/good/leak.png")
    picture(4).save(part / "train/good/twin.bmp")  # the pixels of 004.png
    problems = {p.key: p for p in audit(Folder(tree), "part")}
    expected = {
        "train/good/000.png": ("cannot be read", True),
        "train/good/001.png": ("convert it to 8 bits per channel", True),
        "train/good/002.png": ("transparent", True),
        "ground_truth/dent/000_mask.png": ("the mask is 3x3 but its image", True),
        "ground_truth/dent/001_mask.png": ("empty mask", False),
        "ground_truth/scratch/001_mask.png": ("covers 100% of the image", False),
        "ground_truth/scratch/002_mask.png": ("covers 95% of the image", False),
        "ground_truth/dent/002_mask.png": ("cannot be read", True),
        "ground_truth/scratch/000_mask.png": ("mask without image", True),
        "test/good/leak.png": ("same pixels as the training image train/good/003.png", False),
        "train/good/twin.bmp": ("same pixels as train/good/004.png", False),
    }
    assert set(problems) == set(expected)
    for key, (text, fatal) in expected.items():
        assert text in problems[key].message
        assert problems[key].fatal is fatal
        assert str(tree) not in str(problems[key]), "the place is said once, by category and key"
        assert "\n" not in str(problems[key])


def test_folders_that_are_no_category_are_named(tree: Path) -> None:
    (tree / "b/Train").mkdir(parents=True)
    (tree / "b/Test").mkdir()
    (problem,) = audit(Folder(tree))
    assert str(problem) == "b: ignored, it has no train folder; it has Test, Train"
    assert not problem.fatal
    assert audit(Folder(tree), "part") == []


def test_unknown_category_and_root(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'part'"):
        audit(Folder(tree), "parts")
    with pytest.raises(DataError, match="no such folder"):
        audit(Folder(tmp_path / "absent"))


@pytest.mark.slow
def test_builtin_dataset_is_clean() -> None:
    found = inspect(Synthetic())
    assert found.problems == ()
    assert [c.category for c in found.counts] == ["board", "grain", "stone", "washer", "weave"]


@pytest.mark.slow
def test_magnetic_tile_has_four_empty_masks(real: Callable[[str], Path]) -> None:
    found = inspect(Folder(real("magnetic_tile")))
    empty = [p for p in found.problems if p.message.startswith("empty mask")]
    assert len(empty) == 4
    assert all(p.key.startswith("ground_truth/uneven/") for p in empty)
    # The same tiles, photographed with several exposures, lie on all sides.
    others = [p.message for p in found.problems if p not in empty]
    assert all("have images that look nearly the same" in message for message in others)
    assert len(others) == 3
    (counts,) = found.counts
    assert (counts.n_train, counts.n_test_normal, counts.n_test_anomalous) == (714, 238, 392)


class _Counted(Folder):
    def published(self, category: str) -> Published:
        return Published(12, 3, 12)


def _train(names: str) -> list[Sample]:
    return [Sample(f"train/good/{name}", "train", "good") for name in names.split()]


def _numbers(*numbers: int) -> str:
    return " ".join(f"{number:03}.png" for number in numbers)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (_numbers(*range(12)), None),
        (
            _numbers(0, 1, 2, 4, 5, 6, 7, 8, 10, 11),
            "10 of 12 training images; missing 003.png, 009.png",
        ),
        (_numbers(*range(11)), "11 of 12 training images; missing 011.png"),
        (_numbers(*range(2, 13)), "11 of 12 training images; missing 001.png"),
        (_numbers(*range(1, 12)), "11 of 12 training images; missing 000.png or 012.png"),
        (
            _numbers(*range(2, 12)),
            "10 of 12 training images; missing 001.png, 000.png or 012.png",
        ),
        (
            _numbers(0, 7, 8, 9, 10, 11),
            "6 of 12 training images; missing 001.png, 002.png, 003.png, 004.png, 005.png "
            "and 1 more",
        ),
        (_numbers(0, 1, 2), "3 of 12 training images; the download is not complete"),
        ("", "0 of 12 training images; the download is not complete"),
        (_numbers(*range(10), 99), "11 of 12 training images; the download is not complete"),
        (_numbers(*range(10)) + " 9.bmp", "11 of 12 training images; the download is not complete"),
        (_numbers(*range(10)) + " x.png", "11 of 12 training images; the download is not complete"),
        (
            _numbers(*range(13)),
            "13 of 12 training images: more than are published; remove what was added",
        ),
        (
            "0.bmp 1.bmp 2.png 4.bmp 5.bmp 6.bmp 7.bmp 8.bmp 9.bmp 10.bmp 11.bmp",
            "11 of 12 training images; missing 03.bmp",
        ),
    ],
)
def test_missing_training_images(tree: Path, names: str, message: str | None) -> None:
    samples = _train(names)
    samples += [Sample(f"test/good/{i:03}.png", "test", "good") for i in range(3)]
    samples += [Sample(f"test/dent/{i:03}.png", "test", "dent") for i in range(12)]
    found = [p.message for p in find_missing(_Counted(tree), "part", samples)]
    assert found == ([message] if message else [])


@pytest.mark.parametrize(
    ("dent", "scratch", "message"),
    [
        (range(6), range(6), None),
        ((0, 1, 3, 4, 5), range(6), "missing dent/002.png"),
        ((0, 1, 3, 4), range(6), "missing dent/002.png and 1 more"),
        (range(1, 6), range(6), "missing dent/000.png"),
        (range(1, 6), range(1, 6), "the download is not complete"),
        ((0, 3, 8, 9, 10), range(6), "the download is not complete"),
        (range(10), (), "missing 010.png, 011.png"),
    ],
)
def test_missing_anomalous_images(
    tree: Path, dent: Sequence[int], scratch: Sequence[int], message: str | None
) -> None:
    samples = _train(_numbers(*range(12)))
    samples += [Sample(f"test/good/{i:03}.png", "test", "good") for i in range(3)]
    for kind, numbers in (("dent", dent), ("scratch", scratch)):
        samples += [Sample(f"test/{kind}/{i:03}.png", "test", kind) for i in numbers]
    found = [p.message for p in find_missing(_Counted(tree), "part", samples)]
    count = len(dent) + len(scratch)
    assert found == ([f"{count} of 12 anomalous test images; {message}"] if message else [])


def test_shifted_copies_do_not_count(tree: Path) -> None:
    samples = _train(_numbers(*range(12)))
    for domain in ("", "noise-3"):
        samples += [
            Sample(f"test/good/{domain}{i:03}.png", "test", "good", None, domain) for i in range(3)
        ]
        samples += [
            Sample(f"test/dent/{domain}{i:03}.png", "test", "dent", None, domain) for i in range(12)
        ]
    assert find_missing(_Counted(tree), "part", samples) == []
