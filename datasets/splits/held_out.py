"""Test images: what a search has not seen, and only `confirm` opens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomtune.datasets.base import GOOD, Dataset
from anomtune.datasets.io.cache import CategoryArrays
from anomtune.datasets.io.imagefile import Resize
from anomtune.datasets.io.masks import Masks
from anomtune.datasets.splits.split import open_split
from anomtune.datasets.splits.validation import Validation
from anomtune.errors import DataError


@dataclass(frozen=True, slots=True)
class TestSplit:
    """Test images: those that are held out, by pixel hash, or all of them.

    Attributes:
        images: ``(K, S, S, 3)`` uint8.
        masks: ``K`` masks as drawn, each ``(H, W)`` of its image's size. Of an anomalous image in
            whose mask nothing is drawn, nobody knows which pixels are.
        labels: ``(K,)`` int8, 1 = anomalous.
        defects: ``K`` defect types.
        keys: ``K`` paths within the category.
        domains: ``K`` names of shifted domains, "" for the training images' own.
        split_hash: Identity of the split, see `Split`.
    """

    __test__ = False  # Keeps pytest from collecting a class by its name.

    images: npt.NDArray[np.uint8]
    masks: Masks
    labels: npt.NDArray[np.int8]
    defects: tuple[str, ...]
    keys: tuple[str, ...]
    domains: tuple[str, ...]
    split_hash: str


def load_test_split(
    dataset: Dataset,
    category: str,
    image_size: int,
    validation: Validation,
    *,
    input_size: int | None = None,
    resize: Resize = "bilinear",
) -> TestSplit:
    """Opens the held-out test images of a category; only `confirm` may call this.

    Args:
        dataset: Where the images come from.
        category: One of its categories.
        image_size: Side of the sweep's square images, in pixels.
        validation: How the validation images are chosen; the others are held out.
        input_size: Side ``S`` of the images, for a method that works at another size; default:
            ``image_size``.
        resize: How the images are resized.

    Raises:
        DataError: As `load_search_split`, and if nothing is held out.
        StorageError: If the cache cannot be written.
    """
    size = input_size or image_size
    arrays, parts = open_split(dataset, category, size, validation, resize)
    if validation.protocol == "test" and not len(parts.shifted):
        raise DataError(
            f"{category}: validation.protocol 'test' holds no test image out; "
            "use labelled or synthetic"
        )
    held_out = np.concatenate([parts.test, parts.shifted])
    if not len(held_out):
        raise DataError(
            f"{category}: no test images to confirm on; add them to test/{GOOD} and "
            "test/<defect type>, or set confirm: 0"
        )
    return _test_split(arrays, held_out, parts.split_hash)


def load_whole_test(
    dataset: Dataset, category: str, size: int, resize: Resize = "bilinear"
) -> TestSplit:
    """Opens all test images of a category as papers do, also those that training has; by key.

    Only what compares itself with a paper may call this: nothing is held out of it.

    Args:
        dataset: Where the images come from.
        category: One of its categories.
        size: Side of the square images, in pixels.
        resize: How they are resized.

    Raises:
        DataError: If the images cannot be read, or there are none.
        StorageError: If the cache cannot be written.
    """
    arrays, parts = open_split(dataset, category, size, Validation(protocol="test"), resize)
    trained = {sample.key for sample in arrays.samples if sample.part == "train"}
    test = [
        i
        for i, sample in enumerate(arrays.samples)
        if sample.part == "test" and sample.origin not in trained
    ]
    return _test_split(arrays, np.array(test, dtype=np.intp), parts.split_hash)


def _test_split(
    arrays: CategoryArrays, indices: npt.NDArray[np.intp], split_hash: str
) -> TestSplit:
    chosen = [arrays.samples[i] for i in indices]
    return TestSplit(
        # Indexing copies: plain arrays, no longer a window onto the whole category.
        images=arrays.images[indices],
        masks=arrays.masks.take(indices),
        labels=np.array([s.anomalous for s in chosen], dtype=np.int8),
        defects=tuple(s.defect for s in chosen),
        keys=tuple(s.key for s in chosen),
        domains=tuple(s.domain for s in chosen),
        split_hash=split_hash,
    )
