"""Images of other things, for methods that learn what the category is not.

They are decoded once per node, like the category itself, and only so many of them: methods draw
textures and contrasts from them, and a few hundred do for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from anomtune.datasets.base import Dataset, Sample
from anomtune.datasets.io import store
from anomtune.datasets.io.cache import map_array, start_array
from anomtune.datasets.io.files import images_below
from anomtune.datasets.io.imagefile import (
    EXTENSIONS,
    Resize,
    digest_file,
    read_rgb,
    resize_image,
    workers,
)
from anomtune.errors import DataError
from anomtune.progress import steps

T = TypeVar("T")

#: At most so many images are taken, evenly spread over those that there are.
LIMIT = 400

_FORMAT = 2  # Raise it when files are read otherwise.


def list_images(folder: Path, passed_over: list[Path] | None = None) -> list[Path]:
    """Returns the image files below a folder, by name.

    Args:
        folder: Where to look.
        passed_over: Takes what is left out: other files, what is hidden or cannot be listed.

    Raises:
        DataError: If it is no folder or holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give one that holds images")
    files = []
    for path in images_below(folder, passed_over):
        if path.is_file():
            files.append(path)
        elif passed_over is not None:
            passed_over.append(path)
    if not files:
        raise DataError(f"{folder}: holds no image ({', '.join(sorted(EXTENSIONS))})")
    return files


def folder_images(folder: Path, size: int, resize: Resize = "bilinear") -> npt.NDArray[np.uint8]:
    """Returns up to `LIMIT` images from anywhere below a folder.

    Args:
        folder: Any folder of images, such as a download of DTD or COCO.
        size: Side of the returned images in pixels. The aspect ratio is not kept.
        resize: How they are resized.

    Returns:
        ``(M, size, size, 3)`` uint8, memory-mapped.

    Raises:
        DataError: If there is no image, or one cannot be read.
    """
    chosen = _spread(list_images(folder), LIMIT)
    return _decode(
        [str(path) for path in chosen],
        size,
        resize,
        lambda path: digest_file(Path(path)),
        lambda path: read_rgb(Path(path)),
    )


def other_categories(
    dataset: Dataset, category: str, size: int, resize: Resize = "bilinear"
) -> npt.NDArray[np.uint8] | None:
    """Returns up to `LIMIT` normal training images of a dataset's other categories.

    Args:
        dataset: Where the images come from.
        category: The category to leave out.
        size: Side of the returned images in pixels.
        resize: How they are resized.

    Returns:
        ``(M, size, size, 3)`` uint8, memory-mapped, or ``None`` if there are no others or they are
        the very anomalies that the category is tested with (`Dataset.one_class`).

    Raises:
        DataError: If an image cannot be read.
    """
    others = [name for name in dataset.categories() if name != category]
    if not others or dataset.one_class:
        return None
    share = max(1, LIMIT // len(others))
    chosen: dict[str, tuple[str, Sample]] = {}
    for name in others:
        samples = sorted(dataset.scan(name)[0], key=lambda sample: sample.key)
        normal = [s for s in samples if s.part != "test" and not s.anomalous]
        chosen |= {f"{name}/{s.key}": (name, s) for s in _spread(normal, share)}
    if not chosen:
        return None

    def digest(key: str) -> str:
        name, sample = chosen[key]
        return dataset.file_digest(name, sample.key)

    def read(key: str) -> npt.NDArray[np.uint8]:
        name, sample = chosen[key]
        return dataset.read_image(name, sample.key)

    return _decode(list(chosen)[:LIMIT], size, resize, digest, read)


def _spread(items: Sequence[T], count: int) -> list[T]:
    """Returns up to ``count`` items, evenly spread."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


def _decode(
    keys: Sequence[str],
    size: int,
    resize: Resize,
    digest: Callable[[str], str],
    read: Callable[[str], npt.NDArray[np.uint8]],
) -> npt.NDArray[np.uint8]:
    def resized(key: str) -> npt.NDArray[np.uint8]:
        return resize_image(read(key), size, resize)

    def images() -> Iterator[npt.NDArray[np.uint8]]:
        with ThreadPoolExecutor(workers()) as pool:
            for start in range(0, len(keys), 64):  # bounds memory
                yield from pool.map(resized, keys[start : start + 64])

    shape = (len(keys), size, size, 3)

    def build(folder: Path) -> None:
        with (folder / "images.npy").open("wb") as file:
            start_array(file, shape)
            for image in steps(images(), "reading foreign images", len(keys)):
                file.write(image.tobytes())

    with ThreadPoolExecutor(workers()) as pool:
        content = list(pool.map(digest, keys))
    return store.obtain(
        "foreign",
        store.digest(_FORMAT, size, resize, content),
        build,
        lambda folder: map_array(folder / "images.npy", shape),
    )
