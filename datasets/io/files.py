"""What datasets that lie in a folder share: finding files, naming them safely, reading them."""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from anomtune.datasets.base import Dataset, Problem, Sample
from anomtune.datasets.io.imagefile import EXTENSIONS, FORMATS, digest_file, read_rgb
from anomtune.datasets.io.maskfile import read_mask, read_masks
from anomtune.datasets.io.store import digest
from anomtune.errors import DataError, ImageError
from anomtune.names import leaves, to_name, to_text

MISSING = "link to a missing file; fetch it or remove the link"

# What operating systems leave behind, beside `._*`: nobody's images.
_JUNK = frozenset({"thumbs.db", "desktop.ini", "__macosx", ".ds_store"})
# What downloads have in every folder, and nobody takes for a part of the data.
_ABOUT = frozenset({"readme", "license", "licence"})
_ARCHIVES = frozenset({".zip", ".tar", ".tgz", ".gz", ".xz", ".7z", ".rar"})
# Two writes within one tick of the clock of a file system leave the same time behind, so files
# younger than this are not trusted to their time.
_SETTLE_NS = 100_000_000


class FileDataset(Dataset):
    """A dataset whose images are files below a folder.

    Keys are paths relative to `_place`, as text (`anomtune.names`).

    Args:
        root: The folder.

    Raises:
        DataError: If no root is given.
    """

    def __init__(self, root: Path | None = None) -> None:
        if root is None:
            raise DataError(f"dataset {self.name!r} needs a folder: set dataset.root")
        self._root = Path(root).expanduser().absolute()
        super().__init__(self._root)

    @abstractmethod
    def _place(self, category: str) -> Path:
        """Returns the folder that the keys of a category are relative to.

        Raises:
            DataError: If there is no such category.
        """

    @abstractmethod
    def _files(self, category: str) -> Iterable[Path]:
        """Returns every file that a listing of the category depends on."""

    def fingerprint(self, category: str) -> str | None:
        """Returns a digest of the paths, sizes and times of all files of a category.

        ``None`` while files have just been written: their times cannot be trusted yet.
        """
        place = self._place(category)
        newest = 0
        rows = []
        try:
            for path in sorted(self._files(category)):
                info = path.stat()
                # The change time shows edits that keep size and modification time.
                times = (info.st_mtime_ns, info.st_ctime_ns)
                newest = max(newest, *times)
                rows.append((os.path.relpath(path, place), info.st_size, info.st_ino, *times))
        except OSError:
            return None
        if newest > time.time_ns() - _SETTLE_NS:
            return None
        return digest(str(place), rows)

    def file_digest(self, category: str, key: str) -> str:
        """Returns a digest of the encoded bytes of an image or mask, or of all masks of one."""
        path = self._path(category, key)
        if not path.is_dir():
            return digest_file(path)
        return digest([[to_text(file.name), digest_file(file)] for file in _masks_in(path)])

    def read_image(self, category: str, key: str) -> npt.NDArray[np.uint8]:
        """Returns an image as ``(H, W, 3)`` RGB."""
        return read_rgb(self._path(category, key))

    def read_mask(self, category: str, key: str) -> npt.NDArray[np.bool_]:
        """Returns a ground-truth mask as ``(H, W)``, true at anomalous pixels.

        Where the key is a folder, the mask is the union of those in it.
        """
        path = self._path(category, key)
        return read_masks(path, _masks_in(path)) if path.is_dir() else read_mask(path)

    def _path(self, category: str, key: str) -> Path:
        parts = PurePosixPath(key).parts
        if not parts or leaves(key) or "\0" in key:
            raise DataError(f"{self._root}: {key!r} is not the path of an image in {category!r}")
        return self._place(category).joinpath(*map(to_name, parts))


class Listing:
    """What one listing of one category has found.

    Args:
        category: Its name.
        folder: The folder that keys are relative to.
    """

    def __init__(self, category: str, folder: Path) -> None:
        self.category = category
        self.folder = folder
        self.samples: list[Sample] = []
        self.problems: list[Problem] = []

    def result(self) -> tuple[tuple[Sample, ...], tuple[Problem, ...]]:
        """Returns the samples by key, and the problems, the fatal ones first."""
        return (
            tuple(sorted(self.samples, key=lambda s: s.key)),
            tuple(sorted(self.problems, key=lambda p: (not p.fatal, p.key))),
        )

    def problem(self, key: str, message: str) -> None:
        """Notes what stops a sweep."""
        self.problems.append(Problem(self.category, key, message))

    def warn(self, key: str, message: str) -> None:
        """Notes what does not."""
        self.problems.append(Problem(self.category, key, message, fatal=False))

    def images(self, where: str, ignore: Sequence[str] = ()) -> list[str]:
        """Lists the keys of the images of a folder, by name; other files are reported.

        Args:
            where: The folder, as text below the listing's own.
            ignore: Names of further files that belong there.
        """
        folder = self.folder / to_name(where)
        if not folder.is_dir():
            return []
        keys, others = [], []
        found, hidden = listing(folder)
        for entry in found:
            name = to_text(entry.name)
            key = f"{where}/{name}" if where else name
            if not is_image(entry):
                others += [] if name in ignore else [name]
            elif entry.is_file():
                keys.append(key)
            else:
                # Content that git-annex or DVC has not fetched, a share that is not mounted.
                what = MISSING if is_dangling(entry) else "not a file; rename or remove it"
                self.problem(key, what)
        if others:
            self.warn(where, f"{some(others)} ignored: not a {FORMATS} file")
        if hidden:
            self.warn(where, f"{some([*map(to_text, hidden)])} ignored: hidden")
        return keys


def image_files(
    paths: Iterable[str | os.PathLike[str]], passed_over: list[Path] | None = None
) -> Iterator[Path]:
    """Yields files as they are given, and in place of a folder what `images_below` finds."""
    for given in map(Path, paths):
        if is_folder(given):
            yield from images_below(given, passed_over)
        else:
            yield given


def images_below(folder: Path, passed_over: list[Path] | None = None) -> Iterator[Path]:
    """Yields the image files anywhere below a folder, by name; nothing if there is no such folder.

    Hidden files and folders are left out, links to folders are not followed. A folder that cannot
    be listed is yielded itself: reading it fails for the same reason, and says so.

    Args:
        folder: Where to look.
        passed_over: Takes what is left out: other files, what is hidden, links to folders.
    """
    left_out: list[Path] = [] if passed_over is None else passed_over
    try:
        found, hidden = listing(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError:
        yield folder
        return
    left_out += [folder / name for name in hidden]
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from images_below(Path(entry.path), passed_over)
        elif is_image(entry):
            yield Path(entry.path)
        else:
            left_out.append(Path(entry.path))


def is_image(file: os.PathLike[str]) -> bool:
    """Whether a file is an image, by its name."""
    return os.path.splitext(file)[1].lower() in EXTENSIONS


def is_about(file: os.PathLike[str]) -> bool:
    """Whether a file says what lies beside it, by its name: a licence, a readme."""
    return Path(file).stem.lower() in _ABOUT


def some(names: Sequence[str]) -> str:
    """Names the first few of many; they are text."""
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def left_out(paths: Sequence[Path]) -> str:
    """Says how many files were passed over in folders of images, and names the first few."""
    return f"{len(paths)} passed over, no {FORMATS} file or hidden: {some([*map(to_text, paths)])}"


def whereabouts(root: Path, accepts: Callable[[Path], bool]) -> str:
    """Says where a dataset is that is not at its root: deeper, as in an unpacked zip, or packed.

    Args:
        root: A folder that does not hold the dataset.
        accepts: Whether a folder does.

    Returns:
        A clause with the remedy, or "".
    """
    level = [root]
    for _ in range(2):
        below: list[Path] = []
        for folder in level:
            try:
                below += folders(folder)
            except OSError:
                continue
        for folder in below[:200]:  # A data disk can hold anything: looking has an end.
            if accepts(folder):
                return f"found {folder.relative_to(root)}/ inside; set dataset.root to {folder}"
        level = below[:50]
    packed = [to_text(e.name) for e in entries(root) if Path(e.name).suffix.lower() in _ARCHIVES]
    return f"found {some(packed)}; unpack it" if packed else ""


def check_root(root: Path) -> None:
    """Raises DataError if a dataset's root is no folder."""
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "no such folder"
        raise DataError(f"{root}: {what}; set dataset.root to the folder of the images")


def is_folder(path: Path) -> bool:
    """Whether a path is a folder, also where it may not be asked (``lost+found``)."""
    return os.path.isdir(path)  # Path.is_dir raises there


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Lists a folder by name, without what is hidden."""
    return listing(folder)[0]


def listing(folder: Path) -> tuple[list[os.DirEntry[str]], list[str]]:
    """Lists a folder by name: what is there to be seen, and the names of what is hidden.

    What operating systems leave behind is in neither.
    """
    with os.scandir(folder) as found:
        kept = [e for e in found if e.name.lower() not in _JUNK and not e.name.startswith("._")]
    kept.sort(key=lambda e: e.name)
    hidden = [e.name for e in kept if e.name.startswith(".")]
    return [e for e in kept if not e.name.startswith(".")], hidden


def is_dangling(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a link to nothing."""
    return entry.is_symlink() and not Path(entry.path).exists()


def folders(folder: Path) -> list[Path]:
    """Lists the folders in a folder, by name."""
    return [Path(e.path) for e in entries(folder) if e.is_dir()]


def _masks_in(folder: Path) -> list[Path]:
    try:
        return [Path(e.path) for e in entries(folder) if is_image(e)]
    except OSError as error:
        raise ImageError(str(folder), f"cannot be listed ({error.strerror})") from error
