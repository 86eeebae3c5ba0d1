"""CIFAR-10: PNG folders, binary batches, corrupted copies, and downloads that went wrong."""

from __future__ import annotations

import pickle
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomtune.datasets.base import Published
from anomtune.datasets.cifar import CIFAR10
from anomtune.datasets.splits.audit import find_missing
from anomtune.datasets.splits.held_out import load_test_split
from anomtune.datasets.splits.split import load_search_split
from anomtune.datasets.splits.validation import Validation
from anomtune.datasets.testing import check_dataset
from anomtune.errors import DataError
from tests.datasets.conftest import save

pytestmark = pytest.mark.slow

Draw = Callable[..., Image.Image]
CLASSES = CIFAR10.classes
N = 12  # records in a batch of the tests


def messages(root: Path, *, fatal: bool) -> list[str]:
    return [str(p) for p in CIFAR10(root).scan("cat")[1] if p.fatal == fatal]


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as error:
        load_search_split(CIFAR10(root), "cat", 16, Validation())
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def png(tmp_path: Path, picture: Draw) -> Path:
    """``data/cifar10`` with 3 training and 4 test images per class."""
    numbers = iter(range(1000))
    for part, count in (("train", 3), ("test", 4)):
        for kind in CLASSES:
            for index in range(count):
                path = tmp_path / f"data/cifar10/{part}/{kind}/{index:04d}.png"
                save(picture(next(numbers), (32, 32)), path)
    return tmp_path / "data"


@pytest.fixture
def corrupted(png: Path) -> Path:
    """With two corrupted copies."""
    for name in ("brightness", "defocus_blur"):
        for path in (png / "cifar10/test").rglob("*.png"):
            with Image.open(path) as image:
                changed = image.point([value // 2 + len(name) for value in range(256)] * 3)
            save(changed, png / f"cifar10_5_{name}/test" / path.parent.name / path.name)
    return png


@pytest.fixture
def batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``bin/cifar-10-batches-bin`` with batches of `N` records."""
    monkeypatch.setattr("anomtune.datasets.cifar._PER_BATCH", N)
    folder = tmp_path / "bin/cifar-10-batches-bin"
    folder.mkdir(parents=True)
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    rng = np.random.default_rng(0)
    for turn, name in enumerate(names):
        records = rng.integers(0, 256, (N, 3073), dtype=np.uint8)
        records[:, 0] = (np.arange(N) + turn) % 10
        records[:, 1:1025], records[:, 2049:] = 200, 10  # red and blue
        (folder / name).write_bytes(records.tobytes())
    (folder / "batches.meta.txt").write_text("airplane\n")
    return tmp_path / "bin"


def test_png_folders(png: Path) -> None:
    dataset = CIFAR10(png)
    assert dataset.categories() == CLASSES
    assert dataset.one_class
    samples, problems = dataset.scan("cat")
    assert problems == ()
    assert CIFAR10(png / "cifar10").scan("cat") == (samples, problems)
    assert [s.key for s in samples if s.part == "train"] == [
        f"train/cat/{i:04d}.png" for i in range(3)
    ]
    tested = Counter(s.defect for s in samples if s.part == "test")
    assert tested == {**{kind: 4 for kind in CLASSES if kind != "cat"}, "good": 4}
    assert {s.mask for s in samples} == {None}
    assert dataset.read_image("cat", "test/dog/0001.png").shape == (32, 32, 3)
    split = load_search_split(dataset, "cat", 16, Validation())
    assert split.train.shape == (3, 16, 16, 3)
    held = load_test_split(dataset, "cat", 16, Validation())
    assert Counter(held.defects) == Counter(split.validation_defects)


def test_counts_are_the_published(png: Path) -> None:
    dataset = CIFAR10(png)
    assert dataset.published("cat") == Published(5000, 1000, 9000)
    found = [str(p) for p in find_missing(dataset, "cat", dataset.scan("cat")[0])]
    assert len(found) == 3
    assert found[0].startswith("cat: 3 of 5000 training images; ")


def test_corrupted_copies_are_shifted_domains(corrupted: Path) -> None:
    dataset = CIFAR10(corrupted)
    samples, problems = dataset.scan("cat")
    assert problems == ()
    domains = Counter(s.domain for s in samples if s.part == "test")
    assert domains == {"": 40, "brightness-5": 40, "defocus_blur-5": 40}
    copy = next(s for s in samples if s.key == "cifar10_5_brightness/test/dog/0002.png")
    assert (copy.domain, copy.origin, copy.defect) == ("brightness-5", "test/dog/0002.png", "dog")
    clean = dataset.read_image("cat", str(copy.origin))
    changed = dataset.read_image("cat", copy.key)
    assert np.array_equal(changed, clean // 2 + len("brightness"))
    held = load_test_split(dataset, "cat", 16, Validation())
    assert Counter(held.domains) == {"": 20, "brightness-5": 20, "defocus_blur-5": 20}
    time.sleep(0.15)
    before = dataset.fingerprint("cat")
    assert before is not None
    (corrupted / copy.key).touch()
    time.sleep(0.15)
    assert dataset.fingerprint("cat") != before


def test_corrupted_copies_that_do_not_fit(corrupted: Path) -> None:
    folder = corrupted / "cifar10_5_brightness/test"
    (folder / "dog/0001.png").rename(folder / "dog/renamed.png")
    assert "1 images have no clean one of the same class and name" in refusal(corrupted)
    (folder / "dog/renamed.png").unlink()
    shutil.rmtree(folder / "frog")
    assert messages(corrupted, fatal=True) == [
        "cat/cifar10_5_brightness/test/frog: no such folder; copy the images of this class again"
    ]
    shutil.rmtree(folder)
    assert "cat/cifar10_5_brightness/test: no such folder; it should hold" in refusal(corrupted)


def test_binary_version(batches: Path) -> None:
    dataset = CIFAR10(batches)
    samples, problems = dataset.scan("cat")
    assert problems == ()
    assert CIFAR10(batches / "cifar-10-batches-bin").scan("cat") == (samples, problems)
    # Class 3 is at 3 in the first batch, at 2 and 12 - 1 in the second, ...
    train = [s.key for s in samples if s.part == "train"]
    labels = np.concatenate([(np.arange(N) + turn) % 10 for turn in range(5)])
    assert train == [f"train/cat/{i:05d}" for i in np.flatnonzero(labels == 3)]
    test_labels = (np.arange(N) + 5) % 10
    assert sorted(s.key for s in samples if s.part == "test") == sorted(
        f"test/{CLASSES[label]}/{i:05d}" for i, label in enumerate(test_labels)
    )
    image = dataset.read_image("cat", train[-1])
    assert image.shape == (32, 32, 3)
    assert (image[..., 0] == 200).all()
    assert (image[..., 2] == 10).all()
    index = int(train[-1][-5:])
    raw = (batches / f"cifar-10-batches-bin/data_batch_{index // N + 1}.bin").read_bytes()
    record = np.frombuffer(raw, np.uint8).reshape(N, 3073)[index % N]
    assert np.array_equal(image[..., 1], record[1025:2049].reshape(32, 32))
    digests = {dataset.file_digest("cat", s.key) for s in samples}
    assert len(digests) == len(samples)
    assert len(load_search_split(dataset, "cat", 16, Validation(protocol="test")).train) == len(
        train
    )
    for key in ("train/cat/00000", "train/cat/99999", "train/cat/3", "train/../cat/00003", "x"):
        with pytest.raises(DataError, match="no such image"):
            dataset.read_image("cat", key)


def test_binary_version_that_went_wrong(batches: Path) -> None:
    folder = batches / "cifar-10-batches-bin"
    (folder / ".DS_Store").write_bytes(b"junk")
    whole = (folder / "data_batch_2.bin").read_bytes()
    (folder / "data_batch_2.bin").write_bytes(whole[:-5])
    assert messages(batches, fatal=True) == [
        f"cat/data_batch_2.bin: {N * 3073 - 5} bytes are no records of 3073; "
        "copy or download it again"
    ]
    (folder / "data_batch_2.bin").write_bytes(whole[:-3073])
    assert "the batches differ in length" in refusal(batches)
    (folder / "data_batch_2.bin").write_bytes(whole)
    last = (folder / "data_batch_5.bin").read_bytes()
    (folder / "data_batch_5.bin").write_bytes(last[:-3073])
    assert messages(batches, fatal=False) == [
        f"cat/data_batch_5.bin: {N - 1} of {N} images; download it again"
    ]
    (folder / "data_batch_5.bin").write_bytes(b"\x0a" + last[1:])
    assert "has the label 10, but CIFAR-10 has 0 to 9" in refusal(batches)
    (folder / "data_batch_5.bin").unlink()
    assert "data_batch_5.bin: no such file; download it into" in refusal(batches)
    (folder / "test_batch.bin").write_bytes(b"")
    assert any("test_batch.bin: 0 bytes" in m for m in messages(batches, fatal=True))


class Trap:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("/nonexistent/never"),)


def test_pickles_are_refused_and_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "c/cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(pickle.dumps(Trap()))
    for root in (folder, folder.parent):
        with pytest.raises(DataError, match=r"pickles.*fetch its binary version \(cifar-10-binary"):
            CIFAR10(root).categories()


def test_png_folders_that_went_wrong(png: Path) -> None:
    (png / "cifar10/test/dog/Thumbs.db").write_bytes(b"junk")
    (png / "cifar10/test/dog/0000.png").rename(png / "cifar10/test/dog/0000.PNG")
    assert CIFAR10(png).scan("cat")[1] == ()
    (png / "cifar10/test/automobile").rename(png / "cifar10/test/car")
    assert "cat/test/automobile: no such folder; copy the images" in refusal(png)
    assert messages(png, fatal=False) == [
        f"cat/test/car: ignored, it is none of the classes ({', '.join(CLASSES)})"
    ]
    (png / "cifar10/test/car").rename(png / "cifar10/test/Automobile")
    assert messages(png, fatal=True) == ["cat/test/Automobile: rename to automobile"]
    shutil.rmtree(png / "cifar10/test")
    assert "cat/test: no such folder; it should hold a folder of images each" in refusal(png)


def test_half_copied_image_and_broken_link(png: Path) -> None:
    path = png / "cifar10/test/dog/0001.png"
    path.write_bytes(path.read_bytes()[:60])
    assert str(path) in refusal(png)
    path.unlink()
    path.symlink_to("nowhere.png")
    assert "cat/test/dog/0001.png: link to a missing file; fetch it" in refusal(png)


def test_wrong_roots(png: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found data/ inside; set dataset\.root to .*/data$"):
        CIFAR10(tmp_path).categories()
    with pytest.raises(DataError, match="no cifar10 here; expected cifar10/"):
        CIFAR10(png / "cifar10/test/dog").categories()
    with pytest.raises(DataError, match="needs a folder"):
        CIFAR10(None)
    with pytest.raises(DataError, match="did you mean 'frog'"):
        CIFAR10(png).scan("frogg")


@pytest.mark.parametrize("files", ["png", "corrupted", "batches"])
def test_keeps_the_contract(files: str, request: pytest.FixtureRequest) -> None:
    check_dataset(CIFAR10(request.getfixturevalue(files)))
