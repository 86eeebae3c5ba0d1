"""The honest splits: disjoint, complete, decided by content alone, and shut to the test images."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anomtune.datasets.base import Sample
from anomtune.datasets.io import store
from anomtune.datasets.splits.split import split
from anomtune.datasets.splits.validation import Validation
from anomtune.datasets.synthetic import Synthetic
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
    validation = validation.model_copy(update={"protocol": "labelled"})
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
        split(
            "c", samples, hashes, Validation(protocol=protocol, fraction=fraction, seed=seed)
        ).split_hash
        for protocol in ("labelled", "synthetic", "test")
        for fraction in (0.25, 0.5)
        for seed in (0, 1)
    }
    assert len(seen) == 9, "fraction and seed mean nothing to the protocol 'test'"
    relabelled = [replace(s, defect="good") if s.key == "test/crack/0.png" else s for s in samples]
    hashes_of = {
        split("c", x, hashes, Validation(protocol="test")).split_hash for x in (samples, relabelled)
    }
    assert len(hashes_of) == 2


def test_the_split_is_pinned() -> None:
    # Other machines and later versions must divide the same images the same way.
    samples, hashes = listing(4, good=4, crack=4)
    parts = split("c", samples, hashes, Validation())
    assert sorted(samples[i].key for i in parts.validation) == PINNED_KEYS
    assert parts.split_hash == PINNED_HASH
    assert (
        split("c", samples, hashes, Validation(protocol="synthetic")).split_hash == PINNED_SYNTHETIC
    )


PINNED_KEYS = ["test/crack/1.png", "test/crack/3.png", "test/good/2.png", "test/good/3.png"]
PINNED_HASH = "5309ccc59c05ca5404bffcc8cb11bddf"
PINNED_SYNTHETIC = "eef048f46260ead40452c70eec19ecbe"


def test_leak_between_train_and_test_is_dropped_from_the_test() -> None:
    samples, hashes = listing(3, good=4, crack=4)
    hashes[3] = hashes[0]
    hashes[8] = hashes[1]
    for protocol in ("labelled", "synthetic", "test"):
        parts = split("c", samples, hashes, Validation(protocol=protocol))
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
        parts = split(
            "c", samples, hashes, Validation(protocol="synthetic", fraction=0.5, seed=seed)
        )
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
    assert len(split("bolt", samples, hashes, Validation(protocol="synthetic")).train) == 2


def test_protocol_test_needs_both_classes() -> None:
    samples, hashes = listing(4, good=3)
    with pytest.raises(DataError, match=r"use validation\.protocol: synthetic"):
        split("c", samples, hashes, Validation(protocol="test"))


@settings(max_examples=5, deadline=None)
@given(st.sampled_from(Synthetic().categories()))
def test_builtin_dataset_splits(category: str) -> None:
    dataset = Synthetic()
    samples, _ = dataset.scan(category)
    hashes = [dataset.file_digest(category, s.key) for s in samples]
    parts = split(category, samples, hashes, Validation())
    assert [len(parts.train), len(parts.validation), len(parts.test)] == [40, 60, 60]


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
    parts = split("c", samples, hashes, Validation(protocol=protocol))
    for side in (parts.train, parts.validation, parts.test):
        assert not any(samples[i].domain for i in side)
    assert all(samples[i].domain for i in parts.shifted)
    assert {samples[i].domain for i in parts.shifted} == {"dark", "sketch"}


def test_a_corrupted_copy_is_held_out_only_with_its_original() -> None:
    samples, hashes = with_domains(6, 6, 6)
    parts = split("c", samples, hashes, Validation(protocol="labelled"))
    held_out = {samples[i].key for i in parts.test}
    assert {samples[i].origin for i in parts.shifted if samples[i].origin} == held_out
    everything = split("c", samples, hashes, Validation(protocol="test"))
    assert len(everything.shifted) == 12 + 3, "as papers do it, marked as such"


def test_shifted_domains_leave_the_other_sides_as_they_are() -> None:
    plain, plain_hashes = listing(6, good=6, crack=6)
    samples, hashes = with_domains(6, 6, 6)
    for protocol in ("labelled", "synthetic", "test"):
        without = split("c", plain, plain_hashes, Validation(protocol=protocol))  # type: ignore[arg-type]
        shifted = split("c", samples, hashes, Validation(protocol=protocol))  # type: ignore[arg-type]
        for side in ("train", "validation", "test"):
            keys = {plain[i].key for i in getattr(without, side)}
            assert keys == {samples[i].key for i in getattr(shifted, side)}
        assert without.split_hash != shifted.split_hash


def test_a_shifted_image_may_equal_a_test_image_but_not_a_training_image() -> None:
    samples, hashes = with_domains(6, 6, 6)
    copies = {s.origin: i for i, s in enumerate(samples) if s.origin}
    hashes[copies["test/good/0.png"]] = hashes[0]  # a training image
    hashes[copies["test/good/1.png"]] = hashes[[s.key for s in samples].index("test/good/1.png")]
    parts = split("c", samples, hashes, Validation(protocol="test"))
    shifted = {samples[i].key for i in parts.shifted}
    assert "test/good/0.png@dark" not in shifted
    assert "test/good/1.png@dark" in shifted
    assert len(parts.validation) == 12
    assert [p.key for p in parts.dropped] == ["test/good/0.png@dark"]


def test_a_copy_of_a_leaked_image_is_left_out_with_it() -> None:
    samples, hashes = with_domains(6, 6, 6)
    hashes[[s.key for s in samples].index("test/crack/0.png")] = hashes[0]  # a training image
    for protocol in ("labelled", "synthetic", "test"):
        parts = split("c", samples, hashes, Validation(protocol=protocol))  # type: ignore[arg-type]
        assert "test/crack/0.png" not in {samples[i].origin for i in parts.shifted}
