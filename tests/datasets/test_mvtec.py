"""MVTec AD and MPDD: the published layout, and the ways in which a copy of it goes wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from anomtune.datasets.mvtec import MPDD, MVTecAD
from anomtune.datasets.opening import open_dataset
from anomtune.datasets.splits.audit import audit, find_missing, inspect
from anomtune.datasets.splits.held_out import load_test_split
from anomtune.datasets.splits.split import load_search_split
from anomtune.datasets.splits.validation import Validation
from anomtune.datasets.testing import check_dataset
from anomtune.errors import DataError
from tests.datasets.conftest import save

Draw = Callable[..., Image.Image]


def touch(folder: Path, count: int, suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:03}{suffix}").touch()


@pytest.fixture
def bottle(tmp_path: Path, picture: Draw) -> Path:
    """A root with ``bottle``: 5 train, 4 good, 2 of each defect type with masks."""
    category = tmp_path / "mvtec_anomaly_detection" / "bottle"
    numbers = iter(range(100))
    kinds = {"train/good": 5, "test/good": 4}
    kinds |= {f"test/{kind}": 2 for kind in MVTecAD.defects["bottle"]}
    for where, count in kinds.items():
        for i in range(count):
            save(picture(next(numbers)), category / where / f"{i:03}.png")
            if "good" not in where:
                mask = Image.new("L", (20, 16))
                mask.paste(255, (4, 4, 12, 12))
                save(mask, category / where.replace("test", "ground_truth") / f"{i:03}_mask.png")
    for name in ("readme.txt", "license.txt"):
        (category / name).write_text("as published")
    return category.parent


def fatal(root: Path, category: str = "bottle") -> list[str]:
    return [str(p) for p in MVTecAD(root).scan(category)[1] if p.fatal]


def warnings(root: Path, category: str = "bottle") -> list[str]:
    return [str(p) for p in MVTecAD(root).scan(category)[1] if not p.fatal]


def sweep(root: Path) -> str:
    """Returns what a sweep would stop at."""
    with pytest.raises(DataError) as error:
        load_search_split(MVTecAD(root), "bottle", 16, Validation())
    assert "\n" not in str(error.value)
    return str(error.value)


def test_published_layout(bottle: Path) -> None:
    dataset = open_dataset("mvtec", bottle)
    assert isinstance(dataset, MVTecAD)
    assert dataset.categories() == ("bottle",)
    samples, problems = dataset.scan("bottle")
    assert problems == ()
    assert [s.key for s in samples] == sorted(s.key for s in samples)
    assert sum(s.part == "train" for s in samples) == 5
    assert sorted({s.defect for s in samples}) == [
        "broken_large",
        "broken_small",
        "contamination",
        "good",
    ]
    assert all((s.mask is not None) == s.anomalous for s in samples)
    mask = dataset.read_mask("bottle", "ground_truth/contamination/001_mask.png")
    assert mask.shape == (16, 20)
    assert mask[4:12, 4:12].all()
    assert mask.sum() == 64


def test_splits(bottle: Path) -> None:
    dataset = MVTecAD(bottle)
    seen = load_search_split(dataset, "bottle", 16, Validation())
    held_out = load_test_split(dataset, "bottle", 16, Validation())
    assert len(seen.train) == 5
    assert sorted(seen.validation_defects) == sorted(held_out.defects)
    assert not set(seen.validation_keys) & set(held_out.keys)
    assert len(seen.validation) + len(held_out.images) == 10
    assert held_out.masks.drawn.tolist() == held_out.labels.astype(bool).tolist()
    synthetic = load_search_split(dataset, "bottle", 16, Validation(protocol="synthetic"))
    assert synthetic.n_test_anomalous == 6


def test_one_category_alone(bottle: Path) -> None:
    dataset = MVTecAD(bottle / "bottle")
    assert dataset.categories() == ("bottle",)
    assert dataset.warnings() == ()
    assert dataset.scan("bottle") == MVTecAD(bottle).scan("bottle")


def test_published_counts_are_those_of_the_paper() -> None:
    counts = MVTecAD.counts.values()
    assert len(counts) == 15
    assert sum(c.n_train for c in counts) == 3629
    assert sum(c.n_test_normal for c in counts) == 467
    assert sum(c.n_test_anomalous for c in counts) == 1258
    assert sum(map(len, MVTecAD.defects.values())) == 73
    assert MVTecAD.defects.keys() == MVTecAD.counts.keys()
    counts = MPDD.counts.values()
    assert sum(c.n_train for c in counts) == 888
    assert sum(c.n_test_normal for c in counts) == 176
    assert sum(c.n_test_anomalous for c in counts) == 282
    assert MPDD.defects.keys() == MPDD.counts.keys()


@pytest.mark.parametrize("kind", [MVTecAD, MPDD])
def test_a_whole_download_lacks_nothing(tmp_path: Path, kind: type[MVTecAD]) -> None:
    for category, published in kind.counts.items():
        touch(tmp_path / category / "train/good", published.n_train)
        touch(tmp_path / category / "test/good", published.n_test_normal)
        types = sorted(kind.defects[category])
        for number, defect in enumerate(types):
            count = published.n_test_anomalous * (number + 1) // len(types)
            count -= published.n_test_anomalous * number // len(types)
            touch(tmp_path / category / "test" / defect, count)
            touch(tmp_path / category / "ground_truth" / defect, count, "_mask.png")
    dataset = kind(tmp_path)
    assert dataset.categories() == tuple(sorted(kind.counts))
    assert dataset.warnings() == ()
    for category in dataset.categories():
        samples, problems = dataset.scan(category)
        assert problems == ()
        assert find_missing(dataset, category, samples) == []


def test_missing_images_are_named(tmp_path: Path, picture: Draw) -> None:
    screw = tmp_path / "screw"
    touch(screw / "train/good", 320)
    touch(screw / "test/good", 41)
    for defect, count in zip(sorted(MVTecAD.defects["screw"]), (24, 24, 25, 23, 23), strict=True):
        touch(screw / "test" / defect, count)
    for name in ("train/good/017", "train/good/201", "test/scratch_head/003", "test/good/000"):
        (screw / f"{name}.png").unlink()
    (screw / "test/thread_top/022.png").unlink()
    dataset = MVTecAD(tmp_path)
    found = [str(p) for p in find_missing(dataset, "screw", dataset.scan("screw")[0])]
    assert found == [
        "screw: 318 of 320 training images; missing 017.png, 201.png",
        "screw: 40 of 41 normal test images; missing 000.png or 041.png",
        "screw: 117 of 119 anomalous test images; missing scratch_head/003.png and 1 more",
    ]
    messages = [str(p) for p in audit(dataset, "screw")]
    assert set(found) < set(messages)


def test_missing_categories_are_named_once(bottle: Path) -> None:
    (bottle / "Screw").mkdir()
    (bottle / "notes").mkdir()
    messages = [str(p) for p in MVTecAD(bottle).warnings()]
    assert messages[0].startswith("MVTec AD: 1 of 15 categories; missing cable, capsule, carpet")
    assert messages[1:] == [
        "Screw: ignored, it is not a category of MVTec AD; rename to screw",
        "notes: ignored, it is not a category of MVTec AD",
    ]


def test_nested_zip_folder(bottle: Path, tmp_path: Path) -> None:
    deeper = tmp_path / "downloads"
    deeper.mkdir()
    bottle = bottle.rename(deeper / bottle.name)
    for root in (tmp_path, deeper):
        with pytest.raises(DataError) as error:
            MVTecAD(root).categories()
        assert f"mvtec_anomaly_detection/ inside; set dataset.root to {bottle}" in str(error.value)


def test_root_within_a_category(bottle: Path) -> None:
    with pytest.raises(DataError, match="inside of one") as error:
        MVTecAD(bottle / "bottle" / "train").categories()
    assert f"set dataset.root to {bottle}/bottle" in str(error.value)


def test_packed_and_wrong_roots(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no category here; expected <category>/train/good.*, zipper$"
    ):
        MVTecAD(tmp_path).categories()
    (tmp_path / "mvtec_anomaly_detection.tar.xz").touch()
    with pytest.raises(DataError, match=r"found 'mvtec_anomaly_detection\.tar\.xz'; unpack it"):
        MVTecAD(tmp_path).categories()
    with pytest.raises(DataError, match="no such folder"):
        MVTecAD(tmp_path / "absent").categories()


def test_a_category_that_is_not_whole_is_refused(bottle: Path) -> None:
    (bottle / "cable").mkdir()
    assert MVTecAD(bottle).categories() == ("bottle", "cable")
    assert fatal(bottle, "cable") == [
        "cable/train/good: no training images; put images of normal products here"
    ]
    assert "cable/test/good: no such folder; the download is not complete" in warnings(
        bottle, "cable"
    )


def test_missing_mask_folder(bottle: Path) -> None:
    shutil.rmtree(bottle / "bottle/ground_truth/contamination")
    assert warnings(bottle) == [
        "bottle/ground_truth/contamination: no such folder; all 2 images of test/contamination "
        "are left out of pixel metrics: copy their masks again"
    ]
    shutil.rmtree(bottle / "bottle/ground_truth")
    assert len(warnings(bottle)) == 3


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("ground_truth", "Ground_Truth"), ("ground_truth", "masks"), ("test", "Test")],
)
def test_a_misspelt_part_is_refused(bottle: Path, right: str, wrong: str) -> None:
    (bottle / "bottle" / right).rename(bottle / "bottle" / wrong)
    assert f"bottle/{wrong}: rename to {right}" in fatal(bottle)
    assert f"bottle/{wrong}: rename to {right}" in sweep(bottle)


@pytest.mark.parametrize("name", ["bad", "gut", "Contamination"])
def test_a_folder_of_no_known_type_is_refused(bottle: Path, picture: Draw, name: str) -> None:
    save(picture(90), bottle / "bottle/test" / name / "000.png")
    message = (
        f"bottle/test/{name}: not a folder of this dataset, which has broken_large, broken_small, "
        "contamination and good; rename or remove it"
    )
    assert fatal(bottle) == [message]
    assert message in sweep(bottle)


def test_half_copied_image(bottle: Path) -> None:
    path = bottle / "bottle/train/good/002.png"
    path.write_bytes(path.read_bytes()[:200])
    (problem,) = [p for p in audit(MVTecAD(bottle), "bottle") if p.fatal]
    assert str(problem).startswith("bottle/train/good/002.png: cannot be read")
    assert "replace or remove the file" in str(problem)
    assert "train/good/002.png: cannot be read" in sweep(bottle)


def test_missing_test_image_is_named_by_its_mask(bottle: Path) -> None:
    (bottle / "bottle/test/contamination/001.png").unlink()
    assert ["contamination/001_mask.png: mask without image" in m for m in fatal(bottle)] == [True]


def test_extensions_and_junk(bottle: Path) -> None:
    good = bottle / "bottle/train/good"
    (good / "000.png").rename(good / "000.PNG")
    for place in (bottle, bottle / "bottle", good, bottle / "bottle/ground_truth/contamination"):
        for name in (".DS_Store", "Thumbs.db", "._001.png"):
            (place / name).write_bytes(b"junk")
    samples, problems = MVTecAD(bottle).scan("bottle")
    assert problems == ()
    assert len(samples) == 15
    assert len(load_search_split(MVTecAD(bottle), "bottle", 16, Validation()).train) == 5


def test_loose_masks_are_reported(bottle: Path) -> None:
    masks = bottle / "bottle/ground_truth"
    shutil.move(masks / "contamination/000_mask.png", masks / "000_mask.png")
    assert warnings(bottle) == [
        "bottle/ground_truth: '000_mask.png' ignored; masks belong in ground_truth/<defect type>",
        "bottle/test/contamination/000.png: no mask, while others have one; left out of pixel "
        "metrics",
    ]


def test_mpdd(tmp_path: Path, picture: Draw) -> None:
    tubes = tmp_path / "tubes"
    for number, where in enumerate(("train/good", "test/good", "test/flattening")):
        save(picture(number), tubes / where / "000.png")
    mask = Image.new("L", (20, 16))
    mask.paste(255, (4, 4, 9, 9))
    save(mask, tubes / "ground_truth/flattening/000_mask.png")
    dataset = open_dataset("mpdd", tmp_path)
    samples, problems = dataset.scan("tubes")
    assert problems == ()
    assert [(s.part, s.defect) for s in samples] == [
        ("test", "flattening"),
        ("test", "good"),
        ("train", "good"),
    ]
    counts = inspect(dataset, "tubes")
    assert [p.message for p in counts.problems] == [
        "1 of 122 training images; the download is not complete",
        "1 of 32 normal test images; the download is not complete",
        "1 of 69 anomalous test images; the download is not complete",
    ]


@pytest.fixture
def tubes(tmp_path: Path, picture: Draw) -> Path:
    """MPDD with ``tubes``: 4 train, 4 good and 4 flattened with masks."""
    root = tmp_path / "MPDD"
    numbers = iter(range(100))
    for where in ("train/good", "test/good", "test/flattening"):
        for i in range(4):
            save(picture(next(numbers)), root / "tubes" / where / f"{i:03}.png")
    for i in range(4):
        mask = Image.new("L", (20, 16))
        mask.paste(255, (0, 0, i + 1, 16))
        save(mask, root / f"tubes/ground_truth/flattening/{i:03}_mask.png")
    return root


def test_mpdd_splits_and_masks(tubes: Path) -> None:
    dataset = MPDD(tubes)
    seen = load_search_split(dataset, "tubes", 20, Validation())
    held_out = load_test_split(dataset, "tubes", 20, Validation())
    assert len(seen.train) == 4
    assert sorted(seen.validation_defects) == sorted(held_out.defects)
    for key, mask in zip(held_out.keys, held_out.masks, strict=True):
        columns = 0 if "good" in key else int(Path(key).stem) + 1
        assert mask.shape == (16, 20), "as drawn"
        assert mask.sum() == 16 * columns


def test_mpdd_that_went_wrong(tubes: Path) -> None:
    def told(*, fatal: bool) -> list[str]:
        return [str(p) for p in MPDD(tubes).scan("tubes")[1] if p.fatal == fatal]

    with pytest.raises(DataError, match=r"found MPDD/ inside; set dataset\.root to .*/MPDD$"):
        MPDD(tubes.parent).categories()
    for name in (".DS_Store", "Thumbs.db"):
        (tubes / "tubes/test/flattening" / name).write_bytes(b"junk")
    (tubes / "tubes/test/good/001.png").rename(tubes / "tubes/test/good/001.PNG")
    assert told(fatal=True) == told(fatal=False) == []
    (tubes / "tubes/test/bent").mkdir()
    save(Image.new("RGB", (20, 16)), tubes / "tubes/test/bent/000.png")
    assert told(fatal=True) == [
        "tubes/test/bent: not a folder of this dataset, which has flattening and good; rename or "
        "remove it"
    ]
    shutil.rmtree(tubes / "tubes/test/bent")
    (tubes / "tubes/test/flattening/002.png").unlink()
    assert ["flattening/002_mask.png: mask without image" in m for m in told(fatal=True)] == [True]
    shutil.rmtree(tubes / "tubes/ground_truth")
    assert told(fatal=False) == [
        "tubes/ground_truth/flattening: no such folder; all 3 images of test/flattening are left "
        "out of pixel metrics: copy their masks again"
    ]
    path = tubes / "tubes/train/good/000.png"
    path.write_bytes(path.read_bytes()[:200])
    (problem,) = [str(p) for p in audit(MPDD(tubes), "tubes") if p.fatal]
    assert problem.startswith("tubes/train/good/000.png: cannot be read")
    assert problem.endswith("replace or remove the file")


def test_mvtec_and_mpdd_keep_the_contract(bottle: Path, tubes: Path) -> None:
    check_dataset(MVTecAD(bottle))
    check_dataset(MPDD(tubes))
