"""COCO annotation files: rows as those of a table, and masks of polygons, boxes and run lengths.

What is read of the format (https://cocodataset.org/#format-data): of an image its ``id``,
``file_name`` and, if there, ``height`` and ``width``; of an annotation its ``image_id``,
``category_id`` and ``segmentation``, else ``bbox``; of a category ``id`` and ``name``. An image
without annotations is normal, one with any is of the defect type with the largest area; categories
that are named as normal images are (``good``, ``ok``) count as no annotation.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anomtune.bounded import parse_json
from anomtune.datasets.base import GOOD
from anomtune.datasets.io.wording import means_normal
from anomtune.errors import DataError

Mask = npt.NDArray[np.bool_]

#: No place in an image is that far, in pixels.
_FAR = 1e9


@dataclass(frozen=True, slots=True)
class Shapes:
    """What is annotated in an image.

    Attributes:
        size: Height and width in pixels; ``None`` if the file does not say.
        polygons: Each ``x0, y0, x1, y1, ...`` in pixels, from the upper left corner of the image.
        boxes: Each ``x, y, width, height``.
        runs: Each of a height, a width and the lengths of runs down the columns, the first of
            normal pixels.
    """

    size: tuple[int, int] | None
    polygons: tuple[tuple[float, ...], ...] = ()
    boxes: tuple[tuple[float, ...], ...] = ()
    runs: tuple[tuple[int, int, tuple[int, ...]], ...] = ()

    @property
    def any(self) -> bool:
        """Whether there is anything to draw."""
        return bool(self.polygons or self.boxes or self.runs)

    def draw(self, height: int, width: int) -> Mask:
        """Returns the union ``(H, W)``: a pixel is in a shape if its centre is.

        Raises:
            ValueError: If run lengths are not those of a mask of their size.
        """
        mask = np.zeros(self.size or (height, width), np.bool_)
        for polygon in self.polygons:
            _fill(mask, polygon)
        for x, y, wide, high in self.boxes:
            _fill(mask, (x, y, x + wide, y, x + wide, y + high, x, y + high))
        for rows, columns, counts in self.runs:
            mask |= _runs(rows, columns, counts)
        return mask


@dataclass(frozen=True, slots=True)
class Annotated:
    """An image of a COCO file.

    Attributes:
        where: How messages call it.
        values: What the file says of it, and its ``label``.
        shapes: What is annotated.
        fault: What is wrong with its annotations, or "".
    """

    where: str
    values: dict[str, Any]
    shapes: Shapes
    fault: str = ""


def read_coco(path: Path) -> list[Annotated]:
    """Reads the images of a COCO file, in its order.

    Raises:
        DataError: If it is no such file, or an annotation is of no image or category.
    """
    try:
        data = parse_json(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        detail = " ".join(str(error).split())
        raise DataError(f"{path}: not a COCO file: no JSON ({detail})") from error
    images, annotations, categories = (
        _list(path, data, key) for key in ("images", "annotations", "categories")
    )
    names = {_id(path, "categories", c, "id"): str(c.get("name", "")) for c in categories}
    known = {_id(path, "images", image, "id") for image in images}
    if len(known) < len(images):
        raise DataError(f"{path}: two images have the same id; number them")
    of: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in annotations:
        image, kind = (_id(path, "annotations", annotation, k) for k in ("image_id", "category_id"))
        where = f"{path}: annotation {annotation.get('id', '?')}"
        if image not in known:
            raise DataError(f"{where}: there is no image {image!r}; correct its image_id")
        if not names.get(kind):
            raise DataError(f"{where}: there is no category {kind!r}; correct its category_id")
        if not means_normal(names[kind]):
            of[image].append({**annotation, "name": names[kind]})
    return [_annotated(image, of.get(image["id"], [])) for image in images]


def _annotated(image: dict[str, Any], annotations: Sequence[dict[str, Any]]) -> Annotated:
    size = image.get("height"), image.get("width")
    known = all(isinstance(side, int) and 0 < side < 1 << 20 for side in size)
    areas: dict[str, float] = defaultdict(float)
    polygons: list[tuple[float, ...]] = []
    boxes: list[tuple[float, ...]] = []
    runs: list[tuple[int, int, tuple[int, ...]]] = []
    fault = ""
    for annotation in annotations:
        box = annotation.get("bbox")
        try:
            found = _polygons(annotation.get("segmentation"), runs)
            polygons += found
            if box is not None and len(_numbers(box)) != 4:
                raise ValueError("a bbox is x, y, width and height")
            if not annotation.get("segmentation") and box is not None:
                if min(_numbers(box)[2:]) <= 0:
                    raise ValueError("its bbox has no area")
                boxes.append(_numbers(box))
            areas[annotation["name"]] += _area(annotation, box)
        except ValueError as error:
            fault = fault or f"annotation {annotation.get('id', '?')}: {error}"
    shapes = Shapes(
        size if known else None,  # type: ignore[arg-type]
        tuple(polygons),
        tuple(boxes),
        tuple(runs),
    )
    if known and not fault and (sides := _outside(shapes)):
        fault = f"its annotations lie outside of the image, which is {sides}; correct them"
    label = max(sorted(areas), key=areas.__getitem__, default=GOOD)
    values = {**image, "label": label}
    return Annotated(f"image {image['id']}", values, shapes, fault)


def _polygons(
    segmentation: Any, runs: list[tuple[int, int, tuple[int, ...]]]
) -> list[tuple[float, ...]]:
    """Returns the polygons of an annotation; run lengths go to ``runs``."""
    if isinstance(segmentation, dict):
        counts, size = segmentation.get("counts"), _numbers(segmentation.get("size"))
        if len(size) != 2 or not isinstance(counts, str | list):
            raise ValueError("run lengths have counts, and size: height and width")
        pixels = _unpacked(counts) if isinstance(counts, str) else map(int, _numbers(counts))
        lengths, (high, wide) = tuple(pixels), map(int, size)
        if min(lengths, default=-1) < 0 or sum(lengths) != high * wide:
            raise ValueError(f"run lengths of {sum(lengths)} pixels, not {high * wide}")
        runs.append((high, wide, lengths))
        return []
    if not isinstance(segmentation, list | None):
        raise ValueError("its segmentation is neither polygons nor run lengths")
    found = [_numbers(polygon) for polygon in segmentation or []]
    for polygon in found:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("a polygon is at least three points: x0, y0, x1, y1, x2, y2")
    return found


def _numbers(given: Any) -> tuple[float, ...]:
    numbers = given if isinstance(given, list) else ()
    if not numbers or any(
        isinstance(n, bool) or not isinstance(n, int | float) or not abs(n) < _FAR for n in numbers
    ):
        raise ValueError("numbers are meant in its segmentation and its bbox")
    return tuple(numbers)


def _area(annotation: dict[str, Any], box: Any) -> float:
    area = annotation.get("area")
    if isinstance(area, int | float) and abs(area) < _FAR**2:
        return float(area)
    return float(box[2] * box[3]) if box is not None else 0.0


def _outside(shapes: Shapes) -> str:
    """Returns the sides of an image of which nothing that is drawn lies inside, or ""."""
    assert shapes.size is not None
    high, wide = shapes.size
    xs = [x for polygon in shapes.polygons for x in polygon[::2]]
    ys = [y for polygon in shapes.polygons for y in polygon[1::2]]
    for x, y, box_wide, box_high in shapes.boxes:
        xs += [x, x + box_wide]
        ys += [y, y + box_high]
    if any((rows, columns) != shapes.size for rows, columns, _ in shapes.runs):
        return f"{wide}x{high}"
    if not xs or (min(xs) < wide and min(ys) < high and max(xs) > 0 and max(ys) > 0):
        return ""
    return f"{wide}x{high}"


def _fill(mask: Mask, polygon: Sequence[float]) -> None:
    """Draws a polygon by the even-odd rule, at the centres of the pixels.

    As COCO's own tools, but for pixels cut by an edge. Pillow draws the outline as well, a tenth
    more of a small defect.
    """
    begin = np.asarray(polygon, np.float64).reshape(-1, 2)
    end = np.roll(begin, -1, axis=0)
    high, wide = mask.shape
    first = max(0, math.ceil(begin[:, 1].min() - 0.5))
    last = min(high, math.ceil(begin[:, 1].max() - 0.5))
    for row in range(first, last):
        centre = row + 0.5
        crosses = (begin[:, 1] <= centre) != (end[:, 1] <= centre)
        (x0, y0), (x1, y1) = begin[crosses].T, end[crosses].T
        at = np.sort(x0 + (centre - y0) * (x1 - x0) / (y1 - y0))
        edges = np.clip(np.ceil(at - 0.5), 0, wide).astype(int)
        for left, right in zip(edges[::2], edges[1::2], strict=True):
            mask[row, left:right] = True


def _unpacked(text: str) -> Iterator[int]:
    """Yields run lengths of a compressed mask, as `rleToString` of COCO's maskApi.c writes them.

    A character holds five bits of a number, the lowest first, and one that says that more follow;
    the sign is the highest bit of the last. From the fourth on a number is the difference to the
    length two before.
    """
    lengths: list[int] = []
    number = place = 0
    for character in text:
        bits = ord(character) - ord("0")
        if not 0 <= bits < 64 or place > 60:
            raise ValueError("compressed run lengths that are none")
        number |= (bits & 31) << place
        place += 5
        if bits & 32:
            continue
        number -= (bits & 16) << (place - 4)
        if len(lengths) > 2:
            number += lengths[-2]
        lengths.append(number)
        yield number
        number = place = 0
    if place:
        raise ValueError("compressed run lengths whose end is missing")


def _runs(rows: int, columns: int, counts: tuple[int, ...]) -> Mask:
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape((rows, columns), order="F")


def _list(path: Path, data: Any, key: str) -> list[dict[str, Any]]:
    found = data.get(key) if isinstance(data, dict) else None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise DataError(
            f"{path}: not a COCO file: no list {key!r}; it has images, annotations and categories"
        )
    return found


def _id(path: Path, where: str, item: dict[str, Any], key: str) -> int | str:
    found = item.get(key)
    if isinstance(found, bool) or not isinstance(found, int | str):
        raise DataError(f"{path}: one of the {where} has no {key!r}; number them")
    return found
