"""Which file plays which part: a table to publish with a result, or to check one with.

The content hash is that of the decoded pixels, so it names an image whatever its file is called
or how it is compressed; the side is decided by it alone (`anomtune.datasets.splits.split`).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anomtune.datasets.base import Dataset
from anomtune.datasets.io.cache import open_category
from anomtune.datasets.splits.split import split
from anomtune.datasets.splits.validation import Validation
from anomtune.errors import StorageError
from anomtune.files import replaced
from anomtune.names import BYTES, to_name, utf8

#: The first line of a manifest.
COLUMNS = ("category", "file", "content_hash", "side", "label", "type")

# The pixels are hashed at full size whatever size is cached; this is the cheapest to keep.
_SIZE = 8


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One image.

    Attributes:
        category: Its category.
        key: Its path within the category; a corrupted copy adds ``@`` and its domain.
        pixel_hash: Digest of its decoded pixels.
        side: ``train``, ``validation``, ``test``, ``shifted:<domain>``, or ``dropped`` if it is
            used for nothing: what the leak audit left out, and copies of validation images.
        label: 1 = anomalous.
        defect: Defect type.
    """

    category: str
    key: str
    pixel_hash: str
    side: str
    label: int
    defect: str


def manifest(dataset: Dataset, category: str, validation: Validation) -> list[ManifestRow]:
    """Returns every image of a category and the part that it plays, by key.

    The first call on a node decodes the category. Under the synthetic protocol the images that
    the damaged copies are made of are the validation images; under ``test`` all test images are.

    Raises:
        DataError: As `anomtune.datasets.splits.split.load_search_split`.
    """
    arrays = open_category(dataset, category, _SIZE)
    parts = split(category, arrays.samples, arrays.pixel_hashes, validation)
    sides = np.full(len(arrays.samples), "dropped", dtype=object)
    sides[parts.train] = "train"
    sides[parts.validation] = "validation"
    sides[parts.test] = "test"
    sides[parts.shifted] = [f"shifted:{arrays.samples[i].domain}" for i in parts.shifted]
    return [
        ManifestRow(category, sample.key, pixel_hash, side, int(sample.anomalous), sample.defect)
        for sample, pixel_hash, side in zip(arrays.samples, arrays.pixel_hashes, sides, strict=True)
    ]


def write_manifest(path: Path, rows: Iterable[ManifestRow]) -> None:
    """Writes a manifest as CSV, whole or not at all, by category and key.

    Raises:
        StorageError: If the file cannot be written.
    """
    try:
        with replaced(path, text=True, durable=True, newline="", **BYTES) as file:
            table = csv.writer(file, lineterminator="\n")
            # The module quotes a line feed and, where it does not end the lines, no "\r".
            quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
            table.writerow(COLUMNS)
            for row in sorted(rows, key=lambda r: (r.category, r.key)):
                names = [utf8(to_name(text)) for text in (row.category, row.key, row.defect)]
                writer = quoted if any("\r" in name for name in names) else table
                writer.writerow([*names[:2], row.pixel_hash, row.side, row.label, names[2]])
    except OSError as error:
        raise StorageError(
            f"{path}: the manifest cannot be written ({error.strerror or error}); "
            "choose another file"
        ) from error
