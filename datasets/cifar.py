"""CIFAR-10, one class normal at a time.

    cifar10/{train,test}/<class>/*.png              as PNG files
    cifar-10-batches-bin/{data_batch_1..5,test_batch}.bin   the binary version of its authors
    cifar10_<severity>_<corruption>/test/<class>/*.png      corrupted copies, beside either

The root is the folder around these, or the clean one itself. The Python version of the dataset is
made of pickles, which can run code when they are read: it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from anomtune.datasets.base import Published
from anomtune.datasets.io.classes import Listing, OneClassDataset, some
from anomtune.datasets.io.files import entries, images_below, is_folder
from anomtune.datasets.io.imagefile import hash_pixels
from anomtune.datasets.io.packed import (
    Packed,
    PackedError,
    packed_key,
    parse_key,
    read_cifar_batches,
)

_BATCHES = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("test_batch.bin",),
}
_PER_BATCH = 10_000
_CORRUPTED = re.compile(r"cifar10_([1-5])_(\w+)")
_PICKLES = "data_batch_1"
_ELSEWHERE = (
    "the Python version of CIFAR-10 consists of pickles, which can run code when they are read; "
    "fetch its binary version (cifar-10-binary.tar.gz) from the same page and set dataset.root to "
    "cifar-10-batches-bin"
)


class CIFAR10(OneClassDataset):
    """CIFAR-10: 5,000 training and 1,000 test images per class, 32 x 32.

    Corrupted copies of the test part (those of GNL have severity 5, applied at 32 x 32) are the
    shifted domains ``brightness-5``, ``defocus_blur-5`` and so on. A copy's origin is the clean
    image of the same class and name.
    """

    name = "cifar10"
    classes = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    expected = (
        "cifar10/{train,test}/<class>/*.png, or the binary version "
        "(cifar-10-batches-bin/data_batch_1.bin, ...)"
    )

    def __init__(self, root: Path | None = None) -> None:
        super().__init__(root)
        self._binary: bool | None = None
        self._copies: tuple[tuple[Path, str], ...] | None = None

    def published(self, category: str) -> Published | None:
        """Returns what a complete download of the category holds."""
        self._place(category)
        return Published(5000, 1000, 9000)

    def file_digest(self, category: str, key: str) -> str:
        """Returns a digest of an image: of its file, or of its pixels where it has none."""
        if self._is_packed(key):
            return hash_pixels(self.read_image(category, key))
        return super().file_digest(category, key)

    def read_image(self, category: str, key: str) -> npt.NDArray[np.uint8]:
        """Returns an image as ``(32, 32, 3)`` RGB."""
        if self._is_packed(key):
            packed = {part: self._packed(part) for part in _BATCHES if key.startswith(f"{part}/")}
            return parse_key(key, packed, self.classes)
        return super().read_image(category, key)

    def _home_in(self, root: Path) -> Path | None:
        for inside in (".", "cifar10", "cifar-10-batches-bin"):
            place = root / inside
            # Any folder of images has train and test: these have classes of CIFAR-10 too.
            png = any(is_folder(place / p / c) for p in ("train", "test") for c in self.classes)
            if png or _is_binary(place):
                return place
        return None

    def _find(self) -> Path:
        if self._home is None:
            for place in (self._root, self._root / "cifar-10-batches-py"):
                if (place / _PICKLES).is_file() and not self._home_in(self._root):
                    raise PackedError(place, _ELSEWHERE)
        return super()._find()

    def _list(self, listing: Listing) -> None:
        if _is_binary(listing.folder):
            for part in _BATCHES:
                try:
                    self._list_packed(listing, part)
                except PackedError as error:
                    listing.problem(error.path.name, error.reason)
        else:
            for key, _ in listing.classes("train", self.classes, (listing.category,)):
                listing.train(key)
            for key, kind in listing.classes("test", self.classes):
                listing.test(key, kind, normal=listing.category)
        self._list_corrupted(listing)

    def _list_packed(self, listing: Listing, part: str) -> None:
        packed = self._packed(part)
        if packed.labels.max() >= len(self.classes):
            listing.problem(
                _BATCHES[part][0],
                f"has the label {packed.labels.max()}, but CIFAR-10 has 0 to 9; download it again",
            )
            return
        for number, block in enumerate(packed.blocks):
            if len(block) != _PER_BATCH:
                listing.warn(
                    _BATCHES[part][number],
                    f"{len(block)} of {_PER_BATCH} images; download it again",
                )
        for index, label in enumerate(packed.labels.tolist()):
            kind = self.classes[label]
            if part == "test":
                listing.test(packed_key(part, kind, index), kind, normal=listing.category)
            elif kind == listing.category:
                listing.train(packed_key(part, kind, index))

    def _list_corrupted(self, listing: Listing) -> None:
        clean = {
            (PurePosixPath(sample.key).parent.name, PurePosixPath(sample.key).stem): sample.key
            for sample in listing.samples
            if sample.part == "test"
        }
        for folder, domain in self._corrupted():
            copies = Listing(listing.category, folder.parent)
            lost = []
            for key, kind in copies.classes(f"{folder.name}/test", self.classes):
                origin = clean.get((kind, PurePosixPath(key).stem))
                if origin is None:
                    lost.append(key)
                else:
                    copies.test(key, kind, normal=listing.category, domain=domain, origin=origin)
            if lost:
                copies.problem(
                    f"{folder.name}/test",
                    f"{len(lost)} images have no clean one of the same class and name, so they "
                    f"could repeat images of the search ({some(lost, 2)}); make them again from "
                    "the clean files that are here, or remove them",
                )
            listing.samples += copies.samples
            listing.problems += copies.problems

    def _files(self, category: str) -> Iterator[Path]:
        home = self._find()
        if _is_binary(home):
            yield from (home / name for names in _BATCHES.values() for name in names)
        else:
            yield from images_below(home / "train" / category)
            for kind in self.classes:
                yield from images_below(home / "test" / kind)
        for folder, _ in self._corrupted():
            for kind in self.classes:
                yield from images_below(folder / "test" / kind)

    def _beside(self) -> tuple[Path, ...]:
        return tuple(folder for folder, _ in self._corrupted())

    def _holder(self, key: str) -> Path:
        home = self._find()
        return home.parent if _CORRUPTED.match(key) else home

    def _corrupted(self) -> tuple[tuple[Path, str], ...]:
        """Returns the folders of corrupted copies and the names of their domains."""
        if self._copies is None:
            found = []
            for entry in entries(self._find().parent):
                match = _CORRUPTED.fullmatch(entry.name)
                if match and entry.is_dir():
                    found.append((Path(entry.path), f"{match[2]}-{match[1]}"))
            self._copies = tuple(found)
        return self._copies

    def _is_packed(self, key: str) -> bool:
        if self._binary is None:
            self._binary = _is_binary(self._find())
        return self._binary and not _CORRUPTED.match(key)

    def _packed(self, part: str) -> Packed:
        place = self._find()
        paths = [place / name for name in _BATCHES[part]]
        for path in paths:
            if not path.is_file():
                raise PackedError(path, f"no such file; download it into {place}")
        return read_cifar_batches(paths)


def _is_binary(place: Path) -> bool:
    return any((place / name).is_file() for names in _BATCHES.values() for name in names)
