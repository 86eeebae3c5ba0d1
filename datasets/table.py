"""A table of images: which there are, what is on them, and which part each plays.

    image,label,mask,split,category,group
    bolt/000.png,good,,train,bolt,p17
    bolt/001.png,scratch,masks/001.png,test,bolt,p18

CSV, Parquet, or a COCO annotation file. Where paths may lead:

* In a table that somebody keeps on this machine, anywhere: below its folder (or ``images``), by
  ``..`` from there, absolute, and by URI. It was written by whom it belongs to.
* In a COCO file, and in a table that was fetched from a URI, below that folder alone (a fetched
  table may name URIs as well): such files come from others, and may not reach into this machine.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt

from anomtune.datasets.base import GOOD, UNDIVIDED, Problem, Sample
from anomtune.datasets.io.coco import Shapes
from anomtune.datasets.io.files import FileDataset, Listing, is_image, some
from anomtune.datasets.io.grouping import compiled, grouped
from anomtune.datasets.io.imagefile import FORMATS
from anomtune.datasets.io.remote import local_files
from anomtune.datasets.io.store import cache_root, digest
from anomtune.datasets.io.tabular import Row, defect_of, read_rows
from anomtune.datasets.io.uri import has_secrets, is_uri, mask_uri
from anomtune.datasets.splits.division import Division
from anomtune.errors import DataError, ImageError, suggest
from anomtune.names import LONGEST, to_name, to_text

#: Characters of a path that every system takes.
_LONGEST_PATH = 1024
_DRAWN = "#mask"  # Ends the key of a mask that is drawn, not read.


@dataclass(slots=True)
class _Category:
    """What a table says of a category.

    Attributes:
        samples: Its samples, by key.
        problems: What is wrong, the fatal ones first.
        places: The file of each key, or its URI.
        drawn: What is drawn of a key.
    """

    samples: tuple[Sample, ...] = ()
    problems: tuple[Problem, ...] = ()
    places: dict[str, Path | str] = field(default_factory=dict)
    drawn: dict[str, tuple[str, Shapes]] = field(default_factory=dict)


class Table(FileDataset):
    """A table of images: CSV, Parquet or a COCO file, of one product or many.

    >>> import anomtune as at
    >>> at.Table("parts.csv", columns={"label": "verdict"}, group="serial")  # doctest: +SKIP

    Args:
        root: The file. Columns: ``image`` (a path or URI) and ``label`` (0 or 1, ``good``, or a
            defect type); and, as far as they are there, ``mask``, ``split`` (``train`` or
            ``test``), ``category``, ``domain`` and ``group``.
        columns: Names of columns that are called otherwise, by what they are.
        images: Folder that the paths are relative to; default: that of the table.
        group: A column, or a regular expression that names, in a path, the part that is shown.
        division: How to divide where there is no ``split``.

    Raises:
        DataError: If no file is given, or what is given cannot be used.
    """

    name = "table"
    options = frozenset({"columns", "images", "group", "division"})

    def __init__(
        self,
        root: Path | str | None = None,
        *,
        columns: Mapping[str, str] | None = None,
        images: str | os.PathLike[str] | None = None,
        group: str | None = None,
        division: Division | None = None,
    ) -> None:
        if root is None:
            raise DataError("dataset 'table' needs a file: set dataset.root")
        super().__init__(Path(root))
        self.division = division
        self._columns = dict(columns or {})
        self._images = to_text(images) if isinstance(images, os.PathLike) else images
        self._group = group
        self._known: tuple[object, dict[str, _Category]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A worker reads the table itself.
        return self.__dict__ | {"_known": None}

    def categories(self) -> tuple[str, ...]:
        """Returns the names of the categories, sorted; without a column, the name of the file.

        Raises:
            DataError: If the table cannot be read, or lacks a column.
        """
        return tuple(sorted(self._read()))

    def scan(self, category: str) -> tuple[tuple[Sample, ...], tuple[Problem, ...]]:
        """Lists a category without decoding an image: its samples by key, and what is wrong."""
        found = self._category(category)
        missing = []
        for key, place in sorted(found.places.items()):
            if isinstance(place, Path) and not place.exists():
                slash = "; write / in place of \\" if "\\" in key else ""
                missing.append(Problem(category, key, f"no such file: {place}{slash}"))
        return found.samples, (*missing, *found.problems)

    def places(self) -> tuple[Path, ...]:
        """Returns the folders that the images lie in."""
        found = {
            place.parent
            for category in self._read().values()
            for place in category.places.values()
            if isinstance(place, Path)
        }
        return tuple(sorted(found))

    def settings(self) -> dict[str, Any]:
        """Returns what it was given beside the table."""
        given = {
            "columns": self._columns or None,
            "images": self._images,
            "group": self._group,
            "division": self.division,
        }
        return {key: value for key, value in given.items() if value is not None}

    def file_digest(self, category: str, key: str) -> str:
        """Returns a digest of the encoded bytes of an image or mask, or of what is drawn."""
        if (drawn := self._category(category).drawn.get(key)) is not None:
            shapes = drawn[1]
            return digest(shapes.size, shapes.polygons, shapes.boxes, shapes.runs)
        return super().file_digest(category, key)

    def read_mask(self, category: str, key: str) -> npt.NDArray[np.bool_]:
        """Returns a ground-truth mask as ``(H, W)``, true at anomalous pixels."""
        if (drawn := self._category(category).drawn.get(key)) is None:
            return super().read_mask(category, key)
        image, shapes = drawn
        height, width = shapes.size or self.read_image(category, image).shape[:2]
        try:
            return shapes.draw(height, width)
        except ValueError as error:
            raise ImageError(str(self._root), f"{key}: {error}; correct the annotation") from error

    def _category(self, category: str) -> _Category:
        known = self._read()
        if category not in known:
            raise DataError(f"{self._root}: no category {category!r}{suggest(category, known)}")
        return known[category]

    def _place(self, category: str) -> Path:
        self._category(category)
        return self._base()

    def _base(self) -> Path:
        """Returns the folder that paths are relative to."""
        above = self._root.parent
        return (
            above if self._images is None else Path(os.path.normpath(above / to_name(self._images)))
        )

    def _path(self, category: str, key: str) -> Path:
        found = self._category(category)
        place = found.places.get(key)
        if place is None:
            raise DataError(f"{self._root}: {key!r} is not the path of an image in {category!r}")
        if isinstance(place, Path):
            return place
        remote = {key: uri for key, uri in found.places.items() if isinstance(uri, str)}
        local = local_files(list(dict.fromkeys(remote.values())))
        found.places |= {key: local[uri] for key, uri in remote.items()}
        return local[place]

    def _files(self, category: str) -> Iterator[Path]:
        yield self._root
        for key in self._category(category).places:
            yield self._path(category, key)

    def _read(self) -> dict[str, _Category]:
        """Returns the categories of the table, reading it if it has changed."""
        try:
            info = self._root.stat()
            state: object = (info.st_mtime_ns, info.st_ctime_ns, info.st_size, info.st_ino)
        except OSError:
            state = None
        if self._known is None or self._known[0] != state:
            self._known = state, self._parse()
        return self._known[1]

    def _parse(self) -> dict[str, _Category]:
        rows, is_column = read_rows(self._root, self._columns, self._group)
        pattern = None if self._group is None or is_column else compiled(self._group)
        usual = to_text(self._root.stem)
        by_category: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            name = row.values["category"] or usual
            if {"/", "\0"} & set(name) or name in {".", ".."}:
                raise DataError(
                    f"{self._root}: {row.where}: category {name!r} cannot name a folder; "
                    "choose another name"
                )
            by_category[name].append(row)
        found = {}
        for name, own in by_category.items():
            scan = _Scan(name, self._base(), self._is_foreign(), self._is_coco())
            found[name] = scan.run_rows(own)
            if pattern is not None:
                samples, ungrouped = grouped(name, found[name].samples, pattern)
                found[name].samples = samples
                found[name].problems += ungrouped
        return found

    def _is_coco(self) -> bool:
        return self._root.suffix.lower() == ".json"

    def _is_foreign(self) -> bool:
        """Whether others have written it, so that its paths stay below its folder."""
        return self._is_coco() or self._root.is_relative_to(cache_root())


class _Scan(Listing):
    """One listing of the lines of one category.

    Args:
        category: Its name.
        folder: What paths are relative to.
        foreign: Whether paths must lie below that.
        coco: Whether URIs are refused as well.
    """

    def __init__(self, category: str, folder: Path, foreign: bool, coco: bool) -> None:
        super().__init__(category, folder)
        self.foreign, self.coco = foreign, coco
        self.found = _Category()

    def run_rows(self, rows: list[Row]) -> _Category:
        divided = any(row.values["split"].strip() for row in rows)
        own = self._own_domain(rows, divided)
        lines: dict[str, str] = {}
        unread = []
        for row in rows:
            try:
                sample = self._sample(row, divided, own)
            except ValueError as error:
                self.problem("", f"{row.where}: {error}")
                continue
            if (earlier := lines.setdefault(sample.key, row.where)) != row.where:
                self.problem(sample.key, f"listed twice, in {earlier} and {row.where}; remove one")
                continue
            if not sample.anomalous and row.values["mask"]:
                unread.append(sample.key)
            self.samples.append(sample)
        if unread:
            self.warn("", f"{some(unread)}: normal images with a mask, which is not read")
        trains = [s for s in self.samples if s.part != "test" and not (s.anomalous or s.domain)]
        if not trains and not self.problems:
            self.problem("", "no training images; give normal ones the label 0 or good")
        if divided and not any(sample.part == "test" for sample in self.samples):
            self.warn("", "no test images; give some the split test, or leave it empty everywhere")
        self.found.samples, self.found.problems = self.result()
        return self.found

    def _own_domain(self, rows: list[Row], divided: bool) -> str:
        """Returns the domain of the training images; "" where it is named by an empty field."""
        among = [row for row in rows if not divided or row.values["split"].strip() == "train"]
        domains = {row.values["domain"].strip() for row in among}
        if "" in domains or not domains:
            return ""
        if len(domains) == 1:
            return domains.pop()
        what = "training images" if divided else "images"
        self.problem(
            "",
            f"{what} of several domains ({', '.join(sorted(domains))}); leave domain empty for the "
            "one to train on",
        )
        return ""

    def _sample(self, row: Row, divided: bool, own: str) -> Sample:
        """Returns the sample of a line; raises ValueError if it is none."""
        if row.fault:
            raise ValueError(row.fault)
        values = {key: value.strip() for key, value in row.values.items()}
        if not values["image"]:
            raise ValueError("no image; give its path")
        defect = defect_of(row.values["label"])
        domain = "" if values["domain"] == own else values["domain"]
        split = values["split"].casefold()
        if split not in {"", "train", "test"}:
            raise ValueError(
                f"split is {values['split']!r}; it must be train or test, or empty in all lines"
            )
        if split == "train" and defect != GOOD:
            raise ValueError(f"an anomalous image ({defect}) for training; its split is test")
        if split == "train" and domain:
            raise ValueError(f"an image of the domain {domain!r} for training; its split is test")
        if divided and not split and defect == GOOD and not domain:
            raise ValueError("no split, while other lines have one; write train or test")
        part: Any = split or ("test" if divided or domain else UNDIVIDED)
        key = self._locate(row.values["image"])
        mask = None
        if defect != GOOD and row.values["mask"].strip():
            mask = self._locate(row.values["mask"], mask=True)
        elif defect != GOOD and row.shapes is not None and row.shapes.any:
            mask = f"{key}{_DRAWN}"
            self.found.drawn[mask] = key, row.shapes
        return Sample(key, part, defect, mask, domain, group=values["group"])

    def _locate(self, given: str, *, mask: bool = False) -> str:
        """Returns the key of a path or URI, and remembers where its file is."""
        what = "mask" if mask else "image"
        if "\0" in given or len(given) > _LONGEST_PATH or max(map(len, given.split("/"))) > LONGEST:
            raise ValueError(f"{what} {given!r} is not a path")
        if is_uri(given):
            key, place = self._uri(given, what)
        else:
            path = Path(os.path.normpath(self.folder / Path(to_name(given)).expanduser()))
            if path.is_relative_to(self.folder):
                key = to_text(path.relative_to(self.folder).as_posix())
            elif self.foreign:
                raise ValueError(
                    f"{what} {given!r} lies outside of {self.folder}, which a file from elsewhere "
                    "may not leave; set dataset.images to the folder of the images"
                )
            else:
                key = f"file:{to_text(path)}"
            place = path
        folder = mask and isinstance(place, Path) and place.is_dir()
        if not is_image(PurePosixPath(key)) and not folder:
            raise ValueError(f"{what} {given!r} is no {FORMATS} file by its name")
        self.found.places[key] = place
        return key

    def _uri(self, given: str, what: str) -> tuple[str, Path | str]:
        if self.coco:
            raise ValueError(f"{what} {mask_uri(given)!r} is a URI; a COCO file names files")
        if has_secrets(given):
            raise ValueError(
                f"{what} {mask_uri(given)} carries credentials; set them in the environment"
            )
        parts = urlsplit(given)
        path = unquote(parts.path)
        if ".." in path.split("/"):
            raise ValueError(f"{what} {given!r} has '..' in it; write where it leads")
        if parts.scheme == "file":
            if self.foreign:
                raise ValueError(f"{what} {given!r} is a file of this machine; name a URI")
            return f"file:{to_text(path)}", Path(path)
        return str(PurePosixPath(f"{parts.scheme}:/{parts.netloc}{path}")), given
