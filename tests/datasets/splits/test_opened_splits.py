"""What a search is given and what only confirm opens: the right images, built once, shut off."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomtune.datasets.folder import Folder
from anomtune.datasets.io import store
from anomtune.datasets.splits.held_out import load_test_split
from anomtune.datasets.splits.split import load_search_split
from anomtune.datasets.splits.validation import Validation
from anomtune.datasets.synthetic import Synthetic
from anomtune.errors import DataError

pytestmark = pytest.mark.slow

Draw = Callable[..., Image.Image]


def test_search_split_holds_the_right_images(tree: Path) -> None:
    dataset, validation = Folder(tree), Validation(seed=3)
    search = load_search_split(dataset, "part", 8, validation)
    held = load_test_split(dataset, "part", 8, validation)
    assert search.train.shape == (6, 8, 8, 3)
    assert search.validation.shape == (6, 8, 8, 3)
    assert search.validation_labels.dtype == np.int8
    assert Counter(search.validation_defects) == {"good": 2, "scratch": 2, "dent": 2}
    assert (search.n_test_normal, search.n_test_anomalous) == (2, 3)
    assert sorted(held.labels) == [0, 0, 1, 1, 1]
    assert held.split_hash == search.split_hash
    assert not set(held.keys) & set(search.validation_keys)
    assert (held.masks.drawn == (held.labels == 1)).all()
    assert [mask.any() for mask in held.masks] == held.masks.drawn.tolist()
    for keys, images, labels in (
        (search.validation_keys, search.validation, search.validation_labels),
        (held.keys, held.images, held.labels),
    ):
        for key, image, label in zip(keys, images, labels, strict=True):
            original = Image.open(tree / "part" / key).resize((8, 8), Image.Resampling.BILINEAR)
            assert (np.asarray(original) == image).all()
            assert bool(label) == ("/good/" not in key)


@pytest.mark.parametrize("protocol", ["labelled", "synthetic"])
def test_search_split_cannot_reach_the_test(tree: Path, protocol: Any) -> None:
    dataset, validation = Folder(tree), Validation(protocol=protocol)
    search = load_search_split(dataset, "part", 8, validation)
    secret = load_test_split(dataset, "part", 8, validation).images
    for name in (f.name for f in fields(search)):
        value = getattr(search, name)
        if isinstance(value, np.memmap):
            files = b"".join(p.read_bytes() for p in Path(str(value.filename)).parent.iterdir())
            assert not any(image.tobytes() in files for image in secret)
    assert not any(image.tobytes() in pickle.dumps(search) for image in secret)


def test_renamed_images_give_the_same_split(tree: Path, tmp_path: Path) -> None:
    first = load_search_split(Folder(tree), "part", 8, Validation())
    (tree / "part/test/dent").rename(tree / "part/test/abrasion")
    (tree / "part/ground_truth/dent").rename(tree / "part/ground_truth/abrasion")
    for i in range(6):
        good = tree / "part/train/good"
        (good / f"{i:03d}.png").rename(good / f"{9 - i}x.png")
    again = load_search_split(Folder(tree), "part", 8, Validation())
    assert again.split_hash == first.split_hash
    assert (again.train == first.train).all()
    assert (again.validation == first.validation).all()


def test_training_images_lie_on_the_disk_once(
    tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocols = [Validation(), Validation(seed=1), Validation(protocol="test")]
    splits = [load_search_split(Folder(tree), "part", 8, each) for each in protocols]
    (file,) = (cache / "categories").glob("*/training.npy")
    links = list((cache / "splits").glob("*/train.npy"))
    assert len(links) == 3
    assert all(link.samefile(file) for link in links)
    left = load_search_split(Folder(tree), "part", 8, Validation(protocol="synthetic"))
    rows = {row.tobytes() for row in splits[0].train}
    assert {row.tobytes() for row in left.train} < rows, "what is held out is not there"

    def cannot(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "hardlink_to", cannot)
    copied = load_search_split(Folder(tree), "part", 8, Validation(seed=2))
    assert (copied.train == splits[0].train).all(), "a file system without links"


def test_second_load_builds_nothing(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_search_split(Folder(tree), "part", 8, Validation(protocol="synthetic"))

    def forbidden(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(store, "_build", forbidden)
    again = load_search_split(Folder(tree), "part", 8, Validation(protocol="synthetic"))
    assert (again.validation == first.validation).all()
    assert again.validation_keys == first.validation_keys


def test_synthetic_split(tree: Path, cache: Path) -> None:
    validation = Validation(protocol="synthetic")
    search = load_search_split(Folder(tree), "part", 24, validation)
    assert len(search.train) == 3
    assert len(search.validation) == 3 * (1 + 3)
    assert Counter(search.validation_labels.tolist()) == {0: 3, 1: 9}
    assert (search.n_test_normal, search.n_test_anomalous) == (4, 7)
    assert len(set(search.validation_defects)) == 7
    for key, image, label in zip(
        search.validation_keys, search.validation, search.validation_labels, strict=True
    ):
        source = Image.open(tree / "part" / key.split("#")[0]).resize((24, 24), 2)
        assert bool((np.asarray(source) != image).any()) == bool(label)
    shutil.rmtree(cache)
    again = load_search_split(Folder(tree), "part", 24, validation)
    assert (again.validation == search.validation).all(), "damage is deterministic"
    other = load_search_split(Folder(tree), "part", 24, Validation(protocol="synthetic", seed=1))
    assert other.split_hash != search.split_hash


def test_damage_that_a_method_trains_on_is_left_out(tree: Path) -> None:
    dataset = Folder(tree)
    plain, *without = (
        load_search_split(
            dataset, "part", 24, Validation(protocol="synthetic", without_damage=names)
        )
        for names in ((), ("elastic", "occlusion"), ("occlusion", "elastic", "occlusion"))
    )
    assert {"elastic", "occlusion"} <= set(plain.validation_defects)
    assert not {"elastic", "occlusion"} & set(without[0].validation_defects)
    assert Counter(without[0].validation_labels.tolist()) == {0: 3, 1: 9}
    assert without[0].split_hash == without[1].split_hash != plain.split_hash
    held_out = load_test_split(
        dataset, "part", 24, Validation(protocol="synthetic", without_damage=("elastic",))
    )
    assert held_out.split_hash not in {plain.split_hash, without[0].split_hash}


def test_synthetic_works_without_a_test_folder(tree: Path) -> None:
    shutil.rmtree(tree / "part/test")
    shutil.rmtree(tree / "part/ground_truth")
    search = load_search_split(Folder(tree), "part", 16, Validation(protocol="synthetic"))
    assert (search.n_test_normal, search.n_test_anomalous) == (0, 0)
    with pytest.raises(DataError, match="no test images to confirm on"):
        load_test_split(Folder(tree), "part", 16, Validation(protocol="synthetic"))
    with pytest.raises(DataError, match=r"use validation\.protocol: synthetic"):
        load_search_split(Folder(tree), "part", 16, Validation())


def test_protocol_test_has_no_held_out_images(tree: Path) -> None:
    search = load_search_split(Folder(tree), "part", 8, Validation(protocol="test"))
    assert len(search.validation) == 11
    assert (search.n_test_normal, search.n_test_anomalous) == (0, 0)
    with pytest.raises(DataError, match="holds no test image out"):
        load_test_split(Folder(tree), "part", 8, Validation(protocol="test"))


def test_leaks_reach_the_search_split(tree: Path) -> None:
    part = tree / "part"
    shutil.copy(part / "train/good/000.png", part / "test/good/leak.png")
    search = load_search_split(Folder(tree), "part", 8, Validation())
    assert len(search.dropped) == 1
    assert "part/test/good/leak.png: same pixels as the training image" in search.dropped[0]
    assert "test/good/leak.png" not in search.validation_keys


@pytest.mark.parametrize("opening", ["first", "cached"])
def test_warnings_of_the_listing_reach_the_search_split(tree: Path, opening: str) -> None:
    (tree / "part/train/good/0.gif").write_bytes(b"webp")
    for _ in range(2 if opening == "cached" else 1):
        search = load_search_split(Folder(tree), "part", 8, Validation())
    assert search.warnings == (
        "part/train/good: '0.gif' ignored: not a PNG, JPEG, BMP, TIFF or WebP file",
    )
    assert search.dropped == ()


def test_copies_that_fall_back_to_one_mechanism_keep_keys_of_their_own(tree: Path) -> None:
    for i in range(6):
        flat = Image.new("RGB", (20, 16), (20 * i + 60,) * 3)
        flat.save(tree / f"part/train/good/{i:03d}.png")
    search = load_search_split(Folder(tree), "part", 32, Validation(protocol="synthetic"))
    assert Counter(search.validation_defects)["occlusion"] > 3
    assert len(set(search.validation_keys)) == len(search.validation_keys)


def test_nothing_in_the_cache_is_a_pickle(tree: Path, cache: Path) -> None:
    load_search_split(Folder(tree), "part", 8, Validation(protocol="synthetic"))
    for path in cache.rglob("*"):
        if path.suffix == ".npy":
            np.load(path, allow_pickle=False)
        elif path.suffix == ".json":
            json.loads(path.read_text())


def test_battery_weld(real: Callable[[str], Path]) -> None:
    root = real("battery_weld")
    search = load_search_split(Folder(root), "battery_weld", 64, Validation())
    assert (len(search.train), len(search.validation)) == (37, 60)
    assert (search.n_test_normal, search.n_test_anomalous) == (14, 47)


def test_another_input_size_shows_the_same_damage(tmp_path: Path) -> None:
    """Methods that work at another size are judged by the same damaged images."""
    dataset = Synthetic()
    validation = Validation(protocol="synthetic")
    same, large, small = (
        load_search_split(dataset, "washer", 64, validation, input_size=side)
        for side in (None, 96, 32)
    )
    assert same.split_hash == large.split_hash == small.split_hash
    assert same.validation_keys == large.validation_keys == small.validation_keys
    assert large.validation.shape[1:] == (96, 96, 3)
    for other in (large, small):
        assert (other.validation_labels == same.validation_labels).all()
        side = other.validation.shape[1]
        for index in np.flatnonzero(same.validation_labels):
            twin = int(np.flatnonzero(same.validation_labels[:index] == 0)[-1])
            change = np.abs(other.validation[index].astype(int) - other.validation[twin]).max(2)
            known = np.abs(same.validation[index].astype(int) - same.validation[twin]).max(2)
            resized = Image.fromarray(known.astype(np.uint8)).resize((side, side))
            assert np.corrcoef(np.asarray(resized).ravel(), change.ravel())[0, 1] > 0.8
            if side > 64:  # at half the size fine damage averages out
                assert change.max() > known.max() / 2


def test_another_input_size_shows_sharp_images() -> None:
    dataset = Synthetic()
    direct = load_search_split(dataset, "washer", 96, Validation(protocol="synthetic"))
    other = load_search_split(
        dataset, "washer", 64, Validation(protocol="synthetic"), input_size=96
    )
    normal = direct.validation_labels == 0
    assert (direct.train == other.train).all()
    assert (direct.validation[normal] == other.validation[normal]).all()
