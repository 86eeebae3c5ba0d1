"""MNIST and Fashion-MNIST, one class normal at a time.

    MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]     as torchvision keeps them
    training/<digit>/*.png, testing/<digit>/*.png                   MNIST as PNG files

The root is the folder that holds ``MNIST`` (or ``FashionMNIST``), that folder itself, or the one
with the files. Images are 28 x 28 grey; the cache enlarges them to the size of the sweep.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from anomtune.datasets.base import Published
from anomtune.datasets.io.classes import Listing, OneClassDataset
from anomtune.datasets.io.files import images_below, is_folder
from anomtune.datasets.io.imagefile import hash_pixels
from anomtune.datasets.io.mnist_m import Digits, MnistM, find_mnist_m
from anomtune.datasets.io.packed import Packed, PackedError, packed_key, parse_key, read_idx_pair

Part = Literal["train", "test"]
PARTS: tuple[Part, ...] = ("train", "test")

_IDX_NAME: Mapping[Part, str] = {"train": "train", "test": "t10k"}
_PNG_FOLDER: Mapping[Part, str] = {"train": "training", "test": "testing"}
_FOLDERS = frozenset({"MNIST", "FashionMNIST"})
_CONTENTS = {"images": "images-idx3-ubyte", "labels": "labels-idx1-ubyte"}


class _IdxDataset(OneClassDataset):
    """What MNIST and Fashion-MNIST share: the four IDX files."""

    #: The folder that torchvision makes.
    folder: ClassVar[str]
    #: Images of each class in the training and in the test part.
    counts: ClassVar[Mapping[Part, tuple[int, ...]]]

    def published(self, category: str) -> Published | None:
        """Returns what a complete download of the category holds."""
        self._place(category)
        number = self.classes.index(category)
        train, test = self.counts["train"][number], self.counts["test"]
        return Published(train, test[number], sum(test) - test[number])

    def file_digest(self, category: str, key: str) -> str:
        """Returns a digest of an image, which has no file of its own: of its pixels."""
        return hash_pixels(self.read_image(category, key))

    def read_image(self, category: str, key: str) -> npt.NDArray[np.uint8]:
        """Returns an image as ``(28, 28, 3)`` RGB."""
        packed: dict[str, Packed] = {
            part: self._packed(part) for part in PARTS if key.startswith(f"{part}/")
        }
        return parse_key(key, packed, self.classes)

    def _home_in(self, root: Path) -> Path | None:
        # Both datasets have files of the same names: the folder tells which they are.
        if (root.parent if root.name == "raw" else root).name in _FOLDERS - {self.folder}:
            return None
        for inside in (f"{self.folder}/raw", "raw", "."):
            if any(_idx_file(root / inside, part, "images") for part in PARTS):
                return root / inside
        return None

    def _list(self, listing: Listing) -> None:
        for part in PARTS:
            try:
                self._list_part(listing, part)
            except PackedError as error:
                listing.problem(error.path.name, error.reason)

    def _list_part(self, listing: Listing, part: Part) -> None:
        labels = self._packed(part).labels
        name = f"{_IDX_NAME[part]}-{_CONTENTS['labels']}"
        counts = np.bincount(labels, minlength=len(self.classes)).tolist()
        if len(counts) > len(self.classes):
            listing.problem(name, f"has the label {labels.max()}, but {self.name} has 0 to 9")
            return
        for other in (MNIST, FashionMNIST):
            if other.name != self.name and tuple(counts) == other.counts[part]:
                listing.problem(
                    name, f"these are the labels of {other.name}; set dataset.name to {other.name}"
                )
        if part == "train":
            own = labels == self.classes.index(listing.category)
            for index in np.flatnonzero(own).tolist():
                listing.train(packed_key(part, listing.category, index))
            return
        for index, label in enumerate(labels.tolist()):
            kind = self.classes[label]
            listing.test(packed_key(part, kind, index), kind, normal=listing.category)

    def _files(self, category: str) -> Iterator[Path]:
        for part in PARTS:
            for what in _CONTENTS:
                if path := _idx_file(self._find(), part, what):
                    yield path

    def _packed(self, part: Part) -> Packed:
        place = self._find()
        paths = []
        for what, ending in _CONTENTS.items():
            path = _idx_file(place, part, what)
            if path is None:
                absent = place / f"{_IDX_NAME[part]}-{ending}"
                raise PackedError(absent, f"no such file; download it into {place}")
            paths.append(path)
        return read_idx_pair(*paths)


class MNIST(_IdxDataset):
    """MNIST: digits, with MNIST-M as shifted domain where that is found.

    60,000 training and 10,000 test images; the counts per digit were counted in the files. MNIST-M,
    the same digits before parts of photos, is the domain ``mnist_m`` if it is the published
    archive, and ``mnist_m-rebuilt`` otherwise: see `anomtune.datasets.io.mnist_m`.
    """

    name = "mnist"
    folder = "MNIST"
    classes = tuple("0123456789")
    counts: ClassVar[Mapping[Part, tuple[int, ...]]] = {
        "train": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        "test": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    }
    expected = (
        "MNIST/raw/train-images-idx3-ubyte and its three companions, or training/<digit>/*.png "
        "and testing/<digit>/*.png"
    )

    def __init__(self, root: Path | None = None) -> None:
        super().__init__(root)
        self._found: MnistM | None = None
        self._looked = False
        self._png: bool | None = None

    def file_digest(self, category: str, key: str) -> str:
        """Returns a digest of an image: of its file, or of its pixels where it has none."""
        if (shifted := self._shifted(key)) is not None:
            return shifted.digest(key)
        if self._is_png():
            return super(_IdxDataset, self).file_digest(category, key)
        return super().file_digest(category, key)

    def read_image(self, category: str, key: str) -> npt.NDArray[np.uint8]:
        """Returns an image as RGB: ``(28, 28, 3)``, or ``(32, 32, 3)`` of the MNIST-M archive."""
        if (shifted := self._shifted(key)) is not None:
            return shifted.image(key)
        if self._is_png():
            return super(_IdxDataset, self).read_image(category, key)
        return super().read_image(category, key)

    def _home_in(self, root: Path) -> Path | None:
        if (place := super()._home_in(root)) is not None:
            return place
        for inside in (".", "MNIST", "mnist_png"):
            if any(is_folder(root / inside / folder) for folder in _PNG_FOLDER.values()):
                return root / inside
        return None

    def _list(self, listing: Listing) -> None:
        if self._is_png():
            own = (listing.category,)
            for key, _ in listing.classes(_PNG_FOLDER["train"], self.classes, own):
                listing.train(key)
            for key, kind in listing.classes(_PNG_FOLDER["test"], self.classes):
                listing.test(key, kind, normal=listing.category)
        else:
            super()._list(listing)
        if (mnist_m := self._mnist_m()) is not None:
            mnist_m.list(listing)

    def _files(self, category: str) -> Iterator[Path]:
        if self._is_png():
            for folder in (f"training/{category}", *(f"testing/{kind}" for kind in self.classes)):
                yield from images_below(self._find() / folder)
        else:
            yield from super()._files(category)
        if (mnist_m := self._mnist_m()) is not None:
            yield from mnist_m.files()

    def _beside(self) -> tuple[Path, ...]:
        mnist_m = self._mnist_m()
        return () if mnist_m is None else (mnist_m.place,)

    def _is_png(self) -> bool:
        if self._png is None:
            self._png = not any(_idx_file(self._find(), part, "images") for part in PARTS)
        return self._png

    def _shifted(self, key: str) -> MnistM | None:
        mnist_m = self._mnist_m()
        return mnist_m if mnist_m is not None and key.startswith(f"{mnist_m.domain}/") else None

    def _mnist_m(self) -> MnistM | None:
        if self._looked:
            return self._found
        around = home = self._find()
        while around.name in {"raw", "MNIST", "mnist_png"}:
            around = around.parent
        digits = Digits(self._test_digits, self._grey)
        self._found = find_mnist_m((self._root, home, around), digits)
        self._looked = True
        return self._found

    def _test_digits(self) -> list[tuple[str, int]]:
        """Returns key and digit of the test images in MNIST's order, as far as that is known."""
        if not self._is_png():
            try:
                labels = self._packed("test").labels.tolist()
            except PackedError:  # listed already
                return []
            return [(packed_key("test", str(d), i), d) for i, d in enumerate(labels)]
        # The usual PNG files are named by that order.
        found: dict[int, tuple[str, int]] = {}
        for digit in range(10):
            for path in images_below(self._find() / _PNG_FOLDER["test"] / str(digit)):
                if path.stem.isascii() and path.stem.isdigit():
                    key = path.relative_to(self._find()).as_posix()
                    found[int(path.stem)] = (key, digit)
        return [found[i] for i in range(len(found))] if set(found) == set(range(len(found))) else []

    def _grey(self, key: str) -> npt.NDArray[np.uint8]:
        if self._is_png():
            return super(_IdxDataset, self).read_image(self.classes[0], key)[..., 0]
        return super().read_image(self.classes[0], key)[..., 0]


class FashionMNIST(_IdxDataset):
    """Fashion-MNIST: ten kinds of clothing in the files of MNIST.

    60,000 training images, 6,000 per class, and 10,000 test images, 1,000 per class [recall]. The
    names are those of its authors in lower case; "T-shirt/top" is ``t-shirt`` here, because
    folders are named by categories.
    """

    name = "fashion_mnist"
    folder = "FashionMNIST"
    classes = (
        "t-shirt",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle_boot",
    )
    counts: ClassVar[Mapping[Part, tuple[int, ...]]] = {
        "train": (6000,) * 10,
        "test": (1000,) * 10,
    }
    expected = "FashionMNIST/raw/train-images-idx3-ubyte and its three companions"


def _idx_file(place: Path, part: Part, what: str) -> Path | None:
    stem = f"{_IDX_NAME[part]}-{_CONTENTS[what]}"
    # With a dot, as some copies of the files are named.
    for name in (stem, f"{stem}.gz", stem.replace("-idx", ".idx")):
        if os.path.isfile(place / name):
            return place / name
    return None
