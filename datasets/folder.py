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
from pathlib import Path
from typing import Any, ClassVar

from anomtune.datasets.base import Problem, Sample
from anomtune.datasets.io.files import (
    MISSING,
    FileDataset,
    check_root,
    entries,
    folders,
    is_dangling,
    is_image,
    listing,
    some,
    whereabouts,
)
from anomtune.datasets.io.grouping import compiled, grouped
from anomtune.datasets.io.layout import PARTS, Layout, LayoutListing, has_parts
from anomtune.datasets.io.pools import PoolListing, Pools, files_below, named_pools, pools_in
from anomtune.datasets.splits.division import Division
from anomtune.errors import DataError, suggest
from anomtune.names import to_name, to_text


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
            return LayoutListing(category, folder, self._layout(category)).run()
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
        return None if has_parts(folder) or not self.undivided else pools_in(folder)

    def _layout(self, category: str) -> Layout:
        """Returns in what a category differs from the plain layout."""
        return Layout()

    def _is_category(self, folder: Path) -> bool:
        """Whether a folder in the root is a category."""
        return self._looks_like_one(folder)

    def _looks_like_one(self, folder: Path) -> bool:
        """Whether a folder has what a category has, whatever it is called."""
        return has_parts(folder) or (self.undivided and pools_in(folder) is not None)

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
        for part in PARTS:
            for kind in folders(place / part) if (place / part).is_dir() else []:
                inner = folders(kind) if part == "ground_truth" else []
                for folder in (kind, *inner):
                    for entry in entries(folder):
                        if is_image(entry):
                            yield Path(entry.path)


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
