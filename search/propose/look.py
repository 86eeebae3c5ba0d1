"""What lies in a folder or a table: its layout, counts, sizes and colours. Decodes few images."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np

from anomtune.datasets.base import UNDIVIDED, Dataset, Sample
from anomtune.datasets.io.files import images_below
from anomtune.datasets.io.remote import local_root
from anomtune.datasets.io.uri import SUFFIXES, is_uri
from anomtune.datasets.opening import open_dataset
from anomtune.datasets.splits.division import Division, divide
from anomtune.errors import AnomtuneError, DataError
from anomtune.names import to_name, to_text
from anomtune.registry import DATASETS
from anomtune.search.source import DatasetConfig

T = TypeVar("T")

_IMAGES = 16  # Decoded of a category, and as many masks.
_SECONDS = 5.0  # After which no further one of a category is.
_OFTEN = 5  # Images whose names begin alike, to be taken for a product.


@dataclass(frozen=True, slots=True)
class CategoryLook:
    """What is in a category, as the sweep will have it.

    Attributes:
        name: Its name.
        samples: Its samples, each in a part; undivided ones by a division as if all were distinct.
        divided: Whether the images had parts.
        sizes: Width and height of the images that were looked at.
        grey: Whether all of these are grey.
        defects: Side of the defects in the masks looked at, as a share of their image's.
        prefixes: What the names of normal images begin with, if that looks like several products.
        fault: Why it cannot be used, or "".
    """

    name: str
    samples: tuple[Sample, ...]
    divided: bool
    sizes: tuple[tuple[int, int], ...]
    grey: bool
    defects: tuple[float, ...]
    prefixes: tuple[tuple[str, int], ...]
    fault: str

    @property
    def train(self) -> int:
        """How many images train."""
        return sum(s.part == "train" for s in self.samples)

    @property
    def judges(self) -> tuple[int, int]:
        """How many normal and anomalous images judge."""
        own = [s.anomalous for s in self.samples if s.part == "test" and not s.domain]
        return own.count(False), own.count(True)

    @property
    def types(self) -> dict[str, int]:
        """Defect types with their numbers of images."""
        own = (s.defect for s in self.samples if s.anomalous and not s.domain)
        return dict(sorted(Counter(own).items()))


@dataclass(frozen=True, slots=True)
class Look:
    """What was found at a place.

    Attributes:
        dataset: As a sweep file has it.
        layout: What was recognised, in words.
        categories: What is in each.
    """

    dataset: DatasetConfig
    layout: str
    categories: tuple[CategoryLook, ...]


def look(place: str) -> Look:
    """Looks at a folder or a table.

    Args:
        place: A path, or a URI.

    Raises:
        DataError: If nothing that can be read is there; the message says what is missing.
    """
    root = place if is_uri(place) else to_text(Path(to_name(place)).expanduser().absolute())
    local = local_root(root if is_uri(root) else to_name(root))
    name, dataset = _recognise(local)
    config = DatasetConfig(name=name, root=root)
    categories = tuple(_look_at(dataset, category) for category in dataset.categories())
    return Look(config, _layout(name, dataset, categories), categories)


def _recognise(local: Path) -> tuple[str, Dataset]:
    if not local.exists():
        raise DataError(
            f"{local}: no such file or folder; give the folder of the images, or a table"
        )
    if not local.is_dir():
        if local.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{local}: neither a folder nor a table; give a folder of images, or a .csv, "
                ".tsv, .parquet or COCO .json file"
            )
        return "table", open_dataset("table", local)
    published = [name for name in DATASETS.names() if name not in {"folder", "table", "synthetic"}]
    for name in published:
        try:
            dataset = open_dataset(name, local)
            listings = [dataset.scan(category) for category in dataset.categories()]
        except AnomtuneError:
            continue
        if all(samples and not any(p.fatal for p in found) for samples, found in listings):
            return name, dataset
    dataset = open_dataset("folder", local)
    try:
        dataset.categories()
    except DataError as error:
        if next(images_below(local), None) is None:
            raise DataError(f"{error}; no image lies anywhere below") from None
        raise DataError(
            f"{error}; nothing says which images are normal: put those into a folder good, and "
            "anomalous ones into folders beside it, or name them in a table"
        ) from None
    return "folder", dataset


def _look_at(dataset: Dataset, category: str) -> CategoryLook:
    samples, problems = dataset.scan(category)
    fatal = [str(p) for p in problems if p.fatal]
    divided = not any(sample.part == UNDIVIDED for sample in samples)
    parted, _ = divide(samples, [s.key for s in samples], dataset.division or Division())
    sizes: list[tuple[int, int]] = []
    grey, fault = True, fatal[0] if fatal else ""
    end = time.monotonic() + _SECONDS
    for sample in _spread([s for s in samples if not s.domain], _IMAGES):
        if fault or (sizes and time.monotonic() > end):
            break
        try:
            image = dataset.read_image(category, sample.key)
        except (DataError, OSError) as error:
            fault = str(error)
            break
        sizes.append((image.shape[1], image.shape[0]))
        grey &= bool((image == image[..., :1]).all())
    masked = [sample for sample in samples if sample.mask is not None]
    defects = []
    for sample in _spread(masked, _IMAGES):
        if fault or time.monotonic() > end:
            break
        try:
            mask = dataset.read_mask(category, str(sample.mask))
        except (DataError, OSError) as error:
            fault = str(error)
            break
        if mask.any():
            defects.append(float(np.sqrt(mask.mean())))
    return CategoryLook(
        category, parted, divided, tuple(sizes), grey, tuple(defects), _prefixes(samples), fault
    )


def _layout(name: str, dataset: Dataset, categories: Sequence[CategoryLook]) -> str:
    divided = all(category.divided for category in categories)
    what = {
        "folder": "MVTec's layout" if divided else "normal images in one folder, others beside it",
        "table": "a table of images",
    }.get(name, f"the published dataset {name}")
    products = "one category" if len(categories) == 1 else f"{len(categories)} categories"
    parts = "" if divided else f"; {dataset.division or Division()}"
    return f"{what}, {products}{parts}"


def _prefixes(samples: Sequence[Sample]) -> tuple[tuple[str, int], ...]:
    """Returns what the names of normal images begin with, if that looks like several products."""
    found: Counter[str] = Counter()
    normal = [s.key for s in samples if not s.anomalous]
    for key in normal:
        match = re.match(r"[^\W\d_]+", PurePosixPath(key).name)
        found[match[0].casefold() if match else ""] += 1
    many = [(prefix, n) for prefix, n in sorted(found.items()) if prefix and n >= _OFTEN]
    whole = 2 <= len(many) <= 10 and sum(n for _, n in many) == len(normal)
    return tuple(many) if whole else ()


def _spread(items: Sequence[T], count: int) -> list[T]:
    return (
        [items[i * len(items) // count] for i in range(count)] if len(items) > count else [*items]
    )
