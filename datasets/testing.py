"""The contract of a dataset, as a check that authors of datasets run in their own tests."""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import PurePosixPath
from typing import get_args

import numpy as np
import numpy.typing as npt

from anomtune.datasets.base import UNDIVIDED, Dataset, Sample
from anomtune.datasets.io.imagefile import hash_pixels
from anomtune.datasets.splits.division import Division, divide
from anomtune.datasets.splits.leaks import find_leaks
from anomtune.datasets.splits.split import split
from anomtune.datasets.splits.validation import Protocol, Validation
from anomtune.errors import DataError

_EACH = 3  # Images that are read of each part, defect type and domain.
_ABSENT = "no-such-thing"


def check_dataset(dataset: Dataset) -> None:
    """Checks that a dataset keeps what `Dataset` promises.

    All is listed; of each category a few images of every kind are read. So a tree of small images
    that a test writes takes well under a second.

    Args:
        dataset: One that nothing is wrong with.

    Raises:
        AssertionError: If a promise is broken; the message says which and where.
        DataError: What the dataset itself says of an image that it lists.
    """
    names = dataset.categories()
    assert names, "categories() returns none; a root without any is a DataError"
    assert list(names) == sorted(set(names)), f"categories() are not sorted and unique: {names}"
    for name in names:
        assert _is_plain(name), f"category {name!r} cannot name a folder"
        assert "/" not in name, f"category {name!r} cannot name a folder"
    assert dataset.name, "the dataset has no name"
    copy = _copied(dataset)
    assert copy.categories() == names, "a pickled copy has other categories"
    _refuses(lambda: dataset.scan(_ABSENT), f"scan of the category {_ABSENT!r}")
    for name in names:
        samples = _check_listing(dataset, name)
        assert copy.scan(name)[0] == samples, f"{name}: a pickled copy lists other samples"
        _check_fingerprint(dataset, name)
        chosen = _some_of_each(samples)
        images = [_check_image(dataset, name, sample) for sample in chosen]
        hashes = [hash_pixels(image) for image in images]
        for sample, image in zip(chosen, images, strict=True):
            if sample.mask is not None:
                _check_mask(dataset, name, sample, image.shape[:2])
        _check_digests(dataset, name, chosen, hashes)
        _check_splits(name, chosen, hashes)
        _check_wrong_keys(dataset, name)


def _copied(dataset: Dataset) -> Dataset:
    """Returns what a worker would get."""
    try:
        copy: Dataset = pickle.loads(pickle.dumps(dataset))  # noqa: S301 - made here
    except Exception as error:
        raise AssertionError(f"it cannot be pickled, for a worker: {error}") from error
    return copy


def _check_listing(dataset: Dataset, category: str) -> tuple[Sample, ...]:
    samples, problems = dataset.scan(category)
    assert dataset.scan(category) == (samples, problems), f"{category}: two scans differ"
    fatal = [str(problem) for problem in problems if problem.fatal]
    assert not fatal, f"nothing can be checked while something is wrong: {fatal[0]}"
    keys = [sample.key for sample in samples]
    assert keys == sorted(keys), f"{category}: samples are not sorted by key"
    assert len(set(keys)) == len(keys), f"{category}: keys are not unique"
    parts = {sample.key: sample.part for sample in samples}
    for sample in samples:
        where = f"{category}/{sample.key}"
        for key in filter(None, (sample.key, sample.mask)):
            assert _is_plain(key), f"{where}: the key {key!r} is not a relative path"
        assert sample.part in {"train", "test", UNDIVIDED}, f"{where}: its part is {sample.part!r}"
        assert sample.defect, f"{where}: it has no defect type"
        if sample.part == "train":
            assert not sample.anomalous, f"{where}: a training image is anomalous"
            assert not sample.domain, f"{where}: a training image is of a shifted domain"
        assert sample.anomalous or sample.mask is None, f"{where}: a normal image has a mask"
        assert sample.origin is None or parts.get(sample.origin, "train") != "train", (
            f"{where}: its origin {sample.origin!r} is no test image"
        )
        assert isinstance(sample.group, str), f"{where}: its group is {sample.group!r}, no text"
    can_train = [s for s in samples if s.part != "test" and not (s.anomalous or s.domain)]
    assert can_train, f"{category}: no training images"
    return samples


def _check_fingerprint(dataset: Dataset, category: str) -> None:
    # None once and a digest later is what files are that have just been written.
    found = {dataset.fingerprint(category) for _ in range(2)} - {None}
    assert len(found) < 2, f"{category}: fingerprint() changes though nothing else does"
    assert all(isinstance(known, str) and known for known in found), (
        f"{category}: fingerprint() is neither a digest nor None"
    )


def _check_image(dataset: Dataset, category: str, sample: Sample) -> npt.NDArray[np.uint8]:
    where = f"{category}/{sample.key}"
    image = dataset.read_image(category, sample.key)
    assert isinstance(image, np.ndarray), f"{where}: the image is a {type(image).__name__}"
    assert image.dtype == np.uint8, f"{where}: the image is {image.dtype}, not uint8"
    assert image.shape == (*image.shape[:2], 3), (
        f"{where}: the image has the shape {image.shape}, not (H, W, 3)"
    )
    assert image.size, f"{where}: the image is empty"
    kept = image.copy()
    if image.flags.writeable:
        image[:] = 255 - image
    assert np.array_equal(dataset.read_image(category, sample.key), kept), (
        f"{where}: an image that is read again, after the first was written to, is another"
    )
    return kept


def _check_mask(dataset: Dataset, category: str, sample: Sample, shape: tuple[int, ...]) -> None:
    assert sample.mask is not None
    where = f"{category}/{sample.mask}"
    mask = dataset.read_mask(category, sample.mask)
    assert isinstance(mask, np.ndarray), f"{where}: the mask is a {type(mask).__name__}"
    assert mask.dtype == np.bool_, f"{where}: the mask is {mask.dtype}, not bool"
    assert mask.shape == shape, f"{where}: the mask has the shape {mask.shape}, its image {shape}"
    assert mask.any(), f"{where}: the mask of an anomalous image is empty"
    kept = mask.copy()
    if mask.flags.writeable:
        mask[:] = ~mask
    assert np.array_equal(dataset.read_mask(category, sample.mask), kept), (
        f"{where}: a mask that is read again, after the first was written to, is another"
    )


def _check_digests(
    dataset: Dataset, category: str, samples: Sequence[Sample], hashes: Sequence[str]
) -> None:
    digests = [dataset.file_digest(category, sample.key) for sample in samples]
    for sample, digest in zip(samples, digests, strict=True):
        again = dataset.file_digest(category, sample.key)
        assert digest == again, f"{category}/{sample.key}: file_digest() changes"
    for one, other in combinations(range(len(samples)), 2):
        assert hashes[one] == hashes[other] or digests[one] != digests[other], (
            f"{category}: {samples[one].key} and {samples[other].key} are other images of one "
            "file_digest()"
        )
    assert len(set(hashes)) > 1 or len(samples) == 1, f"{category}: all images have the same pixels"


def _check_splits(category: str, listed: Sequence[Sample], hashes: Sequence[str]) -> None:
    samples = divide(listed, hashes, Division())[0]
    if any(sample.group for sample in samples):
        return  # Of a few images the groups say nothing.
    leaked, _ = find_leaks(category, samples, hashes)
    judges = [s for i, s in enumerate(samples) if s.part == "test" and i not in leaked]
    judges = [s for s in judges if not s.domain]
    kinds = [s.defect for s in judges if s.anomalous]
    normal, twice = len(judges) - len(kinds), any(kinds.count(kind) > 1 for kind in kinds)
    train = {h for s, h in zip(samples, hashes, strict=True) if s.part == "train"}
    possible: dict[Protocol, bool] = {
        "labelled": normal > 1 and twice,
        "synthetic": len(train) > 1,
        "test": normal > 0 and bool(kinds),
    }
    for protocol in get_args(Protocol):
        if possible[protocol]:
            parts = split(category, samples, hashes, Validation(protocol=protocol))
            assert min(len(parts.train), len(parts.validation)), (
                f"{category}: the protocol {protocol!r} leaves a side without images"
            )


def _check_wrong_keys(dataset: Dataset, category: str) -> None:
    for key in (f"{_ABSENT}.png", f"../{_ABSENT}.png", ""):
        for read in (dataset.read_image, dataset.read_mask):
            _refuses(
                lambda read=read, key=key: read(category, key),  # type: ignore[misc]
                f"{category}: {read.__name__} of the key {key!r}",
            )


def _refuses(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except DataError:
        return
    except Exception as error:
        raise AssertionError(f"{what} is a {type(error).__name__}, not a DataError") from error
    raise AssertionError(f"{what} is no DataError")


def _some_of_each(samples: Sequence[Sample]) -> list[Sample]:
    kinds: dict[tuple[str, ...], list[Sample]] = defaultdict(list)
    for sample in samples:
        kinds[sample.part, sample.defect, sample.domain].append(sample)
    return [sample for members in kinds.values() for sample in members[:_EACH]]


def _is_plain(path: str) -> bool:
    """Whether a path is relative, leads nowhere else and has one spelling."""
    pure = PurePosixPath(path)
    return (
        bool(pure.parts)
        and str(pure) == path
        and not ({"/", "..", "."} & set(pure.parts))
        and "\0" not in path
    )
