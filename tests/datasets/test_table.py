"""Tables of images: CSV, Parquet and COCO files; what is read, and what is refused in one line."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from anomtune.datasets.base import Sample
from anomtune.datasets.folder import Folder
from anomtune.datasets.io.cache import open_category
from anomtune.datasets.io.coco import Shapes, _unpacked
from anomtune.datasets.splits.split import load_search_split
from anomtune.datasets.splits.validation import Validation
from anomtune.datasets.table import Table
from anomtune.datasets.testing import check_dataset
from anomtune.errors import DataError

Draw = Callable[..., Image.Image]
Rows = list[dict[str, Any]]


def rows_of(tree: Path, *, split: bool = True) -> Rows:
    """Returns the lines of a table of the tree, beside which it shall lie."""
    found = []
    for sample in Folder(tree).scan("part")[0]:
        found.append(
            {
                "image": f"part/{sample.key}",
                "label": sample.defect,
                "mask": f"part/{sample.mask}" if sample.mask else "",
                "split": sample.part if split else "",
                "category": "part",
            }
        )
    return found


def write(path: Path, rows: Rows, delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        table.writeheader()
        table.writerows(rows)
    return path


def listed(dataset: Table, category: str = "part") -> dict[str, Sample]:
    samples, problems = dataset.scan(category)
    assert not [str(p) for p in problems]
    return {sample.key: sample for sample in samples}


def coco_of(tree: Path) -> dict[str, Any]:
    """Returns the tree as a COCO file: boxes, polygons and run lengths of the same squares."""
    images, annotations = [], []
    kinds = ("scratch", "dent")
    for number, sample in enumerate(Folder(tree).scan("part")[0]):
        name, size = f"part/{sample.key}", {"width": 20, "height": 16}
        images.append({"id": number, "file_name": name, "split": sample.part, **size})
        if not sample.anomalous:
            continue
        square = {
            "bbox": [4, 4, 8, 8],
            "segmentation": [
                [],
                [[4, 4, 12, 4, 12, 12, 4, 12]],
                {"size": [16, 20], "counts": [68, *[8, 8] * 7, 8, 132]},
            ][number % 3],
        }
        known = {"id": 100 + number, "image_id": number, "category_id": kinds.index(sample.defect)}
        annotations.append(known | square)
    categories = [{"id": i, "name": name} for i, name in enumerate(kinds)]
    return {"images": images, "annotations": annotations, "categories": categories}


def test_csv_and_parquet_say_the_same_as_the_folder(tree: Path) -> None:
    rows = rows_of(tree)
    tables = [
        Table(write(tree / "all.csv", rows)),
        Table(write(tree / "semicolons.csv", rows, ";")),
        Table(write(tree / "tabs.tsv", rows, "\t")),
    ]
    pq.write_table(pa.Table.from_pylist([{**r, "bytes": b"x"} for r in rows]), tree / "all.parquet")
    tables.append(Table(tree / "all.parquet"))
    folder = load_search_split(Folder(tree), "part", 8, Validation())
    for table in tables:
        assert table.categories() == ("part",)
        found = listed(table)
        assert found["part/test/dent/001.png"].mask == "part/ground_truth/dent/001_mask.png"
        again = load_search_split(table, "part", 8, Validation())
        assert again.split_hash == folder.split_hash
        assert np.array_equal(again.validation, folder.validation)
        assert again.validation_defects == folder.validation_defects
        masks = open_category(table, "part", 8).masks
        assert [m.sum() for m in masks] == [
            m.sum() for m in open_category(Folder(tree), "part", 8).masks
        ]


def test_a_coco_file_says_the_same_as_the_folder(tree: Path) -> None:
    (tree / "coco.json").write_text(json.dumps(coco_of(tree)))
    table = Table(tree / "coco.json")
    assert table.categories() == ("coco",)
    samples = listed(table, "coco")
    assert samples["part/test/dent/001.png"].mask == "part/test/dent/001.png#mask"
    folder = load_search_split(Folder(tree), "part", 8, Validation())
    assert load_search_split(table, "coco", 8, Validation()).split_hash == folder.split_hash
    expected = np.zeros((16, 20), np.bool_)
    expected[4:12, 4:12] = True
    for sample in samples.values():
        if sample.mask is not None:
            assert np.array_equal(table.read_mask("coco", sample.mask), expected)


@pytest.mark.slow
def test_all_forms_keep_the_contract(tree: Path) -> None:
    check_dataset(Table(write(tree / "all.csv", rows_of(tree))))
    check_dataset(Table(write(tree / "one.csv", rows_of(tree, split=False)), group="label"))
    (tree / "coco.json").write_text(json.dumps(coco_of(tree)))
    check_dataset(Table(tree / "coco.json"))


@pytest.mark.parametrize("label", ["0", 0, "good", "OK", "Normal", False, "false", 0.0])
def test_labels_of_normal_images(tree: Path, label: Any) -> None:
    rows = [r | {"label": label if r["label"] == "good" else 1, "mask": ""} for r in rows_of(tree)]
    if isinstance(label, str):
        table = Table(write(tree / "all.csv", rows))
    else:
        column = [type(label)(r["label"]) for r in rows]
        for row, value in zip(rows, column, strict=True):
            row["label"] = value
        pq.write_table(pa.Table.from_pylist(rows), tree / "all.parquet")
        table = Table(tree / "all.parquet")
    assert {s.defect for s in listed(table).values()} == {"good", "anomalous"}


def test_columns_by_other_names_and_a_group_of_them(tree: Path) -> None:
    names = {"image": "Datei", "label": "Befund", "category": "Produkt"}
    rows = [{names.get(k, k): v for k, v in r.items()} for r in rows_of(tree)]
    rows = [r | {"Teil": f"{r['split']}{i // 2}"} for i, r in enumerate(rows)]
    path = write(tree / "all.csv", rows)
    found = listed(Table(path, columns=names, group="Teil"))
    assert len({s.group for s in found.values()}) == 10
    with pytest.raises(DataError, match="no column 'image'; there is Datei, Befund") as error:
        Table(path).categories()
    assert str(error.value).endswith("name it: columns: {image: NAME}")
    named = Table(path, columns=names | {"group": "Teil"})
    assert listed(named) == found
    by_path = Table(path, columns=names, group=r"test/(\w+)/00\d").scan("part")[0]
    assert {s.group for s in by_path} == {"", "good", "scratch", "dent"}
    assert named.settings() == {"columns": names | {"group": "Teil"}}


def test_many_products_in_one_file(tree: Path) -> None:
    rows = rows_of(tree)
    both = rows + [r | {"category": "other"} for r in rows if r["label"] != "dent"]
    table = Table(write(tree / "all.csv", both))
    assert table.categories() == ("other", "part")
    assert len(listed(table, "other")) == 14


def test_what_no_split_divides_is_divided_as_in_a_folder(tree: Path) -> None:
    part = tree / "part"
    rows = rows_of(tree, split=False)
    for path in (part / "test/good").iterdir():
        shutil.copy(path, part / "train/good" / f"more{path.name}")
    pools = Folder(
        part, normal="train/good", anomalous={"scratch": "test/scratch", "dent": "test/dent"}
    )
    one = load_search_split(Table(write(tree / "all.csv", rows)), "part", 8, Validation())
    other = load_search_split(pools, "part", 8, Validation())
    assert one.division == other.division is not None
    assert one.split_hash == other.split_hash


def test_domains_of_the_table(tree: Path) -> None:
    rows = [r | {"domain": "night" if "dent" in r["image"] else "day"} for r in rows_of(tree)]
    found = listed(Table(write(tree / "all.csv", rows)))
    assert {s.domain for s in found.values()} == {"", "night"}
    assert {s.defect for s in found.values() if s.domain} == {"dent"}
    undivided = [r | {"split": "", "domain": r["domain"].replace("day", "")} for r in rows]
    found = listed(Table(write(tree / "none.csv", undivided)))
    assert {(s.domain, s.part) for s in found.values()} == {("", "undivided"), ("night", "test")}


def test_paths_lead_anywhere_from_a_table_of_ones_own(tree: Path, tmp_path: Path) -> None:
    rows = rows_of(tree)
    (tmp_path / "lists").mkdir()
    rows[0]["image"] = str(tree / rows[0]["image"])
    rows[1]["image"] = (tree / rows[1]["image"]).as_uri()
    for row in rows[2:]:
        row["image"] = f"../data/{row['image']}"
    for row in rows:
        row["mask"] = row["mask"] and f"../data/{row['mask']}"
    table = Table(write(tmp_path / "lists/all.csv", rows))
    assert all(key.startswith(f"file:{tree}/part/") for key in listed(table))
    folder = load_search_split(Folder(tree), "part", 8, Validation())
    assert load_search_split(table, "part", 8, Validation()).split_hash == folder.split_hash
    assert {str(p) for p in table.places()} >= {str(tree / "part/train/good")}
    check_dataset(table)


def test_paths_are_relative_to_images_where_that_is_set(tree: Path, tmp_path: Path) -> None:
    (tree / "coco.json").write_text(json.dumps(coco_of(tree)))
    (tmp_path / "lists").mkdir()
    (tree / "coco.json").rename(tmp_path / "lists/coco.json")
    assert "no such file" in str(Table(tmp_path / "lists/coco.json").scan("coco")[1][0])
    assert len(listed(Table(tmp_path / "lists/coco.json", images="../data"), "coco")) == 17


def test_images_by_uri_are_fetched_once(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow import fs

    from anomtune.datasets.io import remote

    opened = []

    def from_uri(uri: str) -> tuple[fs.FileSystem, str]:
        opened.append(uri)
        return fs.SubTreeFileSystem(str(tree), fs.LocalFileSystem()), "part"

    kind = SimpleNamespace(from_uri=from_uri)
    monkeypatch.setattr(
        remote, "fs", SimpleNamespace(FileSystem=kind, LocalFileSystem=fs.LocalFileSystem)
    )
    rows = rows_of(tree)
    for row in rows:
        row["image"] = row["image"].replace("part/", "s3://part/", 1)
    table = Table(write(tree / "all.csv", rows))
    folder = load_search_split(Folder(tree), "part", 8, Validation())
    assert load_search_split(table, "part", 8, Validation()).split_hash == folder.split_hash
    assert opened == ["s3://part/"]
    assert "s3:/part/train/good/000.png" in listed(table)


def edit(rows: Rows, **changes: Any) -> Rows:
    return [rows[0] | changes, *rows[1:]]


WRONG: dict[str, tuple[Callable[[Rows], Rows], str]] = {
    "no image": (lambda r: edit(r, image=""), "line 2: no image; give its path"),
    "no label": (lambda r: edit(r, label=" "), "line 2: no label; write 0 or 1, good, or a defect"),
    "a number": (lambda r: edit(r, label="2"), "line 2: label is 2; write 0 or 1, good, or a"),
    "a split": (lambda r: edit(r, split="val"), "line 2: split is 'val'; it must be train or test"),
    "anomalous": (
        lambda r: edit(r, split="train"),
        "line 2: an anomalous image (dent) for training",
    ),
    "a file": (lambda r: edit(r, image="part/x.png"), "part/part/x.png: no such file: "),
    "a mask": (lambda r: edit(r, mask="part/x.png"), "part/part/x.png: no such file: "),
    "no picture": (lambda r: edit(r, image="a.txt"), "line 2: image 'a.txt' is no PNG, JPEG"),
    "twice": (
        lambda r: [*r, r[0]],
        "part/part/test/dent/000.png: listed twice, in line 2 and line 19",
    ),
    "a folder": (lambda r: edit(r, category="a/b"), "line 2: category 'a/b' cannot name a folder"),
    "secrets": (lambda r: edit(r, image="s3://k:s@b/x.png"), "***@b/x.png carries credentials"),
    "dots": (lambda r: edit(r, image="s3://b/../x.png"), "has '..' in it; write where it leads"),
    "no normal": (lambda r: [x for x in r if x["label"] != "good"], "no training images; give"),
    "domains": (
        lambda r: [x | {"domain": str(i % 2)} for i, x in enumerate(r)],
        "training images of several domains (0, 1); leave domain empty",
    ),
    "half": (lambda r: [*r[:-1], r[-1] | {"split": ""}], "line 18: no split, while other lines"),
    "backslash": (lambda r: edit(r, image="part\\x.png"), "write / in place of \\"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_line_is_told_in_one_line(tree: Path, case: str) -> None:
    change, told = WRONG[case]
    message = first_fault(Table(write(tree / "all.csv", change(rows_of(tree)))))
    assert told in message
    assert "\n" not in message


def first_fault(dataset: Table) -> str:
    """Returns what a sweep over it would be refused with."""
    try:
        category = dataset.categories()[0]
        load_search_split(dataset, category, 8, Validation())
    except DataError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", None, "no such file; set dataset.root to the table"),
        (
            "a.xlsx",
            b"PK",
            "not a table by its name; give a .csv, .tsv, .parquet or COCO .json file",
        ),
        ("a.csv", b"", "no column 'image'"),
        ("a.csv", b"\x89PNG\0\0image,label", "cannot be read as a table of text"),
        ("a.csv", b"image,verdict\nx.png,0\n", "no column 'label'; there is image, verdict"),
        ("a.csv", b"image,image\nx.png,0\n", "two columns have the same name; rename one"),
        ("a.csv", b"image,label\n", "has no line; a table has one for each image"),
        ("a.csv", b"image,label\nx.png,0,1\n", "line 2: has more values than there are columns"),
        ("a.parquet", b"PAR1", "cannot be read as Parquet"),
        ("a.json", b"{", "not a COCO file: no JSON"),
        ("a.json", b"[]", "not a COCO file: no list 'images'"),
    ],
)
def test_a_wrong_file_is_told_in_one_line(
    tmp_path: Path, name: str, content: bytes | None, told: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    message = first_fault(Table(tmp_path / name))
    assert told in message
    assert message.startswith(str(tmp_path / name))
    assert "\n" not in message


COCO: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "image id": (
        lambda d: d["annotations"][0].update(image_id=99),
        "there is no image 99; correct",
    ),
    "category": (lambda d: d["annotations"][0].update(category_id=9), "there is no category 9"),
    "two ids": (lambda d: d["images"][1].update(id=0), "two images have the same id; number them"),
    "no id": (lambda d: d["images"][1].pop("id"), "one of the images has no 'id'; number them"),
    "no name": (lambda d: d["images"][1].pop("file_name"), "image 1: no image; give its path"),
    "a line": (lambda d: shape(d, [[1, 1, 5, 5]]), "a polygon is at least three points"),
    "text": (lambda d: shape(d, [["a"] * 6]), "numbers are meant in its segmentation"),
    "runs": (lambda d: shape(d, {"size": [16, 20], "counts": [5]}), "run lengths of 5 pixels, not"),
    # COCO's own tools fill what is missing with what lay in memory before.
    "no packed": (lambda d: shape(d, packed("")), "run lengths of 0 pixels, not 320"),
    "few packed": (lambda d: shape(d, packed("0" * 9)), "run lengths of 0 pixels, not 320"),
    "negative": (lambda d: shape(d, packed("@0")), "run lengths of -16 pixels, not 320"),
    "half packed": (lambda d: shape(d, packed("PPYo")), "run lengths whose end is missing"),
    "not packed": (lambda d: shape(d, packed("abc!")), "compressed run lengths that are none"),
    "a character": (lambda d: shape(d, packed("é")), "compressed run lengths that are none"),
    "endless": (lambda d: shape(d, packed("o" * 20 + "1")), "run lengths that are none"),
    "a size": (lambda d: shape(d, {"size": [4, 4], "counts": [4, 12]}), "lie outside of the image"),
    "outside": (lambda d: shape(d, [[40, 4, 50, 4, 50, 9]]), "which is 20x16; correct them"),
    "a box": (lambda d: shape(d, [], bbox=[4, 4, 0, 3]), "its bbox has no area"),
    "absolute": (lambda d: d["images"][0].update(file_name="/etc/x.png"), "lies outside of"),
    "above": (
        lambda d: d["images"][0].update(file_name="../x.png"),
        "a file from elsewhere may not",
    ),
    "a URI": (lambda d: d["images"][0].update(file_name="s3://b/x.png"), "a COCO file names files"),
}


def packed(counts: str) -> dict[str, Any]:
    return {"size": [16, 20], "counts": counts}


def shape(data: dict[str, Any], segmentation: Any, **more: Any) -> None:
    data["annotations"][0].update(segmentation=segmentation, **more)


@pytest.mark.parametrize("case", COCO)
def test_a_wrong_coco_file_is_told_in_one_line(tree: Path, case: str) -> None:
    change, told = COCO[case]
    data = coco_of(tree)
    change(data)
    (tree / "coco.json").write_text(json.dumps(data))
    message = first_fault(Table(tree / "coco.json"))
    assert told in message
    assert "\n" not in message


def test_a_size_that_is_not_the_images_is_told(tree: Path) -> None:
    data = coco_of(tree)
    data["images"][0].update(width=21)
    (tree / "coco.json").write_text(json.dumps(data))
    assert "the mask is 21x16 but its image part/test/dent/000.png is 20x16" in first_fault(
        Table(tree / "coco.json")
    )


def test_a_fetched_table_names_no_file_of_this_machine(tree: Path, cache: Path) -> None:
    place = cache / "remote/0/lists"
    place.parent.mkdir(parents=True)
    shutil.copytree(tree, place)
    rows = rows_of(place)
    assert listed(Table(write(place / "all.csv", rows)))
    for away in (str(tree / rows[0]["image"]), "../../x.png", (tree / "x.png").as_uri()):
        write(place / "all.csv", edit(rows, image=away))
        found = first_fault(Table(place / "all.csv"))
        assert "may not leave" in found or "is a file of this machine" in found


def test_normal_by_name_is_no_defect_and_the_largest_names_the_type(tree: Path) -> None:
    data = coco_of(tree)
    data["categories"].append({"id": 7, "name": "OK"})
    first = data["annotations"][0]
    data["annotations"].append(first | {"id": 1, "category_id": 7})
    data["annotations"].append(
        first | {"id": 2, "category_id": 0, "segmentation": [], "bbox": [0, 0, 9, 9]}
    )
    good = next(i["id"] for i in data["images"] if "good" in i["file_name"])
    data["annotations"].append(first | {"id": 3, "category_id": 7, "image_id": good})
    (tree / "coco.json").write_text(json.dumps(data))
    found = listed(Table(tree / "coco.json"), "coco")
    assert found["part/test/dent/000.png"].defect == "scratch"
    assert sum(not s.anomalous for s in found.values()) == 10


def test_polygons_are_drawn_as_cocos_own_tools_do() -> None:
    decoder = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    different = drawn = 0
    for _ in range(50):
        points = rng.uniform(2, 198, (7, 2))
        points = points[np.argsort(np.arctan2(*(points - points.mean(0)).T))]
        runs = decoder.frPyObjects([[float(v) for v in points.ravel()]], 200, 220)[0]
        theirs = decoder.decode(runs).astype(bool)
        ours = Shapes((200, 220), (tuple(points.ravel()),)).draw(0, 0)
        different += int((ours ^ theirs).sum())
        drawn += int(theirs.sum())
        lengths = tuple(_unpacked(runs["counts"].decode()))
        assert np.array_equal(Shapes((200, 220), runs=((200, 220, lengths),)).draw(0, 0), theirs)
    assert different < 0.01 * drawn


def test_a_changed_table_is_read_again(tree: Path) -> None:
    path = write(tree / "all.csv", rows_of(tree))
    table = Table(path)
    assert len(listed(table)) == 17
    write(path, rows_of(tree)[1:])
    assert len(listed(table)) == 16


def test_a_table_by_uri_comes_with_its_folder(tree: Path, tmp_path: Path) -> None:
    from anomtune.datasets.opening import open_dataset

    write(tree / "all.csv", rows_of(tree))
    dataset = open_dataset("table", (tree / "all.csv").as_uri())
    assert dataset.root == tree / "all.csv"
    assert len(dataset.scan("part")[0]) == 17
