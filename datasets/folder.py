"""Folders in the layout of MVTec AD, the one that most people keep their images in.

    <category>/train/good/*.png
    <category>/test/good/*.png
    <category>/test/<defect type>/*.png
    <category>/ground_truth/<defect type>/<stem>_mask.png       (optional)

The root is one category, or a folder of categories.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from anomtune.datasets.base import GOOD, DataError, Dataset, Problem, Sample
from anomtune.datasets.imagefile import EXTENSIONS, digest_file, read_mask, read_rgb
from anomtune.datasets.store import digest

_JUNK = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_MASK_SUFFIX = "_mask"
_MISSING = "link to a missing file; fetch it or remove the link"
# Two writes within one tick of the clock of a file system leave the same time behind, so files
# younger than this are not trusted to their time.
_SETTLE_NS = 100_000_000


class FolderDataset(Dataset):
    """A folder of images in the layout of MVTec AD.

    Args:
        root: A category (it has ``train``), or a folder of categories.

    Raises:
        DataError: If no root is given.
    """

    name = "folder"

    def __init__(self, root: Path | None = None) -> None:
        if root is None:
            raise DataError("dataset 'folder' needs a folder: set dataset.root")
        self._root = Path(root).expanduser().absolute()
        super().__init__(self._root)

    def categories(self) -> tuple[str, ...]:
        """Returns the names of the categories, sorted.

        Raises:
            DataError: If the root does not exist or holds no category.
        """
        if not self._root.is_dir():
            what = "is not a folder" if self._root.exists() else "no such folder"
            raise DataError(f"{self._root}: {what}; set dataset.root to the folder of the images")
        if _is_category(self._root):
            return (self._root.name,)
        names = tuple(sorted(f.name for f in _folders(self._root) if _is_category(f)))
        if not names:
            raise DataError(
                f"{self._root}: no category here; expected <category>/train/good/*.png "
                "and <category>/test/<defect type>/*.png"
            )
        return names

    def scan(self, category: str) -> tuple[tuple[Sample, ...], tuple[Problem, ...]]:
        """Lists a category without decoding an image: its samples by key, and what is wrong.

        Raises:
            DataError: If there is no such category or a folder cannot be listed.
        """
        folder = self._folder(category)
        try:
            return _Scan(category, folder).run()
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be listed ({error.strerror})") from error

    def warnings(self) -> tuple[Problem, ...]:
        """Names every folder beside the categories that is none, by name.

        Raises:
            DataError: If the root does not exist or holds no category.
        """
        self.categories()
        if _is_category(self._root):
            return ()
        found = []
        for entry in _entries(self._root):
            if _is_dangling(entry):
                reason = f"it is a {_MISSING}"
            elif entry.is_dir() and not _is_category(Path(entry.path)):
                reason = _why_no_category(Path(entry.path))
            else:
                continue
            found.append(Problem(entry.name, "", f"ignored, {reason}", fatal=False))
        return tuple(found)

    def fingerprint(self, category: str) -> str | None:
        """Returns a digest of the paths, sizes and times of all files of a category.

        ``None`` while files have just been written: their times cannot be trusted yet.
        """
        folder = self._folder(category)
        newest = 0
        rows = []
        try:
            for path in sorted(_files(folder)):
                info = path.stat()
                # The change time shows edits that keep size and modification time.
                times = (info.st_mtime_ns, info.st_ctime_ns)
                newest = max(newest, *times)
                rows.append((str(path.relative_to(folder)), info.st_size, info.st_ino, *times))
        except OSError:
            return None
        if newest > time.time_ns() - _SETTLE_NS:
            return None
        return digest(str(folder), rows)

    def file_digest(self, category: str, key: str) -> str:
        """Returns a digest of the encoded bytes of an image or mask."""
        return digest_file(self._path(category, key))

    def read_image(self, category: str, key: str) -> npt.NDArray[np.uint8]:
        """Returns an image as ``(H, W, 3)`` RGB."""
        return read_rgb(self._path(category, key))

    def read_mask(self, category: str, key: str) -> npt.NDArray[np.bool_]:
        """Returns a ground-truth mask as ``(H, W)``, true at anomalous pixels."""
        return read_mask(self._path(category, key))

    def _folder(self, category: str) -> Path:
        plain = category not in {"", ".", ".."} and not {"/", "\\", "\0"} & set(category)
        if plain and category == self._root.name and _is_category(self._root):
            return self._root
        if plain and not _is_category(self._root) and _is_category(self._root / category):
            return self._root / category
        names = self.categories()
        near = get_close_matches(category, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DataError(
            f"{self._root}: no category {category!r}; {hint}it has {', '.join(map(repr, names))}"
        )

    def _path(self, category: str, key: str) -> Path:
        parts = PurePosixPath(key).parts
        if not parts or ".." in parts or key.startswith("/") or "\0" in key:
            raise DataError(f"{self._root}: {key!r} is not the path of an image in {category!r}")
        return self._folder(category).joinpath(*parts)


class _Scan:
    """One listing of one category."""

    def __init__(self, category: str, folder: Path) -> None:
        self.category = category
        self.folder = folder
        self.samples: list[Sample] = []
        self.problems: list[Problem] = []

    def run(self) -> tuple[tuple[Sample, ...], tuple[Problem, ...]]:
        self._train()
        self._test()
        return (
            tuple(sorted(self.samples, key=lambda s: s.key)),
            tuple(sorted(self.problems, key=lambda p: (not p.fatal, p.key))),
        )

    def _train(self) -> None:
        images = self._images(f"train/{GOOD}")
        self.samples += [Sample(key, "train", GOOD) for key in images]
        if not images:
            self._problem(f"train/{GOOD}", "no training images; put images of normal products here")
        for other in self._folders_of("train"):
            if other != GOOD:
                self._warn(f"train/{other}", f"ignored; only train/{GOOD} is used for training")
        self._loose("train")

    def _test(self) -> None:
        types = self._folders_of("test")
        if not types:
            self._warn(
                "test",
                f"no test images; put normal ones in test/{GOOD}, others in test/<defect type>",
            )
        masks = {
            defect: self._images(f"ground_truth/{defect}")
            for defect in self._folders_of("ground_truth")
            if defect != GOOD
        }
        has_masks = any(masks.values())
        for defect in types:
            images = self._images(f"test/{defect}")
            if defect == GOOD:
                self.samples += [Sample(key, "test", GOOD) for key in images]
            else:
                self._defective(defect, images, masks.pop(defect, []), has_masks)
        for defect, orphans in masks.items():
            for key in orphans:
                self._problem(key, f"mask without image: there is no folder test/{defect}")
        self._loose("test")

    def _defective(self, defect: str, images: list[str], masks: list[str], expected: bool) -> None:
        by_stem: dict[str, list[str]] = defaultdict(list)
        for key in images:
            by_stem[PurePosixPath(key).stem].append(key)
        mask_of: dict[str, list[str]] = defaultdict(list)
        for mask in masks:
            stem = PurePosixPath(mask).stem
            plain = stem.removesuffix(_MASK_SUFFIX)
            owner = plain if plain in by_stem else stem
            if owner in by_stem:
                mask_of[owner].append(mask)
            else:
                self._problem(
                    mask,
                    f"mask without image: nothing named {plain!r} in test/{defect}; "
                    "rename or remove it",
                )
        for stem, keys in by_stem.items():
            found = mask_of.get(stem, [])
            if len(found) > 1:
                self._problem(keys[0], f"has {len(found)} masks ({', '.join(found)}); keep one")
            if found and len(keys) > 1:
                self._problem(
                    keys[0],
                    f"shares its name, and so its mask, with {', '.join(keys[1:])}; rename one",
                )
            if not found and expected:
                for key in keys:
                    self._warn(key, "no mask, while others have one; left out of pixel metrics")
            first = found[0] if found else None
            self.samples += [Sample(key, "test", defect, first) for key in keys]

    def _images(self, where: str) -> list[str]:
        """Lists the keys of the images of a folder, by name; other files are reported."""
        folder = self.folder / where
        if not folder.is_dir():
            return []
        keys, others = [], []
        for entry in _entries(folder):
            key = f"{where}/{entry.name}"
            if Path(entry.name).suffix.lower() not in EXTENSIONS:
                others.append(entry.name)
            elif entry.is_file():
                keys.append(key)
            else:
                # Content that git-annex or DVC has not fetched, a share that is not mounted.
                what = _MISSING if _is_dangling(entry) else "not a file; rename or remove it"
                self._problem(key, what)
        if others:
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            self._warn(where, f"{others[0]!r}{more} ignored: not a PNG, JPEG, BMP or TIFF file")
        return keys

    def _folders_of(self, where: str) -> list[str]:
        """Lists the names of the folders of a part; those that cannot be meant are reported."""
        names = []
        for entry in _entries(self.folder / where) if (self.folder / where).is_dir() else []:
            if _is_dangling(entry):
                self._problem(f"{where}/{entry.name}", _MISSING)
            elif entry.is_dir() and entry.name != GOOD and entry.name.casefold() == GOOD:
                self._problem(f"{where}/{entry.name}", f"rename to {GOOD}")
            elif entry.is_dir():
                names.append(entry.name)
        return names

    def _loose(self, where: str) -> None:
        loose = []
        if (self.folder / where).is_dir():
            entries = _entries(self.folder / where)
            loose = [e.name for e in entries if not e.is_dir() and not _is_dangling(e)]
        if loose:
            example = f"{where}/{GOOD}" if where == "train" else f"{where}/<defect type>"
            self._warn(
                where, f"{len(loose)} files ignored ({loose[0]!r}); images belong in {example}"
            )

    def _problem(self, key: str, message: str) -> None:
        self.problems.append(Problem(self.category, key, message))

    def _warn(self, key: str, message: str) -> None:
        self.problems.append(Problem(self.category, key, message, fatal=False))


def _is_category(folder: Path) -> bool:
    # Not Path.is_dir: it raises in folders that may not be entered, such as lost+found.
    return any(os.path.isdir(folder / part) for part in ("train", "test"))


def _why_no_category(folder: Path) -> str:
    try:
        inside = [f.name for f in _folders(folder)]
    except OSError as error:
        return f"it cannot be listed ({error.strerror})"
    if len(inside) > 5:
        inside[4:] = [f"{len(inside) - 4} more"]
    return f"it has no train folder; it has {', '.join(inside) or 'no folders'}"


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Lists a folder by name, without what operating systems leave behind."""
    with os.scandir(folder) as entries:
        kept = [e for e in entries if not e.name.startswith(".") and e.name.lower() not in _JUNK]
    return sorted(kept, key=lambda e: e.name)


def _is_dangling(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not Path(entry.path).exists()


def _folders(folder: Path) -> list[Path]:
    return [Path(e.path) for e in _entries(folder) if e.is_dir()]


def _files(category: Path) -> Iterator[Path]:
    """Yields every image and mask that a scan of the category would list."""
    for part in ("train", "test", "ground_truth"):
        if (category / part).is_dir():
            for kind in _folders(category / part):
                for entry in _entries(kind):
                    if Path(entry.name).suffix.lower() in EXTENSIONS:
                        yield Path(entry.path)
