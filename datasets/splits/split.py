"""The honest splits: what a search may see, and what only `confirm` opens.

A split is decided by the pixels of the images alone, so it survives renaming, reordering and
another machine; with JPEG files the other machine's decoder must give the same pixels. A
`SearchSplit` has the training and validation images in a directory of its own: the test images
cannot be reached from it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anomtune.datasets.base import GOOD, Dataset, Problem, Sample
from anomtune.datasets.io import store
from anomtune.datasets.io.cache import CategoryArrays, map_array, open_category, start_array
from anomtune.datasets.io.imagefile import Resize
from anomtune.datasets.splits.damage import VERSION as DAMAGE_VERSION
from anomtune.datasets.splits.damaged_copies import Row, damaged_rows
from anomtune.datasets.splits.division import DivisionCounts
from anomtune.datasets.splits.leaks import find_leaks
from anomtune.datasets.splits.units import Unit, units
from anomtune.datasets.splits.validation import Protocol, Validation
from anomtune.errors import DataError

_FORMAT = 1  # Of the split's identity.
_ENTRY_FORMAT = 3  # Of the directories in the cache.
_REMEDY = "use validation.protocol: synthetic"


@dataclass(frozen=True, slots=True)
class Split:
    """Which sample of a category plays which part; each side sorted by pixel hash.

    Attributes:
        train: Indices of the normal training images.
        validation: Indices of the validation images. Under ``synthetic`` these are the held-out
            normal ones; the damaged copies are made of them.
        test: Indices of the held-out test images of the training images' domain.
        shifted: Indices of the held-out test images of shifted domains. A corrupted copy is among
            them only if its original is held out too (with ``test``, where nothing is, always).
        dropped: What the leak audit found.
        split_hash: Digest of the protocol and of the pixels and labels on each side.
    """

    train: npt.NDArray[np.intp]
    validation: npt.NDArray[np.intp]
    test: npt.NDArray[np.intp]
    shifted: npt.NDArray[np.intp]
    dropped: tuple[Problem, ...]
    split_hash: str


@dataclass(frozen=True, slots=True)
class SearchSplit:
    """All that a trial is ever given of a category.

    Attributes:
        category: Its name.
        protocol: How the validation images were chosen.
        train: ``(N, S, S, 3)`` uint8 normal images, memory-mapped, by pixel hash.
        first_image: Which of them comes first by its path within the category.
        validation: ``(M, S, S, 3)`` uint8, memory-mapped, by pixel hash.
        validation_labels: ``(M,)`` int8, 1 = anomalous.
        validation_defects: ``M`` defect types; a damaged copy carries its mechanism.
        validation_keys: ``M`` paths within the category; a damaged copy adds ``#1-mechanism``.
        split_hash: Identity of the split, see `Split`.
        n_test_normal: How many normal images are held out.
        n_test_anomalous: How many anomalous images are held out.
        n_shifted: How many images of shifted domains are held out.
        dropped: What the leak audit found, one line each.
        warnings: What the listing of the category found, one line each.
        division: How many images play which part, if their content has decided that.
    """

    category: str
    protocol: Protocol
    train: npt.NDArray[np.uint8]
    first_image: int
    validation: npt.NDArray[np.uint8]
    validation_labels: npt.NDArray[np.int8]
    validation_defects: tuple[str, ...]
    validation_keys: tuple[str, ...]
    split_hash: str
    n_test_normal: int
    n_test_anomalous: int
    n_shifted: int
    dropped: tuple[str, ...]
    warnings: tuple[str, ...]
    division: DivisionCounts | None = None


def split(
    category: str, samples: Sequence[Sample], pixel_hashes: Sequence[str], validation: Validation
) -> Split:
    """Divides a category; pure, and decided by pixels and labels, not by names or order.

    Images of one group stay on one side: their kind is that of their defects, and shares are of
    groups, an image without others being a group of its own.

    Args:
        category: Its name, for messages.
        samples: The ``N`` samples, none of them undivided.
        pixel_hashes: ``N`` digests of their pixels.
        validation: How to divide.

    Raises:
        DataError: If the category cannot be divided that way; the message says what to do.
    """
    order = sorted(range(len(samples)), key=lambda i: (pixel_hashes[i], samples[i].key))
    leaked, problems = find_leaks(category, samples, pixel_hashes)
    train = [i for i in order if samples[i].part == "train" and not samples[i].anomalous]
    usable = [i for i in order if samples[i].part == "test" and i not in leaked]
    judges = [i for i in usable if not samples[i].domain]
    leaked_keys = {samples[i].key for i in leaked}
    gone = leaked_keys | {samples[i].key for i in train}
    shifted = [i for i in usable if samples[i].domain and samples[i].origin not in gone]
    if not train:
        raise DataError(f"{category}: no training images; put normal images in train/{GOOD}")

    if validation.protocol == "synthetic":
        taken = _first(units(train, samples, pixel_hashes), validation)
        if not taken:
            raise DataError(
                f"{category}: only one distinct training image, or one group of them, and the "
                f"synthetic protocol holds some out; put more normal images in train/{GOOD}"
            )
        # Of equal images the first stands for all; `train` is in order.
        held = set({pixel_hashes[i]: i for i in reversed(train) if i in taken}.values())
        hashes = {pixel_hashes[i] for i in held}
        problems += tuple(
            Problem(category, samples[i].key, "same pixels as a held-out image; left out", False)
            for i in train
            if pixel_hashes[i] in hashes and i not in held
        )
        sides = (
            [i for i in train if pixel_hashes[i] not in hashes],
            [i for i in train if i in held],
            judges,
        )
        left_out = "".join(f" -{damage}" for damage in sorted(set(validation.without_damage)))
        name = f"synthetic {DAMAGE_VERSION} {validation.seed}{left_out}"
    elif validation.protocol == "test":
        _need_both(category, samples, judges, 1)
        sides, name = (train, judges, []), "test"
    else:
        _need_both(category, samples, judges, 2)
        chosen: set[int] = set()
        by_kind: dict[tuple[str, ...], list[Unit]] = defaultdict(list)
        for unit in units(judges, samples, pixel_hashes):
            defects = {samples[i].defect for i in unit.members}
            by_kind[tuple(sorted(defects - {GOOD}))].append(unit)
        for members in by_kind.values():
            chosen |= _first(members, validation)
        grouped = " or group" if any(samples[i].group for i in judges) else ""
        if not any(samples[i].anomalous for i in chosen):
            raise DataError(
                f"{category}: every defect type has a single image{grouped}, so none is left for "
                f"validation; {_REMEDY}"
            )
        if all(samples[i].anomalous for i in chosen) or all(
            samples[i].anomalous for i in judges if i not in chosen
        ):
            raise DataError(
                f"{category}: the normal test images are of too few groups for validation and "
                f"test; add images to test/, or {_REMEDY}"
            )
        sides = (train, [i for i in judges if i in chosen], [i for i in judges if i not in chosen])
        name = "labelled"

    if validation.protocol != "test":
        held_out = {samples[i].key for i in sides[2]}
        shifted = [i for i in shifted if samples[i].origin is None or samples[i].origin in held_out]
        seen = {samples[i].group for i in sides[1]} - {""}
        shifted = [i for i in shifted if samples[i].group not in seen]
    identity: list[object] = [
        [(pixel_hashes[i], int(samples[i].anomalous)) for i in side] for side in sides
    ]
    if shifted:
        identity.append(
            [(pixel_hashes[i], int(samples[i].anomalous), samples[i].domain) for i in shifted]
        )
    train_side, validation_side, test_side, shifted_side = (
        np.array(side, dtype=np.intp) for side in (*sides, shifted)
    )
    return Split(
        train=train_side,
        validation=validation_side,
        test=test_side,
        shifted=shifted_side,
        dropped=problems,
        split_hash=store.digest(_FORMAT, name, identity),
    )


def load_search_split(
    dataset: Dataset,
    category: str,
    image_size: int,
    validation: Validation,
    *,
    input_size: int | None = None,
    resize: Resize = "bilinear",
) -> SearchSplit:
    """Opens what a search may see of a category, preparing it first if this node has not.

    Args:
        dataset: Where the images come from.
        category: One of its categories.
        image_size: Side of the sweep's square images, in pixels: damage is drawn at this size.
        validation: How the validation images are chosen.
        input_size: Side ``S`` of the images to return, for a method that works at another size;
            default: ``image_size``.
        resize: How the images are resized. Damage is drawn on bilinear ones.

    Raises:
        DataError: If the images cannot be read or not be divided that way.
        StorageError: If the cache cannot be written.
    """
    size = input_size or image_size
    arrays, parts = open_split(dataset, category, size, validation, resize)
    normal, anomalous = _count(arrays.samples, parts.test)

    def build(folder: Path) -> None:
        if validation.protocol == "synthetic":
            at_size = arrays
            if (size, resize) != (image_size, "bilinear"):
                at_size = open_category(dataset, category, image_size)
            rows, count = damaged_rows(
                arrays, at_size, parts.validation, validation.seed, validation.without_damage
            )
        else:
            rows, count = _plain_rows(arrays, parts.validation), len(parts.validation)
        meta: dict[str, list[int | str]] = {"labels": [], "defects": [], "keys": []}

        def images() -> Iterator[npt.NDArray[np.uint8]]:
            for image, defect, key in rows:
                meta["labels"].append(int(defect != GOOD))
                meta["defects"].append(defect)
                meta["keys"].append(key)
                yield image

        _share_training(folder / "train.npy", arrays, parts.train)
        _write(folder / "validation.npy", images(), count)
        (folder / "meta.json").write_text(json.dumps(meta), encoding="ascii")

    def load(folder: Path) -> SearchSplit:
        meta = json.loads((folder / "meta.json").read_text(encoding="ascii"))
        square = (size, size, 3)
        return SearchSplit(
            category=category,
            protocol=validation.protocol,
            train=map_array(folder / "train.npy", (len(parts.train), *square)),
            first_image=min(
                range(len(parts.train)), key=lambda row: arrays.samples[parts.train[row]].key
            ),
            validation=map_array(folder / "validation.npy", (len(meta["labels"]), *square)),
            validation_labels=np.array(meta["labels"], dtype=np.int8),
            validation_defects=tuple(meta["defects"]),
            validation_keys=tuple(meta["keys"]),
            split_hash=parts.split_hash,
            n_test_normal=normal,
            n_test_anomalous=anomalous,
            n_shifted=len(parts.shifted),
            dropped=tuple(str(p) for p in parts.dropped),
            warnings=tuple(str(p) for p in arrays.warnings),
            division=arrays.division,
        )

    key = store.digest(_ENTRY_FORMAT, parts.split_hash, image_size, size, resize, arrays.content)
    return store.obtain("splits", key, build, load)


def open_split(
    dataset: Dataset, category: str, image_size: int, validation: Validation, resize: Resize
) -> tuple[CategoryArrays, Split]:
    """Opens a whole category and divides it; for this folder alone."""
    arrays = open_category(dataset, category, image_size, resize)
    return arrays, split(category, arrays.samples, arrays.pixel_hashes, validation)


def _first(among: Sequence[Unit], validation: Validation) -> set[int]:
    """Chooses the images of the share of the units that goes to validation.

    Of two units and more at least one goes to each side; a single one is not chosen.
    """
    ranked = sorted(among, key=lambda unit: store.digest(validation.seed, unit.name))
    wanted = round(validation.fraction * len(ranked))
    share = 0 if len(ranked) < 2 else min(max(wanted, 1), len(ranked) - 1)
    return {i for unit in ranked[:share] for i in unit.members}


def _count(samples: Sequence[Sample], indices: Iterable[int]) -> tuple[int, int]:
    labels = [samples[i].anomalous for i in indices]
    return labels.count(False), labels.count(True)


def _need_both(category: str, samples: Sequence[Sample], judges: list[int], least: int) -> None:
    normal, anomalous = _count(samples, judges)
    if min(normal, anomalous) < least:
        raise DataError(
            f"{category}: has {normal} normal and {anomalous} anomalous test images that can be "
            f"used, needs at least {least} of each; add images to test/, or {_REMEDY}"
        )


def _plain_rows(arrays: CategoryArrays, indices: npt.NDArray[np.intp]) -> Iterator[Row]:
    for index in indices:
        sample = arrays.samples[index]
        yield arrays.images[index], sample.defect, sample.key


def _share_training(path: Path, arrays: CategoryArrays, train: npt.NDArray[np.intp]) -> None:
    """Puts the training images into a split: where it has them all, by a link to their file.

    A link, as a split is a directory of its own, from which no test image can be reached. What
    ``synthetic`` leaves of them is copied.
    """
    if arrays.images.are_training(train):
        try:
            path.hardlink_to(arrays.images.training_file)
            return
        except OSError:  # A file system without links.
            pass
    _write(path, (arrays.images[i] for i in train), len(train))


def _write(path: Path, images: Iterable[npt.NDArray[np.uint8]], count: int) -> None:
    with path.open("wb") as file:
        for number, image in enumerate(images):
            if number == 0:
                start_array(file, (count, *image.shape))
            file.write(image.tobytes())
