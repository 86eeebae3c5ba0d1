"""Everything that is wrong with a data folder, and what is in it. Decodes every file once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from anomtune.datasets.base import GOOD, DataError, Dataset, ImageError, Problem, Sample
from anomtune.datasets.cache import decode, workers
from anomtune.datasets.imagefile import hash_pixels
from anomtune.datasets.leaks import find_leaks


@dataclass(frozen=True, slots=True)
class CategoryCounts:
    """What is in a category.

    Attributes:
        category: Its name.
        n_train: Training images.
        n_test_normal: Normal test images.
        n_test_anomalous: Anomalous test images.
        defects: Defect types with their numbers of images, by name.
        n_masks: Anomalous images that have a mask.
        smallest: Width and height of the image of least area, in pixels; ``None`` if none decodes.
        largest: Width and height of the image of greatest area.
    """

    category: str
    n_train: int
    n_test_normal: int
    n_test_anomalous: int
    defects: tuple[tuple[str, int], ...]
    n_masks: int
    smallest: tuple[int, int] | None
    largest: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Audit:
    """What an inspection found.

    Attributes:
        problems: What lies beside the categories, then by category, the fatal ones first.
        counts: One per category that could be listed.
    """

    problems: tuple[Problem, ...]
    counts: tuple[CategoryCounts, ...]


def audit(dataset: Dataset, category: str | None = None) -> list[Problem]:
    """Returns everything wrong with a dataset or one category of it; see `inspect`."""
    return list(inspect(dataset, category).problems)


def inspect(dataset: Dataset, category: str | None = None) -> Audit:
    """Decodes every image and mask, and never stops at a problem.

    Args:
        dataset: What to look at.
        category: One of its categories; ``None`` for all.

    Raises:
        DataError: If the root holds no category at all, or not this one.
    """
    names = dataset.categories()
    problems: list[Problem] = []
    if category is None:
        problems += dataset.warnings()
    else:
        # An unknown name is answered with the existing ones.
        dataset.scan(category)
        names = (category,)
    counts = []
    for name in names:
        try:
            samples, listed = dataset.scan(name)
        except DataError as error:
            problems.append(Problem(name, "", str(error)))
            continue
        found, sizes = _decode_all(dataset, name, samples)
        problems += sorted([*listed, *found], key=lambda p: (not p.fatal, p.key))
        counts.append(_count(name, samples, sizes))
    return Audit(tuple(problems), tuple(counts))


def _decode_all(
    dataset: Dataset, category: str, samples: Sequence[Sample]
) -> tuple[list[Problem], list[tuple[int, int]]]:
    """Returns the problems that only decoding shows, and the width and height of each image."""

    def work(sample: Sample) -> tuple[str, tuple[int, int], bool] | Problem:
        try:
            image, mask = decode(dataset, category, sample)
        except DataError as error:
            bad = sample.key
            if isinstance(error, ImageError) and sample.mask and error.where.endswith(sample.mask):
                bad = sample.mask
            return Problem(category, bad, getattr(error, "reason", str(error)))
        empty = mask is not None and not mask.any()
        return hash_pixels(image), (image.shape[1], image.shape[0]), empty

    problems: list[Problem] = []
    readable: list[Sample] = []
    hashes: list[str] = []
    sizes: list[tuple[int, int]] = []
    with ThreadPoolExecutor(workers()) as pool:
        for sample, result in zip(samples, pool.map(work, samples), strict=True):
            if isinstance(result, Problem):
                problems.append(result)
                continue
            pixel_hash, size, empty = result
            readable.append(sample)
            hashes.append(pixel_hash)
            sizes.append(size)
            if empty:
                message = (
                    "empty mask of an anomalous image; "
                    "draw the defect, or remove the mask to leave it out of pixel metrics"
                )
                problems.append(Problem(category, str(sample.mask), message, fatal=False))
    problems += find_leaks(category, readable, hashes)[1]
    return problems, sizes


def _count(
    category: str, samples: Sequence[Sample], sizes: Sequence[tuple[int, int]]
) -> CategoryCounts:
    test = [s.defect for s in samples if s.part == "test"]
    defects = sorted(set(test) - {GOOD})
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return CategoryCounts(
        category=category,
        n_train=sum(s.part == "train" for s in samples),
        n_test_normal=test.count(GOOD),
        n_test_anomalous=len(test) - test.count(GOOD),
        defects=tuple((d, test.count(d)) for d in defects),
        n_masks=sum(s.mask is not None for s in samples),
        smallest=by_area[0] if by_area else None,
        largest=by_area[-1] if by_area else None,
    )
