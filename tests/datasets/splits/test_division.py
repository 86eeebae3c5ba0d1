"""Images that nobody has divided: content says what trains, groups stay whole."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomtune.datasets.base import Sample
from anomtune.datasets.io import store
from anomtune.datasets.splits.division import Division, DivisionCounts, divide
from anomtune.datasets.splits.leaks import find_leaks
from anomtune.datasets.splits.shift import CorruptedDataset, Shift
from anomtune.datasets.splits.split import split
from anomtune.datasets.splits.validation import Validation
from anomtune.errors import DataError

Listing = tuple[list[Sample], list[str]]


def undivided(good: int, **anomalous: int) -> Listing:
    samples = [Sample(f"good/{i}.png", "undivided", "good") for i in range(good)]
    for defect, n in anomalous.items():
        samples += [Sample(f"{defect}/{i}.png", "undivided", defect) for i in range(n)]
    return samples, [store.digest("image", i) for i in range(len(samples))]


def in_groups(listing: Listing, size: int) -> Listing:
    """Puts neighbours into groups of so many, across labels."""
    samples, hashes = listing
    return [replace(s, group=f"part {i // size}") for i, s in enumerate(samples)], hashes


@pytest.mark.parametrize(
    ("good", "bad", "expected"),
    [
        (10, 4, (6, 4, 4)),
        (100, 20, (60, 40, 20)),
        (4, 1, (2, 2, 1)),
        (3, 1, (2, 1, 1)),
        (2, 9, (1, 1, 9)),
        (1, 9, (1, 0, 9)),
        (7, 0, (7, 0, 0)),
    ],
)
def test_how_many_train(good: int, bad: int, expected: tuple[int, int, int]) -> None:
    samples, hashes = undivided(good, crack=bad)
    divided, counts = divide(samples, hashes, Division())
    assert counts is not None
    assert (counts.train, counts.normal, counts.anomalous) == expected
    assert not any(s.anomalous for s in divided if s.part == "train")


@given(st.integers(4, 30), st.integers(1, 9), st.integers(0, 3), st.randoms(use_true_random=False))
def test_content_decides(good: int, bad: int, seed: int, rng: random.Random) -> None:
    samples, hashes = undivided(good, crack=bad)
    rule = Division(seed=seed)
    train = {
        h
        for s, h in zip(divide(samples, hashes, rule)[0], hashes, strict=True)
        if s.part == "train"
    }
    order = list(range(len(samples)))
    rng.shuffle(order)
    renamed = [replace(samples[i], key=f"{rng.random()}.jpg") for i in order]
    shuffled = [hashes[i] for i in order]
    again = divide(renamed, shuffled, rule)[0]
    assert train == {h for s, h in zip(again, shuffled, strict=True) if s.part == "train"}


def test_the_division_is_pinned_and_the_seed_chooses() -> None:
    # Other machines and later versions must divide the same images the same way.
    samples, hashes = undivided(8, crack=3)
    train = [
        [s.key for s in divide(samples, hashes, Division(seed=seed))[0] if s.part == "train"]
        for seed in (0, 1)
    ]
    assert train[0] == PINNED
    assert train[0] != train[1]


PINNED = ["good/0.png", "good/3.png", "good/5.png", "good/6.png", "good/7.png"]


def test_equal_images_stay_together_and_count_once_in_training() -> None:
    samples, hashes = undivided(12, crack=3)
    for first in (0, 2, 4, 6):
        hashes[first + 1] = hashes[first]
    divided, _ = divide(samples, hashes, Division())
    for first in (0, 2, 4, 6):
        assert divided[first].part == divided[first + 1].part
    leaked = find_leaks("c", divided, hashes)[1]
    assert not any("training image" in str(problem) for problem in leaked)


def test_a_normal_image_that_is_also_anomalous_judges_and_is_left_out() -> None:
    samples, hashes = undivided(12, crack=3)
    hashes[0] = hashes[-1]
    divided, _ = divide(samples, hashes, Division())
    assert divided[0].part == "test"
    parts = split("c", divided, hashes, Validation())
    assert ["other label" in str(p) for p in parts.dropped] == [True, True]


def test_samples_with_a_part_keep_it() -> None:
    samples, hashes = undivided(4, crack=2)
    samples[0] = replace(samples[0], part="test")
    divided, counts = divide(samples, hashes, Division())
    assert divided[0].part == "test"
    assert counts == DivisionCounts(train=2, normal=2, anomalous=2)
    listed = [replace(s, part="test") for s in samples]
    assert divide(listed, hashes, Division()) == (tuple(listed), None)


@given(
    st.integers(8, 40),
    st.integers(4, 12),
    st.integers(2, 5),
    st.sampled_from(["labelled", "synthetic", "test"]),
)
def test_groups_stay_on_one_side(good: int, bad: int, size: int, protocol: str) -> None:
    samples, hashes = in_groups(undivided(good, crack=bad), size)
    divided, _ = divide(samples, hashes, Division())
    try:
        parts = split("c", divided, hashes, Validation(protocol=protocol))  # type: ignore[arg-type]
    except DataError as error:
        told = str(error)
        assert "group" in told or "test images that can be used" in told
        return
    sides = [
        {divided[i].group for i in side} for side in (parts.train, parts.validation, parts.test)
    ]
    assert not (sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2])
    # The group that has normal and anomalous images judges.
    mixed = {s.group for s in samples if s.anomalous} & {
        s.group for s in samples if not s.anomalous
    }
    assert not mixed & sides[0]


def test_groups_by_name_decide_nothing() -> None:
    samples, hashes = in_groups(undivided(20, crack=10), 2)
    renamed = [replace(s, group=s.group and f"x{hash(s.group)}") for s in samples]
    one, other = (
        split("c", divide(s, hashes, Division())[0], hashes, Validation())
        for s in (samples, renamed)
    )
    assert one.split_hash == other.split_hash


def test_a_group_across_a_division_that_is_given_is_left_out_of_the_test() -> None:
    samples = [Sample(f"train/good/{i}.png", "train", "good", group=f"p{i}") for i in range(4)]
    samples += [Sample(f"test/good/{i}.png", "test", "good", group=f"p{i + 3}") for i in range(4)]
    samples += [Sample(f"test/crack/{i}.png", "test", "crack", group=f"q{i}") for i in range(4)]
    hashes = [store.digest(s.key) for s in samples]
    parts = split("c", samples, hashes, Validation())
    assert [str(p) for p in parts.dropped] == [
        "c/test/good/0.png: of the same group (p3) as the training image train/good/3.png; left "
        "out of validation and test"
    ]
    assert 4 not in {*parts.validation, *parts.test}
    assert len(parts.train) == 4


def test_one_group_of_normal_judges_cannot_be_divided() -> None:
    samples = [Sample(f"train/good/{i}.png", "train", "good") for i in range(4)]
    samples += [Sample(f"test/good/{i}.png", "test", "good", group="one") for i in range(4)]
    samples += [Sample(f"test/crack/{i}.png", "test", "crack") for i in range(4)]
    with pytest.raises(DataError, match="of too few groups for validation and test"):
        split("c", samples, [store.digest(s.key) for s in samples], Validation())


def test_shifted_images_of_a_validation_group_are_not_held_out() -> None:
    samples, hashes = undivided(12, crack=8)
    samples = [replace(s, group=str(i)) for i, s in enumerate(samples)]
    for i in range(20):
        samples.append(
            Sample(f"night/{i}.png", "test", samples[i].defect, domain="night", group=str(i))
        )
        hashes.append(store.digest("night", i))
    divided, counts = divide(samples, hashes, Division())
    assert counts == DivisionCounts(train=7, normal=5, anomalous=8)
    parts = split("c", divided, hashes, Validation())
    seen = {divided[i].group for i in (*parts.train, *parts.validation)}
    assert len(parts.shifted)
    assert not seen & {divided[i].group for i in parts.shifted}


def test_corrupted_copies_go_where_their_originals_go(tmp_path, picture) -> None:
    from anomtune.datasets.folder import Folder
    from tests.datasets.conftest import save

    for i in range(8):
        save(picture(i), tmp_path / f"part/good/{i}.png")
        save(picture(100 + i), tmp_path / f"part/dent/{i}.png")
    plain = Folder(tmp_path / "part")
    dataset = CorruptedDataset(plain, Shift(corruptions=("contrast",)))
    from anomtune.datasets.io.cache import open_category

    alone, arrays = open_category(plain, "part", 8), open_category(dataset, "part", 8)
    train = {s.key for s in arrays.samples if s.part == "train"}
    assert train == {s.key for s in alone.samples if s.part == "train"}
    assert arrays.division == alone.division == DivisionCounts(train=5, normal=3, anomalous=8)
    for protocol in ("labelled", "test"):
        parts = split("part", arrays.samples, arrays.pixel_hashes, Validation(protocol=protocol))  # type: ignore[arg-type]
        origins = {arrays.samples[i].origin for i in parts.shifted}
        assert origins
        assert not origins & train
