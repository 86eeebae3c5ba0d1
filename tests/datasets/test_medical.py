"""OCT2017, APTOS 2019 and ISIC 2018: layouts, labels, crops, and downloads that went wrong.

One file for the three: they share the prepared layout and what is asked of it.
"""

from __future__ import annotations

import csv
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomtune.datasets import medical
from anomtune.datasets.base import Dataset, Published
from anomtune.datasets.io.fundus import crop_fundus
from anomtune.datasets.io.imagefile import digest_file
from anomtune.datasets.medical import APTOS2019, ISIC2018, OCT2017
from anomtune.datasets.splits.audit import find_missing, inspect
from anomtune.datasets.splits.held_out import load_test_split
from anomtune.datasets.splits.split import load_search_split
from anomtune.datasets.splits.validation import Validation
from anomtune.datasets.testing import check_dataset
from anomtune.errors import DataError
from tests.datasets.conftest import save

pytestmark = pytest.mark.slow

Draw = Callable[..., Image.Image]
LESIONS = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


def messages(dataset: Dataset, *, fatal: bool) -> list[str]:
    return [str(p) for p in dataset.scan(dataset.name)[1] if p.fatal == fatal]


def refusal(dataset: Dataset) -> str:
    """The one line with which a sweep on the dataset ends."""
    with pytest.raises(DataError) as error:
        load_search_split(dataset, dataset.name, 16, Validation())
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def oct2017(tmp_path: Path, picture: Draw) -> Path:
    root = tmp_path / "OCT2017"
    numbers = iter(range(1000))
    for part, count in (("train", 3), ("test", 4)):
        for kind in ("CNV", "DME", "DRUSEN", "NORMAL"):
            for index in range(count):
                save(picture(next(numbers)), root / part / kind / f"{kind}-{index}-1.jpeg")
    return root


@pytest.fixture
def prepared(tmp_path: Path, picture: Draw) -> Path:
    root = tmp_path / "prepared"
    numbers = iter(range(1000))
    for where, count in (("train/NORMAL", 4), ("test/NORMAL", 4), ("test/ABNORMAL", 6)):
        for index in range(count):
            save(picture(next(numbers), (32, 16)), root / where / f"a{index}.png")
    return root


@pytest.fixture(scope="module")
def aptos_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 3,662 rows, as the split needs them; the images are links to a few."""
    root = tmp_path_factory.mktemp("aptos")
    (root / "train_images").mkdir()
    rng = random.Random(0)
    grades = [0] * 1805 + [1] * 370 + [2] * 999 + [3] * 193 + [4] * 295
    rng.shuffle(grades)
    photos = []
    for number in range(6):
        photo = np.zeros((40, 60, 3), np.uint8)
        photo[8:32, 18:42] = np.random.default_rng(number).integers(60, 250, (24, 24, 3))
        photos.append(save(Image.fromarray(photo), root / f"photo{number}.png"))
    with (root / "train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id_code", "diagnosis"])
        for index, grade in enumerate(grades):
            name = f"{rng.getrandbits(48):012x}"
            writer.writerow([name, grade])
            os.link(photos[index % 6], root / "train_images" / f"{name}.png")
    return root


@pytest.fixture
def aptos(aptos_tree: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(aptos_tree, tmp_path / "aptos", copy_function=os.link))


@pytest.fixture
def isic(tmp_path: Path, picture: Draw) -> Path:
    root = tmp_path / "isic"
    numbers = iter(range(1000))
    for part, per_class in (("Training", 3), ("Validation", 2)):
        table = root / f"ISIC2018_Task3_{part}_GroundTruth/ISIC2018_Task3_{part}_GroundTruth.csv"
        table.parent.mkdir(parents=True)
        lines = ["image," + ",".join(LESIONS)]
        for kind in LESIONS:
            for _ in range(per_class + 2 * (kind == "NV")):
                number = next(numbers)
                name = f"ISIC_{number:07d}"
                folder = root / f"ISIC2018_Task3_{part}_Input"
                save(picture(number, (64, 32)), folder / f"{name}.jpg")
                lines.append(name + "," + ",".join(str(float(k == kind)) for k in LESIONS))
        table.write_text("\r\n".join(lines) + "\r\n")
        (root / f"ISIC2018_Task3_{part}_Input/ATTRIBUTION.txt").write_text("cite")
    return root


def table(root: Path, part: str) -> Path:
    name = f"ISIC2018_Task3_{part}_GroundTruth"
    return root / name / f"{name}.csv"


# OCT2017


def test_oct_lists_normal_for_training_and_all_for_testing(oct2017: Path) -> None:
    dataset = OCT2017(oct2017)
    assert dataset.categories() == ("oct2017",)
    samples, problems = dataset.scan("oct2017")
    assert problems == ()
    assert [s.key for s in samples] == sorted(s.key for s in samples)
    assert {s.key.split("/")[1] for s in samples if s.part == "train"} == {"NORMAL"}
    counts = Counter((s.part, s.defect) for s in samples)
    assert counts == {
        ("train", "good"): 3,
        ("test", "good"): 4,
        ("test", "CNV"): 4,
        ("test", "DME"): 4,
        ("test", "DRUSEN"): 4,
    }
    assert {s.mask for s in samples} == {None}
    assert dataset.published("oct2017") == Published(26315, 250, 750)
    split = load_search_split(dataset, "oct2017", 16, Validation())
    assert split.train.shape == (3, 16, 16, 3)
    assert Counter(split.validation_defects) == {"good": 2, "CNV": 2, "DME": 2, "DRUSEN": 2}
    held = load_test_split(dataset, "oct2017", 16, Validation())
    assert Counter(held.defects) == Counter(split.validation_defects)
    assert not set(held.keys) & set(split.validation_keys)
    assert not held.masks.drawn.any()


def test_oct_without_the_training_images_that_nothing_uses(oct2017: Path) -> None:
    for kind in ("CNV", "DME", "DRUSEN"):
        shutil.rmtree(oct2017 / "train" / kind)
    assert OCT2017(oct2017).scan("oct2017")[1] == ()


def test_oct_that_went_wrong(oct2017: Path) -> None:
    dataset = OCT2017(oct2017)
    for junk in ("train/NORMAL/.DS_Store", "test/Thumbs.db", "test/CNV/._x.jpeg"):
        (oct2017 / junk).write_bytes(b"junk")
    (oct2017 / "test/CNV/CNV-0-1.jpeg").rename(oct2017 / "test/CNV/CNV-0-1.JPEG")
    assert dataset.scan("oct2017")[1] == ()
    assert "test/CNV/CNV-0-1.JPEG" in [s.key for s in dataset.scan("oct2017")[0]]

    (oct2017 / "val/CNV").mkdir(parents=True)
    (oct2017 / "test/CNV/notes.txt").write_text("hm")
    (oct2017 / "test/loose.jpeg").write_bytes(b"x")
    (oct2017 / "test/OTHER").mkdir()
    assert messages(dataset, fatal=False) == [
        "oct2017/test: loose.jpeg ignored; images belong in the folders of the classes",
        "oct2017/test/CNV: 'notes.txt' ignored: not a PNG, JPEG, BMP, TIFF or WebP file",
        "oct2017/test/OTHER: ignored, it is none of the classes (CNV, DME, DRUSEN, NORMAL)",
        "oct2017/val: ignored; a copy with 8 images of each class here and 242 in test has taken "
        "them from the published test part: move them back into test/<class>",
    ]
    (oct2017 / "test/DME").rename(oct2017 / "test/Dme")
    assert "oct2017/test/Dme: rename to DME" in refusal(dataset)
    shutil.rmtree(oct2017 / "test/Dme")
    assert "oct2017/test/DME: no such folder; copy the images of this class" in refusal(dataset)
    (oct2017 / "test/DME").mkdir()
    assert "oct2017/test/DME: no images here; copy" in refusal(dataset)
    shutil.rmtree(oct2017 / "train")
    assert messages(dataset, fatal=True) == [
        "oct2017/test/DME: no images here; copy the images of this class again",
        "oct2017/train: no such folder; it should hold a folder of images each: NORMAL",
    ]


def test_half_copied_image_is_named(oct2017: Path) -> None:
    path = oct2017 / "test/DRUSEN/DRUSEN-1-1.jpeg"
    path.write_bytes(path.read_bytes()[:200])
    message = refusal(OCT2017(oct2017))
    assert str(path) in message
    assert message.endswith("replace or remove the file")
    found = [str(p) for p in inspect(OCT2017(oct2017)).problems]
    assert any("test/DRUSEN/DRUSEN-1-1.jpeg" in line for line in found)


def test_missing_images_are_counted_against_the_published(oct2017: Path) -> None:
    samples, _ = OCT2017(oct2017).scan("oct2017")
    found = [str(p) for p in find_missing(OCT2017(oct2017), "oct2017", samples)]
    assert found[0] == "oct2017: 3 of 26315 training images; the download is not complete"


@pytest.mark.parametrize("kind", [OCT2017, APTOS2019, ISIC2018])
def test_wrong_root(kind: type[Dataset], tmp_path: Path, prepared: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder; set dataset\.root"):
        kind(tmp_path / "absent").categories()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"no {kind.name} here; expected .*train"):
        kind(tmp_path / "empty").categories()
    nested = tmp_path / "zip/OCT2017 /inner"
    nested.parent.mkdir(parents=True)
    prepared.rename(nested)
    with pytest.raises(DataError, match=f"found OCT2017 /inner/ inside; .* to {nested}"):
        kind(tmp_path / "zip").categories()
    with pytest.raises(DataError, match="no category 'cat'"):
        kind(nested).scan("cat")


# Prepared


@pytest.mark.parametrize("kind", [OCT2017, APTOS2019, ISIC2018])
def test_prepared_layout(kind: type[Dataset], prepared: Path) -> None:
    dataset = kind(prepared)
    assert dataset.categories() == (kind.name,)
    samples, problems = dataset.scan(kind.name)
    assert problems == ()
    counts = Counter((s.part, s.defect) for s in samples)
    assert counts == {("train", "good"): 4, ("test", "good"): 4, ("test", "ABNORMAL"): 6}
    split = load_search_split(dataset, kind.name, 16, Validation())
    assert Counter(split.validation_defects) == {"good": 2, "ABNORMAL": 3}
    whole = dataset.read_image(kind.name, "train/NORMAL/a0.png").shape
    # Crops to the eye have been made by the preparation, the loader's centre crop has not.
    assert whole == ((14, 28, 3) if kind is ISIC2018 else (16, 32, 3))
    shutil.rmtree(prepared / "test/ABNORMAL")
    assert any("no such folder; copy the images" in m for m in messages(dataset, fatal=True))


# APTOS 2019


def test_aptos_split_is_the_published_one(aptos: Path) -> None:
    dataset = APTOS2019(aptos)
    samples, problems = dataset.scan("aptos2019")
    assert problems == ()
    assert find_missing(dataset, "aptos2019", samples) == []
    counts = Counter((s.part, s.defect) for s in samples)
    assert counts == {
        ("train", "good"): 1000,
        ("test", "good"): 805,
        ("test", "grade1"): 370,
        ("test", "grade2"): 999,
        ("test", "grade3"): 193,
        ("test", "grade4"): 295,
    }
    with (aptos / "train.csv").open() as file:
        paths = [f"train_images/{n}.png" for n, g in list(csv.reader(file))[1:] if g == "0"]
    random.seed(1)
    random.shuffle(paths)
    assert {s.key for s in samples if s.part == "train"} == set(paths[:1000])


def test_aptos_in_the_folder_original_and_beside_the_test_part(aptos: Path) -> None:
    inner = aptos.rename(aptos.parent / "original")
    (inner / "test.csv").write_text("id_code\nx\n")
    (inner / "test_images").mkdir()
    samples, problems = APTOS2019(inner.parent).scan("aptos2019")
    assert problems == ()
    assert len(samples) == 3662


def test_aptos_reads_the_crop(aptos: Path) -> None:
    dataset = APTOS2019(aptos)
    sample = dataset.scan("aptos2019")[0][0]
    image = dataset.read_image("aptos2019", sample.key)
    assert image.shape == (512, 512, 3)
    with Image.open(aptos / sample.key) as photo:
        assert np.array_equal(image, crop_fundus(np.asarray(photo)))
    assert dataset.file_digest("aptos2019", sample.key) != digest_file(aptos / sample.key)
    # Bright to the margin of 5 of 34 pixels, and black beyond.
    assert image[95:417, 95:417].min() > 30
    assert not image[:60].any()


def test_aptos_that_went_wrong(aptos: Path) -> None:
    dataset = APTOS2019(aptos)
    lines = (aptos / "train.csv").read_text().splitlines()
    names = [line.split(",")[0] for line in lines[1:]]
    grade0 = next(line.split(",")[0] for line in lines if line.endswith(",0"))

    (aptos / f"train_images/{names[0]}.png").rename(aptos / f"train_images/{names[0]}.PNG")
    (aptos / "train_images/.DS_Store").write_bytes(b"junk")
    assert dataset.scan("aptos2019")[1] == ()

    os.link(aptos / f"train_images/{names[1]}.png", aptos / "train_images/extra.png")
    assert messages(dataset, fatal=False) == [
        "aptos2019/train_images: 1 images ignored, train.csv does not name them: extra.png"
    ]
    (aptos / f"train_images/{names[2]}.png").unlink()
    assert messages(dataset, fatal=True) == [
        "aptos2019/train_images: 1 of the 3662 images that train.csv asks for are missing "
        f"({names[2]}); copy or download them again"
    ]

    def write(rows: list[str]) -> list[str]:
        (aptos / "train.csv").unlink()
        (aptos / "train.csv").write_text("\n".join(rows))
        return messages(dataset, fatal=True)

    assert any("1804 of 1805 normal" in m for m in write([x for x in lines if grade0 not in x]))
    assert any("has the diagnosis '7'" in m for m in write([*lines, "abc,7"]))
    assert any("names '../../etc', not an image" in m for m in write([*lines, "../../etc,0"]))
    assert any("is there twice" in m for m in write([*lines, lines[1]]))
    assert any("has no column diagnosis" in m for m in write(["id_code,level", *lines[1:]]))
    assert any("holds no rows" in m for m in write(lines[:1]))
    (aptos / "train.csv").write_bytes(b"\xff\xfe\x00")
    assert "train.csv: cannot be read" in refusal(dataset)
    (aptos / "train.csv").unlink()
    assert "train.csv: no such file; it is part of the download" in refusal(dataset)


def test_aptos_without_its_images(aptos: Path) -> None:
    shutil.rmtree(aptos / "train_images")
    assert "aptos2019/train_images: no such folder" in refusal(APTOS2019(aptos))


def test_aptos_photo_without_an_eye(aptos: Path) -> None:
    key = APTOS2019(aptos).scan("aptos2019")[0][0].key
    (aptos / key).unlink()
    Image.new("RGB", (40, 30), (9, 9, 9)).save(aptos / key)
    with pytest.raises(DataError, match=r"shows no eye .* download it again"):
        APTOS2019(aptos).read_image("aptos2019", key)


# ISIC 2018


def test_isic_lists_nevi_for_training_and_the_validation_part(isic: Path) -> None:
    dataset = ISIC2018(isic)
    samples, problems = dataset.scan("isic2018")
    assert problems == ()
    counts = Counter((s.part, s.defect) for s in samples)
    expected = {("test", kind): 2 for kind in LESIONS if kind != "NV"}
    assert counts == {("train", "good"): 5, ("test", "good"): 4, **expected}
    assert dataset.published("isic2018") == Published(6705, 123, 70)
    split = load_search_split(dataset, "isic2018", 16, Validation())
    assert len(split.train) == 5
    assert len(load_test_split(dataset, "isic2018", 16, Validation()).labels) == 8


def test_isic_crops_the_centre(isic: Path) -> None:
    dataset = ISIC2018(isic)
    key = dataset.scan("isic2018")[0][0].key
    with Image.open(isic / key) as photo:
        whole = np.asarray(photo)
    assert whole.shape == (32, 64, 3)
    assert np.array_equal(dataset.read_image("isic2018", key), whole[2:30, 4:60])


def test_isic_that_went_wrong(isic: Path) -> None:
    dataset = ISIC2018(isic)
    folder = isic / "ISIC2018_Task3_Validation_Input"
    first = sorted(folder.glob("*.jpg"))[0]
    first.rename(first.with_suffix(".JPG"))
    (folder / "Thumbs.db").write_bytes(b"junk")
    assert dataset.scan("isic2018")[1] == ()
    first.with_suffix(".JPG").unlink()
    assert messages(dataset, fatal=True) == [
        "isic2018/ISIC2018_Task3_Validation_Input: 1 of the 16 images that "
        "ISIC2018_Task3_Validation_GroundTruth/ISIC2018_Task3_Validation_GroundTruth.csv asks for "
        f"are missing ({first.stem}); copy or download them again"
    ]
    rows = table(isic, "Validation").read_text()
    table(isic, "Validation").write_text(rows.replace("1.0", "0.0"))
    assert any("is of 0 classes instead of one" in m for m in messages(dataset, fatal=True))
    table(isic, "Validation").write_text(rows.replace("image,MEL", "image,Mel"))
    assert "has no column MEL; download it again" in refusal(dataset)
    table(isic, "Training").unlink()
    assert "GroundTruth.csv: no such file; it is part of the download" in refusal(dataset)
    shutil.rmtree(folder)
    assert any("Validation_Input: no such folder" in m for m in messages(dataset, fatal=True))


def test_isic_table_without_its_folder(isic: Path) -> None:
    for part in ("Training", "Validation"):
        table(isic, part).rename(isic / table(isic, part).name)
    assert ISIC2018(isic).scan("isic2018")[1] == ()


@pytest.mark.parametrize("tree", ["oct2017", "isic"])
def test_fingerprint_follows_every_file(tree: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(tree)
    dataset = medical.OCT2017(root) if tree == "oct2017" else medical.ISIC2018(root)
    time.sleep(0.15)
    before = dataset.fingerprint(dataset.name)
    assert before is not None
    assert before == dataset.fingerprint(dataset.name)
    changed = root / "test/DME/DME-0-1.jpeg" if tree == "oct2017" else table(root, "Training")
    os.utime(changed, (1, 1))
    time.sleep(0.15)
    assert dataset.fingerprint(dataset.name) not in {before, None}


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        (OCT2017, "oct2017"),
        (OCT2017, "prepared"),
        (APTOS2019, "aptos"),
        (APTOS2019, "prepared"),
        (ISIC2018, "isic"),
        (ISIC2018, "prepared"),
    ],
)
def test_keeps_the_contract(
    kind: type[Dataset], files: str, request: pytest.FixtureRequest
) -> None:
    check_dataset(kind(request.getfixturevalue(files)))
