"""VisA: the published layout with the list of the split, and the reorganised tree."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomtune.datasets.opening import open_dataset
from anomtune.datasets.splits.audit import audit, find_missing, inspect
from anomtune.datasets.splits.held_out import load_test_split
from anomtune.datasets.splits.split import load_search_split
from anomtune.datasets.splits.validation import Validation
from anomtune.datasets.testing import check_dataset
from anomtune.datasets.visa import VisA
from anomtune.errors import DataError
from tests.datasets.conftest import save

Draw = Callable[..., Image.Image]

HEADER = "object,split,label,image,mask\n"
NORMAL, ANOMALY = "candle/Data/Images/Normal", "candle/Data/Images/Anomaly"
MASKS = "candle/Data/Masks/Anomaly"


def labels(number: int) -> Image.Image:
    """A mask as it is published: small numbers of labels."""
    mask = np.zeros((16, 20), np.uint8)
    mask[2:6, 2:6] = 1
    mask[8 : 10 + number, 8:12] = 3
    return Image.fromarray(mask)


@pytest.fixture
def raw(tmp_path: Path, picture: Draw) -> Path:
    """``candle`` as published: 8 normal images (3 of them for the test), 4 anomalous."""
    root = tmp_path / "VisA"
    lines = []
    for i in range(8):
        save(picture(i), root / NORMAL / f"{i:04}.JPG")
        lines.append(f"candle,{'test' if i % 3 == 1 else 'train'},normal,{NORMAL}/{i:04}.JPG,\n")
    for i in range(4):
        save(picture(50 + i), root / ANOMALY / f"{i:03}.JPG")
        save(labels(i), root / MASKS / f"{i:03}.png")
        lines.append(f"candle,test,anomaly,{ANOMALY}/{i:03}.JPG,{MASKS}/{i:03}.png\n")
    (root / "candle/image_anno.csv").write_text("image,label,mask\n")
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text(HEADER + "".join(lines))
    (root / "split_csv/2cls_fewshot.csv").write_text(HEADER)
    return root


@pytest.fixture
def tree(raw: Path, tmp_path: Path) -> Path:
    """The same images, reorganised by the list."""
    place = tmp_path / "VisA_pytorch" / "1cls" / "candle"
    with (raw / "split_csv/1cls.csv").open() as file:
        for row in csv.DictReader(file):
            kind = "good" if row["label"] == "normal" else "bad"
            target = place / row["split"] / kind / Path(row["image"]).name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(raw / row["image"], target)
            if row["mask"]:
                mask = Image.open(raw / row["mask"]).point(lambda value: 255 * (value > 0))
                save(mask, place / "ground_truth/bad" / Path(row["mask"]).name)
    return place.parent.parent


def edit(raw: Path, old: str, new: str) -> None:
    path = raw / "split_csv/1cls.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def fatal(root: Path) -> list[str]:
    return [str(p) for p in VisA(root).scan("candle")[1] if p.fatal]


def warnings(root: Path) -> list[str]:
    return [str(p) for p in VisA(root).scan("candle")[1] if not p.fatal]


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as error:
        VisA(root).scan(VisA(root).categories()[0])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_published_layout(raw: Path) -> None:
    dataset = open_dataset("visa", raw)
    assert dataset.categories() == ("candle",)
    samples, problems = dataset.scan("candle")
    assert problems == ()
    assert [s.key for s in samples] == sorted(s.key for s in samples)
    parts = {Path(s.key).stem: s.part for s in samples if not s.anomalous}
    assert [stem for stem, part in parts.items() if part == "test"] == ["0001", "0004", "0007"]
    assert [s.defect for s in samples] == ["bad"] * 4 + ["good"] * 8
    assert samples[2].mask == "Data/Masks/Anomaly/002.png"
    assert dataset.read_image("candle", samples[0].key).shape == (16, 20, 3)


def test_any_label_in_a_mask_is_anomalous(raw: Path, tree: Path) -> None:
    for number in range(4):
        expected = np.asarray(labels(number)) > 0
        for root, place in ((raw, "Data/Masks/Anomaly"), (tree, "ground_truth/bad")):
            mask = VisA(root).read_mask("candle", f"{place}/{number:03}.png")
            assert (mask == expected).all()


def test_both_layouts_and_all_roots_are_the_same_dataset(raw: Path, tree: Path) -> None:
    splits, held_out = [], []
    for root in (raw, tree, tree / "1cls", tree / "1cls/candle"):
        dataset = VisA(root)
        assert dataset.categories() == ("candle",)
        assert [p for p in dataset.scan("candle")[1] if p.fatal] == []
        splits.append(load_search_split(dataset, "candle", 16, Validation()))
        held_out.append(load_test_split(dataset, "candle", 16, Validation()))
    assert len({split.split_hash for split in splits}) == 1
    assert len(splits[0].train) == 5
    for split, test in zip(splits, held_out, strict=True):
        assert (split.train == splits[0].train).all()
        assert split.validation_defects == splits[0].validation_defects
        assert test.masks.packed == held_out[0].masks.packed
        assert test.masks.drawn.tolist() == test.labels.astype(bool).tolist()


def test_the_fingerprint_follows_every_image_and_mask(raw: Path, tree: Path) -> None:
    for root in (raw, tree):
        dataset = VisA(root)
        place = dataset._place("candle")
        found = {str(path.relative_to(place)) for path in dataset._files("candle")}
        samples, _ = dataset.scan("candle")
        assert found == {key for s in samples for key in (s.key, s.mask) if key}


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every file that the official list names, as links to one tiny image and mask."""
    shared = Path(__file__).resolve().parents[2].parent / "shared/data/visa/1cls.csv"
    if not shared.is_file():
        pytest.skip("the official list is not at ../shared/data/visa")
    root = tmp_path_factory.mktemp("official")
    image = save(Image.new("RGB", (4, 4)), root / "image.png").rename(root / "image")
    (root / "split_csv").mkdir()
    shutil.copy(shared, root / "split_csv/1cls.csv")
    made = set()
    with shared.open() as file:
        for row in csv.DictReader(file):
            for name in filter(None, (row["image"], row["mask"])):
                folder = root / os.path.dirname(name)
                if folder not in made:
                    folder.mkdir(parents=True)
                    made.add(folder)
                os.link(image, root / name)
    return root


@pytest.mark.slow
def test_the_official_list_has_the_published_counts(official: Path) -> None:
    dataset = VisA(official)
    assert len(dataset.categories()) == 12
    assert dataset.warnings() == ()
    totals = [0, 0, 0]
    for category in dataset.categories():
        samples, problems = dataset.scan(category)
        assert problems == ()
        assert find_missing(dataset, category, samples) == []
        totals[0] += sum(s.part == "train" for s in samples)
        totals[1] += sum(s.part == "test" and not s.anomalous for s in samples)
        totals[2] += sum(s.anomalous and s.mask is not None for s in samples)
    assert totals == [8659, 962, 1200]


def test_missing_images_are_named_in_both_layouts(official: Path, tmp_path: Path) -> None:
    by_part: dict[str, list[str]] = {"train": [], "test": []}
    with (official / "split_csv/1cls.csv").open() as file:
        for row in csv.DictReader(file):
            if row["object"] == "pcb3":
                kind = "good" if row["label"] == "normal" else "bad"
                target = tmp_path / "1cls/pcb3" / row["split"] / kind / Path(row["image"]).name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.touch()
                if kind == "good":
                    by_part[row["split"]].append(target.name)
    dataset = VisA(tmp_path)

    def missing() -> list[str]:
        return [str(p) for p in find_missing(dataset, "pcb3", dataset.scan("pcb3")[0])]

    assert missing() == []
    lost = sorted(by_part["train"])[4:6]
    for name in lost:
        (tmp_path / "1cls/pcb3/train/good" / name).unlink()
    assert missing() == [f"pcb3: 903 of 905 training images; missing {lost[0]}, {lost[1]}"]
    other = sorted(by_part["test"])[50]
    (tmp_path / "1cls/pcb3/test/good" / other).unlink()
    (tmp_path / "1cls/pcb3/test/bad/031.JPG").unlink()
    names = ", ".join(sorted([*lost, other]))
    assert missing() == [
        f"pcb3: 903 of 905 training images; missing {names} of the training and the test images",
        f"pcb3: 100 of 101 normal test images; missing {names} of the training and the test images",
        "pcb3: 99 of 100 anomalous test images; missing 031.JPG",
    ]
    # By the list itself there is no doubt.
    hidden = official / "pcb3/Data/Images/Normal" / lost[0]
    hidden.rename(tmp_path / "hidden")
    samples, problems = VisA(official).scan("pcb3")
    (tmp_path / "hidden").rename(hidden)
    assert [p.key for p in problems] == [f"Data/Images/Normal/{lost[0]}"]
    found = find_missing(VisA(official), "pcb3", samples)
    assert [str(p) for p in found] == [f"pcb3: 904 of 905 training images; missing {lost[0]}"]


def test_a_row_without_a_file_is_fatal(raw: Path) -> None:
    (raw / NORMAL / "0002.JPG").unlink()
    (raw / MASKS / "003.png").unlink()
    assert fatal(raw) == [
        f"{NORMAL}/0002.JPG: no such file, but line 4 of split_csv/1cls.csv lists it; "
        "unpack it again",
        f"{MASKS}/003.png: no such file, but line 13 of split_csv/1cls.csv lists it; "
        "unpack it again",
    ]
    with pytest.raises(DataError, match=r"0002\.JPG: no such file.* \(and 1 more\)"):
        load_search_split(VisA(raw), "candle", 16, Validation())


def test_a_missing_folder_is_one_problem(raw: Path) -> None:
    shutil.rmtree(raw / MASKS)
    assert fatal(raw) == [
        f"{MASKS}: no such folder, but split_csv/1cls.csv lists 4 files in it; unpack it again"
    ]
    shutil.rmtree(raw / "candle/Data")
    assert len(fatal(raw)) == 3


def test_renamed_extensions_are_refused_with_the_name(raw: Path) -> None:
    (raw / NORMAL / "0002.JPG").rename(raw / NORMAL / "0002.jpeg")
    assert fatal(raw) == [
        f"{NORMAL}/0002.JPG: no such file, but line 4 of split_csv/1cls.csv lists it; "
        "rename 0002.jpeg"
    ]


def test_files_that_are_not_listed_are_reported(raw: Path, picture: Draw) -> None:
    save(picture(90), raw / NORMAL / "0100.JPG")
    save(picture(91), raw / NORMAL / "0101.JPG")
    save(picture(92), raw / "candle/Data/Images/Bad/0.JPG")
    (raw / "candle/Data/Images/x.JPG").touch()
    assert fatal(raw) == []
    assert warnings(raw) == [
        "candle/Data/Images: 'x.JPG' ignored: not a folder",
        "candle/Data/Images/Bad: '0.JPG' ignored: not listed in split_csv/1cls.csv",
        f"{NORMAL}: '0100.JPG', '0101.JPG' ignored: not listed in split_csv/1cls.csv",
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("train,normal,candle/Data/Images/Normal/0000", "val,normal,x", "split is 'val'"),
        ("train,normal,candle/Data/Images/Normal/0000", "train,ok,x", "label is 'ok'"),
        ("test,anomaly", "train,anomaly", "not the one-class split, take 1cls.csv"),
        (f"{NORMAL}/0000.JPG", "candle/../../secret.JPG", "does not lie in candle/Data/Images"),
        (f"{NORMAL}/0000.JPG", f"{NORMAL}/../x.JPG", "does not lie in candle/Data/Images"),
        (f"{NORMAL}/0000.JPG", "/etc/passwd.JPG", "does not lie in candle/Data/Images"),
        (f"{NORMAL}/0000.JPG", "cashew/Data/Images/Normal/0.JPG", "does not lie in candle"),
        (f"{NORMAL}/0000.JPG", f"{NORMAL}/0000.pkl", "does not lie in candle"),
        (f"{NORMAL}/0000.JPG", "", "line 2 of split_csv/1cls.csv: no image"),
        (f"{MASKS}/001.png", "", "anomalies have a mask"),
        (f"{MASKS}/001.png", MASKS, "mask 'candle/Data/Masks/Anomaly' does not lie"),
        (f"{NORMAL}/0000.JPG", f"{NORMAL}/0003.JPG", "listed twice in split_csv/1cls.csv, in"),
    ],
)
def test_wrong_rows_are_refused(raw: Path, old: str, new: str, expected: str) -> None:
    edit(raw, old, new)
    assert any(expected in message for message in fatal(raw)), fatal(raw)
    assert not any("secret" in s.key or "passwd" in s.key for s in VisA(raw).scan("candle")[0])


def test_a_list_that_cannot_be_read(raw: Path) -> None:
    path = raw / "split_csv/1cls.csv"
    whole = path.read_text()
    path.write_text(whole, encoding="utf-8-sig")
    assert fatal(raw) == [], "a byte-order mark, as spreadsheets write it, does no harm"
    edit(raw, "object,split", "category,split")
    assert "no column 'object'; take the csv" in refusal(raw)
    for content in (b"", b"\xff\xfe\x00", b'object,split,label,image,mask\n"candle,'):
        path.write_bytes(content)
        assert "take the csv of the download again" in refusal(raw)
    path.write_text(HEADER)
    assert fatal(raw) == [
        "candle: split_csv/1cls.csv lists no image of it; take the csv of the download"
    ]
    path.write_text(whole[: whole.index("0005")])  # half copied
    assert "line 7 of split_csv/1cls.csv: image" in fatal(raw)[0]


def test_published_images_without_the_list(raw: Path) -> None:
    shutil.rmtree(raw / "split_csv")
    assert "no split_csv/1cls.csv, which says what is for training" in str(_error(raw))
    assert "set dataset.root to the folder above it" in str(_error(raw / "candle"))


def _error(root: Path) -> DataError:
    with pytest.raises(DataError) as error:
        VisA(root).categories()
    return error.value


def test_wrong_roots(raw: Path, tree: Path, tmp_path: Path) -> None:
    assert f"found VisA/ inside; set dataset.root to {raw}" in str(_error(tmp_path))
    shutil.move(raw, tmp_path / "away" / "deeper" / "VisA")
    shutil.move(tree, tmp_path / "zip" / "VisA_pytorch")
    assert "found zip/VisA_pytorch/ inside; set dataset.root" in str(_error(tmp_path))
    assert "no such folder" in str(_error(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    assert "expected split_csv/1cls.csv beside the objects, or" in str(_error(tmp_path / "empty"))
    lonely = tmp_path / "away/deeper/VisA"
    shutil.rmtree(lonely / "candle")
    assert "none of the objects that it lists; unpack" in str(_error(lonely))
    with pytest.raises(DataError, match=r"no category 'candel'; .*did you mean 'candle'"):
        VisA(tmp_path / "zip/VisA_pytorch").scan("candel")


def test_what_lies_beside_the_objects(raw: Path, tree: Path) -> None:
    (raw / "Cashew").mkdir()
    edit(raw, "candle,train,normal,candle/Data/Images/Normal/0000", "candel,train,normal,x")
    missing = (
        "VisA: 1 of 12 categories; missing capsules, cashew, chewinggum, fryum, macaroni1, "
        "macaroni2, pcb1, pcb2, pcb3, pcb4, pipe_fryum: unpack these, or do without them"
    )
    assert [str(p) for p in VisA(raw).warnings()] == [
        missing,
        "Cashew: ignored, it is not an object of VisA",
        "split_csv/1cls.csv: lines of 'candel' ignored, it is not an object of VisA; "
        "take the csv again",
    ]
    assert [str(p) for p in VisA(tree).warnings()] == [missing]
    with pytest.raises(DataError, match=r"no category 'candl'; .*did you mean 'candle'"):
        VisA(raw).scan("candl")


def test_half_copied_image(raw: Path, tree: Path) -> None:
    for root, key in ((raw, "Data/Images/Normal/0001.JPG"), (tree, "test/good/0001.JPG")):
        path = next(root.rglob(f"candle/{key}"))
        path.write_bytes(path.read_bytes()[:200])
        (problem,) = [p for p in audit(VisA(root), "candle") if p.fatal]
        assert str(problem).startswith(f"candle/{key}: cannot be read")
        with pytest.raises(DataError, match=r"0001\.JPG: cannot be read.*replace or remove"):
            load_search_split(VisA(root), "candle", 16, Validation())


def test_junk_and_wrong_folders(raw: Path, tree: Path) -> None:
    for place in (raw, raw / NORMAL, raw / "candle/Data/Images", tree / "1cls/candle/train/good"):
        for name in (".DS_Store", "Thumbs.db"):
            (place / name).write_bytes(b"junk")
    assert VisA(raw).scan("candle")[1] == VisA(tree).scan("candle")[1] == ()
    place = tree / "1cls/candle"
    (place / "test/bad").rename(place / "test/anomaly")
    assert (
        "candle/test/anomaly: not a folder of this dataset, which has bad and good"
        in (fatal(tree)[-1])
    )
    (place / "test/anomaly").rename(place / "test/bad")
    shutil.rmtree(place / "ground_truth")
    assert ["ground_truth/bad: no such folder; all 4" in w for w in warnings(tree)] == [True]


def test_audit_counts(raw: Path) -> None:
    found = inspect(VisA(raw))
    (counts,) = found.counts
    assert (counts.n_train, counts.n_test_normal, counts.n_test_anomalous) == (5, 3, 4)
    assert counts.defects == (("bad", 4),)
    assert [p.message for p in found.problems][1:] == [
        "5 of 900 training images; the download is not complete",
        "3 of 100 normal test images; the download is not complete",
        "4 of 100 anomalous test images; the download is not complete",
    ]


@pytest.mark.parametrize("files", ["raw", "tree"])
def test_keeps_the_contract(files: str, request: pytest.FixtureRequest) -> None:
    check_dataset(VisA(request.getfixturevalue(files)))
