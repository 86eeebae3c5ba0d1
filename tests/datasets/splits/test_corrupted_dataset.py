"""A dataset with corrupted copies: which there are, and on which side of a split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomtune.datasets.base import Dataset, Problem, Published, Sample
from anomtune.datasets.folder import Folder
from anomtune.datasets.io.cache import open_category
from anomtune.datasets.opening import open_dataset
from anomtune.datasets.splits import shift as shift_module
from anomtune.datasets.splits.audit import inspect
from anomtune.datasets.splits.held_out import load_test_split
from anomtune.datasets.splits.shift import CORRUPTIONS, CorruptedDataset, Shift
from anomtune.datasets.splits.split import load_search_split
from anomtune.datasets.splits.validation import Validation
from anomtune.datasets.synthetic import Synthetic
from tests.datasets.conftest import save

NAMES = tuple(CORRUPTIONS)


def test_every_test_image_has_a_copy_per_corruption(tree: Path) -> None:
    plain = Folder(tree)
    dataset = CorruptedDataset(plain, Shift(corruptions=NAMES, severity=3))
    samples, problems = dataset.scan("part")
    originals = {s.key: s for s in plain.scan("part")[0]}
    copies = [s for s in samples if s.domain]
    assert not problems
    assert {s.key: s for s in samples if not s.domain} == originals
    assert len(copies) == 4 * 11
    assert {s.domain for s in copies} == {f"{name}-3" for name in NAMES}
    assert len({s.key for s in samples}) == len(samples)
    assert [s.key for s in samples] == sorted(s.key for s in samples)
    for copy in copies:
        original = originals[copy.origin]
        assert copy.key == f"{original.key}@{copy.domain}"
        assert (copy.part, copy.defect, copy.mask) == ("test", original.defect, original.mask)
        image = dataset.read_image("part", copy.key)
        clean = plain.read_image("part", original.key)
        assert image.shape == clean.shape
        assert not np.array_equal(image, clean)
    assert [(c.domains, c.n_test_normal) for c in inspect(dataset).counts] == [
        (tuple((f"{name}-3", 11) for name in NAMES), 4)
    ]


def test_opened_by_name(tree: Path) -> None:
    dataset = open_dataset("folder", tree, Shift(corruptions=("contrast",), severity=4))
    assert {s.domain for s in dataset.scan("part")[0]} == {"", "contrast-4"}
    assert repr(dataset) == (
        f"CorruptedDataset(Folder({str(tree)!r}), Shift(corruptions=('contrast',), severity=4))"
    )


class Wrapped(Synthetic):
    name = "wrapped"
    one_class = True

    def published(self, category: str) -> Published:
        return Published(1, 2, 3)

    def warnings(self) -> tuple[Problem, ...]:
        return (Problem("x", "", "odd", False),)


def test_all_else_is_the_datasets_own() -> None:
    inner = Wrapped()
    dataset = CorruptedDataset(inner, Shift(corruptions=("contrast",), severity=5))
    assert (dataset.name, dataset.one_class) == ("wrapped", True)
    assert not Dataset.one_class
    assert dataset.categories() == inner.categories()
    assert dataset.published("grain") == Published(1, 2, 3)
    assert dataset.warnings() == inner.warnings()
    key = inner.scan("grain")[0][0].key
    assert dataset.file_digest("grain", key) == inner.file_digest("grain", key)
    assert np.array_equal(dataset.read_image("grain", key), inner.read_image("grain", key))


def test_shifted_originals_have_no_copies() -> None:
    class Shifted(Synthetic):
        def scan(self, category: str) -> tuple:
            samples = super().scan(category)[0]
            return (*samples, Sample("test/x.png", "test", "good", domain="sketch")), ()

    samples = CorruptedDataset(Shifted(), Shift(corruptions=("contrast",), severity=1)).scan(
        "grain"
    )[0]
    assert {s.domain for s in samples} == {"", "sketch", "contrast-1"}
    assert not [s for s in samples if s.origin == "test/x.png"]


def test_a_name_that_looks_like_a_copy_is_refused() -> None:
    class Odd(Synthetic):
        def scan(self, category: str) -> tuple:
            return (Sample("train/a@contrast-1", "train", "good"), *super().scan(category)[0]), ()

    problems = CorruptedDataset(Odd(), Shift(corruptions=("contrast",), severity=1)).scan("grain")[
        1
    ]
    assert [str(p) for p in problems if p.fatal] == [
        "grain/train/a@contrast-1: rename it: no name may end in 'contrast-1'"
    ]


def test_the_cache_keeps_copies_and_tells_shifts_apart(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mild, strong = (
        CorruptedDataset(Folder(tree), Shift(corruptions=NAMES, severity=s)) for s in (1, 5)
    )
    first = open_category(mild, "part", 16)
    other = open_category(strong, "part", 16)
    assert first.content != other.content
    assert len(first.samples) == 6 + 11 * 5

    def refuse(*_: object) -> None:
        raise AssertionError("corrupted again")

    monkeypatch.setattr(shift_module, "corrupt", refuse)
    again = open_category(
        CorruptedDataset(Folder(tree), Shift(corruptions=NAMES, severity=1)), "part", 16
    )
    assert np.array_equal(again.images[:], first.images[:])
    # Another version of the formulas is another dataset.
    monkeypatch.setattr(shift_module, "VERSION", 2)
    with pytest.raises(AssertionError, match="corrupted again"):
        open_category(
            CorruptedDataset(Folder(tree), Shift(corruptions=NAMES, severity=1)), "part", 16
        )


def test_fingerprint_knows_files_corruptions_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unsettled(Synthetic):
        def fingerprint(self, category: str) -> str | None:
            return None

    def fingerprint(inner: Dataset, corruptions: tuple[str, ...], severity: int) -> str | None:
        shift = Shift(corruptions=corruptions, severity=severity)
        return CorruptedDataset(inner, shift).fingerprint("grain")

    inner = Synthetic()
    found = [
        inner.fingerprint("grain"),
        fingerprint(inner, ("contrast",), 1),
        fingerprint(inner, ("contrast",), 2),
        fingerprint(inner, ("brightness",), 1),
    ]
    monkeypatch.setattr(shift_module, "VERSION", 2)
    found.append(fingerprint(inner, ("contrast",), 1))
    assert len(set(found)) == 5
    assert fingerprint(Unsettled(), ("contrast",), 1) is None


def test_an_edited_original_gives_new_copies(
    tree: Path, picture: Callable[..., Image.Image]
) -> None:
    dataset = CorruptedDataset(Folder(tree), Shift(corruptions=("contrast",), severity=2))
    before = open_category(dataset, "part", 16)
    save(picture(999), tree / "part/test/good/000.png")
    after = open_category(dataset, "part", 16)
    changed = [s.key for s, a, b in zip(after.samples, after.images, before.images, strict=True)
               if not np.array_equal(a, b)]  # fmt: skip
    assert changed == ["test/good/000.png", "test/good/000.png@contrast-2"]


@pytest.mark.parametrize("protocol", ["labelled", "synthetic"])
def test_copies_are_held_out_with_their_originals(tree: Path, protocol: str) -> None:
    dataset = CorruptedDataset(Folder(tree), Shift(corruptions=NAMES, severity=3))
    validation = Validation(protocol=protocol)
    search = load_search_split(dataset, "part", 16, validation)
    test = load_test_split(dataset, "part", 16, validation)
    plain = load_search_split(Folder(tree), "part", 16, validation)
    assert not [key for key in search.validation_keys if "@" in key]
    assert search.validation_keys == plain.validation_keys
    assert np.array_equal(search.train, plain.train)
    own = {key for key, domain in zip(test.keys, test.domains, strict=True) if not domain}
    assert len(test.keys) == len(own) * 5
    for key, domain in zip(test.keys, test.domains, strict=True):
        assert key.split("@")[0] in own
        assert key == (f"{key.split('@')[0]}@{domain}" if domain else key)
    for index, key in enumerate(test.keys):
        clean = test.keys.index(key.split("@")[0])
        assert np.array_equal(test.masks[index], test.masks[clean])
        assert test.defects[index] == test.defects[clean]


def test_a_renamed_image_has_the_same_copies(tree: Path) -> None:
    def digests() -> list[str]:
        dataset = CorruptedDataset(Folder(tree), Shift(corruptions=NAMES, severity=3))
        return sorted(open_category(dataset, "part", 16).pixel_hashes)

    before = digests()
    (tree / "part/test/good/000.png").rename(tree / "part/test/good/zebra.png")
    assert digests() == before
