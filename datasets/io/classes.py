"""What datasets of labelled images without masks share: classes in folders, one of them normal."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from anomtune.datasets.base import GOOD, Problem, Sample
from anomtune.datasets.io.files import (
    MISSING,
    FileDataset,
    check_root,
    entries,
    is_dangling,
    whereabouts,
)
from anomtune.datasets.io.files import Listing as FileListing
from anomtune.errors import DataError, suggest


class ClassDataset(FileDataset):
    """A dataset of images in classes, image-level only.

    Args:
        root: Its folder.

    Raises:
        DataError: If no root is given.
    """

    #: What the folder must look like, for the message when it does not.
    expected: ClassVar[str]

    def __init__(self, root: Path | None = None) -> None:
        super().__init__(root)
        self._home: Path | None = None

    def categories(self) -> tuple[str, ...]:
        """Returns the names of the categories, sorted.

        Raises:
            DataError: If the root does not hold the dataset.
        """
        self._find()
        return tuple(sorted(self._names()))

    def scan(self, category: str) -> tuple[tuple[Sample, ...], tuple[Problem, ...]]:
        """Lists a category without decoding an image: its samples by key, and what is wrong.

        Raises:
            DataError: If there is no such category or a folder cannot be listed.
        """
        self._place(category)
        listing = Listing(category, self._find())
        try:
            self._list(listing)
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be listed ({error.strerror})") from error
        return listing.result()

    @abstractmethod
    def _names(self) -> Sequence[str]:
        """Returns the names of the categories."""

    @abstractmethod
    def _home_in(self, root: Path) -> Path | None:
        """Returns the folder that holds the images if ``root`` is the dataset, else ``None``."""

    @abstractmethod
    def _list(self, listing: Listing) -> None:
        """Fills the listing of ``listing.category``."""

    def _find(self) -> Path:
        """Returns the folder that holds the images.

        Raises:
            DataError: If there is none; where it lies deeper, the message says so.
        """
        if self._home is None:
            check_root(self._root)
            try:
                self._home = self._home_in(self._root)
            except OSError as error:
                raise DataError(f"{error.filename}: cannot be listed ({error.strerror})") from error
        if self._home is None:
            hint = whereabouts(self._root, self._holds)
            raise DataError(
                f"{self._root}: " + (hint or f"no {self.name} here; expected {self.expected}")
            )
        return self._home

    def _holds(self, folder: Path) -> bool:
        try:
            return self._home_in(folder) is not None
        except OSError:  # a folder that may not be entered
            return False

    def _beside(self) -> Iterable[Path]:
        """Returns what a listing depends on outside of the folder that holds the images."""
        return ()

    def _holder(self, key: str) -> Path:
        """Returns the folder that a key is relative to."""
        return self._find()

    def _path(self, category: str, key: str) -> Path:
        path = super()._path(category, key)
        return self._holder(key) / path.relative_to(self._place(category))

    def _place(self, category: str) -> Path:
        """Returns the folder that holds all files of a category."""
        home = self._find()
        if category not in self._names():
            known = suggest(category, self.categories())
            raise DataError(f"{self._root}: no category {category!r}{known}")
        return Path(os.path.commonpath([home, *self._beside()]))


class OneClassDataset(ClassDataset):
    """A dataset of classes, each of which is a category: normal there, the others anomalous.

    Training uses the category's own training images alone; the test part is that of all classes,
    and the other class's name is the defect type.
    """

    one_class = True
    #: The classes in the order of their numbers in the dataset's files.
    classes: ClassVar[tuple[str, ...]]

    def _names(self) -> Sequence[str]:
        return self.classes


class Listing(FileListing):
    """A listing of images in folders of classes."""

    def train(self, key: str) -> None:
        """Adds a training image."""
        self.samples.append(Sample(key, "train", GOOD))

    def test(
        self, key: str, kind: str, *, normal: str, domain: str = "", origin: str | None = None
    ) -> None:
        """Adds a test image of class ``kind``, good if that is the class ``normal``."""
        defect = GOOD if kind == normal else kind
        self.samples.append(Sample(key, "test", defect, domain=domain, origin=origin))

    def classes(
        self, where: str, known: Sequence[str], wanted: Sequence[str] | None = None
    ) -> list[tuple[str, str]]:
        """Lists the images of a folder of classes; what is not of a class is reported.

        Args:
            where: The folder.
            known: Classes that there are.
            wanted: Classes whose images are listed; default: all.

        Returns:
            The key and the class of each image.
        """
        folder = self.folder / where
        if not folder.is_dir():
            names = ", ".join(known if wanted is None else wanted)
            self.problem(where, f"no such folder; it should hold a folder of images each: {names}")
            return []
        misspelt = self._strangers(where, known)
        found = []
        for kind in known if wanted is None else wanted:
            if not (folder / kind).is_dir():
                if kind not in misspelt:
                    self.problem(
                        f"{where}/{kind}", "no such folder; copy the images of this class again"
                    )
                continue
            keys = self.images(f"{where}/{kind}")
            if not keys:
                self.problem(
                    f"{where}/{kind}", "no images here; copy the images of this class again"
                )
            found += [(key, kind) for key in keys]
        return found

    def _strangers(self, where: str, known: Sequence[str]) -> set[str]:
        """Reports what is no folder of a class; returns the classes that are misspelt."""
        by_fold = {kind.casefold(): kind for kind in known}
        misspelt, strange, loose = set(), [], []
        for entry in entries(self.folder / where):
            if is_dangling(entry):
                self.problem(f"{where}/{entry.name}", MISSING)
            elif not entry.is_dir():
                loose.append(entry.name)
            elif entry.name not in known:
                meant = by_fold.get(entry.name.casefold())
                if meant and not (self.folder / where / meant).is_dir():
                    self.problem(f"{where}/{entry.name}", f"rename to {meant}")
                    misspelt.add(meant)
                else:
                    strange.append(entry.name)
        for name in strange:
            self.warn(f"{where}/{name}", f"ignored, it is none of the classes ({', '.join(known)})")
        if loose:
            self.warn(
                where,
                f"{some(loose)} ignored; images belong in the folders of the classes",
            )
        return misspelt


def some(names: Sequence[str], most: int = 5) -> str:
    """Names the first few of many: ``a, b and 7 more``."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
