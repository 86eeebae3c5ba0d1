"""MNIST-M beside MNIST: the archive, rebuilt files and photos, and what goes wrong with them."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomtune.datasets.base import Sample
from anomtune.datasets.io import mnist_m
from anomtune.datasets.mnist import MNIST
from anomtune.datasets.splits.held_out import load_test_split
from anomtune.datasets.splits.split import load_search_split
from anomtune.datasets.splits.validation import Validation
from anomtune.errors import DataError
from tests.datasets.conftest import save
from tests.datasets.mnist_files import messages, refusal, write_png, write_raw

pytestmark = pytest.mark.slow

Draw = Callable[..., Image.Image]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_raw(tmp_path / "data")


@pytest.fixture
def png(tmp_path: Path) -> Path:
    return write_png(tmp_path / "mnist_png")


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
