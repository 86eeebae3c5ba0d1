"""Images that look nearly the same and lie on two sides: a warning, for somebody to look at.

By the perceptual hash of the package ``imagehash`` (a discrete cosine transform of the image at
64 x 64 pixels, its 16 x 16 lowest frequencies above or below their median). On the battery welds a
JPEG copy of quality 60 is at most 10 of the 256 bits away, one of half the size 10, one that is a
tenth brighter 10 in the median; of different images of the two sides the nearest are 24 bits apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from anomtune.datasets.base import Problem, Sample
from anomtune.datasets.splits.split import split
from anomtune.datasets.splits.validation import Validation
from anomtune.errors import DataError

_SIDE = 16  # Of the square of frequencies.
_NEAR = 16  # Bits that may differ.
_BLOCK = 1 << 22  # Pairs that are compared at once: bounds memory.
_SHOWN = 3


def perceptual_hash(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Returns the hash of an image ``(H, W, 3)``: 256 bits, as ``(4,)``."""
    import imagehash  # noqa: PLC0415 - an audit alone needs it, and SciPy's transforms with it

    bits = imagehash.phash(Image.fromarray(image), hash_size=_SIDE).hash
    return np.packbits(bits.ravel()).view(np.uint64)


def find_near(
    category: str,
    samples: Sequence[Sample],
    pixel_hashes: Sequence[str],
    perceptual: Sequence[npt.NDArray[np.uint64]],
    validation: Validation,
) -> list[Problem]:
    """Returns at most one warning for each two sides, which names the first few pairs.

    Args:
        category: Its name.
        samples: The ``N`` samples, each in a part.
        pixel_hashes: ``N`` digests of their pixels.
        perceptual: ``N`` hashes of how they look.
        validation: Which images are the search's; where a category cannot be divided so, training
            and test images are compared.
    """
    problems = []
    sides = _sides(category, samples, pixel_hashes, validation)
    names = list(sides)
    for position, one in enumerate(names):
        for other in names[position + 1 :]:
            pairs = _pairs(sides[one], sides[other], perceptual)
            if not pairs:
                continue
            shown = ", ".join(f"{samples[i].key} and {samples[j].key}" for i, j in pairs[:_SHOWN])
            more = f", and {len(pairs) - _SHOWN} more pairs" if len(pairs) > _SHOWN else ""
            message = (
                f"{one} and {other} have images that look nearly the same: {shown}{more}; if they "
                "show the same part, say so with dataset.group"
            )
            problems.append(Problem(category, "", message, fatal=False))
    return problems


def _sides(
    category: str, samples: Sequence[Sample], pixel_hashes: Sequence[str], validation: Validation
) -> Mapping[str, Sequence[int]]:
    try:
        parts = split(category, samples, pixel_hashes, validation)
    except DataError:
        own = [i for i, sample in enumerate(samples) if not sample.domain]
        return {
            part: [i for i in own if samples[i].part == name]
            for part, name in (("training", "train"), ("test", "test"))
        }
    return {
        "training": list(map(int, parts.train)),
        "validation": list(map(int, parts.validation)),
        "test": list(map(int, parts.test)),
    }


def _pairs(
    one: Sequence[int], other: Sequence[int], perceptual: Sequence[npt.NDArray[np.uint64]]
) -> list[tuple[int, int]]:
    """Returns near pairs, each image of ``other`` once, with the one that it is nearest to."""
    if not one or not other:
        return []
    first = np.stack([perceptual[i] for i in one])
    pairs = []
    rows = max(1, _BLOCK // len(one))
    for start in range(0, len(other), rows):
        block = np.stack([perceptual[i] for i in other[start : start + rows]])
        distance = np.bitwise_count(block[:, None] ^ first[None]).sum(-1, dtype=np.int64)
        nearest = distance.argmin(1)
        for row in np.flatnonzero(distance.min(1) <= _NEAR):
            pairs.append((one[int(nearest[row])], other[start + int(row)]))
    return pairs
