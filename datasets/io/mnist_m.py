"""MNIST-M: MNIST's digits before parts of photos, a shifted domain of MNIST.

The test part alone is used: nothing trains on MNIST-M. The first of these that is found counts, in
the root of MNIST or beside the folder ``MNIST``:

    mnist_m/mnist_m_test/*.png, mnist_m/mnist_m_test_labels.txt     the published archive
    mnist_m_rebuilt.npz                                             test_images, test_labels and
                                                                    (optional) test_mnist_index
    BSDS500/ or photos/                                             photos to make it from

What is made from photos follows the published recipe: a digit is binarised (above 0) and inverts a
random 28 x 28 part of a photo, ``|part - 255 digit|`` per channel. Every image has a generator of
its own (seed 42 and the digit's number), so it is not pixel by pixel what other scripts make.
Large photos are first reduced to the size of those in BSDS500.

Where it is known which test digit of MNIST an image is made of, that is its origin: both are then
on one side of a split.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from anomtune.bounded import read_arrays
from anomtune.datasets.io.classes import Listing, some
from anomtune.datasets.io.files import images_below
from anomtune.datasets.io.foreign import list_images
from anomtune.datasets.io.imagefile import digest_file, hash_pixels, read_rgb
from anomtune.errors import DataError, ImageError

U8 = npt.NDArray[np.uint8]

PUBLISHED = "mnist_m"
REBUILT = "mnist_m-rebuilt"

_SEED = 42
_SIDE = 28
_PHOTOS = ("BSDS500", "photos")
_MOST_PHOTOS = 200  # As many as BSDS500 has for training.
_PHOTO_SIDE = 481  # The longer side of its photos.
# The arrays of a rebuilt copy, the last of which need not be there, and what they may take.
_ARRAYS = ("test_images", "test_labels", "test_mnist_index")
_MOST_BYTES = 1 << 28
_making = threading.Lock()


@dataclass(frozen=True, slots=True)
class Digits:
    """MNIST's test digits.

    Attributes:
        listed: Gives the key and digit of each, in MNIST's order; nothing if that is not known.
        grey: Gives the image of a key as ``(28, 28)``.
    """

    listed: Callable[[], list[tuple[str, int]]]
    grey: Callable[[str], U8]


class MnistM(ABC):
    """A copy of MNIST-M's test part.

    Args:
        place: Its folder or file.
        digits: MNIST's test digits.
    """

    domain: str

    def __init__(self, place: Path, digits: Digits) -> None:
        self.place = place
        self.digits = digits

    @abstractmethod
    def list(self, listing: Listing) -> None:
        """Adds the images to a listing."""

    @abstractmethod
    def files(self) -> Iterator[Path]:
        """Yields the files that the images depend on."""

    @abstractmethod
    def image(self, key: str) -> U8:
        """Returns an image as ``(H, W, 3)`` RGB."""

    def digest(self, key: str) -> str:
        """Returns a digest of an image."""
        return hash_pixels(self.image(key))


def find_mnist_m(places: Iterable[Path], digits: Digits) -> MnistM | None:
    """Returns the best copy of MNIST-M in any of the places, ``None`` if there is none."""
    places = tuple(places)
    for place in places:
        if (place / "mnist_m").is_dir():
            return _Archive(place / "mnist_m", digits)
    for place in places:
        if (place / "mnist_m_rebuilt.npz").is_file():
            return _Arrays(place / "mnist_m_rebuilt.npz", digits)
    for place in places:
        for name in _PHOTOS:
            if (place / name).is_dir():
                return _FromPhotos(place / name, digits)
    return None


class _Archive(MnistM):
    """The published files: 9,001 test images [recall], 32 x 32."""

    domain = PUBLISHED

    def list(self, listing: Listing) -> None:
        folder, labels = self.place / "mnist_m_test", self.place / "mnist_m_test_labels.txt"
        for path in (folder, labels):
            if not path.exists():
                listing.problem(
                    f"mnist_m/{path.name}", "missing; unpack the whole archive of MNIST-M again"
                )
                return
        found = Listing(listing.category, self.place.parent)
        present = set(found.images("mnist_m/mnist_m_test"))
        listing.problems += found.problems
        rows = _labels(labels, listing)
        for name, digit in rows.items():
            key = f"mnist_m/mnist_m_test/{name}"
            if key in present:
                listing.test(key, str(digit), normal=listing.category, domain=self.domain)
        absent = [name for name in rows if f"mnist_m/mnist_m_test/{name}" not in present]
        if absent:
            listing.problem(
                "mnist_m/mnist_m_test",
                f"{len(absent)} of the {len(rows)} images of {labels.name} are missing "
                f"({some(absent)}); unpack the archive again",
            )
        extra = sorted(key.rpartition("/")[2] for key in present)
        extra = [name for name in extra if name not in rows]
        if extra:
            listing.warn(
                "mnist_m/mnist_m_test",
                f"{len(extra)} images ignored, they are not in {labels.name}: {some(extra)}",
            )

    def files(self) -> Iterator[Path]:
        yield self.place / "mnist_m_test_labels.txt"
        yield from images_below(self.place / "mnist_m_test")

    def image(self, key: str) -> U8:
        return read_rgb(self._file(key))

    def digest(self, key: str) -> str:
        return digest_file(self._file(key))

    def _file(self, key: str) -> Path:
        name = key.removeprefix("mnist_m/mnist_m_test/")
        if "/" in name or "\0" in name or name in {"", ".", ".."}:
            raise ImageError(key, "is not the path of an image of MNIST-M")
        return self.place / "mnist_m_test" / name


class _Arrays(MnistM):
    """A rebuilt copy as arrays in one file."""

    domain = REBUILT

    def list(self, listing: Listing) -> None:
        try:
            _, labels, indices = _load(self.place)
        except DataError as error:
            listing.problem(self.place.name, str(error).removeprefix(f"{self.place}: "))
            return
        digits = self.digits.listed()
        if indices is not None and digits:
            wrong = [
                index
                for index, label in zip(indices.tolist(), labels.tolist(), strict=True)
                if not 0 <= index < len(digits) or digits[index][1] != label
            ]
            if wrong:
                listing.problem(
                    self.place.name,
                    f"{len(wrong)} of {len(labels)} test_labels are not those of MNIST's test "
                    "images at test_mnist_index, so they may be of training images; rebuild it "
                    "from the test part of MNIST, or remove it",
                )
                return
        for number, label in enumerate(labels.tolist()):
            origin = digits[int(indices[number])][0] if indices is not None and digits else None
            listing.test(
                f"{self.domain}/{label}/{number:05d}",
                str(label),
                normal=listing.category,
                domain=self.domain,
                origin=origin,
            )

    def files(self) -> Iterator[Path]:
        yield self.place

    def image(self, key: str) -> U8:
        images = _load(self.place)[0]
        return np.asarray(images[_number(key, len(images))])


class _FromPhotos(MnistM):
    """A copy made here from MNIST's test digits and photos."""

    domain = REBUILT

    def __init__(self, place: Path, digits: Digits) -> None:
        super().__init__(place, digits)
        self._images: U8 | None = None

    def list(self, listing: Listing) -> None:
        try:
            list_images(self.place)
        except DataError as error:
            listing.problem(self.place.name, f"{str(error).partition(': ')[2]}, or remove it")
            return
        digits = self.digits.listed()
        if not digits:
            listing.warn(
                self.place.name,
                "ignored: MNIST-M is made from these photos only if MNIST's test images are "
                "numbered 0.png, 1.png, ... in the order of MNIST",
            )
        for number, (origin, digit) in enumerate(digits):
            listing.test(
                f"{self.domain}/{digit}/{number:05d}",
                str(digit),
                normal=listing.category,
                domain=self.domain,
                origin=origin,
            )

    def files(self) -> Iterator[Path]:
        try:
            yield from list_images(self.place)
        except DataError:
            return

    def image(self, key: str) -> U8:
        with _making:  # Many threads ask at once for what is made once.
            if self._images is None:
                self._images = self._make()
        return np.asarray(self._images[_number(key, len(self._images))])

    def _make(self) -> U8:
        """Returns all images, ``(N, 28, 28, 3)``."""
        digits = [self.digits.grey(key) for key, _ in self.digits.listed()]
        photos = list_images(self.place)
        if len(photos) > _MOST_PHOTOS:
            photos = [photos[i * len(photos) // _MOST_PHOTOS] for i in range(_MOST_PHOTOS)]
        sources = [np.random.default_rng([_SEED, number]) for number in range(len(digits))]
        chosen = [int(source.integers(len(photos))) for source in sources]
        images = np.empty((len(digits), _SIDE, _SIDE, 3), dtype=np.uint8)
        for turn, path in enumerate(photos):  # One photo in memory at a time.
            photo = _reduced(path)
            height, width = photo.shape[:2]
            for number in (n for n, which in enumerate(chosen) if which == turn):
                y = int(sources[number].integers(height - _SIDE + 1))
                x = int(sources[number].integers(width - _SIDE + 1))
                part = photo[y : y + _SIDE, x : x + _SIDE]
                inverted = digits[number][..., None] > 0
                images[number] = np.where(inverted, 255 - part, part)
        return images


def _labels(path: Path, listing: Listing) -> dict[str, int]:
    """Reads lines ``name digit``; what is none is reported."""
    rows: dict[str, int] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        listing.problem(f"mnist_m/{path.name}", f"cannot be read ({error}); unpack it again")
        return rows
    for number, line in enumerate(lines, 1):
        name, _, digit = line.strip().rpartition(" ")
        if not line.strip():
            continue
        if not name or {"/", "\\", "\0"} & set(name) or digit not in set("0123456789"):
            listing.problem(
                f"mnist_m/{path.name}",
                f"line {number} is {line[:40]!r}, expected '00000000.png 7'; unpack it again",
            )
            return {}
        rows[name] = int(digit)
    if not rows:
        listing.problem(f"mnist_m/{path.name}", "is empty; unpack it again")
    return rows


def _load(path: Path) -> tuple[U8, U8, npt.NDArray[np.int64] | None]:
    """Returns images, labels and numbers of the MNIST test images they are made of."""
    try:
        info = path.stat()
        return _load_at(path, info.st_size, info.st_mtime_ns, info.st_ino)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, DataError):
            raise
        detail = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read ({detail}); copy it again or remove it") from error


@lru_cache(maxsize=1)
def _load_at(path: Path, *_: int) -> tuple[U8, U8, npt.NDArray[np.int64] | None]:
    with path.open("rb") as file:
        arrays = read_arrays(file, _MOST_BYTES, _ARRAYS)
    images, labels, indices = arrays[_ARRAYS[0]], arrays[_ARRAYS[1]], arrays.get(_ARRAYS[2])
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not len(images):
        raise DataError(
            f"{path}: test_images is {images.dtype} {images.shape}, not uint8 (N, 28, 28, 3); "
            "rebuild it"
        )
    for name, values in (("test_labels", labels), ("test_mnist_index", indices)):
        if values is not None and (values.shape != (len(images),) or values.dtype.kind not in "iu"):
            raise DataError(
                f"{path}: {name} is {values.dtype} {values.shape}, not one whole number per "
                "image; rebuild it"
            )
    if labels.min() < 0 or labels.max() > 9:
        raise DataError(f"{path}: test_labels go from {labels.min()} to {labels.max()}; rebuild it")
    return images, labels, indices


def _number(key: str, count: int) -> int:
    number = key.rpartition("/")[2]
    if not (number.isascii() and number.isdigit() and int(number) < count):
        raise ImageError(key, "no such image of MNIST-M; the files have changed, start again")
    return int(number)


def _reduced(path: Path) -> U8:
    photo: U8 = read_rgb(path)
    height, width = photo.shape[:2]
    scale = _PHOTO_SIDE / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        photo = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BILINEAR))
    if min(photo.shape[:2]) < _SIDE:
        raise ImageError(
            str(path), f"is {width}x{height}, too small for MNIST-M to be made from it; remove it"
        )
    return photo
