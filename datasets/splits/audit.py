"""Everything that is wrong with a data folder, and what is in it. Decodes every file once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from anomtune.datasets.base import GOOD, Dataset, Problem, Sample
from anomtune.datasets.io.cache import decode
from anomtune.datasets.io.imagefile import hash_pixels, workers
from anomtune.datasets.io.maskfile import odd_mask
from anomtune.datasets.splits.division import Division, DivisionCounts, divide
from anomtune.datasets.splits.leaks import find_leaks
from anomtune.datasets.splits.near import find_near, perceptual_hash
from anomtune.datasets.splits.validation import Validation
from anomtune.errors import DataError, ImageError
from anomtune.names import to_name
from anomtune.progress import steps

#: Images of a category among which those that look the same are looked for.
_MOST = 20_000


@dataclass(frozen=True, slots=True)
class CategoryCounts:
    """What is in a category.

    Attributes:
        category: Its name.
        n_train: Training images.
        n_test_normal: Normal test images of the training images' domain.
        n_test_anomalous: Anomalous ones of it.
        domains: Shifted domains with their numbers of test images, by name.
        defects: Defect types with their numbers of images, by name.
        n_masks: Anomalous images that have a mask.
        smallest: Width and height of the image of least area, in pixels; ``None`` if none decodes.
        largest: Width and height of the image of greatest area.
        division: What the division gave, if the images had none.
    """

    category: str
    n_train: int
    n_test_normal: int
    n_test_anomalous: int
    domains: tuple[tuple[str, int], ...]
    defects: tuple[tuple[str, int], ...]
    n_masks: int
    smallest: tuple[int, int] | None
    largest: tuple[int, int] | None
    division: DivisionCounts | None = None


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


def inspect(
    dataset: Dataset, category: str | None = None, validation: Validation | None = None
) -> Audit:
    """Decodes every image and mask, and never stops at a problem.

    Args:
        dataset: What to look at.
        category: One of its categories; ``None`` for all.
        validation: How validation images are chosen, to look for images of other sides that look
            the same; default: as usual.

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
        found, sizes, divided, division = _decode_all(
            dataset, name, samples, validation or Validation()
        )
        parts = {sample.key: sample.part for sample in divided}
        missing = find_missing(dataset, name, samples)
        problems += sorted([*listed, *missing, *found], key=lambda p: (not p.fatal, p.key))
        parted = [replace(s, part=parts.get(s.key, s.part)) for s in samples]
        counts.append(replace(_count(name, parted, sizes), division=division))
    return Audit(tuple(problems), tuple(counts))


def find_missing(dataset: Dataset, category: str, samples: Sequence[Sample]) -> list[Problem]:
    """Compares a category with what its authors publish; names missing images where it can.

    Authors who number their images let a gap be seen: ``000.png, 002.png`` lacks ``001.png``.
    """
    published = dataset.published(category)
    if published is None:
        return []
    parts = {
        "training images": (
            published.n_train,
            [s for s in samples if s.part == "train"],
        ),
        "normal test images": (
            published.n_test_normal,
            [s for s in samples if s.part == "test" and not s.anomalous and not s.domain],
        ),
        "anomalous test images": (
            published.n_test_anomalous,
            [s for s in samples if s.part == "test" and s.anomalous and not s.domain],
        ),
    }
    normal = [s.key for s in samples if not s.anomalous and not s.domain]
    n_normal = published.n_train + published.n_test_normal
    problems = []
    for what, (expected, found) in parts.items():
        lacking = expected - len(found)
        if lacking == 0:
            continue
        names, among = [], ""
        if 0 < lacking <= len(found):  # Of a mere part of the numbers nothing can be told.
            names = _gaps([s.key for s in found], expected)
            if not names and not found[0].anomalous:
                # VisA numbers its normal images and then draws the training images from them.
                names = _gaps(normal, n_normal, pooled=True)
                among = " of the training and the test images" if len(names) > lacking else ""
        message = f"{len(found)} of {expected} {what}"
        if lacking < 0:
            message += ": more than are published; remove what was added"
        elif names:
            message += f"; missing {_some(names, max(lacking, len(names)))}{among}"
        else:
            message += "; the download is not complete"
        problems.append(Problem(category, "", message, fatal=False))
    return problems


def _some(names: Sequence[str], count: int) -> str:
    """Names the first five of ``count`` things, not all of which need have a name."""
    shown = list(names[:5])
    return ", ".join(shown) + (f" and {count - len(shown)} more" if count > len(shown) else "")


def _gaps(keys: Sequence[str], expected: int, *, pooled: bool = False) -> list[str]:
    """Returns the names that are missing from numbered files, as far as the numbers tell.

    Args:
        keys: Keys of the files that there are.
        expected: How many there should be.
        pooled: Whether the files of all folders share one numbering; else each folder has its
            own, and only gaps below its highest number can be seen.

    Returns:
        Nothing if the files are not numbered, or not throughout.
    """
    folders: dict[str, list[PurePosixPath]] = defaultdict(list)
    for key in keys:
        path = PurePosixPath(key)
        if not (path.stem.isascii() and path.stem.isdigit()):
            return []
        folders["" if pooled else path.parent.name].append(path)
    numbers = {name: {int(path.stem) for path in paths} for name, paths in folders.items()}
    if not keys or sum(map(len, numbers.values())) < len(keys):
        return []  # Two files share a number.
    if len(folders) == 1:
        (name,) = folders
        return _gaps_of(folders[name], numbers[name], expected)
    first = min(1, *map(min, numbers.values()))
    missing = [
        f"{name}/{_like(paths, number)}"
        for name, paths in sorted(folders.items())
        for number in range(first, max(numbers[name]))
        if number not in numbers[name]
    ]
    return missing if len(missing) <= expected - len(keys) else []


def _gaps_of(paths: Sequence[PurePosixPath], numbers: set[int], expected: int) -> list[str]:
    """Returns the names missing from files that are numbered throughout, from 0 or from 1."""
    lowest, highest = min(numbers), max(numbers)
    from_0, from_1 = highest < expected, lowest > 0 and highest <= expected
    inner = range(1, expected) if from_0 and from_1 else range(1 - from_0, expected + from_1)
    if not (from_0 or from_1):
        return []
    missing = [_like(paths, number) for number in inner if number not in numbers]
    if from_0 and from_1:
        # Nothing tells which end the last one is missing from.
        missing.append(f"{_like(paths, 0)} or {_like(paths, expected)}")
    return missing


def _like(paths: Sequence[PurePosixPath], number: int) -> str:
    """Writes a number as the names of files do."""
    width = max(len(path.stem) for path in paths)
    suffix = Counter(path.suffix for path in paths).most_common(1)[0][0]
    return f"{number:0{width}}{suffix}"


def _decode_all(
    dataset: Dataset, category: str, samples: Sequence[Sample], validation: Validation
) -> tuple[list[Problem], list[tuple[int, int]], tuple[Sample, ...], DivisionCounts | None]:
    """Returns what only decoding shows.

    Returns:
        The problems; the width and height of each image; the images that decode, each in a part;
        and how many play which, if their content has decided that.
    """
    # Of thousands of images of one thing many look alike, and all pairs take long.
    compares = not dataset.one_class and len(samples) <= _MOST

    def work(
        sample: Sample,
    ) -> tuple[str, npt.NDArray[np.uint64], tuple[int, int], str | None] | Problem:
        try:
            image, mask = decode(dataset, category, sample)
        except DataError as error:
            bad = sample.key
            if isinstance(error, ImageError) and sample.mask:
                bad = sample.mask if _is_of(error, sample.mask) else bad
            return Problem(category, bad, getattr(error, "reason", str(error)))
        # Copies share the mask of their original.
        odd = None if mask is None or sample.origin is not None else odd_mask(mask)
        size = image.shape[1], image.shape[0]
        look = perceptual_hash(image) if compares else np.empty(0, np.uint64)
        return hash_pixels(image), look, size, odd

    problems: list[Problem] = []
    readable: list[Sample] = []
    hashes: list[str] = []
    looks: list[npt.NDArray[np.uint64]] = []
    sizes: list[tuple[int, int]] = []
    with ThreadPoolExecutor(workers()) as pool:
        looked = steps(pool.map(work, samples), f"auditing {category}", len(samples))
        for sample, result in zip(samples, looked, strict=True):
            if isinstance(result, Problem):
                problems.append(result)
                continue
            pixel_hash, look, size, odd = result
            readable.append(sample)
            hashes.append(pixel_hash)
            looks.append(look)
            sizes.append(size)
            if odd is not None:
                problems.append(Problem(category, str(sample.mask), odd, fatal=False))
    divided, division = divide(readable, hashes, dataset.division or Division())
    problems += find_leaks(category, divided, hashes)[1]
    if compares:
        problems += find_near(category, divided, hashes, looks, validation)
    elif not dataset.one_class:
        what = f"more than {_MOST} images: not searched for those that look nearly the same"
        problems.append(Problem(category, "", what, fatal=False))
    return problems, sizes, divided, division


def _is_of(error: ImageError, key: str) -> bool:
    """Whether it is the file of a key that cannot be read."""
    return error.where.endswith((key, to_name(key)))


def _count(
    category: str, samples: Sequence[Sample], sizes: Sequence[tuple[int, int]]
) -> CategoryCounts:
    test = [s.defect for s in samples if s.part == "test" and not s.domain]
    shifted = [s.domain for s in samples if s.domain]
    defects = sorted(set(test) - {GOOD})
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return CategoryCounts(
        category=category,
        n_train=sum(s.part == "train" for s in samples),
        n_test_normal=test.count(GOOD),
        n_test_anomalous=len(test) - test.count(GOOD),
        domains=tuple((d, shifted.count(d)) for d in sorted(set(shifted))),
        defects=tuple((d, test.count(d)) for d in defects),
        n_masks=sum(s.mask is not None for s in samples),
        smallest=by_area[0] if by_area else None,
        largest=by_area[-1] if by_area else None,
    )
