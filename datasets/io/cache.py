"""The per-node cache: each image decoded and resized once, then shared by every trial.

An entry is found by the content of the category, so a moved folder finds it again and a changed
image never does. A small index from file names, sizes and times to that content makes a second
opening a matter of milliseconds.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from anomtune.datasets.base import Dataset, Problem, Sample
from anomtune.datasets.io import store
from anomtune.datasets.io.imagefile import (
    PIXEL_HASH_LENGTH,
    Resize,
    hash_pixels,
    resize_image,
    workers,
)
from anomtune.datasets.io.maskfile import odd_mask
from anomtune.datasets.io.masks import Masks, PackedMask, pack
from anomtune.datasets.io.rows import Rows
from anomtune.datasets.splits.division import Division, DivisionCounts, divide
from anomtune.errors import DataError, ImageError
from anomtune.progress import steps

FORMAT = 4  # Raise it when files are read otherwise: cached categories are found by it.

#: The file of a cached category that holds its normal training images, by pixel hash and key.
TRAINING = "training.npy"

_CHUNK = 128  # Images decoded ahead of the writer: bounds memory for large categories.


@dataclass(frozen=True, slots=True)
class CategoryArrays:
    """A whole category, decoded and resized; samples in the order of their keys.

    Attributes:
        category: Its name.
        content: Digest of the samples and of the bytes of their files.
        samples: The ``N`` samples, each in a part.
        pixel_hashes: For each sample a digest of the decoded full-size RGB pixels.
        images: ``(N, S, S, 3)`` uint8, memory-mapped copy-on-write: pages are shared between
            processes and writing to them does not change the files. Normal training images have
            a file of their own, by pixel hash and key, that splits share.
        masks: ``N`` masks as drawn, at the size of their images; where none is, nothing is drawn.
        warnings: What the listing found that is not fatal, and what is odd about masks.
        division: How many images play which part, if their content has decided that.
    """

    category: str
    content: str
    samples: tuple[Sample, ...]
    pixel_hashes: tuple[str, ...]
    images: Rows
    masks: Masks
    warnings: tuple[Problem, ...]
    division: DivisionCounts | None = None


def open_category(
    dataset: Dataset, category: str, image_size: int, resize: Resize = "bilinear"
) -> CategoryArrays:
    """Opens a category from the cache, decoding it first if this node has not seen it.

    Args:
        dataset: Where the images come from.
        category: One of its categories.
        image_size: Side ``S`` of the square images, in pixels. The aspect ratio is not kept.
        resize: How the images are resized; masks are kept as they are drawn.

    Raises:
        DataError: If the category has a fatal problem or an image cannot be decoded.
        StorageError: If the cache cannot be written.
    """
    if image_size < 1:
        raise DataError(f"image_size {image_size}: must be at least 1")
    # Before the listing: a file that appears between the two must not be known by this digest.
    fingerprint = dataset.fingerprint(category)
    samples, problems = dataset.scan(category)
    refuse_fatal(dataset, problems)
    samples = tuple(sorted(samples, key=lambda s: s.key))
    content = _content(dataset, category, samples, fingerprint)

    # Whatever the size, these are the same: they are found out once.
    pixels = store.digest("pixels", FORMAT, content)

    def build(folder: Path) -> None:
        known = (store.recall(pixels) or "").split()
        hashes = _decode_all(
            dataset, category, samples, folder, known, size=image_size, resize=resize
        )
        # The pixels were read after the digests: an edit in between would be cached as if it were
        # the old content.
        if fingerprint is None:
            changed = _content(dataset, category, samples, None) != content
        else:
            changed = dataset.fingerprint(category) != fingerprint
        if changed:
            raise DataError(f"{_place(dataset)}: {category!r} changed while it was read; try again")
        if hashes != known:
            store.remember(pixels, " ".join(hashes))

    def load(folder: Path) -> CategoryArrays:
        meta = json.loads((folder / "meta.json").read_text(encoding="ascii"))
        hashes = tuple(meta["pixel_hashes"])
        rule = dataset.division or Division()
        divided, counts = divide(samples, hashes, rule)
        return CategoryArrays(
            category=category,
            content=content,
            samples=divided,
            pixel_hashes=hashes,
            images=_map_rows(folder, samples, hashes, image_size),
            masks=_load_masks(folder / "masks.bin", meta["masks"]),
            warnings=(
                *(p for p in problems if not p.fatal),
                *(Problem(category, key, message, fatal=False) for key, message in meta["odd"]),
            ),
            division=counts,
        )

    return store.obtain(
        "categories", store.digest(FORMAT, image_size, resize, content), build, load
    )


def refuse_fatal(dataset: Dataset, problems: tuple[Problem, ...]) -> None:
    """Raises DataError for the first fatal problem, saying how many more there are."""
    fatal = [p for p in problems if p.fatal]
    if not fatal:
        return
    more = f" (and {len(fatal) - 1} more)" if len(fatal) > 1 else ""
    command = ["anomtune", "audit", dataset.name]
    if dataset.root is not None:
        command.append(str(dataset.root))
    raise DataError(
        f"{_place(dataset)}: {fatal[0]}{more}; for all of them run `{shlex.join(command)}`"
    )


def decode(
    dataset: Dataset, category: str, sample: Sample
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_] | None]:
    """Reads the image ``(H, W, 3)`` of a sample and, if it has one, its mask ``(H, W)``.

    Raises:
        DataError: If either cannot be decoded, or their sizes differ.
    """
    with _reading(dataset, category, sample.key):
        image = dataset.read_image(category, sample.key)
    if sample.mask is None:
        return image, None
    with _reading(dataset, category, sample.mask):
        mask = dataset.read_mask(category, sample.mask)
    if mask.shape != image.shape[:2]:
        raise ImageError(
            f"{_place(dataset)}: {category}/{sample.mask}",
            f"the mask is {mask.shape[1]}x{mask.shape[0]} but its image {sample.key} is "
            f"{image.shape[1]}x{image.shape[0]}{_turned(mask, image)}; save it again at the size "
            "of the image",
        )
    return image, mask


def map_array(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Maps a uint8 ``.npy`` file into memory, copy-on-write.

    Raises:
        ValueError: If the file does not hold that array whole.
        OSError: If the file cannot be opened.
    """
    array: npt.NDArray[np.uint8] = np.load(path, mmap_mode="c", allow_pickle=False)
    if array.shape != shape or array.dtype != np.uint8:
        raise ValueError(f"{path}: expected uint8 {shape}, found {array.dtype} {array.shape}")
    return array


def start_array(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Writes the header of a uint8 ``.npy`` file; the caller writes the ``prod(shape)`` bytes."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _content(
    dataset: Dataset, category: str, samples: tuple[Sample, ...], fingerprint: str | None
) -> str:
    listed = [_identity(sample) for sample in samples]
    note = store.digest(FORMAT, dataset.name, category, fingerprint, listed)
    if fingerprint is not None and (known := store.recall(note)):
        return known

    def digest(key: str) -> str:
        with _reading(dataset, category, key):
            return dataset.file_digest(category, key)

    def describe(sample: Sample) -> list[str | None]:
        mask = digest(sample.mask) if sample.mask else None
        return [*_identity(sample), digest(sample.key), mask]

    with ThreadPoolExecutor(workers()) as pool:
        content = store.digest(list(pool.map(describe, samples)))
    if fingerprint is not None and dataset.fingerprint(category) == fingerprint:
        store.remember(note, content)
    return content


def _identity(sample: Sample) -> list[str | None]:
    shift = [sample.domain, sample.origin] if sample.domain else []
    return [sample.key, sample.part, sample.defect, sample.mask, *shift]


def _decode_all(
    dataset: Dataset,
    category: str,
    samples: tuple[Sample, ...],
    folder: Path,
    known: Sequence[str],
    *,
    size: int,
    resize: Resize,
) -> list[str]:
    """Fills a folder with the images and masks of a category.

    Args:
        dataset: Where they come from.
        category: Its name.
        samples: The ``N`` samples.
        folder: What is to be filled.
        known: ``N`` digests of the images' pixels; others are taken for none.
        size: Side of the images.
        resize: How they are resized.

    Returns:
        ``N`` digests of the images' pixels.
    """
    if [len(pixel_hash) for pixel_hash in known] != [PIXEL_HASH_LENGTH] * len(samples):
        known = ()

    def work(number: int) -> tuple[str, npt.NDArray[np.uint8], PackedMask, str | None]:
        image, mask = decode(dataset, category, samples[number])
        shape = (image.shape[0], image.shape[1])
        packed = PackedMask(shape, b"") if mask is None else pack(mask)
        odd = None if mask is None else odd_mask(mask)
        pixel_hash = known[number] if known else hash_pixels(image)
        return pixel_hash, resize_image(image, size, resize), packed, odd

    def decoded() -> Iterator[tuple[str, npt.NDArray[np.uint8], PackedMask, str | None]]:
        with ThreadPoolExecutor(workers()) as pool:
            for start in range(0, len(samples), _CHUNK):
                yield from pool.map(work, numbers[start : start + _CHUNK])

    numbers = range(len(samples))
    hashes, index, odd_masks = [], [], []
    # Written, not mapped: on a full disk a mapped write is a SIGBUS, this one is an error.
    n_training = sum(map(_trains, samples))
    by_key = folder / "by_key"
    with (
        (folder / "images.npy").open("wb") as images,
        by_key.open("wb") as training,
        (folder / "masks.bin").open("wb") as masks,
    ):
        start_array(images, (len(samples) - n_training, size, size, 3))
        start_array(training, (n_training, size, size, 3))
        read = steps(decoded(), f"reading {category}", len(samples))
        for sample, (pixel_hash, image, mask, odd) in zip(samples, read, strict=True):
            hashes.append(pixel_hash)
            (training if _trains(sample) else images).write(image.tobytes())
            index.append([*mask.shape, masks.write(mask.bits)])
            if odd is not None and sample.origin is None:  # copies share their masks
                odd_masks.append([sample.mask, odd])
    unordered = map_array(by_key, (n_training, size, size, 3))
    with (folder / TRAINING).open("wb") as file:
        start_array(file, unordered.shape)
        for row in np.argsort(_ranks(samples, hashes)):
            file.write(unordered[row].tobytes())
    del unordered
    by_key.unlink()
    meta = {"pixel_hashes": hashes, "masks": index, "odd": odd_masks}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="ascii")
    return hashes


def _trains(sample: Sample) -> bool:
    return sample.part == "train" and not sample.anomalous


def _ranks(samples: Sequence[Sample], hashes: Sequence[str]) -> npt.NDArray[np.intp]:
    """Returns the places of the normal training images in their file, for each in turn."""
    training = [i for i, sample in enumerate(samples) if _trains(sample)]
    order = sorted(range(len(training)), key=lambda row: (hashes[training[row]], row))
    ranks = np.empty(len(training), np.intp)
    ranks[order] = np.arange(len(training))
    return ranks


def _map_rows(folder: Path, samples: Sequence[Sample], hashes: Sequence[str], size: int) -> Rows:
    ranks, trains = _ranks(samples, hashes), np.array([*map(_trains, samples)], dtype=bool)
    places = np.empty(len(samples), np.intp)
    places[trains] = ranks
    places[~trains] = len(ranks) + np.arange(len(samples) - len(ranks))
    return Rows(
        map_array(folder / TRAINING, (len(ranks), size, size, 3)),
        map_array(folder / "images.npy", (len(samples) - len(ranks), size, size, 3)),
        places,
        folder / TRAINING,
    )


def _load_masks(path: Path, index: Sequence[tuple[int, int, int]]) -> Masks:
    """Reads masks of which height, width and bytes are known.

    Raises:
        ValueError: If the file does not hold them.
    """
    content, packed, start = path.read_bytes(), [], 0
    for height, width, length in index:
        if not all(type(number) is int and number >= 0 for number in (height, width, length)):
            raise ValueError(f"{path}: sides of a mask that are none")
        packed.append(PackedMask((height, width), content[start : start + length]))
        start += length
    if start != len(content):
        raise ValueError(f"{path}: expected {start} bytes, found {len(content)}")
    return Masks(packed)


def _turned(mask: npt.NDArray[np.bool_], image: npt.NDArray[np.uint8]) -> str:
    """Says what has happened where a mask lies on its side."""
    if mask.shape != image.shape[1::-1]:
        return ""
    return " when it is upright (see its EXIF orientation)"


@contextmanager
def _reading(dataset: Dataset, category: str, key: str) -> Iterator[None]:
    """Names the file in an error of reading, which would else pass for one of the cache."""
    try:
        yield
    except OSError as error:
        raise ImageError(
            f"{_place(dataset)}: {category}/{key}",
            f"cannot be read ({error.strerror or error}); replace or remove the file",
        ) from error


def _place(dataset: Dataset) -> str:
    return str(dataset.root) if dataset.root is not None else dataset.name
