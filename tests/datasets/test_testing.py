"""The check for authors of datasets: what keeps the contract passes, what breaks it is told."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomtune.datasets import testing
from anomtune.datasets.base import GOOD, Dataset, Problem, Sample
from anomtune.datasets.folder import Folder
from anomtune.datasets.io.store import digest
from anomtune.datasets.splits.shift import CorruptedDataset, Shift
from anomtune.datasets.splits.split import split
from anomtune.datasets.synthetic import Synthetic
from anomtune.datasets.testing import check_dataset
from anomtune.errors import DataError

HOLE = "test/hole/0.png"
Scan = tuple[tuple[Sample, ...], tuple[Problem, ...]]


class Small(Dataset):
    """Two categories in memory that keep every promise."""

    def __init__(self, root: Path | None = None) -> None:
        super().__init__(None)
        self.images = {
            sample.key: np.random.default_rng(number).integers(0, 256, (9, 7, 3), np.uint8)
            for number, sample in enumerate(self.samples())
        }

    def samples(self) -> list[Sample]:
        listed = [Sample(f"train/good/{i}.png", "train", GOOD) for i in range(4)]
        listed += [Sample(f"test/good/{i}.png", "test", GOOD) for i in range(3)]
        listed += [Sample(f"test/hole/{i}.png", "test", "hole", f"masks/{i}.png") for i in range(3)]
        return sorted(listed, key=lambda s: s.key)

    def categories(self) -> tuple[str, ...]:
        return ("bolt", "nut")

    def scan(self, category: str) -> Scan:
        if category not in Small.categories(self):
            raise DataError(f"no category {category!r}")
        return tuple(self.samples()), ()

    def file_digest(self, category: str, key: str) -> str:
        return digest(category, key)

    def read_image(self, category: str, key: str) -> Any:
        if key not in self.images:
            raise DataError(f"no image {key!r}")
        return self.images[key].copy()

    def read_mask(self, category: str, key: str) -> Any:
        if key not in {s.mask for s in self.samples()}:
            raise DataError(f"no mask {key!r}")
        mask = np.zeros((9, 7), np.bool_)
        mask[2:4, 3:5] = True
        return mask


def test_a_class_without_a_name_is_called_by_its_own() -> None:
    assert Small().name == "Small"


@pytest.mark.slow
def test_what_keeps_the_contract_passes(tmp_path: Path, tree: Path) -> None:
    check_dataset(Small())
    check_dataset(Synthetic())
    check_dataset(Folder(tree))
    check_dataset(CorruptedDataset(Folder(tree), Shift(severity=2)))
    check_dataset(CorruptedDataset(Small(), Shift(corruptions=("contrast",))))


class Untested(Small):
    def samples(self) -> list[Sample]:
        return [s for s in super().samples() if s.part == "train"]


class OneOfAKind(Small):
    def samples(self) -> list[Sample]:
        return [s for s in super().samples() if s.key.endswith("/0.png")]


@pytest.mark.parametrize(
    ("kind", "protocols"),
    [
        (Small, ["labelled", "synthetic", "test"]),
        (Untested, ["synthetic"]),
        (OneOfAKind, ["test"]),
    ],
)
def test_every_protocol_that_can_be_is_tried(
    kind: type[Small], protocols: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[str, str]] = []

    def spy(category: str, samples: Any, hashes: Any, validation: Any) -> Any:
        tried.append((category, validation.protocol))
        return split(category, samples, hashes, validation)

    monkeypatch.setattr(testing, "split", spy)
    check_dataset(kind())
    assert tried == [(name, protocol) for name in ("bolt", "nut") for protocol in protocols]


class NoCategories(Small):
    def categories(self) -> tuple[str, ...]:
        return ()


class UnsortedCategories(Small):
    def categories(self) -> tuple[str, ...]:
        return ("nut", "bolt")


class RepeatedCategories(Small):
    def categories(self) -> tuple[str, ...]:
        return ("bolt", "bolt")


class NestedCategories(Small):
    def categories(self) -> tuple[str, ...]:
        return ("bolt/m6",)


class Nameless(Small):
    name = ""


class Unpicklable(Small):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class LosesItself(Small):
    def __init__(self) -> None:
        super().__init__()
        self.whole = True

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"whole": False}

    def samples(self) -> list[Sample]:
        return super().samples()[: None if self.__dict__.get("whole", True) else 5]


class LosesCategories(LosesItself):
    def categories(self) -> tuple[str, ...]:
        return ("bolt", "nut") if self.whole else ("bolt",)


class KnowsEveryCategory(Small):
    def scan(self, category: str) -> Scan:
        return super().scan("nut")


class KeyErrorForACategory(Small):
    def scan(self, category: str) -> Scan:
        return {name: super(KeyErrorForACategory, self).scan(name) for name in ("bolt", "nut")}[
            category
        ]


class Forgetful(Small):
    def __init__(self) -> None:
        super().__init__()
        self.turn = 0

    def scan(self, category: str) -> Scan:
        self.turn += 1
        return super().scan(category)[0][self.turn % 2 :], ()


class Fatal(Small):
    def scan(self, category: str) -> Scan:
        return super().scan(category)[0], (Problem(category, "x", "is wrong"),)


class Changed(Small):
    """Changes one sample."""

    def __init__(self, of: str = HOLE, /, **changes: Any) -> None:
        self.of, self.changes = of, changes
        super().__init__()

    def samples(self) -> list[Sample]:
        listed = super().samples()
        return [replace(s, **self.changes) if s.key == self.of else s for s in listed]


class Sorted(Changed):
    def samples(self) -> list[Sample]:
        return sorted(super().samples(), key=lambda s: s.key)


class UnsortedKeys(Small):
    def samples(self) -> list[Sample]:
        return super().samples()[::-1]


class NoTraining(Small):
    def samples(self) -> list[Sample]:
        return [s for s in super().samples() if s.part == "test"]


class RestlessFingerprint(Small):
    def __init__(self) -> None:
        super().__init__()
        self.turns = 0

    def fingerprint(self, category: str) -> str:
        self.turns += 1
        return str(self.turns)


class NumberFingerprint(Small):
    def fingerprint(self, category: str) -> Any:
        return 7


class ListImage(Small):
    def read_image(self, category: str, key: str) -> Any:
        return super().read_image(category, key).tolist()


class FloatImage(Small):
    def read_image(self, category: str, key: str) -> Any:
        return super().read_image(category, key) / 255


class GreyImage(Small):
    def read_image(self, category: str, key: str) -> Any:
        return super().read_image(category, key)[..., 0]


class FourChannels(Small):
    def read_image(self, category: str, key: str) -> Any:
        return np.pad(super().read_image(category, key), ((0, 0), (0, 0), (0, 1)))


class EmptyImage(Small):
    def read_image(self, category: str, key: str) -> Any:
        return super().read_image(category, key)[:0]


class WindowOntoTheSource(Small):
    def read_image(self, category: str, key: str) -> Any:
        super().read_image(category, key)
        return self.images[key]


class RandomImage(Small):
    numbers = count()

    def read_image(self, category: str, key: str) -> Any:
        return super().read_image(category, key) ^ np.uint8(1 + next(self.numbers) % 200)


class ListMask(Small):
    def read_mask(self, category: str, key: str) -> Any:
        return super().read_mask(category, key).tolist()


class GreyMask(Small):
    def read_mask(self, category: str, key: str) -> Any:
        return super().read_mask(category, key).astype(np.uint8)


class TurnedMask(Small):
    def read_mask(self, category: str, key: str) -> Any:
        return super().read_mask(category, key).T


class EmptyMask(Small):
    def read_mask(self, category: str, key: str) -> Any:
        return super().read_mask(category, key) & False


class RandomMask(Small):
    numbers = count()

    def read_mask(self, category: str, key: str) -> Any:
        return np.roll(super().read_mask(category, key), next(self.numbers) % 5, axis=0)


class RestlessDigest(Small):
    numbers = count()

    def file_digest(self, category: str, key: str) -> str:
        return str(next(self.numbers))


class OneDigest(Small):
    def file_digest(self, category: str, key: str) -> str:
        return "0"


class OnePicture(Small):
    def read_image(self, category: str, key: str) -> Any:
        super().read_image(category, key)
        return np.full((9, 7, 3), 5, np.uint8)


class AnyImage(Small):
    def read_image(self, category: str, key: str) -> Any:
        return super().read_image(category, key if key in self.images else "train/good/0.png")


class KeyErrorForAnImage(Small):
    def read_image(self, category: str, key: str) -> Any:
        return self.images[key].copy()


class AnyMask(Small):
    def read_mask(self, category: str, key: str) -> Any:
        return super().read_mask(category, "masks/0.png")


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (NoCategories(), r"categories\(\) returns none"),
        (UnsortedCategories(), "not sorted and unique"),
        (RepeatedCategories(), "not sorted and unique"),
        (NestedCategories(), "'bolt/m6' cannot name a folder"),
        (Nameless(), "has no name"),
        (Unpicklable(), "cannot be pickled, for a worker: .*lock"),
        (LosesItself(), "bolt: a pickled copy lists other samples"),
        (LosesCategories(), "a pickled copy has other categories"),
        (KnowsEveryCategory(), "scan of the category 'no-such-thing' is no DataError"),
        (KeyErrorForACategory(), "scan of the category .* is a KeyError, not a DataError"),
        (Forgetful(), "bolt: two scans differ"),
        (Fatal(), "something is wrong: bolt/x: is wrong"),
        (UnsortedKeys(), "bolt: samples are not sorted by key"),
        (Changed(key="test/hole/1.png"), "bolt: keys are not unique"),
        (Sorted(key="/test/hole/0.png"), "'/test/hole/0.png' is not a relative path"),
        (Sorted(key="../hole/0.png"), "'../hole/0.png' is not a relative path"),
        (Sorted(key="test//hole/0.png"), "'test//hole/0.png' is not a relative path"),
        (Changed(mask="masks/../../0.png"), "'masks/../../0.png' is not a relative path"),
        (Changed(part="validation"), "its part is 'validation'"),
        (Changed(defect=""), "has no defect type"),
        (Changed(part="train"), "bolt/test/hole/0.png: a training image is anomalous"),
        (Changed("train/good/0.png", domain="dark"), "a training image is of a shifted domain"),
        (Changed(defect=GOOD), "a normal image has a mask"),
        (Changed(origin="test/hole/9.png"), "its origin 'test/hole/9.png' is no test image"),
        (NoTraining(), "bolt: no training images"),
        (RestlessFingerprint(), r"fingerprint\(\) changes"),
        (NumberFingerprint(), r"fingerprint\(\) is neither a digest nor None"),
        (ListImage(), "the image is a list"),
        (FloatImage(), "the image is float64, not uint8"),
        (GreyImage(), r"the image has the shape \(9, 7\), not \(H, W, 3\)"),
        (FourChannels(), r"the image has the shape \(9, 7, 4\)"),
        (EmptyImage(), "the image is empty"),
        (WindowOntoTheSource(), "after the first was written to, is another"),
        (RandomImage(), "an image that is read again"),
        (ListMask(), "the mask is a list"),
        (GreyMask(), "the mask is uint8, not bool"),
        (TurnedMask(), r"the mask has the shape \(7, 9\), its image \(9, 7\)"),
        (EmptyMask(), "bolt/masks/0.png: the mask of an anomalous image is empty"),
        (RandomMask(), "a mask that is read again"),
        (RestlessDigest(), r"file_digest\(\) changes"),
        (OneDigest(), r"are other images of one file_digest\(\)"),
        (OnePicture(), "all images have the same pixels"),
        (AnyImage(), "read_image of the key 'no-such-thing.png' is no DataError"),
        (KeyErrorForAnImage(), "read_image of the key .* is a KeyError, not a DataError"),
        (AnyMask(), "read_mask of the key 'no-such-thing.png' is no DataError"),
    ],
)
def test_a_broken_promise_is_told(broken: Small, told: str) -> None:
    with pytest.raises(AssertionError, match=told) as error:
        check_dataset(broken)
    assert "\n" not in str(error.value)
