"""Which file plays which part."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from anomtune.datasets.folder import Folder
from anomtune.datasets.io.cache import open_category
from anomtune.datasets.splits.held_out import load_test_split
from anomtune.datasets.splits.manifest import COLUMNS, ManifestRow, manifest, write_manifest
from anomtune.datasets.splits.shift import CorruptedDataset, Shift
from anomtune.datasets.splits.split import load_search_split
from anomtune.datasets.splits.validation import Validation
from anomtune.errors import DataError, StorageError
from tests.datasets.conftest import save

LABELLED = Validation()


def sides(rows: list[ManifestRow]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row.side, set()).add(row.key)
    return found


@pytest.mark.parametrize("protocol", ["labelled", "synthetic", "test"])
@pytest.mark.parametrize("shifted", [False, True])
def test_sides_are_those_of_the_split(tree: Path, protocol: str, shifted: bool) -> None:
    dataset: Folder | CorruptedDataset = Folder(tree)
    if shifted:
        dataset = CorruptedDataset(
            dataset, Shift(corruptions=("brightness", "contrast"), severity=2)
        )
    validation = Validation(protocol=protocol, seed=3)
    rows = manifest(dataset, "part", validation)
    found = sides(rows)
    search = load_search_split(dataset, "part", 16, validation)
    assert found["validation"] == {key for key in search.validation_keys if "#" not in key}
    assert len(found["train"]) == len(search.train)
    held_out: dict[str, set[str]] = {}
    if protocol != "test" or shifted:
        test = load_test_split(dataset, "part", 16, validation)
        for key, domain in zip(test.keys, test.domains, strict=True):
            held_out.setdefault(f"shifted:{domain}" if domain else "test", set()).add(key)
    rest = {k: v for k, v in found.items() if k not in {"train", "validation", "dropped"}}
    assert rest == held_out
    # Nobody is left out but copies of validation images.
    assert all(key.rpartition("@")[0] in found["validation"] for key in found.get("dropped", ()))
    arrays = open_category(dataset, "part", 16)
    assert [r.key for r in rows] == [s.key for s in arrays.samples]
    assert [r.pixel_hash for r in rows] == list(arrays.pixel_hashes)
    assert [(r.label, r.defect) for r in rows] == [
        (int(s.anomalous), s.defect) for s in arrays.samples
    ]


def test_leaks_are_dropped(tree: Path, picture: Callable[..., Image.Image]) -> None:
    save(picture(0), tree / "part/test/good/leak.png")  # picture 0 trains
    rows = manifest(Folder(tree), "part", LABELLED)
    assert sides(rows)["dropped"] == {"test/good/leak.png"}


def test_names_decide_nothing(tree: Path) -> None:
    def by_hash() -> dict[str, tuple[str, int, str]]:
        rows = manifest(Folder(tree), "part", LABELLED)
        return {row.pixel_hash: (row.side, row.label, row.defect) for row in rows}

    before = by_hash()
    for number, path in enumerate(sorted((tree / "part/test/good").iterdir(), reverse=True)):
        path.rename(path.with_name(f"x{number}.png"))
    assert by_hash() == before


def test_an_undividable_category_says_so(tree: Path) -> None:
    for path in (tree / "part/test/good").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="needs at least 2 of each"):
        manifest(Folder(tree), "part", LABELLED)


def test_written_as_csv(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree / "part", tree / "other")
    dataset = Folder(tree)
    rows = [row for name in dataset.categories() for row in manifest(dataset, name, LABELLED)]
    path = tmp_path / "manifest.csv"
    path.write_text("old")
    reader = path.open()
    write_manifest(path, reversed(rows))
    with reader:
        assert reader.read() == "old"  # replaced, not overwritten
    first = path.read_bytes()
    with path.open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert tuple(read[0]) == COLUMNS
    assert [(r["category"], r["file"], r["content_hash"], r["side"], r["type"]) for r in read] == [
        (r.category, r.key, r.pixel_hash, r.side, r.defect)
        for r in sorted(rows, key=lambda r: (r.category, r.key))
    ]
    assert {(r["type"] == "good", r["label"]) for r in read} == {(True, "0"), (False, "1")}
    write_manifest(path, rows)
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["manifest.csv"]


def test_odd_names_survive(tmp_path: Path) -> None:
    names = ['test/a,"b"\n/0.png', "test/\udcff/0.png", "test/ä/0.png"]
    path = tmp_path / "m.csv"
    write_manifest(path, [ManifestRow("c", name, "h", "test", 0, "good") for name in names])
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert sorted(row["file"] for row in csv.DictReader(file)) == sorted(names)


def test_an_unwritable_manifest_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("old")
    with pytest.raises(StorageError, match=r"m\.csv/x\.csv: the manifest cannot be written"):
        write_manifest(path / "x.csv", [])

    def broken() -> object:
        yield ManifestRow("c", "a", "h", "test", 0, "good")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_manifest(path, broken())
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["m.csv"]
    with pytest.raises(StorageError, match="choose another file"):
        write_manifest(tmp_path, [])
