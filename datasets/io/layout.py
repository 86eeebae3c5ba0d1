"""A category in the layout of MVTec AD: what is listed, and the ways in which it can be wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from anomtune.datasets.base import GOOD, Problem, Sample
from anomtune.datasets.io.files import (
    MISSING,
    Listing,
    entries,
    is_about,
    is_dangling,
    is_folder,
    listing,
    some,
)
from anomtune.datasets.io.pairing import pair, report_bare
from anomtune.datasets.io.wording import means_masks, means_normal, plain
from anomtune.names import to_name, to_text

PARTS = ("train", "test", "ground_truth")


@dataclass(frozen=True, slots=True)
class Layout:
    """In what a category differs from the plain layout.

    Attributes:
        normal: Name of the folders of normal images.
        defects: Names of the folders of anomalous images; ``None`` if any will do.
        masked: Whether the authors publish a mask of every anomalous image.
        mask_folders: Whether the masks of an image must lie in a folder that is named as the
            image is. They always may: the mask is then the union of those in the folder.
        unused: Further parts that belong there and are not read, with the reason.
        files: Files that belong beside the parts and are not read.
    """

    normal: str = GOOD
    defects: frozenset[str] | None = None
    masked: bool = False
    mask_folders: bool = False
    unused: Mapping[str, str] = field(default_factory=dict)
    files: frozenset[str] = frozenset()


def has_parts(folder: Path) -> bool:
    """Whether a folder has parts, as a divided category has."""
    return any(is_folder(folder / part) for part in ("train", "test"))


class LayoutListing(Listing):
    """One listing of one category."""

    def __init__(self, category: str, folder: Path, layout: Layout) -> None:
        super().__init__(category, folder)
        self.layout = layout
        self.normal = layout.normal

    def run(self) -> tuple[tuple[Sample, ...], tuple[Problem, ...]]:
        """Lists all images; raises OSError if a folder cannot be listed."""
        self._parts()
        self._train()
        self._test()
        return self.result()

    def _parts(self) -> None:
        """Reports what lies beside the parts; a misspelt one would pass for a missing one."""
        seen, hidden = listing(self.folder)
        loose = [*map(to_text, hidden)]
        for entry in seen:
            name = to_text(entry.name)
            if is_dangling(entry):
                self.problem(name, MISSING)
            elif not entry.is_dir():
                loose += [] if is_about(entry) or name in self.layout.files else [name]
            elif name in self.layout.unused:
                self.warn(name, f"not used: {self.layout.unused[name]}")
            elif name not in PARTS:
                self._stranger(name)
        if loose:
            self.warn("", f"{some(loose)} ignored; images belong in train/{self.normal} and test")

    def _stranger(self, name: str) -> None:
        meant = next((part for part in PARTS if plain(part) == plain(name)), None)
        if meant is None and means_masks(name):
            meant = "ground_truth"
        if meant is None:
            self.warn(name, f"ignored; a category has {', '.join(PARTS)}")
        elif not is_folder(self.folder / meant):
            self.problem(name, f"rename to {meant}")
        # A disk that does not tell upper case from lower has just read it by the right name.
        elif not os.path.samefile(self.folder / meant, self.folder / to_name(name)):
            self.problem(name, f"move what is in it to {meant}, which is the folder that is read")

    def _train(self) -> None:
        where = f"train/{self.normal}"
        images = self.images(where)
        self.samples += [Sample(key, "train", GOOD) for key in images]
        if not images:
            self.problem(where, "no training images; put images of normal products here")
        for other in self._folders_of("train"):
            if other != self.normal:
                self.warn(f"train/{other}", f"ignored; only {where} is used for training")
        self._loose("train")

    def _test(self) -> None:
        types = self._folders_of("test")
        if not types:
            self.warn(
                "test",
                f"no test images; put normal ones in test/{self.normal}, "
                "others in test/<defect type>",
            )
        masks = {
            defect: self._masks_of(defect)
            for defect in self._folders_of("ground_truth")
            if defect != self.normal
        }
        expected = any(masks.values()) or self.layout.masked
        for defect in types:
            images = self.images(f"test/{defect}")
            if not images:
                self.warn(f"test/{defect}", "no images here; copy them again or remove the folder")
            if defect == self.normal:
                self.samples += [Sample(key, "test", GOOD) for key in images]
            elif self._is_defect(defect):
                self._defective(defect, images, masks.pop(defect, []), expected)
            else:
                masks.pop(defect, None)
        for defect, orphans in masks.items():
            for key in orphans:
                self.problem(key, f"mask without image: there is no folder test/{defect}")
        if self.layout.defects is not None:
            for name in sorted({*self.layout.defects, self.normal} - set(types)):
                self.warn(f"test/{name}", "no such folder; the download is not complete")
        self._loose("test")
        self._loose("ground_truth")

    def _is_defect(self, name: str) -> bool:
        known = self.layout.defects
        if known is None:
            if means_normal(name):
                self.warn(
                    f"test/{name}",
                    f"taken for a defect type; if these images are normal, move them to "
                    f"test/{self.normal}",
                )
            return True
        if name not in known:
            self.problem(
                f"test/{name}",
                f"not a folder of this dataset, which has {', '.join(sorted(known))} and "
                f"{self.normal}; rename or remove it",
            )
        return name in known

    def _defective(self, defect: str, keys: list[str], masks: list[str], expected: bool) -> None:
        where, masks_in = f"test/{defect}", f"ground_truth/{defect}"
        images = {key: PurePosixPath(key).stem for key in keys}
        names = {}
        for mask in masks:
            path = PurePosixPath(mask)
            names[mask] = path.name if (self.folder / to_name(mask)).is_dir() else path.stem
        paired = pair(self, images, names, images_in=where, masks_in=masks_in)
        self.samples += [Sample(key, "test", defect, paired.get(key)) for key in keys]
        if expected:
            report_bare(self, images, paired, where, masks_in)

    def _masks_of(self, defect: str) -> list[str]:
        """Lists the keys of the masks of a defect type."""
        where = f"ground_truth/{defect}"
        found = entries(self.folder / to_name(where))
        names = [to_text(e.name) for e in found if e.is_dir()]
        inner = [name for name in names if self.images(f"{where}/{name}")]
        keys = [f"{where}/{name}" for name in inner]
        if not self.layout.mask_folders:
            return keys + self.images(where, ignore=inner)
        for entry in found:
            key = f"{where}/{to_text(entry.name)}"
            if is_dangling(entry):
                self.problem(key, MISSING)
            elif not entry.is_dir():
                self.problem(key, f"not in a folder; masks belong in {where}/<image>/000.png")
            elif to_text(entry.name) not in inner:
                self.problem(key, "no masks in this folder; copy them again")
        return keys

    def _folders_of(self, where: str) -> list[str]:
        """Lists the names of the folders of a part; those that cannot be meant are reported."""
        names = []
        for entry in entries(self.folder / where) if (self.folder / where).is_dir() else []:
            name = to_text(entry.name)
            if is_dangling(entry):
                self.problem(f"{where}/{name}", MISSING)
            elif entry.is_dir() and name != self.normal and name.casefold() == self.normal:
                self.problem(f"{where}/{name}", f"rename to {self.normal}")
            elif entry.is_dir():
                names.append(name)
        return names

    def _loose(self, where: str) -> None:
        found = entries(self.folder / where) if (self.folder / where).is_dir() else []
        loose = [to_text(e.name) for e in found if not e.is_dir() and not is_dangling(e)]
        if loose:
            example = f"{where}/{self.normal}" if where == "train" else f"{where}/<defect type>"
            what = "masks" if where == "ground_truth" else "images"
            self.warn(where, f"{some(loose)} ignored; {what} belong in {example}")
