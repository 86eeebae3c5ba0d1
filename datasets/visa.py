"""VisA: as its authors pack it, with a list of the split, or reorganised in MVTec's layout."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal

from anomtune.datasets.base import GOOD, Problem, Published, Sample
from anomtune.datasets.io.files import (
    FileDataset,
    Listing,
    check_root,
    entries,
    folders,
    is_folder,
    is_image,
    some,
)
from anomtune.datasets.mvtec import PublishedFolder, missing_categories
from anomtune.errors import DataError, suggest

_CSV = PurePosixPath("split_csv/1cls.csv")
_COLUMNS = ("object", "split", "label", "image", "mask")
_BAD = "bad"  # What the reorganised tree calls anomalous images.
_IMAGES, _MASKS = "Data/Images", "Data/Masks"

# Of the official csv.
_COUNTS = {
    "candle": Published(900, 100, 100),
    "capsules": Published(542, 60, 100),
    "cashew": Published(450, 50, 100),
    "chewinggum": Published(453, 50, 100),
    "fryum": Published(450, 50, 100),
    "macaroni1": Published(900, 100, 100),
    "macaroni2": Published(900, 100, 100),
    "pcb1": Published(904, 100, 100),
    "pcb2": Published(901, 100, 100),
    "pcb3": Published(905, 101, 100),
    "pcb4": Published(904, 101, 100),
    "pipe_fryum": Published(450, 50, 100),
}


class VisA(FileDataset):
    """Visual Anomaly, 12 objects (Zou et al., ECCV 2022), in either of two layouts.

    As it is published, ``VisA/<object>/Data/Images/{Normal,Anomaly}/*.JPG`` with masks in
    ``Data/Masks/Anomaly/<stem>.png``; which image plays which part says
    ``VisA/split_csv/1cls.csv``. As the authors' script reorganises it,
    ``VisA_pytorch/1cls/<object>/{train/good,test/{good,bad},ground_truth/bad}``; the root is
    ``VisA_pytorch`` or ``1cls``. In both the anomalous images are of the one type ``bad``. The
    published masks number their labels; all of them are anomalous.

    Args:
        root: The folder.

    Raises:
        DataError: If no root is given.
    """

    name = "visa"

    def categories(self) -> tuple[str, ...]:
        """Returns the names of the objects, sorted.

        Raises:
            DataError: If the root does not exist, holds no object, or holds the published layout
                without the list of the split.
        """
        if not self._is_listed():
            return self._tree().categories()
        names = tuple(f.name for f in folders(self._root) if f.name in _COUNTS)
        if not names:
            raise DataError(
                f"{self._root}: {_CSV} is here, but none of the objects that it lists; unpack "
                f"them beside it: {', '.join(_COUNTS)}"
            )
        return names

    def scan(self, category: str) -> tuple[tuple[Sample, ...], tuple[Problem, ...]]:
        """Lists a category without decoding an image: its samples by key, and what is wrong.

        Raises:
            DataError: If there is no such category, or a folder or the csv cannot be read.
        """
        if not self._is_listed():
            return self._tree().scan(category)
        place = self._place(category)
        try:
            rows = _read_csv(self._root / _CSV).get(category, [])
            return _Scan(category, place).run([_parse(line, values) for line, values in rows])
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be listed ({error.strerror})") from error

    def warnings(self) -> tuple[Problem, ...]:
        """Names what lies beside the categories, and the categories that are not there.

        Raises:
            DataError: If the root does not exist or holds no category.
        """
        if not self._is_listed():
            return self._tree().warnings()
        beside = [
            Problem(f.name, "", "ignored, it is not an object of VisA", fatal=False)
            for f in folders(self._root)
            if f.name not in {*_COUNTS, _CSV.parts[0]}
        ]
        for name in sorted(set(_read_csv(self._root / _CSV)) - set(_COUNTS)):
            message = f"lines of {name!r} ignored, it is not an object of VisA; take the csv again"
            beside.append(Problem(str(_CSV), "", message, fatal=False))
        return (*missing_categories("VisA", self.categories(), _COUNTS), *beside)

    def published(self, category: str) -> Published | None:
        """Returns what a complete download of the category holds."""
        return _COUNTS.get(category)

    def _is_listed(self) -> bool:
        """Whether the root is the published layout rather than the reorganised one."""
        return (self._root / _CSV).is_file()

    def _tree(self) -> _Tree:
        check_root(self._root)
        inner = self._root / "1cls"
        if is_folder(inner):
            return _Tree(inner)
        _refuse_unlisted(self._root)
        return _Tree(self._root)

    def _place(self, category: str) -> Path:
        if not self._is_listed():
            return self._tree()._place(category)
        if category in _COUNTS and is_folder(self._root / category):
            return self._root / category
        known = suggest(category, self.categories())
        raise DataError(f"{self._root}: no category {category!r}{known}")

    def _files(self, category: str) -> Iterator[Path]:
        if not self._is_listed():
            yield from self._tree()._files(category)
            return
        for part in (_IMAGES, _MASKS):
            parent = self._place(category) / part
            for folder in folders(parent) if parent.is_dir() else []:
                for entry in entries(folder):
                    if is_image(entry):
                        yield Path(entry.path)


class _Tree(PublishedFolder):
    """The reorganised layout; the root is the folder of the objects."""

    name = "visa"
    title = "VisA"
    counts = _COUNTS
    defects: ClassVar = dict.fromkeys(_COUNTS, frozenset({_BAD}))

    def _expected(self) -> str:
        return f"{_CSV} beside the objects, or 1cls/<object>/train/good: {', '.join(_COUNTS)}"

    def _holds(self, folder: Path) -> bool:
        return (folder / _CSV).is_file() or is_folder(folder / "1cls") or super()._holds(folder)


def _refuse_unlisted(root: Path) -> None:
    """Raises DataError if a folder has the published images but not the list of the split."""
    if is_folder(root / "Data"):
        raise DataError(
            f"{root}: this is one object of VisA; set dataset.root to the folder above it, which "
            f"has {_CSV}"
        )
    if any(is_folder(root / name / "Data") for name in _COUNTS):
        raise DataError(
            f"{root}: no {_CSV}, which says what is for training; copy the folder "
            f"{_CSV.parts[0]} of the download here"
        )


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of the csv.

    Attributes:
        line: Its number in the file.
        part: ``train`` or ``test``.
        defect: `GOOD` or `_BAD`.
        image: Key of the image.
        mask: Key of the mask, or "".
        fault: What is wrong with it, or "".
    """

    line: int
    part: Literal["train", "test"]
    defect: str
    image: str
    mask: str
    fault: str


class _Scan(Listing):
    """One listing of one object by the csv."""

    def run(self, rows: list[_Row]) -> tuple[tuple[Sample, ...], tuple[Problem, ...]]:
        if not rows:
            self.problem("", f"{_CSV} lists no image of it; take the csv of the download")
        present = self._present()
        line_of: dict[str, int] = {}
        absent: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for row in rows:
            if row.fault:
                self.problem("", f"line {row.line} of {_CSV}: {row.fault}")
                continue
            for key in filter(None, (row.image, row.mask)):
                if key in line_of:
                    self.problem(
                        key, f"listed twice in {_CSV}, in lines {line_of[key]} and {row.line}"
                    )
                elif key not in present:
                    absent[key.rpartition("/")[0]].append((row.line, key))
            if row.image in present and row.image not in line_of:
                mask = row.mask if row.mask in present else None
                self.samples.append(Sample(row.image, row.part, row.defect, mask))
            line_of |= {row.image: row.line, row.mask: row.line}
            line_of.pop("", None)
        self._absent(absent, present)
        self._unlisted(present - set(line_of))
        return self.result()

    def _present(self) -> set[str]:
        """Returns the keys of all images and masks that there are."""
        found: set[str] = set()
        for part in (_IMAGES, _MASKS):
            parent = self.folder / part
            for entry in entries(parent) if parent.is_dir() else []:
                if entry.is_dir():
                    found.update(self.images(f"{part}/{entry.name}"))
                else:
                    self.warn(part, f"{entry.name!r} ignored: not a folder")
        return found

    def _absent(self, absent: dict[str, list[tuple[int, str]]], present: set[str]) -> None:
        by_stem = {key.rpartition(".")[0]: key for key in present}
        for folder, lost in absent.items():
            if not is_folder(self.folder / folder):
                what = f"no such folder, but {_CSV} lists {len(lost)} files in it; unpack it again"
                self.problem(folder, what)
                continue
            for line, key in lost:
                other = by_stem.get(key.rpartition(".")[0])
                remedy = f"rename {PurePosixPath(other).name}" if other else "unpack it again"
                self.problem(key, f"no such file, but line {line} of {_CSV} lists it; {remedy}")

    def _unlisted(self, keys: set[str]) -> None:
        names: dict[str, list[str]] = defaultdict(list)
        for key in sorted(keys):
            folder, _, name = key.rpartition("/")
            names[folder].append(name)
        for folder, unlisted in names.items():
            self.warn(folder, f"{some(unlisted)} ignored: not listed in {_CSV}")


def _read_csv(path: Path) -> dict[str, list[tuple[int, dict[str, str]]]]:
    """Returns the lines by object: their numbers, and their values by column.

    Raises:
        DataError: If the file cannot be read or is not the list of the split.
    """
    remedy = "take the csv of the download again"
    rows: dict[str, list[tuple[int, dict[str, str]]]] = defaultdict(list)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="", strict=True)
            for name in _COLUMNS:
                if name not in (reader.fieldnames or ()):
                    raise DataError(f"{path}: no column {name!r}; {remedy}")
            for row in reader:
                rows[row["object"]].append((reader.line_num, row))
    except DataError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        detail = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read ({detail}); {remedy}") from error
    return rows


def _parse(line: int, row: dict[str, str]) -> _Row:
    fault = ""
    if row["split"] not in {"train", "test"}:
        fault = f"split is {row['split']!r}; it must be train or test"
    elif row["label"] not in {"normal", "anomaly"}:
        fault = f"label is {row['label']!r}; it must be normal or anomaly"
    elif row["label"] == "anomaly" and row["split"] == "train":
        fault = "an anomaly for training; this is not the one-class split, take 1cls.csv"
    elif bool(row["mask"]) != (row["label"] == "anomaly"):
        fault = "anomalies have a mask and normal images none; take the csv of the download again"
    keys = {}
    for column, below in (("image", _IMAGES), ("mask", _MASKS)):
        text = row[column]
        plain = PurePosixPath(text)
        start = (row["object"], *PurePosixPath(below).parts)
        keys[column] = "/".join(plain.parts[1:])
        if text and not (
            plain.parts[: len(start)] == start
            and len(plain.parts) == len(start) + 2
            and not {"..", "."} & set(text.split("/"))
            and not {"\\", "\0"} & set(text)
            and is_image(plain)
        ):
            fault = fault or (
                f"{column} {text!r} does not lie in {'/'.join(start)}/<folder>/; "
                "take the csv of the download again"
            )
        if not text and column == "image":
            fault = fault or "no image; take the csv of the download again"
    return _Row(
        line=line,
        part="train" if row["split"] == "train" else "test",
        defect=GOOD if row["label"] == "normal" else _BAD,
        image=keys["image"],
        mask=keys["mask"],
        fault=fault,
    )
