"""The damaged copies of a category's held-out normal images, for synthetic validation."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from PIL import Image

from anomtune.datasets.base import GOOD
from anomtune.datasets.io import store
from anomtune.datasets.io.cache import CategoryArrays
from anomtune.datasets.io.imagefile import workers
from anomtune.datasets.splits.damage import COPIES, damaged_copies
from anomtune.progress import steps

_CHUNK = 64  # Images damaged ahead of the writer.

# An image, its defect type and its key.
Row = tuple[npt.NDArray[np.uint8], str, str]


def damaged_rows(
    arrays: CategoryArrays,
    drawn: CategoryArrays,
    held: npt.NDArray[np.intp],
    seed: int,
    without: Collection[str],
) -> tuple[Iterator[Row], int]:
    """Returns each held-out normal image followed by its damaged copies, and their number.

    Args:
        arrays: The category at the size that is wanted.
        drawn: The category at the size at which damage is drawn: every method of a sweep is
            judged by the same damage, whatever size it works at.
        held: Indices of the images.
        seed: Chooses the damage.
        without: Kinds of damage to leave out.
    """

    def work(turn: int) -> list[Row]:
        index = held[turn]
        key, image = arrays.samples[index].key, np.asarray(arrays.images[index])
        source = int(store.digest(seed, arrays.pixel_hashes[index]), 16)
        original = np.asarray(drawn.images[index])
        copies = damaged_copies(original, turn, source, without)
        return [
            (image, GOOD, key),
            # Numbered: two copies can fall back to the same mechanism.
            *(
                (
                    _transfer(image, original, copy.image) if drawn is not arrays else copy.image,
                    copy.mechanism,
                    f"{key}#{number}-{copy.mechanism}",
                )
                for number, copy in enumerate(copies, 1)
            ),
        ]

    def rows() -> Iterator[Row]:
        with ThreadPoolExecutor(workers()) as pool:
            for start in range(0, len(held), _CHUNK):
                for group in pool.map(work, range(start, min(start + _CHUNK, len(held)))):
                    yield from group

    count = len(held) * (1 + COPIES)
    return steps(rows(), "damaging copies", count), count


def _transfer(
    image: npt.NDArray[np.uint8],
    original: npt.NDArray[np.uint8],
    damaged: npt.NDArray[np.uint8],
) -> npt.NDArray[np.uint8]:
    """Does to an image what was done to its copy of another size.

    The change is resized, not the damaged image: else its sharpness would give it away.
    """
    side = image.shape[0]
    change = damaged.astype(np.float32) - original
    planes = [
        np.asarray(Image.fromarray(change[..., c]).resize((side, side), Image.Resampling.BILINEAR))
        for c in range(3)
    ]
    result: npt.NDArray[np.uint8] = np.clip(
        np.rint(image + np.stack(planes, axis=2)), 0, 255
    ).astype(np.uint8)
    return result
