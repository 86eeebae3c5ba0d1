"""PACS: seven classes in photos, art paintings, cartoons and sketches.

    {photo,art_painting,cartoon,sketch}/<class>/*           all images, also below kfold/ or images/
    <domain>_{train,crossval,test}_kfold.txt                (optional) the official lists, in the
                                                            root, beside it or in a folder of these
    train/photo/<class>/*, val/<domain>/<class>/*           the tree of the code of GNL

One class of photos is normal and trains; the other classes are the anomalies. Photos are tested on
as they are, the other domains are shifted ones.

With the lists the protocol is GNL's: ``photo_train_kfold`` trains and the ``crossval`` lists of all
domains test. **Without them the split of the photos is ours**: of each class the tenth whose file
names have the lowest digests tests, the rest trains. The other domains then test whole: nothing has
trained on them. Figures of the two are not comparable.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import ClassVar

from anomtune.datasets.base import Published
from anomtune.datasets.io.classes import Listing, OneClassDataset, some
from anomtune.datasets.io.files import entries, folders, images_below, is_folder

_PHOTO = "photo"
_ART = "art_painting"
_DOMAINS = (_PHOTO, _ART, "cartoon", "sketch")
_LISTS = frozenset(f"{d}_{p}_kfold.txt" for d in _DOMAINS for p in ("train", "crossval", "test"))
_INSIDE = (".", "kfold", "images")


class PACS(OneClassDataset):
    """PACS: 9,991 images; photo 1,670, art_painting 2,048, cartoon 2,344, sketch 3,929.

    The totals and those per class were counted in a full copy. A domain folder
    named ``art`` counts as ``art_painting``.
    """

    name = "pacs"
    classes = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    #: Images per domain, in the order of the classes.
    counts: ClassVar[Mapping[str, tuple[int, ...]]] = {
        _PHOTO: (189, 202, 182, 186, 199, 280, 432),
        _ART: (379, 255, 285, 184, 201, 295, 449),
        "cartoon": (389, 457, 346, 135, 324, 288, 405),
        "sketch": (772, 740, 753, 608, 816, 80, 160),
    }
    expected = "<domain>/<class>/*.jpg with the domains photo, art_painting, cartoon and sketch"

    def __init__(self, root: Path | None = None) -> None:
        super().__init__(root)
        self._listed: dict[str, Path] | None = None

    def published(self, category: str) -> Published | None:
        """Returns what a complete download of the category holds; unknown with lists."""
        self._place(category)
        if self._is_divided() or self._lists():
            return None
        number = self.classes.index(category)
        tested = [_share(count) for count in self.counts[_PHOTO]]
        return Published(
            self.counts[_PHOTO][number] - tested[number],
            tested[number],
            sum(tested) - tested[number],
        )

    def _home_in(self, root: Path) -> Path | None:
        for inside in _INSIDE:
            if any(is_folder(root / inside / domain) for domain in _DOMAINS):
                return root / inside
        return root if is_folder(root / "train" / _PHOTO) else None

    def _list(self, listing: Listing) -> None:
        if self._is_divided():
            self._list_divided(listing)
        elif lists := self._lists():
            self._list_listed(listing, lists)
        else:
            self._list_all(listing)

    def _list_divided(self, listing: Listing) -> None:
        """Lists the tree that GNL's code reads, which is divided already."""
        for key, _ in listing.classes(f"train/{_PHOTO}", self.classes, (listing.category,)):
            listing.train(key)
        for domain, folder in self._domains(listing, "val/"):
            for key, kind in listing.classes(f"val/{folder}", self.classes):
                listing.test(key, kind, normal=listing.category, domain=_shift(domain))

    def _list_all(self, listing: Listing) -> None:
        for domain, folder in self._domains(listing):
            found = listing.classes(folder, self.classes)
            if domain != _PHOTO:
                expected = sum(self.counts[domain])
                if len(found) != expected:
                    listing.warn(
                        folder, f"{len(found)} of {expected} images; copy the folder again"
                    )
                for key, kind in found:
                    listing.test(key, kind, normal=listing.category, domain=domain)
                continue
            for kind in self.classes:
                keys = [key for key, other in found if other == kind]
                for key in _tested(keys):
                    listing.test(key, kind, normal=listing.category)
                if kind == listing.category:
                    for key in sorted(set(keys) - set(_tested(keys))):
                        listing.train(key)

    def _list_listed(self, listing: Listing, lists: dict[str, Path]) -> None:
        for domain, folder in self._domains(listing):
            found = {
                f"{domain}/{key.partition('/')[2]}": (key, kind)
                for key, kind in listing.classes(folder, self.classes)
            }
            named: set[str] = set()
            for part in ("train", "crossval") if domain == _PHOTO else ("crossval",):
                name = f"{domain}_{part}_kfold.txt"
                if name not in lists:
                    listing.problem(
                        name, f"no such list, while there is {min(lists)}; add or remove all lists"
                    )
                    continue
                rows = self._rows(listing, lists[name], domain)
                named |= set(rows)
                absent = [row for row in rows if row not in found]
                if absent:
                    listing.problem(
                        folder,
                        f"{len(absent)} of the {len(rows)} images of {name} are missing "
                        f"({some(absent)}); copy the folder again",
                    )
                for key, kind in (found[row] for row in rows if row in found):
                    if part == "crossval":
                        listing.test(key, kind, normal=listing.category, domain=_shift(domain))
                    elif kind == listing.category:
                        listing.train(key)
            extra = sorted(set(found) - named)
            if domain == _PHOTO and extra and named:
                listing.warn(
                    folder, f"{len(extra)} images ignored, they are in no list: {some(extra)}"
                )

    def _rows(self, listing: Listing, path: Path, domain: str) -> list[str]:
        """Reads lines ``domain/class/file label``; what is none is reported."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            listing.problem(path.name, f"cannot be read ({error}); copy it again")
            return []
        rows: dict[str, None] = {}
        relabelled = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            name, _, label = line.strip().rpartition(" ")
            parts = PurePosixPath(name.strip()).parts
            if len(parts) != 3 or parts[0] != domain or parts[1] not in self.classes:
                listing.problem(
                    path.name,
                    f"line {number} is {line[:60]!r}, expected '{domain}/dog/<file> 1'; copy it "
                    "again",
                )
                return []
            row = "/".join(parts)
            if label != str(self.classes.index(parts[1]) + 1):
                relabelled.append(row)
            rows[row] = None
        if relabelled:
            listing.warn(
                path.name,
                f"{len(relabelled)} labels are not those of the folders, which count: "
                f"{some(relabelled)}",
            )
        if not rows:
            listing.problem(path.name, "is empty; copy it again")
        return list(rows)

    def _domains(self, listing: Listing, where: str = "") -> list[tuple[str, str]]:
        """Returns the domains that there are with their folders; others are reported."""
        names = [folder.name for folder in folders(listing.folder / where)]
        found = []
        for domain in _DOMAINS:
            folder = "art" if domain == _ART and _ART not in names and "art" in names else domain
            if folder in names:
                found.append((domain, folder))
                names.remove(folder)
            elif domain == _PHOTO:
                listing.problem(f"{where}{domain}", "no such folder; nothing can train or validate")
            else:
                listing.warn(
                    f"{where}{domain}", "no such folder, so nothing is tested on this domain"
                )
        for name in names if found else ():
            if not any(e.name in _LISTS for e in entries(listing.folder / where / name)):
                listing.warn(f"{where}{name}", "ignored, it is none of the domains of PACS")
        return found

    def _files(self, category: str) -> Iterator[Path]:
        home = self._find()
        tops = ("train", "val") if self._is_divided() else (".",)
        for top in tops:
            for domain in (*_DOMAINS, "art"):
                for kind in self.classes:
                    yield from images_below(home / top / domain / kind)
        if not self._is_divided():
            yield from self._lists().values()

    def _beside(self) -> tuple[Path, ...]:
        return () if self._is_divided() else tuple(self._lists().values())

    def _is_divided(self) -> bool:
        home = self._find()
        return is_folder(home / "train" / _PHOTO) and not is_folder(home / _PHOTO)

    def _lists(self) -> dict[str, Path]:
        """Returns the official lists that are in the root, around it or in a folder there."""
        if self._listed is not None:
            return self._listed
        home = self._find()
        around = [self._root, home]
        if home.name in _INSIDE:
            around.append(home.parent)
        found: dict[str, Path] = {}
        for place in around:
            for folder in (place, *(f for f in folders(place) if f.name not in _DOMAINS)):
                for entry in entries(folder):
                    if entry.name in _LISTS:
                        found.setdefault(entry.name, Path(entry.path))
        self._listed = found
        return found


def _shift(domain: str) -> str:
    return "" if domain == _PHOTO else domain


def _share(count: int) -> int:
    return max(1, round(count / 10)) if count > 1 else 0


def _tested(keys: list[str]) -> list[str]:
    """Returns the tenth of the images of a class that tests, whatever other files there are."""

    def rank(key: str) -> bytes:
        return hashlib.blake2b(PurePosixPath(key).name.encode(), digest_size=16).digest()

    return sorted(keys, key=rank)[: _share(len(keys))]
