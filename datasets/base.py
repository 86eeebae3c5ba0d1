"""What every dataset is: categories of labelled images that can be listed and read.

This module knows nothing of Ray, Optuna or methods: images leave as arrays.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from anomtune.errors import one_line

if TYPE_CHECKING:
    from anomtune.datasets.splits.division import Division

GOOD = "good"
#: The part of an image that nobody has put into one: `splits.division` does.
UNDIVIDED: Literal["undivided"] = "undivided"


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a category.

    Attributes:
        key: Path of the image within the category (``test/scratch/003.png``), unique there.
        part: The part that the dataset's authors put it in; ``undivided`` if they did not, and its
            content is to decide (`anomtune.datasets.splits.division`).
        defect: Defect type, ``good`` for normal images.
        mask: Path of the ground-truth mask within the category, if there is one.
        domain: Name of the shifted domain of a test image (``brightness-3``, ``sketch``), "" for
            images of the domain that the training images are of.
        origin: Key of the test image that this one is a corrupted copy of, if it is one.
        group: Name of what it shows, if other images show the same (another view, the next frame,
            a tile): they stay on one side of every split. "" for an image of its own.
    """

    key: str
    part: Literal["train", "test", "undivided"]
    defect: str
    mask: str | None = None
    domain: str = ""
    origin: str | None = None
    group: str = ""

    @property
    def anomalous(self) -> bool:
        """Whether the image shows a defect."""
        return self.defect != GOOD


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a dataset.

    Attributes:
        category: Where.
        key: The image, mask or folder, within the category ("" for the category as a whole).
        message: What is wrong and what to do, in one line without the location.
        fatal: Whether the dataset cannot be used until it is mended.
    """

    category: str
    key: str
    message: str
    fatal: bool = True

    def __str__(self) -> str:
        place = "/".join(filter(None, (self.category, self.key)))
        return one_line(f"{place}: {self.message}")


@dataclass(frozen=True, slots=True)
class Published:
    """How many images of a category its authors publish.

    Attributes:
        n_train: Training images.
        n_test_normal: Normal test images, of the training images' domain.
        n_test_anomalous: Anomalous test images, of the training images' domain.
    """

    n_train: int
    n_test_normal: int
    n_test_anomalous: int


class Dataset(ABC):
    """A dataset at a place. A subclass is one family of layouts.

    Args:
        root: Folder of the dataset, or ``None`` for datasets that need none.
    """

    #: What messages and commands call it: the name it was opened by, else that of its class.
    name: str
    #: Whether a category's anomalies are the other categories (MNIST, CIFAR-10): then nothing may
    #: learn from those.
    one_class: bool = False
    #: What a sweep file may say of it beside its root: keyword arguments of its constructor.
    options: ClassVar[frozenset[str]] = frozenset()
    #: How images that lie in no part are divided; ``None`` for the usual way.
    division: Division | None = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in vars(cls):
            cls.name = cls.__name__

    def __init__(self, root: Path | None = None) -> None:
        self.root = root

    @abstractmethod
    def categories(self) -> tuple[str, ...]:
        """Returns the names of the categories, sorted.

        Raises:
            DataError: If the root does not exist or holds no category.
        """

    @abstractmethod
    def scan(self, category: str) -> tuple[tuple[Sample, ...], tuple[Problem, ...]]:
        """Lists a category without decoding an image: its samples by key, and what is wrong."""

    def published(self, category: str) -> Published | None:
        """Returns what a complete download of the category holds; ``None`` if that is unknown."""
        return None

    def warnings(self) -> tuple[Problem, ...]:
        """Returns what was passed over beside the categories; by default nothing."""
        return ()

    def places(self) -> tuple[Path, ...]:
        """Returns the folders that its images lie in; by default its root."""
        return () if self.root is None else (self.root,)

    def settings(self) -> dict[str, Any]:
        """Returns what of `options` it was given, as a sweep file has it; by default nothing."""
        return {}

    def fingerprint(self, category: str) -> str | None:
        """Returns a cheap digest that changes whenever a file of the category does.

        It lets the cache recognise a category without reading its images. ``None`` (the default)
        says that there is no such digest at present, so that every file is read.
        """
        return None

    @abstractmethod
    def file_digest(self, category: str, key: str) -> str:
        """Returns a digest of the encoded bytes of an image or mask."""

    @abstractmethod
    def read_image(self, category: str, key: str) -> npt.NDArray[np.uint8]:
        """Returns an image as ``(H, W, 3)`` RGB.

        Raises:
            DataError: If the image cannot be decoded or is of a kind that is not supported.
        """

    @abstractmethod
    def read_mask(self, category: str, key: str) -> npt.NDArray[np.bool_]:
        """Returns a ground-truth mask as ``(H, W)``, true at anomalous pixels.

        Raises:
            DataError: If the mask cannot be decoded.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.root)!r})"
