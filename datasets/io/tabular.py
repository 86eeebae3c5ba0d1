"""The lines of a table of images, from CSV, Parquet or a COCO file, as text by column."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import ArrowException

from anomtune.datasets.base import GOOD
from anomtune.datasets.io.coco import Shapes, read_coco
from anomtune.datasets.io.uri import SUFFIXES
from anomtune.datasets.io.wording import means_normal
from anomtune.errors import DataError, suggest
from anomtune.names import BYTES, plain_name, readable, to_text

#: What a column can be; the first two must be there.
COLUMNS = ("image", "label", "mask", "split", "category", "domain", "group")
#: The defect type of an image of which only that it is anomalous is known.
ANOMALOUS = "anomalous"

# Of a Parquet file, which packs what repeats itself into next to nothing: rows that are always
# read (of more, each has a byte at least, as its path is another), bytes of a part, of a text, and
# rows at a time.
_MOST_ROWS, _MOST_BYTES, _LONGEST, _AT_A_TIME = 1_000_000, 1 << 29, 1 << 16, 4096

_NO, _YES = frozenset({"0", "false"}), frozenset({"1", "true"})


@dataclass(frozen=True, slots=True)
class Row:
    """One line.

    Attributes:
        where: How messages call it: ``line 5``.
        values: Text by column of `COLUMNS`, "" where there is none.
        shapes: What a COCO file draws into the image.
        fault: What is wrong with the line already, or "".
    """

    where: str
    values: Mapping[str, str]
    shapes: Shapes | None = None
    fault: str = ""


def read_rows(path: Path, columns: Mapping[str, str], group: str | None) -> tuple[list[Row], bool]:
    """Reads a table.

    Args:
        path: The file.
        columns: Names of its columns by what they are, where they are called otherwise.
        group: Name of the column of groups; of another thing if there is no such column.

    Returns:
        Its lines in order; and whether ``group`` is a column.

    Raises:
        DataError: If the file is none, or a column is not there.
    """
    for key in columns:
        if key not in COLUMNS:
            raise DataError(f"dataset.columns: no {key!r} is read{suggest(key, COLUMNS)}")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(
            f"{path}: not a table by its name; give a .csv, .tsv, .parquet or COCO .json file"
        )
    if not path.is_file():
        what = "is not a file" if path.exists() else "no such file"
        raise DataError(f"{path}: {what}; set dataset.root to the table")
    reader = {".parquet": _parquet, ".json": _coco}.get(suffix, _csv)
    names, lines = reader(path)
    wanted = {key: columns.get(key, key) for key in COLUMNS}
    if suffix == ".json":
        wanted |= {"image": columns.get("image", "file_name"), "label": "label"}
    is_column = group is not None and group in names
    if group is not None and is_column:
        wanted["group"] = group
    for key, name in wanted.items():
        if name not in names and (key in columns or key in COLUMNS[:2]):
            there = suggest(name, names)
            raise DataError(f"{path}: no column {name!r}{there}; name it: columns: {{{key}: NAME}}")
    rows = [
        Row(where, {k: _text(values.get(n)) for k, n in wanted.items()}, shapes, fault)
        for where, values, shapes, fault in lines
    ]
    if not rows:
        raise DataError(f"{path}: has no line; a table has one for each image")
    return rows, is_column


def defect_of(label: str) -> str:
    """Returns the defect type that a label means, ``good`` for normal.

    Raises:
        ValueError: If it means nothing; the message says what would.
    """
    text = label.strip()
    if not text:
        raise ValueError("no label; write 0 or 1, good, or a defect type")
    if text.casefold() in _NO or means_normal(text):
        return GOOD
    if text.casefold() in _YES:
        return ANOMALOUS
    try:
        float(text)
    except ValueError:
        return text
    raise ValueError(f"label is {text}; write 0 or 1, good, or a defect type")


_Line = tuple[str, Mapping[str, Any], Shapes | None, str]


def _csv(path: Path) -> tuple[list[str], Iterator[_Line]]:
    try:
        with path.open(newline="", **BYTES) as file:
            text = file.read().removeprefix("\ufeff")
        head = text.partition("\n")[0]
        delimiter = max("\t;,", key=head.count)
        reader = csv.DictReader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names = [to_text(plain_name(name)) for name in reader.fieldnames or ()]
        if "\0" in text:
            raise ValueError("it holds binary data")
        if len(set(names)) < len(names):
            raise DataError(f"{path}: two columns have the same name; rename one")
        reader.fieldnames = names
        lines = []
        for values in reader:
            where = f"line {reader.line_num}"
            fault = "has more values than there are columns" if None in values else ""
            lines.append((where, values, None, fault))
    except DataError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read as a table of text ({reason})") from error
    return names, iter(lines)


def _parquet(path: Path) -> tuple[list[str], Iterator[_Line]]:
    found: list[dict[str, Any]] = []
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            # Some tables hold the images themselves: those columns are not read.
            plain = [field.name for field in schema if not _is_large(field.type)]
            if len(set(plain)) < len(plain):
                raise ValueError("two columns have the same name; rename one")
            _check_size(path, file.metadata, [schema.field(name).type for name in plain])
        # What is said once for many lines stays one in memory until it has been looked at.
        texts = [field.name for field in schema if _is_text(field.type)]
        with pq.ParquetFile(path, read_dictionary=texts) as file:
            for batch in file.iter_batches(_AT_A_TIME, columns=plain):
                _check_texts(batch)
                found += batch.to_pylist()
    except (ArrowException, OSError, ValueError, OverflowError) as error:
        detail = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: cannot be read as Parquet ({detail})") from error
    return plain, ((f"row {number}", values, None, "") for number, values in enumerate(found, 1))


def _check_size(path: Path, said: pq.FileMetaData, types: list[pa.DataType]) -> None:
    """Raises ValueError if a small file unpacks to what no table of images holds.

    Of the columns' own metadata nothing is asked: what is wrong there ends the process (Arrow 26).
    """
    size = path.stat().st_size
    if said.num_rows > max(_MOST_ROWS, size):
        raise ValueError(f"{said.num_rows} rows in {size} bytes")
    groups = (said.row_group(number).total_byte_size for number in range(said.num_row_groups))
    # Images that a table holds take in the file what they take in memory.
    if (largest := max(groups, default=0)) > max(_MOST_BYTES, 2 * size):
        raise ValueError(f"{largest} bytes in one part of it")
    numbers = said.num_rows * sum(map(_width, types))
    if numbers > _MOST_BYTES:
        raise ValueError(f"{numbers} bytes of numbers in it")


def _width(kind: pa.DataType) -> int:
    """Returns the bytes of a value, 0 if they differ from one to the next."""
    try:
        return math.ceil(int(kind.bit_width) / 8)
    except ValueError:
        return 0


def _check_texts(batch: pa.RecordBatch) -> None:
    """Raises ValueError if a text is longer than any path, and may stand in every line."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_dictionary(column.type) and len(column.dictionary):
            longest = pc.max(pc.binary_length(column.dictionary)).as_py() or 0
            if longest > _LONGEST:
                raise ValueError(f"column {name!r} has a text of {longest} bytes")


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_large(kind: Any) -> bool:
    types = pa.types
    return bool(types.is_nested(kind) or types.is_binary(kind) or types.is_large_binary(kind))


def _coco(path: Path) -> tuple[list[str], Iterator[_Line]]:
    images = read_coco(path)
    names = list(dict.fromkeys(key for image in images for key in image.values))
    return names, ((i.where, i.values, i.shapes, i.fault) for i in images)


def _text(value: Any) -> str:
    """Returns a value of a table as text: whole numbers without a point, nothing for null."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    try:
        return to_text(plain_name(str(value)))
    except UnicodeEncodeError:  # half a character, which JSON can spell: no file is called so
        return readable(str(value))
