"""OCT2017, APTOS 2019 and ISIC 2018 (task 3) as one-category datasets: the healthy are normal.

Each is read as it is distributed, or in the layout that the code of ReContrast prepares:

    train/NORMAL/*, test/NORMAL/*, test/ABNORMAL/*

They have no masks. Defect types are the classes or grades, where the layout still tells.
"""

from __future__ import annotations

import csv
import random
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from anomtune.datasets.base import Published
from anomtune.datasets.io.classes import ClassDataset, Listing, some
from anomtune.datasets.io.files import images_below, is_folder
from anomtune.datasets.io.fundus import VERSION as FUNDUS_VERSION
from anomtune.datasets.io.fundus import crop_fundus
from anomtune.datasets.io.store import digest
from anomtune.errors import ImageError

_NORMAL = "NORMAL"
_ABNORMAL = "ABNORMAL"
_PREPARED = "train/NORMAL, test/NORMAL and test/ABNORMAL"


class _Medical(ClassDataset):
    """A dataset of one category that has its own name."""

    counts: ClassVar[Published]

    def published(self, category: str) -> Published | None:
        """Returns what a complete download holds."""
        self._place(category)
        return self.counts

    def _names(self) -> Sequence[str]:
        return (self.name,)


class _Tabled(_Medical):
    """A dataset that is distributed with a table of labels, and read also as it is prepared."""

    def _home_in(self, root: Path) -> Path | None:
        if is_folder(root / "train" / _NORMAL):
            return root
        for inside in (".", "original"):
            if self._is_original(root / inside):
                return root / inside
        # Something is missing then, and the listing says what.
        return root if is_folder(root / "test" / _NORMAL) else None

    def _list(self, listing: Listing) -> None:
        if self._is_prepared():
            for key, _ in listing.classes("train", (_NORMAL,)):
                listing.train(key)
            for key, kind in listing.classes("test", (_NORMAL, _ABNORMAL)):
                listing.test(key, kind, normal=_NORMAL)
        else:
            self._list_original(listing)

    def _files(self, category: str) -> Iterator[Path]:
        home = self._find()
        if self._is_prepared():
            for inside in (f"train/{_NORMAL}", f"test/{_NORMAL}", f"test/{_ABNORMAL}"):
                yield from images_below(home / inside)
        else:
            yield from self._original_files(home)

    def _is_prepared(self) -> bool:
        home = self._find()
        return not self._is_original(home) or is_folder(home / "train" / _NORMAL)

    @abstractmethod
    def _is_original(self, place: Path) -> bool:
        """Whether a folder is in the layout as distributed."""

    @abstractmethod
    def _list_original(self, listing: Listing) -> None:
        """Fills a listing of the layout as distributed."""

    @abstractmethod
    def _original_files(self, home: Path) -> Iterator[Path]:
        """Yields the files of the layout as distributed."""


class OCT2017(_Medical):
    """OCT2017 (ZhangLabData v3): retinal OCT, healthy against three diseases.

        {train,test}/{CNV,DME,DRUSEN,NORMAL}/*.jpeg

    Trains on the 26,315 training images of NORMAL; the test part has 250 images of each of the
    four classes [per class: recall]. Training images of the other classes are not used and need
    not be there. A prepared ``test/{NORMAL,ABNORMAL}`` is read as well.
    """

    name = "oct2017"
    expected = "{train,test}/{CNV,DME,DRUSEN,NORMAL}/*.jpeg (OCT2017 of ZhangLabData)"
    _CLASSES = ("CNV", "DME", "DRUSEN", _NORMAL)
    counts = Published(26315, 250, 750)

    def _home_in(self, root: Path) -> Path | None:
        named = any(is_folder(root / part / _NORMAL) for part in ("train", "test"))
        return root if named else None

    def _list(self, listing: Listing) -> None:
        for key, _ in listing.classes("train", self._CLASSES, (_NORMAL,)):
            listing.train(key)
        for key, kind in listing.classes("test", self._test_classes()):
            listing.test(key, kind, normal=_NORMAL)
        if (listing.folder / "val").is_dir():
            listing.warn(
                "val",
                "ignored; a copy with 8 images of each class here and 242 in test has taken them "
                "from the published test part: move them back into test/<class>",
            )

    def _files(self, category: str) -> Iterator[Path]:
        home = self._find()
        yield from images_below(home / "train" / _NORMAL)
        for kind in self._test_classes():
            yield from images_below(home / "test" / kind)

    def _test_classes(self) -> tuple[str, ...]:
        prepared = is_folder(self._find() / "test" / _ABNORMAL)
        return (_NORMAL, _ABNORMAL) if prepared else self._CLASSES


class APTOS2019(_Tabled):
    """APTOS 2019: fundus photos with a grade of diabetic retinopathy.

        train.csv           columns id_code and diagnosis, 0 to 4
        train_images/*.png

    Grade 0 is normal. The 1,805 normal images are shuffled as ReContrast's preparation does (seed
    1, in the order of the csv file): the first 1,000 train, the other 805 test, and with them all
    1,857 of the grades 1 to 4. The competition's own test images have no labels and are not used.

    Photos are cropped to the eye while they are read; prepared ones have been.
    """

    name = "aptos2019"
    expected = f"train.csv and train_images/*.png, or the prepared {_PREPARED}"
    counts = Published(1000, 805, 1857)
    _N_NORMAL = 1805
    _GRADES = ("0", "1", "2", "3", "4")

    def file_digest(self, category: str, key: str) -> str:
        """Returns a digest of the file of an image and of how it is cropped."""
        plain = super().file_digest(category, key)
        return plain if self._is_prepared() else digest("fundus", FUNDUS_VERSION, plain)

    def read_image(self, category: str, key: str) -> npt.NDArray[np.uint8]:
        """Returns an image as ``(512, 512, 3)`` RGB, cropped to the eye."""
        photo = super().read_image(category, key)
        if self._is_prepared():
            return photo
        try:
            return crop_fundus(photo)
        except ValueError as error:
            raise ImageError(
                str(self._path(category, key)), f"shows no eye ({error}); download it again"
            ) from error

    def _is_original(self, place: Path) -> bool:
        return (place / "train.csv").is_file() or is_folder(place / "train_images")

    def _list_original(self, listing: Listing) -> None:
        rows = _read_csv(listing, "train.csv", ("id_code", "diagnosis"))
        images = _by_stem(listing, "train_images")
        normal: list[str] = []
        grades: dict[str, str] = {}
        for name, (grade,) in rows.items():
            if grade not in self._GRADES:
                listing.problem(
                    "train.csv",
                    f"{name!r} has the diagnosis {grade!r}, not 0 to 4; download it again",
                )
            elif grade == "0":
                normal.append(name)
            else:
                grades[name] = f"grade{grade}"
        if rows and len(normal) != self._N_NORMAL:
            listing.problem(
                "train.csv",
                f"{len(normal)} of {self._N_NORMAL} normal images, so the published split cannot "
                "be made; download it again",
            )
        random.Random(1).shuffle(normal)  # noqa: S311 - the published split, not a secret
        cut = self.counts.n_train
        used = (*normal, *grades)
        _refuse_absent(listing, "train_images", "train.csv", used, images)
        _report_extra(listing, "train_images", "train.csv", rows, images)
        for name in normal[:cut]:
            if name in images:
                listing.train(images[name])
        for name in (*normal[cut:], *grades):
            if name in images:
                listing.test(images[name], grades.get(name, _NORMAL), normal=_NORMAL)

    def _original_files(self, home: Path) -> Iterator[Path]:
        if (home / "train.csv").is_file():
            yield home / "train.csv"
        yield from images_below(home / "train_images")


class ISIC2018(_Tabled):
    """ISIC 2018 task 3: skin lesions in seven classes, melanocytic nevi (NV) normal.

        ISIC2018_Task3_Training_Input/*.jpg
        ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv
        ISIC2018_Task3_Validation_Input/*.jpg
        ISIC2018_Task3_Validation_GroundTruth/ISIC2018_Task3_Validation_GroundTruth.csv

    Trains on the 6,705 training images of NV and tests on the official validation part, 193 images,
    123 of them NV [per class: recall]. Training images of other classes and the official test part
    are not used.

    The papers resize to 256 and crop the centre to 224: here the centre 7/8 of width and height is
    taken and resized to the size of the sweep.
    """

    name = "isic2018"
    expected = (
        "ISIC2018_Task3_Training_Input/, ISIC2018_Task3_Training_GroundTruth/*.csv and the same "
        f"for Validation, or the prepared {_PREPARED}"
    )
    counts = Published(6705, 123, 70)
    _CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
    _STEM = "ISIC2018_Task3"

    def file_digest(self, category: str, key: str) -> str:
        """Returns a digest of the file of an image and of how it is cropped."""
        return digest("centre 7/8", super().file_digest(category, key))

    def read_image(self, category: str, key: str) -> npt.NDArray[np.uint8]:
        """Returns the centre of an image as ``(H, W, 3)`` RGB."""
        image = super().read_image(category, key)
        height, width = (max(1, round(length * 224 / 256)) for length in image.shape[:2])
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        return np.ascontiguousarray(image[top : top + height, left : left + width])

    def _is_original(self, place: Path) -> bool:
        return any(is_folder(place / f"{self._STEM}_{p}_Input") for p in ("Training", "Validation"))

    def _list_original(self, listing: Listing) -> None:
        for part in ("Training", "Validation"):
            folder = f"{self._STEM}_{part}_Input"
            table = self._table(listing.folder, part)
            rows = _read_csv(listing, table, ("image", *self._CLASSES))
            images = _by_stem(listing, folder)
            kinds = {}
            for name, values in rows.items():
                marked = [c for c, v in zip(self._CLASSES, values, strict=True) if _is_one(v)]
                if len(marked) != 1:
                    listing.problem(
                        table,
                        f"{name!r} is of {len(marked)} classes instead of one; download it again",
                    )
                elif part == "Validation" or marked[0] == "NV":
                    kinds[name] = marked[0]
            _refuse_absent(listing, folder, table, tuple(kinds), images)
            _report_extra(listing, folder, table, rows, images)
            for name, kind in kinds.items():
                if name in images and part == "Training":
                    listing.train(images[name])
                elif name in images:
                    listing.test(images[name], kind, normal="NV")

    def _original_files(self, home: Path) -> Iterator[Path]:
        for part in ("Training", "Validation"):
            yield from images_below(home / f"{self._STEM}_{part}_Input")
            table = home / self._table(home, part)
            if table.is_file():
                yield table

    def _table(self, place: Path, part: str) -> str:
        name = f"{self._STEM}_{part}_GroundTruth"
        return f"{name}.csv" if (place / f"{name}.csv").is_file() else f"{name}/{name}.csv"


def _is_one(text: str) -> bool:
    try:
        return float(text) == 1.0
    except ValueError:
        return False


def _read_csv(listing: Listing, where: str, columns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Reads a table as its first column to the others, in its order; what is wrong is reported."""
    rows: dict[str, tuple[str, ...]] = {}
    try:
        with (listing.folder / where).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            lacking = [c for c in columns if c not in (reader.fieldnames or ())]
            if lacking:
                listing.problem(where, f"has no column {some(lacking)}; download it again")
                return {}
            for row in reader:
                name, *values = (row[column] or "" for column in columns)
                if not name or {"/", "\\", "\0"} & set(name) or name in {".", ".."}:
                    listing.problem(
                        where,
                        f"line {reader.line_num} names {name!r}, not an image; download it again",
                    )
                elif name in rows:
                    listing.problem(where, f"{name!r} is there twice; download it again")
                else:
                    rows[name] = tuple(value.strip() for value in values)
    except FileNotFoundError:
        listing.problem(where, "no such file; it is part of the download and tells the labels")
        return {}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        listing.problem(where, f"cannot be read ({error}); download it again")
        return {}
    if not rows:
        listing.problem(where, "holds no rows; download it again")
    return rows


def _by_stem(listing: Listing, where: str) -> dict[str, str]:
    """Lists the images of a folder by name without extension."""
    if not (listing.folder / where).is_dir():
        listing.problem(where, "no such folder; it is part of the download and holds the images")
        return {}
    found: dict[str, str] = {}
    for key in listing.images(where, ignore=("ATTRIBUTION.txt", "LICENSE.txt")):
        stem = key.rpartition("/")[2].rpartition(".")[0]
        if stem in found:
            listing.problem(key, f"has the name of {found[stem]}; keep one of them")
        found[stem] = key
    return found


def _refuse_absent(
    listing: Listing, where: str, table: str, names: Sequence[str], images: Mapping[str, str]
) -> None:
    absent = [name for name in names if name not in images]
    if absent and (listing.folder / where).is_dir():
        listing.problem(
            where,
            f"{len(absent)} of the {len(names)} images that {table} asks for are missing "
            f"({some(absent)}); copy or download them again",
        )


def _report_extra(
    listing: Listing, where: str, table: str, rows: Mapping[str, object], images: Mapping[str, str]
) -> None:
    extra = [key.rpartition("/")[2] for stem, key in images.items() if stem not in rows]
    if extra and rows:
        listing.warn(
            where, f"{len(extra)} images ignored, {table} does not name them: {some(extra)}"
        )
