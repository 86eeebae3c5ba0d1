"""Folders of images: in the layout of MVTec AD, or just good ones here and bad ones there.

    <category>/train/good/*.png
    <category>/test/good/*.png
    <category>/test/<defect type>/*.png
    <category>/ground_truth/<defect type>/<stem>_mask.png       (optional)
    <category>/ground_truth/<defect type>/<stem>/*.png          (the same, several masks in union)

The root is one category, or a folder of categories. Published datasets that differ from it in a
detail (see `Layout`) are read by the same listing. Without ``train`` and ``test`` a category is a
folder of normal images and others (`anomtune.datasets.io.pools`), whose content says what trains.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from anomtune.datasets.base import GOOD, Problem, Sample
from anomtune.datasets.io.files import (
    MISSING,
    FileDataset,
    Listing,
    check_root,
    entries,
    folders,
    is_about,
    is_dangling,
    is_folder,
    is_image,
    listing,
    some,
    whereabouts,
)
from anomtune.datasets.io.grouping import compiled, grouped
from anomtune.datasets.io.pairing import pair, report_bare
from anomtune.datasets.io.pools import PoolListing, Pools, files_below, named_pools, pools_in
from anomtune.datasets.io.wording import means_masks, means_normal, plain
from anomtune.datasets.splits.division import Division
from anomtune.errors import DataError, suggest
from anomtune.names import to_name, to_text

_PARTS = ("train", "test", "ground_truth")


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


class Folder(FileDataset):
    """A folder of images: MVTec AD's layout, or normal images here and anomalous ones there.

    >>> import anomtune as at
    >>> at.Folder("/data/line-3")  # doctest: +SKIP
    >>> at.Folder(normal="/data/good", anomalous={"scratch": "/data/scratch"})  # doctest: +SKIP

    Args:
        root: A category (it has ``train``, or ``good`` and other folders), or a folder of
            categories. Default where ``normal`` is given: what its folders have in common.
        normal: Folder of normal images, or one for ``train`` and one for ``test``.
        anomalous: Folder of anomalous images, whose own folders are defect types; or a folder for
            each defect type.
        masks: Folder of their masks.
        group: Regular expression that names, in an image's path, the part that it shows.
        division: How to divide where there is neither ``train`` nor ``test``.

    Raises:
        DataError: If no folder is given, or one that is given cannot be used.
    """

    name = "folder"
    options = frozenset({"normal", "anomalous", "masks", "group", "division"})
    #: Whether a category may be a folder of normal images and others, without a division.
    undivided: ClassVar[bool] = True

    def __init__(
        self,
        root: Path | str | None = None,
        *,
        normal: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        anomalous: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        masks: str | os.PathLike[str] | None = None,
        group: str | None = None,
        division: Division | None = None,
    ) -> None:
        for key, value in (("anomalous", anomalous), ("masks", masks)):
            if normal is None and value is not None:
                raise DataError(f"dataset.{key}: say where the normal images are, too: set normal")
        named = {"normal": normal, "anomalous": anomalous, "masks": masks}
        texts = {key: _as_text(value) for key, value in named.items()}
        if root is None and normal is not None:
            root = _common(texts)
        super().__init__(None if root is None else Path(root))
        self.division = division
        self._group = group
        self._pattern = None if group is None else compiled(group)
        self._named = {key: value for key, value in texts.items() if value is not None}

    def categories(self) -> tuple[str, ...]:
        """Returns the names of the categories, sorted.

        Raises:
            DataError: If the root does not exist or holds no category.
        """
        check_root(self._root)
        if self._is_single():
            return (to_text(self._root.name),)
        names = self._names_in(self._root)
        if not names:
            raise DataError(f"{self._root}: no category here; {self._remedy()}")
        return names

    def scan(self, category: str) -> tuple[tuple[Sample, ...], tuple[Problem, ...]]:
        """Lists a category without decoding an image: its samples by key, and what is wrong.

        Raises:
            DataError: If there is no such category or a folder cannot be listed.
        """
        folder = self._place(category)
        try:
            samples, problems = self._list(category, folder)
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be listed ({error.strerror})") from error
        if self._pattern is None:
            return samples, problems
        samples, ungrouped = grouped(category, samples, self._pattern)
        return samples, (*problems, *ungrouped)

    def warnings(self) -> tuple[Problem, ...]:
        """Names every folder beside the categories that is none, by name.

        Raises:
            DataError: If the root does not exist or holds no category.
        """
        self.categories()
        if self._is_single():
            return ()
        found = []
        seen, hidden = listing(self._root)
        loose = [e.name for e in seen if is_image(e) and not e.is_dir()] + hidden
        if loose:
            message = f"{some([*map(to_text, loose)])} ignored, beside the categories"
            found.append(Problem(to_text(self._root.name), "", message, fatal=False))
        for entry in seen:
            if is_dangling(entry):
                reason = f"it is a {MISSING}"
            elif entry.is_dir() and not self._is_category(Path(entry.path)):
                reason = self._why_no_category(Path(entry.path))
            else:
                continue
            found.append(Problem(to_text(entry.name), "", f"ignored, {reason}", fatal=False))
        return tuple(found)

    def settings(self) -> dict[str, Any]:
        """Returns what it was given beside the root; folders relative to that."""
        found: dict[str, Any] = {}
        if self._named:
            pools = self._pools(self._root)
            assert pools is not None
            normal = {part: at or "." for part, at in pools.normal.items()}
            found["normal"] = normal if "train" in normal else next(iter(normal.values()))
            if pools.mixed is not None or pools.anomalous:
                found["anomalous"] = pools.mixed or dict(pools.anomalous) or "."
            if pools.masks is not None:
                found["masks"] = pools.masks
        found |= {} if self._group is None else {"group": self._group}
        return found | ({} if self.division is None else {"division": self.division})

    def _list(self, category: str, folder: Path) -> tuple[tuple[Sample, ...], tuple[Problem, ...]]:
        pools = self._pools(folder)
        if pools is None:
            return _Scan(category, folder, self._layout(category)).run()
        scan = PoolListing(category, folder, pools)
        if not self._named:
            scan.beside()
        return scan.run()

    def _pools(self, folder: Path) -> Pools | None:
        """Returns where the images of an undivided category lie; ``None`` if it has parts."""
        if self._named:
            check_root(self._root)
            named = self._named
            return named_pools(
                self._root, named["normal"], named.get("anomalous"), named.get("masks")
            )
        return None if _has_parts(folder) or not self.undivided else pools_in(folder)

    def _layout(self, category: str) -> Layout:
        """Returns in what a category differs from the plain layout."""
        return Layout()

    def _is_category(self, folder: Path) -> bool:
        """Whether a folder in the root is a category."""
        return self._looks_like_one(folder)

    def _looks_like_one(self, folder: Path) -> bool:
        """Whether a folder has what a category has, whatever it is called."""
        return _has_parts(folder) or (self.undivided and pools_in(folder) is not None)

    def _is_single(self) -> bool:
        """Whether the root is one category rather than a folder of them."""
        if self._named:
            return True
        return self._looks_like_one(self._root) and self._is_category(self._root)

    def _why_no_category(self, folder: Path) -> str:
        try:
            inside = [to_text(f.name) for f in folders(folder)]
        except OSError as error:
            return f"it cannot be listed ({error.strerror})"
        if len(inside) > 5:
            inside[4:] = [f"{len(inside) - 4} more"]
        return f"it has no train folder; it has {', '.join(inside) or 'no folders'}"

    def _names_in(self, root: Path) -> tuple[str, ...]:
        """Returns the names of the categories in a folder, sorted."""
        try:
            return tuple(sorted(to_text(f.name) for f in folders(root) if self._is_category(f)))
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be listed ({error.strerror})") from error

    def _remedy(self) -> str:
        """Says what to do about a root without a category."""
        for above in list(self._root.parents)[:2]:
            if self._looks_like_one(above) and self._is_category(above):
                return f"this lies inside of one; set dataset.root to {above}"
        return whereabouts(self._root, self._holds) or f"expected {self._expected()}"

    def _expected(self) -> str:
        normal = self._layout("").normal
        usual = f"<category>/train/{normal}/*.png and <category>/test/<defect type>/*.png"
        return f"{usual}, or {normal}/ and other folders" if self.undivided else usual

    def _holds(self, folder: Path) -> bool:
        """Whether a folder would do as the root."""
        try:
            return any(self._looks_like_one(f) and self._is_category(f) for f in folders(folder))
        except OSError:
            return False

    def _place(self, category: str) -> Path:
        name = to_name(category)
        plain = name not in {"", ".", ".."} and not {"/", "\0"} & set(name)
        single = self._is_single()
        if plain and single and name == self._root.name:
            return self._root
        if plain and not single and self._is_category(self._root / name):
            return self._root / name
        known = suggest(category, self.categories())
        raise DataError(f"{self._root}: no category {category!r}{known}")

    def _files(self, category: str) -> Iterator[Path]:
        """Yields every image and mask that a scan of the category would list."""
        place = self._place(category)
        if (pools := self._pools(place)) is not None:
            tops = {place / to_name(at) for at in pools.folders}
            for top in tops:
                yield from files_below(top, tops - {top})
            return
        for part in _PARTS:
            for kind in folders(place / part) if (place / part).is_dir() else []:
                inner = folders(kind) if part == "ground_truth" else []
                for folder in (kind, *inner):
                    for entry in entries(folder):
                        if is_image(entry):
                            yield Path(entry.path)


class _Scan(Listing):
    """One listing of one category."""

    def __init__(self, category: str, folder: Path, layout: Layout) -> None:
        super().__init__(category, folder)
        self.layout = layout
        self.normal = layout.normal

    def run(self) -> tuple[tuple[Sample, ...], tuple[Problem, ...]]:
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
            elif name not in _PARTS:
                self._stranger(name)
        if loose:
            self.warn("", f"{some(loose)} ignored; images belong in train/{self.normal} and test")

    def _stranger(self, name: str) -> None:
        meant = next((part for part in _PARTS if plain(part) == plain(name)), None)
        if meant is None and means_masks(name):
            meant = "ground_truth"
        if meant is None:
            self.warn(name, f"ignored; a category has {', '.join(_PARTS)}")
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


def _has_parts(folder: Path) -> bool:
    return any(is_folder(folder / part) for part in ("train", "test"))


def _as_text(value: Any) -> Any:
    """Returns paths, also those of a mapping, as text."""
    if isinstance(value, Mapping):
        return {str(key): _as_text(item) for key, item in value.items()}
    return to_text(value) if isinstance(value, os.PathLike) else value


def _common(named: Mapping[str, Any]) -> Path:
    """Returns the folder that others have in common.

    Raises:
        DataError: If that is all of the disk.
    """
    given = [at for value in named.values() for at in _paths(value)]
    paths = [os.path.abspath(Path(to_name(at)).expanduser()) for at in given]
    common = Path(os.path.commonpath(paths))
    if len(set(paths)) == 1:
        common = common.parent
    if common == Path(common.anchor):
        raise DataError(
            f"dataset.normal: {', '.join(given)} have no folder in common; move or link them into "
            "one, and set dataset.root to it"
        )
    return common


def _paths(value: Any) -> list[str]:
    if value is None:
        return []
    return list(value.values()) if isinstance(value, Mapping) else [value]
