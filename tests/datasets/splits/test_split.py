"""The honest splits: disjoint, complete, decided by content alone, and shut to the test images."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anomtune.datasets.base import Sample
from anomtune.datasets.folder import FolderDataset
from anomtune.datasets.io import store
from anomtune.datasets.splits.split import Validation, load_search_split, load_test_split, split
from anomtune.datasets.synthetic import SyntheticDataset
from anomtune.errors import DataError

Draw = Callable[..., Image.Image]
Listing = tuple[list[Sample], list[str]]


def listing(train: int, **test: int) -> Listing:
    """Invents a category with so many distinct images."""
    samples = [Sample(f"train/good/{i}.png", "train", "good") for i in range(train)]
    for defect, n in test.items():
        samples += [Sample(f"test/{defect}/{i}.png", "test", defect) for i in range(n)]
    return samples, [store.digest("image", i) for i in range(len(samples))]


listings = st.builds(
    listing,
    train=st.integers(2, 12),
    good=st.integers(2, 12),
    crack=st.integers(2, 9),
    dent=st.integers(0, 5),
    hole=st.integers(0, 2),
)
validations = st.builds(
    Validation,
    protocol=st.sampled_from(["labelled", "synthetic", "test"]),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 5),
)


@given(listings, validations)
def test_sides_are_disjoint_and_complete(data: Listing, validation: Validation) -> None:
    samples, hashes = data
    parts = split("c", samples, hashes, validation)
    sides = [list(parts.train), list(parts.validation), list(parts.test)]
    assert sorted(i for side in sides for i in side) == list(range(len(samples)))
    for side in sides:
        assert [hashes[i] for i in side] == sorted(hashes[i] for i in side)
    assert parts.dropped == ()
    part_of = [{samples[i].part for i in side} for side in sides]
    if validation.protocol == "labelled":
        assert part_of == [{"train"}, {"test"}, {"test"}]
    elif validation.protocol == "synthetic":
        assert part_of == [{"train"}, {"train"}, {"test"}]
    else:
        assert part_of == [{"train"}, {"test"}, set()]


@given(listings, validations)
def test_counts_per_defect_type(data: Listing, validation: Validation) -> None:
    samples, hashes = data
    validation = replace(validation, protocol="labelled")
    parts = split("c", samples, hashes, validation)
    chosen = Counter(samples[i].defect for i in parts.validation)
    for defect, n in Counter(s.defect for s in samples if s.part == "test").items():
        expected = min(max(round(validation.fraction * n), 1), n - 1) if n >= 2 else 0
        assert chosen[defect] == expected


@given(listings, validations, st.randoms(use_true_random=False))
def test_invariant_under_renaming_and_reordering(
    data: Listing, validation: Validation, rng: random.Random
) -> None:
    samples, hashes = data
    parts = split("c", samples, hashes, validation)
    order = list(range(len(samples)))
    rng.shuffle(order)
    renamed = [replace(samples[i], key=f"{rng.random()}.jpg") for i in order]
    again = split("other", renamed, [hashes[i] for i in order], validation)
    assert again.split_hash == parts.split_hash
    for a, b in zip(
        parts_of(parts, hashes), parts_of(again, [hashes[i] for i in order]), strict=True
    ):
        assert a == b


def parts_of(parts: Any, hashes: list[str]) -> list[list[str]]:
    return [[hashes[i] for i in side] for side in (parts.train, parts.validation, parts.test)]


def test_an_image_added_to_one_type_leaves_the_others_alone() -> None:
    samples, hashes = listing(3, good=6, crack=6)
    before = split("c", samples, hashes, Validation())
    samples.append(Sample("test/crack/new.png", "test", "crack"))
    hashes.append(store.digest("image", "new"))
    after = split("c", samples, hashes, Validation())
    good = [
        {hashes[i] for i in p.validation if samples[i].defect == "good"} for p in (before, after)
    ]
    assert good[0] == good[1]


def test_split_hash_tells_splits_apart() -> None:
    samples, hashes = listing(8, good=8, crack=8)
    seen = {
        split("c", samples, hashes, Validation(protocol, fraction, seed)).split_hash
        for protocol in ("labelled", "synthetic", "test")
        for fraction in (0.25, 0.5)
        for seed in (0, 1)
    }
    assert len(seen) == 9, "fraction and seed mean nothing to the protocol 'test'"
    relabelled = [replace(s, defect="good") if s.key == "test/crack/0.png" else s for s in samples]
    hashes_of = {
        split("c", x, hashes, Validation("test")).split_hash for x in (samples, relabelled)
    }
    assert len(hashes_of) == 2


def test_the_split_is_pinned() -> None:
    # Other machines and later versions must divide the same images the same way.
    samples, hashes = listing(4, good=4, crack=4)
    parts = split("c", samples, hashes, Validation())
    assert sorted(samples[i].key for i in parts.validation) == PINNED_KEYS
    assert parts.split_hash == PINNED_HASH
    assert split("c", samples, hashes, Validation("synthetic")).split_hash == PINNED_SYNTHETIC


PINNED_KEYS = ["test/crack/1.png", "test/crack/3.png", "test/good/2.png", "test/good/3.png"]
PINNED_HASH = "5309ccc59c05ca5404bffcc8cb11bddf"
PINNED_SYNTHETIC = "eef048f46260ead40452c70eec19ecbe"


def test_leak_between_train_and_test_is_dropped_from_the_test() -> None:
    samples, hashes = listing(3, good=4, crack=4)
    hashes[3] = hashes[0]
    hashes[8] = hashes[1]
    for protocol in ("labelled", "synthetic", "test"):
        parts = split("c", samples, hashes, Validation(protocol))
        used = {*parts.validation, *parts.test}
        assert not {3, 8} & used
        assert len(used | set(parts.train)) == 9
        messages = [str(p) for p in parts.dropped]
        assert messages[0].startswith("c/test/crack/1.png: same pixels as the training image")
        assert "train/good/0.png" in messages[1]
        assert not any(p.fatal for p in parts.dropped)


def test_repeated_test_images_count_once() -> None:
    samples, hashes = listing(3, good=4, crack=4)
    hashes[4] = hashes[5] = hashes[3]
    parts = split("c", samples, hashes, Validation())
    used = {*parts.validation, *parts.test}
    assert 3 in used
    assert not {4, 5} & used
    assert len(parts.dropped) == 2


def test_contradicting_labels_drop_all() -> None:
    samples, hashes = listing(3, good=4, crack=4)
    hashes[7] = hashes[8] = hashes[3]
    parts = split("c", samples, hashes, Validation())
    assert not {3, 7, 8} & {*parts.validation, *parts.test}
    assert ["has the other label" in str(p) for p in parts.dropped] == [True] * 3


def test_repeated_training_images_are_kept_and_reported() -> None:
    samples, hashes = listing(4, good=4, crack=4)
    hashes[1] = hashes[0]
    parts = split("c", samples, hashes, Validation())
    assert sorted(parts.train) == [0, 1, 2, 3]
    assert ["counts twice" in str(p) for p in parts.dropped] == [True]


@given(st.lists(st.integers(0, 4), min_size=3, max_size=12), st.integers(0, 9))
def test_synthetic_never_trains_on_a_held_out_image(copies: list[int], seed: int) -> None:
    samples, _ = listing(len(copies), good=2, crack=2)
    hashes = [store.digest("copy", c) for c in copies] + [store.digest("t", i) for i in range(4)]
    try:
        parts = split("c", samples, hashes, Validation("synthetic", 0.5, seed))
    except DataError:
        assert len(set(copies)) == 1
        return
    train, held, test = (
        {hashes[i] for i in s} for s in (parts.train, parts.validation, parts.test)
    )
    assert not train & held
    assert not (train | held) & test
    assert train
    assert len(held) == len(parts.validation), "no held-out image twice"


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"good": 5}, "has 5 normal and 0 anomalous test images"),
        ({"good": 1, "crack": 5}, "has 1 normal and 5 anomalous"),
        ({"good": 5, "crack": 1}, "has 5 normal and 1 anomalous"),
        ({"good": 5, "crack": 1, "dent": 1}, "every defect type has a single image"),
        ({}, "has 0 normal and 0 anomalous"),
    ],
)
def test_labelled_needs_labels(counts: dict[str, int], message: str) -> None:
    samples, hashes = listing(4, **counts)
    with pytest.raises(DataError, match=message) as error:
        split("bolt", samples, hashes, Validation())
    assert str(error.value).startswith("bolt: ")
    assert "use validation.protocol: synthetic" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(split("bolt", samples, hashes, Validation("synthetic")).train) == 2


def test_protocol_test_needs_both_classes() -> None:
    samples, hashes = listing(4, good=3)
    with pytest.raises(DataError, match=r"use validation\.protocol: synthetic"):
        split("c", samples, hashes, Validation("test"))


@pytest.mark.parametrize("bad", [{"protocol": "honest"}, {"fraction": 0.0}, {"fraction": 1.0}])
def test_bad_validation(bad: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=f"validation.{next(iter(bad))}"):
        Validation(**bad)


def test_search_split_holds_the_right_images(tree: Path) -> None:
    dataset, validation = FolderDataset(tree), Validation(seed=3)
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
    assert (held.has_mask == (held.labels == 1)).all()
    assert (held.masks.reshape(5, -1).any(axis=1) == held.has_mask).all()
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
    dataset, validation = FolderDataset(tree), Validation(protocol)
    search = load_search_split(dataset, "part", 8, validation)
    secret = load_test_split(dataset, "part", 8, validation).images
    for name in (f.name for f in fields(search)):
        value = getattr(search, name)
        if isinstance(value, np.memmap):
            files = b"".join(p.read_bytes() for p in Path(str(value.filename)).parent.iterdir())
            assert not any(image.tobytes() in files for image in secret)
    assert not any(image.tobytes() in pickle.dumps(search) for image in secret)


def test_renamed_images_give_the_same_split(tree: Path, tmp_path: Path) -> None:
    first = load_search_split(FolderDataset(tree), "part", 8, Validation())
    (tree / "part/test/dent").rename(tree / "part/test/abrasion")
    (tree / "part/ground_truth/dent").rename(tree / "part/ground_truth/abrasion")
    for i in range(6):
        good = tree / "part/train/good"
        (good / f"{i:03d}.png").rename(good / f"{9 - i}x.png")
    again = load_search_split(FolderDataset(tree), "part", 8, Validation())
    assert again.split_hash == first.split_hash
    assert (again.train == first.train).all()
    assert (again.validation == first.validation).all()


def test_second_load_builds_nothing(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_search_split(FolderDataset(tree), "part", 8, Validation("synthetic"))

    def forbidden(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(store, "_build", forbidden)
    again = load_search_split(FolderDataset(tree), "part", 8, Validation("synthetic"))
    assert (again.validation == first.validation).all()
    assert again.validation_keys == first.validation_keys


def test_synthetic_split(tree: Path, cache: Path) -> None:
    validation = Validation("synthetic")
    search = load_search_split(FolderDataset(tree), "part", 24, validation)
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
    again = load_search_split(FolderDataset(tree), "part", 24, validation)
    assert (again.validation == search.validation).all(), "damage is deterministic"
    other = load_search_split(FolderDataset(tree), "part", 24, Validation("synthetic", seed=1))
    assert other.split_hash != search.split_hash


def test_damage_that_a_method_trains_on_is_left_out(tree: Path) -> None:
    dataset = FolderDataset(tree)
    plain, *without = (
        load_search_split(dataset, "part", 24, Validation("synthetic", without_damage=names))
        for names in ((), ("elastic", "occlusion"), ("occlusion", "elastic", "occlusion"))
    )
    assert {"elastic", "occlusion"} <= set(plain.validation_defects)
    assert not {"elastic", "occlusion"} & set(without[0].validation_defects)
    assert Counter(without[0].validation_labels.tolist()) == {0: 3, 1: 9}
    assert without[0].split_hash == without[1].split_hash != plain.split_hash
    held_out = load_test_split(
        dataset, "part", 24, Validation("synthetic", without_damage=("elastic",))
    )
    assert held_out.split_hash not in {plain.split_hash, without[0].split_hash}


@pytest.mark.parametrize(
    ("protocol", "names", "told"),
    [
        ("synthetic", ("dent",), "validation.without_damage: no damage 'dent'; there is cut_paste"),
        ("synthetic", ("occlusion", "texture", "roughen"), "one of occlusion, texture, roughen"),
        ("labelled", ("elastic",), "nothing is damaged under 'labelled'; remove it"),
    ],
)
def test_damage_that_cannot_be_left_out(protocol: Any, names: tuple[str, ...], told: str) -> None:
    with pytest.raises(DataError, match=told):
        Validation(protocol, without_damage=names)


def test_synthetic_works_without_a_test_folder(tree: Path) -> None:
    shutil.rmtree(tree / "part/test")
    shutil.rmtree(tree / "part/ground_truth")
    search = load_search_split(FolderDataset(tree), "part", 16, Validation("synthetic"))
    assert (search.n_test_normal, search.n_test_anomalous) == (0, 0)
    with pytest.raises(DataError, match="no test images to confirm on"):
        load_test_split(FolderDataset(tree), "part", 16, Validation("synthetic"))
    with pytest.raises(DataError, match=r"use validation\.protocol: synthetic"):
        load_search_split(FolderDataset(tree), "part", 16, Validation())


def test_protocol_test_has_no_held_out_images(tree: Path) -> None:
    search = load_search_split(FolderDataset(tree), "part", 8, Validation("test"))
    assert len(search.validation) == 11
    assert (search.n_test_normal, search.n_test_anomalous) == (0, 0)
    with pytest.raises(DataError, match="holds no test image out"):
        load_test_split(FolderDataset(tree), "part", 8, Validation("test"))


def test_leaks_reach_the_search_split(tree: Path) -> None:
    part = tree / "part"
    shutil.copy(part / "train/good/000.png", part / "test/good/leak.png")
    search = load_search_split(FolderDataset(tree), "part", 8, Validation())
    assert len(search.dropped) == 1
    assert "part/test/good/leak.png: same pixels as the training image" in search.dropped[0]
    assert "test/good/leak.png" not in search.validation_keys


@pytest.mark.parametrize("opening", ["first", "cached"])
def test_warnings_of_the_listing_reach_the_search_split(tree: Path, opening: str) -> None:
    (tree / "part/train/good/0.webp").write_bytes(b"webp")
    for _ in range(2 if opening == "cached" else 1):
        search = load_search_split(FolderDataset(tree), "part", 8, Validation())
    assert search.warnings == (
        "part/train/good: '0.webp' ignored: not a PNG, JPEG, BMP or TIFF file",
    )
    assert search.dropped == ()


def test_copies_that_fall_back_to_one_mechanism_keep_keys_of_their_own(tree: Path) -> None:
    for i in range(6):
        flat = Image.new("RGB", (20, 16), (20 * i + 60,) * 3)
        flat.save(tree / f"part/train/good/{i:03d}.png")
    search = load_search_split(FolderDataset(tree), "part", 32, Validation("synthetic"))
    assert Counter(search.validation_defects)["occlusion"] > 3
    assert len(set(search.validation_keys)) == len(search.validation_keys)


def test_nothing_in_the_cache_is_a_pickle(tree: Path, cache: Path) -> None:
    load_search_split(FolderDataset(tree), "part", 8, Validation("synthetic"))
    for path in cache.rglob("*"):
        if path.suffix == ".npy":
            np.load(path, allow_pickle=False)
        elif path.suffix == ".json":
            json.loads(path.read_text())


@settings(max_examples=5, deadline=None)
@given(st.sampled_from(SyntheticDataset().categories()))
def test_builtin_dataset_splits(category: str) -> None:
    dataset = SyntheticDataset()
    samples, _ = dataset.scan(category)
    hashes = [dataset.file_digest(category, s.key) for s in samples]
    parts = split(category, samples, hashes, Validation())
    assert [len(parts.train), len(parts.validation), len(parts.test)] == [40, 41, 41]


def test_battery_weld(real: Callable[[str], Path]) -> None:
    root = real("battery_weld")
    search = load_search_split(FolderDataset(root), "battery_weld", 64, Validation())
    assert (len(search.train), len(search.validation)) == (37, 60)
    assert (search.n_test_normal, search.n_test_anomalous) == (14, 47)


def test_another_input_size_shows_the_same_damage(tmp_path: Path) -> None:
    """Methods that work at another size are judged by the same damaged images."""
    dataset = SyntheticDataset()
    validation = Validation("synthetic")
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
    dataset = SyntheticDataset()
    direct = load_search_split(dataset, "washer", 96, Validation("synthetic"))
    other = load_search_split(dataset, "washer", 64, Validation("synthetic"), input_size=96)
    normal = direct.validation_labels == 0
    assert (direct.train == other.train).all()
    assert (direct.validation[normal] == other.validation[normal]).all()


def with_domains(train: int, good: int, crack: int) -> Listing:
    """A category with a shifted domain of its own and a corrupted copy of every test image."""
    samples, hashes = listing(train, good=good, crack=crack)
    for sample in [s for s in samples if s.part == "test"]:
        copy = replace(sample, key=f"{sample.key}@dark", domain="dark", origin=sample.key)
        samples.append(copy)
    samples += [Sample(f"sketch/{i}.png", "test", "good", domain="sketch") for i in range(3)]
    hashes += [store.digest("shifted", s.key) for s in samples[len(hashes) :]]
    return samples, hashes


@pytest.mark.parametrize("protocol", ["labelled", "synthetic", "test"])
def test_shifted_images_neither_train_nor_validate(protocol: Any) -> None:
    samples, hashes = with_domains(6, 6, 6)
    parts = split("c", samples, hashes, Validation(protocol))
    for side in (parts.train, parts.validation, parts.test):
        assert not any(samples[i].domain for i in side)
    assert all(samples[i].domain for i in parts.shifted)
    assert {samples[i].domain for i in parts.shifted} == {"dark", "sketch"}


def test_a_corrupted_copy_is_held_out_only_with_its_original() -> None:
    samples, hashes = with_domains(6, 6, 6)
    parts = split("c", samples, hashes, Validation("labelled"))
    held_out = {samples[i].key for i in parts.test}
    assert {samples[i].origin for i in parts.shifted if samples[i].origin} == held_out
    everything = split("c", samples, hashes, Validation("test"))
    assert len(everything.shifted) == 12 + 3, "as papers do it, marked as such"


def test_shifted_domains_leave_the_other_sides_as_they_are() -> None:
    plain, plain_hashes = listing(6, good=6, crack=6)
    samples, hashes = with_domains(6, 6, 6)
    for protocol in ("labelled", "synthetic", "test"):
        without = split("c", plain, plain_hashes, Validation(protocol))  # type: ignore[arg-type]
        shifted = split("c", samples, hashes, Validation(protocol))  # type: ignore[arg-type]
        for side in ("train", "validation", "test"):
            keys = {plain[i].key for i in getattr(without, side)}
            assert keys == {samples[i].key for i in getattr(shifted, side)}
        assert without.split_hash != shifted.split_hash


def test_a_shifted_image_may_equal_a_test_image_but_not_a_training_image() -> None:
    samples, hashes = with_domains(6, 6, 6)
    copies = {s.origin: i for i, s in enumerate(samples) if s.origin}
    hashes[copies["test/good/0.png"]] = hashes[0]  # a training image
    hashes[copies["test/good/1.png"]] = hashes[[s.key for s in samples].index("test/good/1.png")]
    parts = split("c", samples, hashes, Validation("test"))
    shifted = {samples[i].key for i in parts.shifted}
    assert "test/good/0.png@dark" not in shifted
    assert "test/good/1.png@dark" in shifted
    assert len(parts.validation) == 12
    assert [p.key for p in parts.dropped] == ["test/good/0.png@dark"]


def test_a_copy_of_a_leaked_image_is_left_out_with_it() -> None:
    samples, hashes = with_domains(6, 6, 6)
    hashes[[s.key for s in samples].index("test/crack/0.png")] = hashes[0]  # a training image
    for protocol in ("labelled", "synthetic", "test"):
        parts = split("c", samples, hashes, Validation(protocol))  # type: ignore[arg-type]
        assert "test/crack/0.png" not in {samples[i].origin for i in parts.shifted}
