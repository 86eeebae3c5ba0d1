"""BTAD: normal images in ``ok``, mixed file types, masks by stem."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomtune.datasets.btad import BTAD
from anomtune.datasets.opening import open_dataset
from anomtune.datasets.splits.audit import audit, find_missing
from anomtune.datasets.splits.held_out import load_test_split
from anomtune.datasets.splits.split import load_search_split
from anomtune.datasets.splits.validation import Validation
from anomtune.datasets.testing import check_dataset
from anomtune.errors import DataError
from tests.datasets.conftest import save

Draw = Callable[..., Image.Image]


@pytest.fixture
def root(tmp_path: Path, picture: Draw) -> Path:
    """The three products with the file types that they have: 4 train, 3 ok, 4 ko with masks."""
    place = tmp_path / "BTech_Dataset_transformed"
    numbers = iter(range(100))
    for product, image_type, mask_type in (
        ("01", "bmp", "png"),
        ("02", "png", "png"),
        ("03", "bmp", "bmp"),
    ):
        for where, count in (("train/ok", 4), ("test/ok", 3), ("test/ko", 4)):
            for i in range(count):
                save(picture(next(numbers)), place / product / where / f"{i:04}.{image_type}")
        for i in range(4):
            mask = Image.new("L", (20, 16))
            mask.paste(255, (2, 2, 8 + i, 10))
            save(mask, place / product / "ground_truth/ko" / f"{i:04}.{mask_type}")
    return place


def fatal(root: Path, product: str = "01") -> list[str]:
    return [str(p) for p in BTAD(root).scan(product)[1] if p.fatal]


def warnings(root: Path, product: str = "01") -> list[str]:
    return [str(p) for p in BTAD(root).scan(product)[1] if not p.fatal]


def test_published_layout(root: Path) -> None:
    dataset = open_dataset("btad", root)
    assert dataset.categories() == ("01", "02", "03")
    assert dataset.warnings() == ()
    for product, ext in (("01", "png"), ("02", "png"), ("03", "bmp")):
        samples, problems = dataset.scan(product)
        assert problems == ()
        assert [s.defect for s in samples] == ["ko"] * 4 + ["good"] * 7
        assert [s.mask for s in samples if s.anomalous] == [
            f"ground_truth/ko/{i:04}.{ext}" for i in range(4)
        ]
        mask = dataset.read_mask(product, f"ground_truth/ko/0002.{ext}")
        assert mask.sum() == 8 * 8
        assert mask[2:10, 2:10].all()


def test_splits(root: Path) -> None:
    dataset = BTAD(root)
    seen = load_search_split(dataset, "03", 16, Validation())
    held_out = load_test_split(dataset, "03", 16, Validation())
    assert len(seen.train) == 4
    assert seen.validation_labels.sum() == held_out.labels.sum() == 2
    assert set(seen.validation_defects) == {"good", "ko"}
    assert held_out.masks.drawn.tolist() == held_out.labels.astype(bool).tolist()


def test_published_counts() -> None:
    counts = BTAD.counts.values()
    assert sum(c.n_train for c in counts) == 1799
    assert sum(c.n_test_normal + c.n_test_anomalous for c in counts) == 741
    assert sum(c.n_test_anomalous for c in counts) == 290


def test_missing_images_are_named(tmp_path: Path) -> None:
    for where, count in (("train/ok", 400), ("test/ok", 21), ("test/ko", 49)):
        folder = tmp_path / "01" / where
        folder.mkdir(parents=True)
        for i in range(count):
            (folder / f"{i:04}.{'png' if i % 50 == 3 else 'bmp'}").touch()
    dataset = BTAD(tmp_path)
    assert find_missing(dataset, "01", dataset.scan("01")[0]) == []
    for name in ("train/ok/0000", "train/ok/0123", "test/ko/0007"):
        (tmp_path / "01" / f"{name}.bmp").unlink()
    assert [str(p) for p in find_missing(dataset, "01", dataset.scan("01")[0])] == [
        "01: 398 of 400 training images; missing 0123.bmp, 0000.bmp or 0400.bmp",
        "01: 48 of 49 anomalous test images; missing 0007.bmp",
    ]


def test_missing_mask_folder(root: Path) -> None:
    shutil.rmtree(root / "02/ground_truth")
    assert warnings(root, "02") == [
        "02/ground_truth/ko: no such folder; all 4 images of test/ko are left out of pixel "
        "metrics: copy their masks again"
    ]


@pytest.mark.parametrize("name", ["good", "OK", "Ko", "ng"])
def test_wrong_class_folders_are_refused(root: Path, name: str) -> None:
    (root / "01/test" / ("ok" if name in {"good", "OK"} else "ko")).rename(root / "01/test" / name)
    expected = "rename to ok" if name == "OK" else "which has ko and ok; rename or remove it"
    (found,) = [m for m in fatal(root) if m.startswith(f"01/test/{name}: ")]
    assert expected in found
    with pytest.raises(DataError, match="run `anomtune audit btad"):
        load_search_split(BTAD(root), "01", 16, Validation())


def test_mvtec_names_for_the_training_folder_are_refused(root: Path) -> None:
    (root / "03/train/ok").rename(root / "03/train/good")
    assert fatal(root, "03") == [
        "03/train/ok: no training images; put images of normal products here"
    ]
    assert "03/train/good: ignored; only train/ok is used for training" in warnings(root, "03")


def test_half_copied_image(root: Path) -> None:
    path = root / "01/test/ko/0001.bmp"
    path.write_bytes(path.read_bytes()[:300])
    (problem,) = [p for p in audit(BTAD(root), "01") if p.fatal]
    assert str(problem).startswith("01/test/ko/0001.bmp: cannot be read")
    with pytest.raises(DataError, match=r"test/ko/0001\.bmp: cannot be read.*replace or remove"):
        load_search_split(BTAD(root), "01", 16, Validation())


def test_two_masks_for_one_image_and_none(root: Path) -> None:
    save(Image.new("L", (20, 16), 255), root / "01/ground_truth/ko/0000.bmp")
    (root / "01/ground_truth/ko/0001.png").unlink()
    assert ["01/test/ko/0000.bmp: has 2 masks" in m for m in fatal(root)] == [True]
    assert ["01/test/ko/0001.bmp: no mask" in m for m in warnings(root)] == [True]


def test_upper_case_and_junk(root: Path) -> None:
    good = root / "01/train/ok"
    (good / "0000.bmp").rename(good / "0000.BMP")
    (root / "01/ground_truth/ko/0000.png").rename(root / "01/ground_truth/ko/0000.PNG")
    for name in (".DS_Store", "Thumbs.db"):
        (good / name).write_bytes(b"junk")
    samples, problems = BTAD(root).scan("01")
    assert problems == ()
    assert len(samples) == 11
    assert BTAD(root).read_mask("01", "ground_truth/ko/0000.PNG").dtype == np.bool_


def test_wrong_roots(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found BTech_Dataset_transformed/ inside; set") as error:
        BTAD(tmp_path).categories()
    assert str(root) in str(error.value)
    shutil.rmtree(root / "02")
    (found,) = BTAD(root).warnings()
    assert str(found) == ("BTAD: 2 of 3 categories; missing 02: unpack these, or do without them")
    with pytest.raises(DataError, match="no category '02'; there is 01, 03"):
        BTAD(root).scan("02")
    shutil.rmtree(root)
    with pytest.raises(DataError, match=r"expected <category>/train/ok/\*\.png .* 01, 02, 03$"):
        BTAD(tmp_path).categories()


def test_keeps_the_contract(root: Path) -> None:
    check_dataset(BTAD(root))
