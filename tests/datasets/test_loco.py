"""MVTec LOCO: several masks per image, two kinds of anomalies, validation images left aside."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomtune.datasets.loco import MVTecLOCO
from anomtune.datasets.opening import open_dataset
from anomtune.datasets.splits.audit import audit, find_missing
from anomtune.datasets.splits.held_out import load_test_split
from anomtune.datasets.splits.split import load_search_split
from anomtune.datasets.splits.validation import Validation
from anomtune.datasets.testing import check_dataset
from anomtune.errors import DataError, ImageError
from tests.datasets.conftest import save

Draw = Callable[..., Image.Image]

MASKS = "pushpins/ground_truth/logical_anomalies"


@pytest.fixture
def root(tmp_path: Path, picture: Draw) -> Path:
    """``pushpins``: 4 train, 2 validation, 3 good, 4 logical and 2 structural anomalies.

    Image ``i`` has ``i + 1`` masks, each of one column and a grey value of its own.
    """
    place = tmp_path / "mvtec_loco"
    numbers = iter(range(100))
    for where, count in (
        ("train/good", 4),
        ("validation/good", 2),
        ("test/good", 3),
        ("test/logical_anomalies", 4),
        ("test/structural_anomalies", 2),
    ):
        for i in range(count):
            save(picture(next(numbers)), place / "pushpins" / where / f"{i:03}.png")
            for column in range(i + 1) if "anomalies" in where else ():
                mask = np.zeros((16, 20), np.uint8)
                mask[:, column] = 255 - 127 * (column % 2) - column
                folder = place / "pushpins" / where.replace("test", "ground_truth") / f"{i:03}"
                save(Image.fromarray(mask), folder / f"{column:03}.png")
    (place / "pushpins/defects_config.json").write_text("[]")
    return place


def fatal(root: Path) -> list[str]:
    return [str(p) for p in MVTecLOCO(root).scan("pushpins")[1] if p.fatal]


def warnings(root: Path) -> list[str]:
    return [str(p) for p in MVTecLOCO(root).scan("pushpins")[1] if not p.fatal]


UNUSED = "pushpins/validation: not used: the search has a validation of its own"


def test_published_layout(root: Path) -> None:
    dataset = open_dataset("mvtec_loco", root)
    assert dataset.categories() == ("pushpins",)
    samples, _ = dataset.scan("pushpins")
    assert (fatal(root), warnings(root)) == ([], [UNUSED])
    assert [s.defect for s in samples] == (
        ["good"] * 3 + ["logical_anomalies"] * 4 + ["structural_anomalies"] * 2 + ["good"] * 4
    )
    assert [s.part for s in samples] == ["test"] * 9 + ["train"] * 4
    assert samples[5].mask == "ground_truth/logical_anomalies/002"


def test_the_mask_is_the_union(root: Path) -> None:
    dataset = MVTecLOCO(root)
    for i in range(4):
        mask = dataset.read_mask("pushpins", f"ground_truth/logical_anomalies/{i:03}")
        assert mask.shape == (16, 20)
        assert mask[:, : i + 1].all()
        assert not mask[:, i + 1 :].any()


def test_digest_and_fingerprint_follow_every_mask(root: Path) -> None:
    dataset = MVTecLOCO(root)
    key = "ground_truth/logical_anomalies/003"
    before = dataset.file_digest("pushpins", key), set(dataset._files("pushpins"))
    save(Image.new("L", (20, 16), 9), root / "pushpins" / key / "002.png")
    assert dataset.file_digest("pushpins", key) != before[0]
    (root / "pushpins" / key / "002.png").unlink()
    assert before[1] - set(dataset._files("pushpins")) == {root / "pushpins" / key / "002.png"}


def test_splits(root: Path) -> None:
    dataset = MVTecLOCO(root)
    seen = load_search_split(dataset, "pushpins", 20, Validation())
    held_out = load_test_split(dataset, "pushpins", 20, Validation())
    assert len(seen.train) == 4
    assert seen.validation_defects.count("logical_anomalies") == 2
    assert seen.validation_defects.count("structural_anomalies") == 1
    assert held_out.masks.drawn.tolist() == held_out.labels.astype(bool).tolist()
    for key, mask in zip(held_out.keys, held_out.masks, strict=True):
        columns = 0 if "good" in key else int(Path(key).stem) + 1
        assert mask.shape == (16, 20), "as drawn"
        assert mask.sum() == 16 * columns


def test_published_counts() -> None:
    counts = MVTecLOCO.counts.values()
    assert sum(c.n_train for c in counts) == 1772
    assert sum(c.n_test_normal + c.n_test_anomalous for c in counts) == 1568


def test_missing_images_are_named(tmp_path: Path) -> None:
    for where, count in (
        ("train/good", 372),
        ("test/good", 138),
        ("test/logical_anomalies", 91),
        ("test/structural_anomalies", 81),
    ):
        folder = tmp_path / "pushpins" / where
        folder.mkdir(parents=True)
        for i in range(count):
            (folder / f"{i:03}.png").touch()
    dataset = MVTecLOCO(tmp_path)
    assert find_missing(dataset, "pushpins", dataset.scan("pushpins")[0]) == []
    (tmp_path / "pushpins/train/good/100.png").unlink()
    (tmp_path / "pushpins/test/logical_anomalies/050.png").unlink()
    found = find_missing(dataset, "pushpins", dataset.scan("pushpins")[0])
    assert [p.message for p in found] == [
        "371 of 372 training images; missing 100.png",
        "171 of 172 anomalous test images; missing logical_anomalies/050.png",
    ]


def test_missing_masks(root: Path) -> None:
    shutil.rmtree(root / MASKS / "001")
    assert warnings(root)[0].startswith("pushpins/test/logical_anomalies/001.png: no mask")
    shutil.rmtree(root / MASKS)
    assert warnings(root)[0] == (
        "pushpins/ground_truth/logical_anomalies: no such folder; all 4 images of "
        "test/logical_anomalies are left out of pixel metrics: copy their masks again"
    )


def test_masks_of_the_wrong_form_are_refused(root: Path) -> None:
    shutil.move(root / MASKS / "000/000.png", root / MASKS / "000.png")
    shutil.copytree(root / MASKS / "001", root / MASKS / "009")
    assert fatal(root) == [
        f"{MASKS}/000: no masks in this folder; copy them again",
        f"{MASKS}/000.png: not in a folder; masks belong in "
        "ground_truth/logical_anomalies/<image>/000.png",
        f"{MASKS}/009: mask without image: nothing named '009' in test/logical_anomalies; "
        "rename or remove it",
    ]


@pytest.mark.parametrize("file", ["000.png", "003.png"])
def test_half_copied_mask(root: Path, file: str) -> None:
    path = root / MASKS / "003" / file
    path.write_bytes(path.read_bytes()[:40])
    (problem,) = [p for p in audit(MVTecLOCO(root), "pushpins") if p.fatal]
    assert str(problem).startswith(f"{MASKS}/003: {file} cannot be read")
    with pytest.raises(DataError, match=f"003: {file} cannot be read"):
        load_search_split(MVTecLOCO(root), "pushpins", 16, Validation())


def test_masks_of_different_sizes(root: Path) -> None:
    save(Image.new("L", (9, 9), 255), root / MASKS / "002/001.png")
    with pytest.raises(ImageError, match=r"002: 001\.png is not of the size of the others"):
        MVTecLOCO(root).read_mask("pushpins", "ground_truth/logical_anomalies/002")


def test_half_copied_image(root: Path) -> None:
    path = root / "pushpins/test/structural_anomalies/001.png"
    path.write_bytes(path.read_bytes()[:100])
    (problem,) = [p for p in audit(MVTecLOCO(root), "pushpins") if p.fatal]
    assert str(problem).startswith("pushpins/test/structural_anomalies/001.png: cannot be read")


def test_wrong_folders(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found mvtec_loco/ inside; set dataset\.root to"):
        MVTecLOCO(tmp_path).categories()
    (root / "pushpins/test/structural_anomalies").rename(root / "pushpins/test/structural")
    assert "pushpins/test/structural: not a folder of this dataset" in fatal(root)[-1]
    assert "pushpins/test/structural_anomalies: no such folder" in "\n".join(warnings(root))
    (root / "pushpins/Validation").mkdir()
    assert "pushpins/Validation: ignored; a category has" in "\n".join(warnings(root))


def test_extensions_and_junk(root: Path) -> None:
    masks = root / MASKS
    (masks / "002/001.png").rename(masks / "002/001.PNG")
    (root / "pushpins/train/good/000.png").rename(root / "pushpins/train/good/000.PNG")
    for place in (root, masks, masks / "002"):
        for name in (".DS_Store", "Thumbs.db"):
            (place / name).write_bytes(b"junk")
    assert (fatal(root), warnings(root)) == ([], [UNUSED])
    mask = MVTecLOCO(root).read_mask("pushpins", "ground_truth/logical_anomalies/002")
    assert mask.sum() == 3 * 16


def test_keeps_the_contract(root: Path) -> None:
    check_dataset(MVTecLOCO(root))
