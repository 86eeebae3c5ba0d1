"""Folders of normal and of anomalous images that nobody has divided into training and test.

    good/*.png  scratch/*.png  dent/*.png  masks/scratch/<stem>.png       (a root; masks optional)

or each folder by name. Images may lie deeper. Masks lie as those of MVTec AD do, in a folder for
each defect type, or all in one.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from anomtune.datasets.base import GOOD, UNDIVIDED, Problem, Sample
from anomtune.datasets.io.files import (
    MISSING,
    Listing,
    folders,
    is_about,
    is_dangling,
    is_folder,
    is_image,
    listing,
    some,
)
from anomtune.datasets.io.pairing import pair, report_bare
from anomtune.datasets.io.wording import means_masks, means_normal, means_part
from anomtune.errors import DataError
from anomtune.names import to_name, to_text

_PARTS = ("train", "test")


@dataclass(frozen=True, slots=True)
class Pools:
    """Where the images of a category lie; paths are text, relative to the folder of the category.

    Attributes:
        normal: Folders of normal images by part: ``undivided``, or ``train`` and ``test``.
        anomalous: Folders of anomalous images by defect type.
        masks: Folder of the masks.
        mixed: A folder whose own folders are defect types and whose images are of a type of its
            name.
    """

    normal: Mapping[str, str]
    anomalous: Mapping[str, str] = field(default_factory=dict)
    masks: str | None = None
    mixed: str | None = None

    @property
    def folders(self) -> tuple[str, ...]:
        """All of them."""
        rest = [self.mixed, self.masks]
        return (*self.normal.values(), *self.anomalous.values(), *filter(None, rest))


def normal_folders(root: Path) -> list[str]:
    """Returns the folders of a root that by their names hold normal images.

    None if a folder beside them is divided, which makes the root a folder of categories, and none
    if it is itself a part of something that is.
    """
    if means_part(root.name):
        return []
    try:
        inside = folders(root)
    except OSError:
        return []
    if any(is_folder(folder / part) for folder in inside for part in _PARTS):
        return []
    return [to_text(folder.name) for folder in inside if means_normal(folder.name)]


def pools_in(root: Path) -> Pools | None:
    """Recognises a root that has a folder of normal images and others; ``None`` if it has not."""
    normal = normal_folders(root)
    if not normal:
        return None
    names = [to_text(folder.name) for folder in folders(root)]
    masks = [name for name in names if means_masks(name)]
    types = [name for name in names if name not in {*normal, *masks}]
    return Pools({UNDIVIDED: normal[0]}, {name: name for name in types}, next(iter(masks), None))


def named_pools(
    root: Path,
    normal: str | Mapping[str, str],
    anomalous: str | Mapping[str, str] | None,
    masks: str | None,
) -> Pools:
    """Returns the pools that somebody names; paths as they are given, absolute.

    Raises:
        DataError: If a folder is not there or lies outside of ``root``, if one is named twice, or
            a part or defect type cannot be called so.
    """
    by_part = normal if isinstance(normal, Mapping) else {UNDIVIDED: normal}
    if isinstance(normal, Mapping) and not {"train"} <= set(normal) <= set(_PARTS):
        raise DataError(
            f"dataset.normal: has {', '.join(normal) or 'nothing'}; give one folder, or one for "
            "train and one for test"
        )
    types = anomalous if isinstance(anomalous, Mapping) else {}
    for name in types:
        if not name or means_normal(name):
            raise DataError(
                f"dataset.anomalous: a defect type cannot be called {name!r}; choose another name"
            )
    mixed = anomalous if isinstance(anomalous, str) else None
    given = {f"normal.{part}" if part in _PARTS else "normal": at for part, at in by_part.items()}
    given |= {f"anomalous.{name}": at for name, at in types.items()}
    given |= {key: at for key, at in (("anomalous", mixed), ("masks", masks)) if at is not None}
    below = {key: _below(root, key, at) for key, at in given.items()}
    owners: dict[str, str] = {}
    for key, at in below.items():
        if (other := owners.setdefault(at, key)) != key:
            raise DataError(
                f"dataset.{key}: the same folder as dataset.{other} ({given[key]}); name another"
            )
    return Pools(
        {part: below[f"normal.{part}" if part in _PARTS else "normal"] for part in by_part},
        {name: below[f"anomalous.{name}"] for name in types},
        below.get("masks"),
        below.get("anomalous"),
    )


def _below(root: Path, key: str, given: str) -> str:
    path = Path(os.path.normpath(root / Path(to_name(given)).expanduser()))
    if not path.is_relative_to(root):
        raise DataError(
            f"dataset.{key}: {given} lies outside of dataset.root, {root}; leave root out"
        )
    if not is_folder(path):
        what = "is not a folder" if path.exists() else "no such folder"
        raise DataError(f"dataset.{key}: {path}: {what}; correct the path")
    text = to_text(path.relative_to(root).as_posix())
    return "" if text == "." else text


class PoolListing(Listing):
    """One listing of one category whose images lie in pools."""

    def __init__(self, category: str, folder: Path, pools: Pools) -> None:
        super().__init__(category, folder)
        self.pools = pools

    def run(self) -> tuple[tuple[Sample, ...], tuple[Problem, ...]]:
        """Lists all images; raises OSError if a folder cannot be listed."""
        for part, where in self.pools.normal.items():
            keys = self._below(where)
            self.samples += [Sample(key, part, GOOD) for key in keys]  # type: ignore[arg-type]
            if not keys and part != "test":
                self.problem(where, "no images; put images of normal products here")
        types = {name: self._below(where) for name, where in self.pools.anomalous.items()}
        where_of = dict(self.pools.anomalous)
        if self.pools.mixed is not None:
            types |= self._mixed(self.pools.mixed, where_of)
        for name, keys in types.items():
            if not keys:
                self.warn(where_of[name], "no images here; copy them again or remove the folder")
        found = {name: keys for name, keys in types.items() if keys}
        self._anomalous(found, where_of)
        return self.result()

    def beside(self) -> None:
        """Reports what lies beside the folders of a root; not where each is named."""
        seen, hidden = listing(self.folder)
        loose = [*map(to_text, hidden)]
        masks = [to_text(e.name) for e in seen if e.is_dir() and means_masks(e.name)]
        normal = normal_folders(self.folder)
        for entry in seen:
            if is_dangling(entry):
                self.problem(to_text(entry.name), MISSING)
            elif not entry.is_dir() and not is_about(entry):
                loose.append(to_text(entry.name))
        for names, what in ((normal, "normal images"), (masks, "masks")):
            if len(names) > 1:
                self.problem(
                    names[1], f"holds {what} by its name, and so does {names[0]}; make them one"
                )
        if loose:
            self.warn("", f"{some(loose)} ignored; images belong in {normal[0]} and other folders")

    def _below(self, where: str) -> list[str]:
        """Returns the keys of the images anywhere below a folder; other files are reported."""
        own = {*self.pools.folders} - {where}
        place = self.folder / to_name(where)
        keys, links = [], []
        inner = []
        for entry in listing(place)[0]:
            at = _join(where, to_text(entry.name))
            if entry.is_dir() and not is_image(entry):
                if entry.is_symlink():
                    links.append(to_text(entry.name))
                elif at not in own and means_masks(entry.name):
                    self.problem(at, "named as masks are, among images; set dataset.masks")
                elif at not in own:
                    inner.append(at)
        keys += self.images(
            where, ignore=[to_text(e.name) for e in listing(place)[0] if e.is_dir()]
        )
        if links:
            self.warn(where, f"{some(links)} ignored: links to folders")
        for at in inner:
            keys += self._below(at)
        return keys

    def _mixed(self, where: str, where_of: dict[str, str]) -> dict[str, list[str]]:
        """Lists a folder of anomalous images by type: its folders, and itself for loose images."""
        own = {*self.pools.folders} - {where}
        inner = [to_text(folder.name) for folder in folders(self.folder / to_name(where))]
        types = {}
        for name in inner:
            if (at := _join(where, name)) in own:
                continue
            if means_normal(name):
                self.problem(at, "named as normal images are, among anomalous ones; move it")
                continue
            if means_masks(name):
                self.problem(at, "named as masks are, among anomalous images; set dataset.masks")
                continue
            types[name], where_of[name] = self._below(at), at
        loose = self.images(where, ignore=inner)
        if loose or not types:
            name = PurePosixPath(where).name or self.category
            name = f"anomalous_{name}" if means_normal(name) else name
            types[name] = [*types.get(name, []), *loose]
            where_of.setdefault(name, where)
        return types

    def _anomalous(self, types: Mapping[str, list[str]], where_of: Mapping[str, str]) -> None:
        masks = self.pools.masks
        images = {
            name: {key: _stem(key, where_of[name]) for key in keys} for name, keys in types.items()
        }
        found: dict[str, str] = {}
        if masks is not None:
            inside = {to_text(f.name) for f in folders(self.folder / to_name(masks))}
            typed = {name for name in images if name in inside}
            for name in sorted(typed):
                at = _join(masks, name)
                own = self._masks(at, at, set(images[name].values()))
                found |= pair(self, images[name], own, images_in=where_of[name], masks_in=at)
            rest = {k: s for name in images if name not in typed for k, s in images[name].items()}
            skip = {_join(masks, name) for name in inside if name in typed or means_normal(name)}
            flat = self._masks(masks, masks, set(rest.values()), skip)
            where = ", ".join(where_of[name] for name in images if name not in typed)
            found |= pair(self, rest, flat, images_in=where or "any folder", masks_in=masks)
            for name, keys in images.items():
                at = _join(masks, name) if name in typed else masks
                report_bare(self, keys, found, where_of[name], at)
        for name, keys in images.items():
            self.samples += [Sample(key, _part(self.pools), name, found.get(key)) for key in keys]

    def _masks(
        self, where: str, top: str, names: set[str], skip: Collection[str] = ()
    ) -> dict[str, str]:
        """Returns the keys of masks below a folder and the names of what they are masks of."""
        place = self.folder / to_name(where)
        inner = [_join(where, to_text(folder.name)) for folder in folders(place)]
        found = {}
        for key in self.images(where, ignore=[PurePosixPath(at).name for at in inner]):
            found[key] = _stem(key, top)
        for at in inner:
            name = at[len(top) + 1 :]
            if at in skip:
                continue
            if name in names and self.images(at):
                found[at] = name
            else:
                found |= self._masks(at, top, names)
        return found


def files_below(folder: Path, skip: Collection[Path] = ()) -> Iterator[Path]:
    """Yields every image file that a listing of a pool depends on."""
    for entry in listing(folder)[0]:
        path = Path(entry.path)
        if is_image(entry):
            yield path
        elif entry.is_dir() and not entry.is_symlink() and path not in skip:
            yield from files_below(path, skip)


def _part(pools: Pools) -> Literal["undivided", "test"]:
    return UNDIVIDED if UNDIVIDED in pools.normal else "test"


def _stem(key: str, where: str) -> str:
    """Returns the path of a file below a folder, without its suffix."""
    path = PurePosixPath(key[len(where) + 1 :] if where else key)
    return str(path.with_suffix("")) if path.suffix else str(path)


def _join(where: str, name: str) -> str:
    return f"{where}/{name}" if where else name
