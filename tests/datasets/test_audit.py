"""The audit says everything that is wrong, at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomtune.datasets.audit import audit, inspect
from anomtune.datasets.base import DataError
from anomtune.datasets.folder import FolderDataset
from anomtune.datasets.synthetic import SyntheticDataset


def test_clean_folder(tree: Path) -> None:
    found = inspect(FolderDataset(tree))
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
    (part / "ground_truth/dent/002_mask.png").write_bytes(b"x")
    (part / "test/scratch/000.png").unlink()
    shutil.copy(part / "train/good/003.png", part / "test/good/leak.png")
    picture(4).save(part / "train/good/twin.bmp")  # the pixels of 004.png
    problems = {p.key: p for p in audit(FolderDataset(tree), "part")}
    expected = {
        "train/good/000.png": ("cannot be read", True),
        "train/good/001.png": ("convert it to 8 bits per channel", True),
        "train/good/002.png": ("transparent", True),
        "ground_truth/dent/000_mask.png": ("the mask is 3x3 but its image", True),
        "ground_truth/dent/001_mask.png": ("empty mask", False),
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
    (problem,) = audit(FolderDataset(tree))
    assert str(problem) == "b: ignored, it has no train folder; it has Test, Train"
    assert not problem.fatal
    assert audit(FolderDataset(tree), "part") == []


def test_unknown_category_and_root(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'part'"):
        audit(FolderDataset(tree), "parts")
    with pytest.raises(DataError, match="no such folder"):
        audit(FolderDataset(tmp_path / "absent"))


def test_builtin_dataset_is_clean() -> None:
    found = inspect(SyntheticDataset())
    assert found.problems == ()
    assert [c.category for c in found.counts] == ["board", "grain", "stone", "washer", "weave"]


def test_magnetic_tile_has_four_empty_masks(real: Callable[[str], Path]) -> None:
    found = inspect(FolderDataset(real("magnetic_tile")))
    assert [p.message.startswith("empty mask") for p in found.problems] == [True] * 4
    assert all(p.key.startswith("ground_truth/uneven/") for p in found.problems)
    (counts,) = found.counts
    assert (counts.n_train, counts.n_test_normal, counts.n_test_anomalous) == (714, 238, 392)
