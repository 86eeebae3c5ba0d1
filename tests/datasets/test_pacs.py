"""PACS: three layouts, who trains and who tests, and downloads that went wrong."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from anomtune.datasets.base import Published
from anomtune.datasets.pacs import PACS
from anomtune.datasets.splits.audit import find_missing
from anomtune.datasets.splits.held_out import load_test_split
from anomtune.datasets.splits.split import load_search_split
from anomtune.datasets.splits.validation import Validation
from anomtune.datasets.testing import check_dataset
from anomtune.errors import DataError
from tests.datasets.conftest import save

pytestmark = pytest.mark.slow

Draw = Callable[..., Image.Image]
CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
DOMAINS = ("photo", "art_painting", "cartoon", "sketch")


def messages(root: Path, *, fatal: bool, category: str = "dog") -> list[str]:
    return [str(p) for p in PACS(root).scan(category)[1] if p.fatal == fatal]


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as error:
        load_search_split(PACS(root), "dog", 16, Validation())
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def tree(tmp_path: Path, picture: Draw) -> Path:
    """21 photos per class, 2 images of the others."""
    root = tmp_path / "pacs"
    numbers = iter(range(10_000))
    for domain in DOMAINS:
        for kind in CLASSES:
            for index in range(21 if domain == "photo" else 2):
                save(picture(next(numbers)), root / domain / kind / f"pic_{index:03d}.jpg")
    return root


@pytest.fixture
def listed(tree: Path) -> Path:
    """With the official kind of lists: the photos 18 to 20 and one of each other test."""
    for domain in DOMAINS:
        rows: dict[str, list[str]] = {"train": [], "crossval": []}
        for number, kind in enumerate(CLASSES, 1):
            count = 21 if domain == "photo" else 2
            for index in range(count):
                late = index >= (18 if domain == "photo" else 1)
                row = f"{domain}/{kind}/pic_{index:03d}.jpg {number}\r\n"
                rows["crossval" if late else "train"].append(row)
        (tree / "splits").mkdir(exist_ok=True)
        for part, lines in {**rows, "test": rows["train"] + rows["crossval"]}.items():
            (tree / "splits" / f"{domain}_{part}_kfold.txt").write_text("".join(lines))
    return tree


def test_without_lists_a_tenth_of_the_photos_tests(tree: Path) -> None:
    dataset = PACS(tree)
    assert dataset.categories() == CLASSES
    assert dataset.one_class
    samples, problems = dataset.scan("horse")
    assert [p.fatal for p in problems] == [False] * 3  # the counts of the other domains
    assert [s.key for s in samples] == sorted(s.key for s in samples)
    train = [s for s in samples if s.part == "train"]
    assert {s.key.split("/")[1] for s in train} == {"horse"}
    assert len(train) == 19
    here = [s for s in samples if s.part == "test" and not s.domain]
    assert Counter(s.defect for s in here) == {
        **{kind: 2 for kind in CLASSES if kind != "horse"},
        "good": 2,
    }
    shifted = Counter(s.domain for s in samples if s.domain)
    assert shifted == {"art_painting": 14, "cartoon": 14, "sketch": 14}
    assert all((s.defect == "good") == ("/horse/" in s.key) for s in samples)
    assert len({s.key for s in samples}) == len(samples)
    # Every photo tests for all categories or trains for its own.
    tested = {s.key for s in here}
    for kind in CLASSES:
        listing = dataset.scan(kind)[0]
        assert {s.key for s in listing if s.part == "test" and not s.domain} == tested
        assert not tested & {s.key for s in listing if s.part == "train"}


def test_the_split_of_photos_does_not_hang_on_other_files(tree: Path) -> None:
    def tested() -> set[str]:
        return {s.key for s in PACS(tree).scan("dog")[0] if s.part == "test" and not s.domain}

    before = tested()
    names = [f"pic_{index:03d}.jpg" for index in range(21)]
    chosen = sorted(names, key=lambda n: hashlib.blake2b(n.encode(), digest_size=16).digest())[:2]
    assert {f"photo/{kind}/{name}" for kind in CLASSES for name in chosen} == before
    images = {f"photo/dog/{path.name}" for path in (tree / "photo/dog").iterdir()}
    (tree / min(images - before)).unlink()
    assert tested() == before


def test_split_keeps_domains_apart(tree: Path) -> None:
    dataset = PACS(tree)
    split = load_search_split(dataset, "dog", 16, Validation())
    assert split.train.shape == (19, 16, 16, 3)
    assert all(key.startswith("photo/") for key in split.validation_keys)
    held = load_test_split(dataset, "dog", 16, Validation())
    assert Counter(held.domains) == {"": 7, "art_painting": 14, "cartoon": 14, "sketch": 14}
    assert not set(held.keys) & set(split.validation_keys)


def test_with_lists_the_protocol_is_that_of_gnl(listed: Path) -> None:
    dataset = PACS(listed)
    samples, problems = dataset.scan("dog")
    assert problems == ()
    assert [s.key for s in samples if s.part == "train"] == [
        f"photo/dog/pic_{index:03d}.jpg" for index in range(18)
    ]
    tested = Counter((s.domain, s.key.split("/")[1]) for s in samples if s.part == "test")
    assert tested == {
        (domain.replace("photo", ""), kind): 3 if domain == "photo" else 1
        for domain in DOMAINS
        for kind in CLASSES
    }
    assert dataset.published("dog") is None


@pytest.mark.parametrize("inside", ["kfold", "images"])
def test_lists_beside_the_folder_of_images(listed: Path, inside: str) -> None:
    (listed / inside).mkdir()
    for domain in DOMAINS:
        (listed / domain).rename(listed / inside / domain)
    expected = PACS(listed).scan("dog")
    assert expected[1] == ()
    assert PACS(listed / inside).scan("dog") == expected
    assert sum(s.part == "train" for s in expected[0]) == 18
    assert PACS(listed).read_image("dog", expected[0][0].key).shape == (16, 20, 3)
    time.sleep(0.15)
    assert PACS(listed).fingerprint("dog") is not None


def test_tree_of_the_code_of_gnl(tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "shift"
    (root / "train").mkdir(parents=True)
    (root / "val/photo").mkdir(parents=True)
    for domain in DOMAINS[1:]:
        (tree / domain).rename(root / "val" / domain)
    (tree / "photo").rename(root / "train/photo")
    for kind in CLASSES:
        for index in (3, 4):
            path = root / f"train/photo/{kind}/pic_{index:03d}.jpg"
            (root / f"val/photo/{kind}").mkdir(exist_ok=True)
            path.rename(root / f"val/photo/{kind}/{path.name}")
    samples, problems = PACS(root).scan("dog")
    assert problems == ()
    counts = Counter((s.part, s.domain) for s in samples)
    assert counts == {
        ("train", ""): 19,
        ("test", ""): 14,
        ("test", "art_painting"): 14,
        ("test", "cartoon"): 14,
        ("test", "sketch"): 14,
    }
    assert PACS(root).published("dog") is None
    shutil.rmtree(root / "val/photo")
    assert messages(root, fatal=True) == [
        "dog/val/photo: no such folder; nothing can train or validate"
    ]


def test_art_is_accepted_for_art_painting(listed: Path) -> None:
    (listed / "art_painting").rename(listed / "art")
    samples, problems = PACS(listed).scan("dog")
    assert problems == ()
    assert sum(s.domain == "art_painting" for s in samples) == 7


def test_downloads_that_went_wrong(tree: Path) -> None:
    plain = messages(tree, fatal=False)
    assert plain[0] == "dog/art_painting: 14 of 2048 images; copy the folder again"
    (tree / "photo/dog/.DS_Store").write_bytes(b"junk")
    (tree / "Thumbs.db").write_bytes(b"junk")
    (tree / "photo/dog/pic_000.jpg").rename(tree / "photo/dog/pic_000.JPG")
    assert messages(tree, fatal=False) == plain
    assert messages(tree, fatal=True) == []
    (tree / "extra/dog").mkdir(parents=True)
    (tree / "photo/cat").mkdir()
    assert {*messages(tree, fatal=False)} - {*plain} == {
        "dog/extra: ignored, it is none of the domains of PACS",
        f"dog/photo/cat: ignored, it is none of the classes ({', '.join(CLASSES)})",
    }
    shutil.rmtree(tree / "sketch")
    assert "dog/sketch: no such folder, so nothing is tested on this domain" in messages(
        tree, fatal=False
    )
    (tree / "cartoon/dog").rename(tree / "cartoon/Dog")
    assert "dog/cartoon/Dog: rename to dog" in refusal(tree)
    (tree / "cartoon/Dog").rename(tree / "cartoon/dog")
    shutil.rmtree(tree / "photo/house")
    assert "dog/photo/house: no such folder; copy the images of this class" in refusal(tree)
    shutil.rmtree(tree / "photo")
    assert "dog/photo: no such folder" in refusal(tree)


def test_half_copied_image(tree: Path) -> None:
    path = tree / "sketch/guitar/pic_001.jpg"
    path.write_bytes(path.read_bytes()[:100])
    assert str(path) in refusal(tree)


def test_lists_that_do_not_fit(listed: Path) -> None:
    (listed / "photo/dog/pic_020.jpg").unlink()
    assert messages(listed, fatal=True) == [
        "dog/photo: 1 of the 21 images of photo_crossval_kfold.txt are missing "
        "(photo/dog/pic_020.jpg); copy the folder again"
    ]
    path = listed / "splits/sketch_crossval_kfold.txt"
    rows = path.read_text()
    for bad in (
        "sketch/dog/../../../etc/passwd 1\n",
        "sketch/cat/x.png 1\n",
        "/etc/passwd 1\n",
        "photo/dog/x.jpg 1\n",
    ):
        path.write_text(bad + rows)
        assert any("line 1 is" in m and "copy it again" in m for m in messages(listed, fatal=True))
    path.write_text("")
    assert any("sketch_crossval_kfold.txt: is empty" in m for m in messages(listed, fatal=True))
    path.write_bytes(b"\xff\xff")
    assert any(
        "sketch_crossval_kfold.txt: cannot be read" in m for m in messages(listed, fatal=True)
    )
    path.write_text(rows.replace("pic_001.jpg 3", "pic_001.jpg 2"))
    assert messages(listed, fatal=False) == [
        "dog/sketch_crossval_kfold.txt: 1 labels are not those of the folders, which count: "
        "sketch/giraffe/pic_001.jpg"
    ]
    path.unlink()
    assert any(
        "sketch_crossval_kfold.txt: no such list, while there is art" in m
        for m in messages(listed, fatal=True)
    )


def test_photos_in_no_list_are_named(listed: Path, picture: Draw) -> None:
    save(picture(99_999), listed / "photo/dog/new.jpg")
    assert messages(listed, fatal=False) == [
        "dog/photo: 1 images ignored, they are in no list: photo/dog/new.jpg"
    ]


def test_wrong_roots(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found pacs/ inside; set dataset.root to .*/pacs$"):
        PACS(tmp_path).categories()
    with pytest.raises(DataError, match="no pacs here; expected <domain>/<class>"):
        PACS(tree / "photo").categories()
    with pytest.raises(DataError, match="no such folder"):
        PACS(tmp_path / "absent").categories()
    with pytest.raises(DataError, match=r"no category 'hors'; .*did you mean 'horse'"):
        PACS(tree).scan("hors")
    for key in ("../../etc/passwd", "/etc/passwd", ""):
        with pytest.raises(DataError, match="is not the path of an image"):
            PACS(tree).read_image("dog", key)


def test_real_pacs(shared_data: Path) -> None:
    dataset = PACS(shared_data / "pacs_96px")
    samples, problems = dataset.scan("dog")
    assert problems == ()
    assert find_missing(dataset, "dog", samples) == []
    assert dataset.published("dog") == Published(170, 19, 148)
    shifted = Counter(s.domain for s in samples)
    assert (shifted["art_painting"], shifted["cartoon"], shifted["sketch"]) == (2048, 2344, 3929)
    photos = {s.key for kind in CLASSES for s in dataset.scan(kind)[0] if not s.domain}
    assert len(photos) == 1670
    for sample in samples[:: len(samples) // 20]:
        assert dataset.read_image("dog", sample.key).shape == (96, 96, 3)


@pytest.mark.parametrize("files", ["tree", "listed"])
def test_keeps_the_contract(files: str, request: pytest.FixtureRequest) -> None:
    check_dataset(PACS(request.getfixturevalue(files)))
