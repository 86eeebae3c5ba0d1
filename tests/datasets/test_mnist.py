"""MNIST, Fashion-MNIST and MNIST-M: layouts, origins, and downloads that went wrong."""

from __future__ import annotations

import gzip
import shutil
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomtune.datasets import mnist_m
from anomtune.datasets.base import Published, Sample
from anomtune.datasets.mnist import MNIST, FashionMNIST
from anomtune.datasets.splits.audit import find_missing
from anomtune.datasets.splits.split import Validation, load_search_split, load_test_split
from anomtune.errors import DataError

Draw = Callable[..., Image.Image]
DIGITS = tuple("0123456789")
IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def save(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def grey(number: int) -> np.ndarray:
    image = np.random.default_rng(number).integers(0, 256, (28, 28), dtype=np.uint8)
    image[:8] = 0
    return image


def write_idx(folder: Path, labels: dict[str, list[int]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for prefix, numbers in labels.items():
        pixels = b"".join(grey(start + i).tobytes() for i in range(len(numbers)))
        header = struct.pack(">4i", 2051, len(numbers), 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels)
        header = struct.pack(">2i", 2049, len(numbers))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(header + bytes(numbers))
        start += len(numbers)


def messages(root: Path, *, fatal: bool) -> list[str]:
    return [str(p) for p in MNIST(root).scan("3")[1] if p.fatal == fatal]


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as error:
        load_search_split(MNIST(root), "3", 16, Validation())
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """``data/MNIST/raw`` with 3 training and 4 test images per digit."""
    labels = {"train": [i % 10 for i in range(30)], "t10k": [(i + 7) % 10 for i in range(40)]}
    write_idx(tmp_path / "data/MNIST/raw", labels)
    return tmp_path / "data"


@pytest.fixture
def png(tmp_path: Path) -> Path:
    """The same as PNG files, named by their number in the files."""
    for part, count, first in (("training", 30, 0), ("testing", 40, 7)):
        for index in range(count):
            number = index + (30 if part == "testing" else 0)
            path = tmp_path / f"mnist_png/{part}/{(index + first) % 10}/{index}.png"
            save(Image.fromarray(grey(number)), path)
    return tmp_path / "mnist_png"


def add_archive(root: Path, picture: Draw, count: int = 20) -> Path:
    folder = root / "mnist_m"
    lines = []
    for index in range(count):
        save(picture(index, (32, 32)), folder / f"mnist_m_test/{index:08d}.png")
        lines.append(f"{index:08d}.png {index % 10}\n")
    (folder / "mnist_m_test_labels.txt").write_text("".join(lines))
    (folder / "mnist_m_train").mkdir()
    (folder / "mnist_m_train_labels.txt").write_text("00000000.png 1\n")
    return folder


def add_npz(root: Path, **changes: np.ndarray) -> Path:
    index = np.arange(20)
    rng = np.random.default_rng(5)
    arrays = {
        "train_images": np.zeros((3, 28, 28, 3), np.uint8),
        "test_images": rng.integers(0, 256, (20, 28, 28, 3), dtype=np.uint8),
        "test_labels": ((index + 7) % 10).astype(np.uint8),
        "test_mnist_index": index,
    }
    np.savez_compressed(root / "mnist_m_rebuilt.npz", **{**arrays, **changes})
    return root / "mnist_m_rebuilt.npz"


def shifted(root: Path) -> list[Sample]:
    return [s for s in MNIST(root).scan("3")[0] if s.domain]


def test_idx_files(raw: Path) -> None:
    dataset = MNIST(raw)
    assert dataset.categories() == DIGITS
    assert dataset.one_class
    samples, problems = dataset.scan("3")
    assert problems == ()
    assert [s.key for s in samples] == sorted(s.key for s in samples)
    assert [s.key for s in samples if s.part == "train"] == [
        "train/3/00003",
        "train/3/00013",
        "train/3/00023",
    ]
    tested = [s for s in samples if s.part == "test"]
    assert Counter(s.defect for s in tested) == {**{d: 4 for d in DIGITS if d != "3"}, "good": 4}
    assert all(s.key.split("/")[1] == s.defect.replace("good", "3") for s in tested)
    assert {(s.mask, s.domain) for s in samples} == {(None, "")}
    image = dataset.read_image("3", "test/9/00002")
    assert image.shape == (28, 28, 3)
    assert np.array_equal(image, np.repeat(grey(32)[..., None], 3, axis=2))
    image[0] = 7  # a copy: the file is mapped
    assert not np.array_equal(dataset.read_image("3", "test/9/00002"), image)
    assert len({dataset.file_digest("3", s.key) for s in samples}) == len(samples)


@pytest.mark.parametrize("inside", ["MNIST", "MNIST/raw"])
def test_other_roots(raw: Path, inside: str) -> None:
    assert MNIST(raw / inside).scan("3") == MNIST(raw).scan("3")


def test_gzipped_and_otherwise_named_files(raw: Path) -> None:
    expected = MNIST(raw).scan("3")
    folder = raw / "MNIST/raw"
    for path in list(folder.iterdir()):
        if path.name.startswith("train"):
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
        else:
            path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    dataset = MNIST(raw)
    assert dataset.scan("3") == expected
    assert np.array_equal(dataset.read_image("3", "train/3/00013")[..., 0], grey(13))
    time.sleep(0.15)
    assert dataset.fingerprint("3") is not None


def test_splits(raw: Path) -> None:
    dataset = MNIST(raw)
    split = load_search_split(dataset, "3", 16, Validation())
    assert split.train.shape == (3, 16, 16, 3)
    assert Counter(split.validation_defects) == dict.fromkeys(["good", *set(DIGITS) - {"3"}], 2)
    held = load_test_split(dataset, "3", 16, Validation())
    assert len(held.labels) == 20
    assert not held.has_mask.any()
    assert not set(held.keys) & set(split.validation_keys)


def test_png_folders(png: Path, raw: Path) -> None:
    dataset = MNIST(png)
    samples, problems = dataset.scan("3")
    assert problems == ()
    assert MNIST(png.parent).scan("3") == (samples, problems)
    assert sum(s.part == "train" for s in samples) == 3
    assert Counter(s.defect for s in samples if s.part == "test")["good"] == 4
    same = MNIST(raw).read_image("3", "test/9/00002")
    assert np.array_equal(dataset.read_image("3", "testing/9/2.png"), same)
    assert len(load_search_split(dataset, "3", 16, Validation()).validation) == 20
    time.sleep(0.15)
    assert dataset.fingerprint("3") is not None


def test_png_folders_that_went_wrong(png: Path) -> None:
    (png / "testing/4/.DS_Store").write_bytes(b"junk")
    assert messages(png, fatal=False) == []
    (png / "testing/4").rename(png / "testing/four")
    assert "3/testing/4: no such folder; copy the images of this class again" in refusal(png)
    assert any("3/testing/four: ignored" in m for m in messages(png, fatal=False))
    shutil.rmtree(png / "training")
    assert any("3/training: no such folder" in m for m in messages(png, fatal=True))


def test_idx_files_that_went_wrong(raw: Path) -> None:
    folder = raw / "MNIST/raw"
    (folder / ".DS_Store").write_bytes(b"junk")
    whole, labels = (folder / IMAGES).read_bytes(), (folder / LABELS).read_bytes()
    (folder / IMAGES).write_bytes(whole[:-100])
    assert messages(raw, fatal=True) == [
        f"3/{IMAGES}: {len(whole) - 100} bytes where {len(whole)} are announced; "
        "copy or download it again"
    ]
    (folder / IMAGES).write_bytes(b"<html>not found</html>")
    assert f"3/{IMAGES}: is not an IDX file of images" in refusal(raw)
    (folder / IMAGES).write_bytes(b"")
    assert f"3/{IMAGES}: has 0 bytes and no header" in refusal(raw)
    (folder / IMAGES).write_bytes(whole)
    (folder / LABELS).write_bytes(struct.pack(">2i", 2049, 39) + labels[8:-1])
    assert f"39 labels for the 40 images of {IMAGES}; copy or download it again" in refusal(raw)
    (folder / LABELS).write_bytes(labels[:-1] + b"\x0b")
    assert "has the label 11, but mnist has 0 to 9" in refusal(raw)
    (folder / LABELS).unlink()
    (folder / f"{LABELS}.gz").write_bytes(gzip.compress(labels)[:-12])
    assert f"{LABELS}.gz: cannot be unpacked" in refusal(raw)
    (folder / f"{LABELS}.gz").write_bytes(b"plain")
    assert f"{LABELS}.gz: cannot be unpacked" in refusal(raw)
    (folder / f"{LABELS}.gz").unlink()
    assert f"3/{LABELS}: no such file; download it into {folder}" in refusal(raw)


def test_a_file_that_is_replaced_is_read_again(raw: Path) -> None:
    dataset = MNIST(raw)
    before = dataset.read_image("3", "train/3/00003")
    path = raw / "MNIST/raw/train-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[16:] = bytes(255 - value for value in content[16:])
    fresh = path.with_name("new")
    fresh.write_bytes(content)
    fresh.replace(path)
    assert np.array_equal(dataset.read_image("3", "train/3/00003"), 255 - before)


def test_wrong_roots(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found data/ inside; set dataset\.root to .*/data$"):
        MNIST(tmp_path).categories()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no mnist here; expected MNIST/raw/train-images"):
        MNIST(tmp_path / "empty").categories()
    for root in (raw, raw / "MNIST", raw / "MNIST/raw"):
        with pytest.raises(DataError, match="no fashion_mnist here; expected FashionMNIST/raw"):
            FashionMNIST(root).categories()
    with pytest.raises(DataError, match="no category 'three'"):
        MNIST(raw).scan("three")
    for key in ("train/3/00004", "train/3/3", "train/3/90000", "valid/3/00003", "../x", ""):
        with pytest.raises(DataError, match="no such image"):
            MNIST(raw).read_image("3", key)


def test_fashion_mnist(tmp_path: Path) -> None:
    labels = {"train": [i % 10 for i in range(30)], "t10k": [i % 10 for i in range(40)]}
    write_idx(tmp_path / "FashionMNIST/raw", labels)
    dataset = FashionMNIST(tmp_path)
    assert dataset.categories() == tuple(sorted(dataset.classes))
    samples, problems = dataset.scan("ankle_boot")
    assert problems == ()
    assert next(s.key for s in samples if s.part == "train") == "train/ankle_boot/00009"
    assert dataset.published("bag") == Published(6000, 1000, 9000)
    assert len(find_missing(dataset, "bag", samples)) == 3
    assert len(load_search_split(dataset, "bag", 16, Validation()).train) == 3
    (tmp_path / f"FashionMNIST/raw/{LABELS}").unlink()
    found = [str(p) for p in dataset.scan("bag")[1]]
    assert found == [f"bag/{LABELS}: no such file; download it into {tmp_path}/FashionMNIST/raw"]


def test_fashion_mnist_that_went_wrong(tmp_path: Path) -> None:
    labels = {"train": [i % 10 for i in range(30)], "t10k": [i % 10 for i in range(40)]}
    folder = tmp_path / "zip/FashionMNIST/raw"
    write_idx(folder, labels)
    with pytest.raises(DataError, match=r"found zip/ inside; set dataset\.root to .*/zip$"):
        FashionMNIST(tmp_path).categories()

    def told() -> str:
        with pytest.raises(DataError) as error:
            load_search_split(FashionMNIST(tmp_path / "zip"), "bag", 16, Validation())
        assert "\n" not in str(error.value)
        return str(error.value)

    (folder / "Thumbs.db").write_bytes(b"junk")
    assert FashionMNIST(tmp_path / "zip").scan("bag")[1] == ()
    whole, names = (folder / IMAGES).read_bytes(), (folder / LABELS).read_bytes()
    (folder / IMAGES).write_bytes(whole[:-1])
    assert f"bag/{IMAGES}: {len(whole) - 1} bytes where {len(whole)} are announced" in told()
    (folder / IMAGES).write_bytes(b"<html>not found</html>")
    assert f"bag/{IMAGES}: is not an IDX file of images" in told()
    (folder / IMAGES).write_bytes(whole)
    (folder / LABELS).write_bytes(names[:-1] + b"\x0c")
    assert "has the label 12, but fashion_mnist has 0 to 9" in told()
    (folder / LABELS).rename(folder / "labels")
    assert f"bag/{LABELS}: no such file; download it into {folder}" in told()


def test_the_files_of_the_other_dataset_are_recognised(tmp_path: Path) -> None:
    root = tmp_path / "files"
    write_idx(root, {"t10k": [i % 10 for i in range(10_000)], "train": [0]})
    assert "these are the labels of fashion_mnist; set dataset.name" in refusal(root)
    assert not [p for p in FashionMNIST(root).scan("bag")[1] if "labels of" in str(p)]


# MNIST-M


def test_mnist_m_from_the_archive(raw: Path, picture: Draw) -> None:
    add_archive(raw, picture)
    for root in (raw, raw / "MNIST", raw / "MNIST/raw"):
        dataset = MNIST(root)
        samples, problems = dataset.scan("3")
        assert problems == ()
        found = [s for s in samples if s.domain]
        assert {(s.domain, s.part, s.origin) for s in found} == {("mnist_m", "test", None)}
        assert len(found) == 20
        assert found[0].key == "mnist_m/mnist_m_test/00000000.png"
        assert [s.key[-6:-4] for s in found if not s.anomalous] == ["03", "13"]
        expected = np.asarray(picture(13, (32, 32)))
        assert np.array_equal(
            dataset.read_image("3", "mnist_m/mnist_m_test/00000013.png"), expected
        )
        held = load_test_split(dataset, "3", 16, Validation())
        assert Counter(held.domains) == {"": 20, "mnist_m": 20}
    time.sleep(0.15)
    before = MNIST(raw).fingerprint("3")
    (raw / "mnist_m/mnist_m_test/00000000.png").touch()
    time.sleep(0.15)
    assert MNIST(raw).fingerprint("3") not in {before, None}
    for key in ("mnist_m/mnist_m_test/../../x.png", "mnist_m/../../x", "mnist_m/"):
        with pytest.raises(DataError):
            MNIST(raw).read_image("3", key)


def test_mnist_m_beside_png_folders(png: Path, picture: Draw) -> None:
    add_archive(png.parent, picture)
    dataset = MNIST(png)
    assert len(shifted(png)) == 20
    assert dataset.read_image("3", "testing/9/2.png").shape == (28, 28, 3)
    assert Counter(load_test_split(dataset, "3", 16, Validation()).domains) == {
        "": 20,
        "mnist_m": 20,
    }


def test_mnist_m_archive_that_went_wrong(raw: Path, picture: Draw) -> None:
    folder = add_archive(raw, picture)
    (folder / "mnist_m_test/Thumbs.db").write_bytes(b"junk")
    assert MNIST(raw).scan("3")[1] == ()
    save(picture(77, (32, 32)), folder / "mnist_m_test/extra.png")
    assert messages(raw, fatal=False) == [
        "3/mnist_m/mnist_m_test: 1 images ignored, they are not in mnist_m_test_labels.txt: "
        "extra.png"
    ]
    (folder / "mnist_m_test/00000004.png").unlink()
    assert messages(raw, fatal=True) == [
        "3/mnist_m/mnist_m_test: 1 of the 20 images of mnist_m_test_labels.txt are missing "
        "(00000004.png); unpack the archive again"
    ]
    labels = folder / "mnist_m_test_labels.txt"
    for bad in ("../../x.png 3", "00000000.png", "00000000.png 12", "3 a"):
        labels.write_text(f"00000001.png 1\n{bad}\n")
        assert any("line 2 is" in m and "unpack it" in m for m in messages(raw, fatal=True))
    labels.write_bytes(b"\xff\xfe")
    assert "mnist_m_test_labels.txt: cannot be read" in refusal(raw)
    labels.unlink()
    assert "mnist_m_test_labels.txt: missing; unpack the whole archive" in refusal(raw)
    shutil.rmtree(folder / "mnist_m_test")
    assert "3/mnist_m/mnist_m_test: missing; unpack the whole archive" in refusal(raw)


def test_mnist_m_from_a_rebuilt_file(raw: Path) -> None:
    path = add_npz(raw)
    dataset = MNIST(raw)
    samples, problems = dataset.scan("3")
    assert problems == ()
    found = [s for s in samples if s.domain]
    assert len(found) == 20
    assert {s.domain for s in found} == {"mnist_m-rebuilt"}
    by_key = {s.key: s for s in samples}
    for sample in found:
        origin = by_key[str(sample.origin)]
        assert (origin.part, origin.defect, origin.domain) == ("test", sample.defect, "")
        assert origin.key[-5:] == sample.key[-5:]
    with np.load(path) as file:
        image = file["test_images"][6]
    assert np.array_equal(dataset.read_image("3", "mnist_m-rebuilt/3/00006"), image)
    # A digit on a photo is held out only if the digit is.
    split = load_search_split(dataset, "3", 16, Validation())
    held = load_test_split(dataset, "3", 16, Validation())
    numbers = {key.rpartition("/")[2] for key in split.validation_keys}
    there = [k for k, domain in zip(held.keys, held.domains, strict=True) if domain]
    assert there
    assert not numbers & {key.rpartition("/")[2] for key in there}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_labels": np.zeros(20, np.uint8)}, "may be of training images; rebuild it"),
        ({"test_mnist_index": np.arange(20) + 1}, "20 of 20 test_labels are not those of MNIST"),
        ({"test_mnist_index": np.arange(20) * 100}, "test_labels are not those of MNIST's test"),
        ({"test_labels": np.full(20, 11)}, "test_labels go from 11 to 11; rebuild it"),
        ({"test_labels": np.zeros(3, np.uint8)}, "test_labels is uint8 (3,), not one whole"),
        ({"test_images": np.zeros((20, 28, 28), np.uint8)}, "not uint8 (N, 28, 28, 3); rebuild"),
        ({"test_images": np.array([{}] * 20)}, "cannot be read"),
    ],
)
def test_rebuilt_file_that_does_not_fit(
    raw: Path, changes: dict[str, np.ndarray], message: str
) -> None:
    add_npz(raw, **changes)
    found = refusal(raw)
    assert "3/mnist_m_rebuilt.npz: " in found
    assert message in found


def test_rebuilt_file_that_is_damaged(raw: Path) -> None:
    path = add_npz(raw)
    path.write_bytes(path.read_bytes()[:3000])
    assert "3/mnist_m_rebuilt.npz: cannot be read" in refusal(raw)
    assert "copy it again or remove it" in refusal(raw)
    np.savez(path, images=np.zeros(3))
    assert "test_images" in refusal(raw)


def test_published_archive_goes_before_a_rebuilt_one(raw: Path, picture: Draw) -> None:
    add_npz(raw)
    assert {s.domain for s in shifted(raw)} == {"mnist_m-rebuilt"}
    add_archive(raw, picture)
    assert {s.domain for s in shifted(raw)} == {"mnist_m"}


@pytest.mark.parametrize("layout", ["raw", "png"])
@pytest.mark.parametrize("folder", ["BSDS500/data/images/test", "photos"])
def test_mnist_m_from_photos(
    layout: str, folder: str, request: pytest.FixtureRequest, picture: Draw
) -> None:
    root = request.getfixturevalue(layout)
    for number in range(3):
        save(picture(number, (60, 40)), root / folder / f"{number}.png")
    dataset = MNIST(root)
    samples, problems = dataset.scan("3")
    assert problems == ()
    found = [s for s in samples if s.domain]
    assert {s.domain for s in found} == {"mnist_m-rebuilt"}
    assert len(found) == 40
    by_key = {s.key: s for s in samples}
    photos = [np.asarray(picture(number, (60, 40))) for number in range(3)]
    for sample in found[::7]:
        image = dataset.read_image("3", sample.key)
        digit = dataset.read_image("3", by_key[str(sample.origin)].key) > 0
        part = np.where(digit, 255 - image, image)
        windows = [np.lib.stride_tricks.sliding_window_view(p, (28, 28, 3)) for p in photos]
        assert any((w == part).all(axis=(-1, -2, -3)).any() for w in windows)
        # Made again, it is the same.
        assert np.array_equal(MNIST(root).read_image("3", sample.key), image)
    assert len({dataset.file_digest("3", s.key) for s in found}) == 40
    assert len(load_test_split(dataset, "3", 16, Validation()).labels) == 40


def test_photos_that_cannot_be_used(raw: Path, picture: Draw) -> None:
    (raw / "photos").mkdir()
    assert "3/photos: holds no image" in refusal(raw)
    save(picture(1, (60, 20)), raw / "photos/small.png")
    assert "small.png: is 60x20, too small for MNIST-M to be made from it; remove it" in refusal(
        raw
    )


def test_photos_beside_png_files_without_numbers(png: Path, picture: Draw) -> None:
    save(picture(1, (60, 40)), png / "photos/a.png")
    (png / "testing/4/7.png").rename(png / "testing/4/x.png")
    assert [("3/photos: ignored: MNIST-M is made" in m) for m in messages(png, fatal=False)] == [
        True
    ]
    assert shifted(png) == []


def test_large_photos_are_reduced(tmp_path: Path, picture: Draw) -> None:
    path = save(picture(1, (1924, 962)), tmp_path / "large.png")
    assert mnist_m._reduced(path).shape == (240, 481, 3)


def test_real_mnist_and_rebuilt_mnist_m(shared_data: Path) -> None:
    dataset = MNIST(shared_data)
    for digit in ("0", "7"):
        samples, problems = dataset.scan(digit)
        assert problems == ()
        assert find_missing(dataset, digit, samples) == []
    assert dataset.published("7") == Published(6265, 1028, 8972)
    moved = [s for s in samples if s.domain]
    assert len(moved) == 5000
    # The recipe, undone: where there is no digit both are the photo, elsewhere it is inverted.
    for sample in moved[::500]:
        assert dataset.read_image("7", sample.key).shape == (28, 28, 3)
        assert str(sample.origin).startswith(f"test/{sample.key.split('/')[1]}/")
    assert sum(s.part == "train" for s in samples) == 6265
    for part in ("train", "test"):
        one = next(s for s in samples if s.part == part and not s.domain)
        assert dataset.read_image("7", one.key).max() > 200
