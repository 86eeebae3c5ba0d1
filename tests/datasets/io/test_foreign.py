"""Images of other things: which are taken, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from anomtune.datasets.folder import Folder
from anomtune.datasets.io import foreign
from anomtune.datasets.io.foreign import folder_images, other_categories
from anomtune.errors import DataError


def save(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 12), (grey, grey, grey)).save(path)


@pytest.fixture
def three(tmp_path: Path) -> Folder:
    """Three categories of four training images, each category in greys of its own."""
    for number, name in enumerate(("bolt", "nut", "pin")):
        for index in range(4):
            save(tmp_path / name / f"train/good/{index}.png", 10 * number + index)
            save(tmp_path / name / f"test/good/{index}.png", 100)
            save(tmp_path / name / f"test/crack/{index}.png", 200)
    return Folder(tmp_path)


def test_a_folder_is_searched_to_its_depth(tmp_path: Path) -> None:
    for name in ("a.png", "b/c.JPG", "b/d/e.bmp", "b/._f.png", "notes.txt"):
        if name.endswith("txt"):
            (tmp_path / name).write_text("no image")
        else:
            save(tmp_path / name, 9)
    images = folder_images(tmp_path, 8)
    assert images.shape == (3, 8, 8, 3)
    assert (abs(images.astype(int) - 9) <= 1).all()


def test_a_large_folder_is_thinned_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "LIMIT", 4)
    for index in range(8):
        save(tmp_path / f"{index}.png", index)
    assert folder_images(tmp_path, 8)[:, 0, 0, 0].tolist() == [0, 2, 4, 6]


def test_a_changed_folder_is_read_again(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 1)
    assert folder_images(tmp_path, 8).max() == 1
    save(tmp_path / "a.png", 7)
    assert folder_images(tmp_path, 8).max() == 7


def test_other_categories_give_normal_training_images_alone(three: Folder) -> None:
    images = other_categories(three, "nut", 8)
    assert images is not None
    assert sorted(images[:, 0, 0, 0].tolist()) == [0, 1, 2, 3, 20, 21, 22, 23]


def test_every_other_category_has_its_share(three: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "LIMIT", 4)
    images = other_categories(three, "bolt", 8)
    assert images is not None
    assert sorted((images[:, 0, 0, 0] // 10).tolist()) == [1, 1, 2, 2]


def test_the_anomalies_of_a_one_class_dataset_are_not_given(three: Folder) -> None:
    three.one_class = True
    assert other_categories(three, "bolt", 8) is None


def test_a_single_category_has_no_others(three: Folder) -> None:
    assert three.root is not None
    assert other_categories(Folder(three.root / "bolt"), "bolt", 8) is None


def test_no_folder_no_image_and_a_broken_image_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        folder_images(tmp_path / "missing", 8)
    with pytest.raises(DataError, match="holds no image"):
        folder_images(tmp_path, 8)
    (tmp_path / "a.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"a\.png"):
        folder_images(tmp_path, 8)


def test_images_are_mapped_not_copied(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 1)
    assert isinstance(folder_images(tmp_path, 8), np.memmap)


def test_foreign_images_are_upright(tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    (tmp_path / "photos").mkdir()
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "photos/x.png", exif=exif)
    assert (folder_images(tmp_path / "photos", 8)[0] == np.asarray(picture)).all()
