"""Normal images here and anomalous ones there: what is read, and what is refused in which words."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomtune.datasets.base import Sample
from anomtune.datasets.folder import Folder
from anomtune.datasets.splits.division import Division
from anomtune.datasets.splits.split import load_search_split
from anomtune.datasets.splits.validation import Validation
from anomtune.datasets.testing import check_dataset
from anomtune.errors import DataError
from tests.datasets.conftest import one_line, save

Draw = Callable[..., Image.Image]


@pytest.fixture
def parts(tmp_path: Path, picture: Draw) -> Path:
    """``line/good``, ``line/scratch`` and ``line/dent`` with masks in ``line/masks``."""
    root = tmp_path / "line"
    numbers = iter(range(1000))
    for name, count in (("good", 10), ("scratch", 4), ("dent", 3)):
        for i in range(count):
            save(picture(next(numbers)), root / name / f"{i:03d}.png")
            if name != "good":
                mask = Image.new("L", (20, 16))
                mask.paste(255, (4, 4, 12, 12))
                save(mask, root / "masks" / name / f"{i:03d}_mask.png")
    return root


def by_defect(samples: tuple[Sample, ...]) -> dict[str, int]:
    found: dict[str, int] = {}
    for sample in samples:
        found[sample.defect] = found.get(sample.defect, 0) + 1
    return found


def test_a_root_with_good_and_other_folders(parts: Path) -> None:
    dataset = Folder(parts)
    assert dataset.categories() == ("line",)
    samples, problems = dataset.scan("line")
    assert problems == ()
    assert by_defect(samples) == {"good": 10, "scratch": 4, "dent": 3}
    assert {s.part for s in samples} == {"undivided"}
    scratch = next(s for s in samples if s.key == "scratch/002.png")
    assert scratch.mask == "masks/scratch/002_mask.png"
    assert dataset.read_mask("line", scratch.mask).sum() == 64
    # Or a folder of such.
    shutil.copytree(parts, parts.parent / "all/bolt")
    shutil.copytree(parts, parts.parent / "all/nut")
    assert Folder(parts.parent / "all").categories() == ("bolt", "nut")


@pytest.mark.parametrize("name", ["OK", "normal", "Gut", "defect-free"])
def test_normal_by_other_names(parts: Path, name: str) -> None:
    (parts / "good").rename(parts / name)
    assert by_defect(Folder(parts).scan("line")[0])["good"] == 10


def test_folders_by_name(parts: Path) -> None:
    one = Folder(
        normal=parts / "good",
        anomalous={"scratch": parts / "scratch", "dent": parts / "dent"},
        masks=parts / "masks",
    )
    assert one.scan("line") == Folder(parts).scan("line")
    assert one.root == parts
    assert one.settings() == {
        "normal": "good",
        "anomalous": {"scratch": "scratch", "dent": "dent"},
        "masks": "masks",
    }
    again = Folder(one.root, **one.settings())
    assert again.scan("line") == one.scan("line")


def test_anomalous_images_in_one_folder(parts: Path) -> None:
    bad = parts / "bad"
    for name in ("scratch", "dent"):
        (parts / name).rename(bad / name) if bad.exists() else (
            bad.mkdir(),
            (parts / name).rename(bad / name),
        )
    shutil.copy(parts / "good/000.png", bad / "loose.png")
    samples, problems = Folder(parts, normal="good", anomalous="bad", masks="masks").scan("line")
    assert by_defect(samples) == {"good": 10, "scratch": 4, "dent": 3, "bad": 1}
    assert [str(p) for p in problems] == [
        "line/bad/loose.png: no mask, while others have one; left out of pixel metrics"
    ]


def test_one_folder_of_masks_for_all_types(parts: Path) -> None:
    for name in ("scratch", "dent"):
        for i, path in enumerate(sorted((parts / name).iterdir())):
            path.rename(parts / name / f"{name}-{i}.png")
        for i, path in enumerate(sorted((parts / "masks" / name).iterdir())):
            path.rename(parts / "masks" / f"{name}-{i}.png")
        (parts / "masks" / name).rmdir()
    samples, problems = Folder(parts).scan("line")
    assert problems == ()
    assert all(s.mask == f"masks/{Path(s.key).name}" for s in samples if s.anomalous)


def test_images_lie_deeper_and_masks_with_them(parts: Path) -> None:
    for name in ("good", "scratch", "masks/scratch"):
        files = sorted((parts / name).iterdir())
        (parts / name / "2026/11").mkdir(parents=True)
        for path in files:
            path.rename(parts / name / "2026/11" / path.name)
    samples, problems = Folder(parts).scan("line")
    assert problems == ()
    found = next(s for s in samples if s.key == "scratch/2026/11/001.png")
    assert (found.defect, found.mask) == ("scratch", "masks/scratch/2026/11/001_mask.png")
    assert by_defect(samples)["good"] == 10


def test_several_masks_of_an_image(parts: Path) -> None:
    inner = parts / "masks/dent/000"
    inner.mkdir()
    for name in ("a.png", "b.png"):
        shutil.copy(parts / "masks/dent/001_mask.png", inner / name)
    (parts / "masks/dent/000_mask.png").unlink()
    samples, problems = Folder(parts).scan("line")
    assert problems == ()
    assert next(s for s in samples if s.key == "dent/000.png").mask == "masks/dent/000"


def test_a_division_that_is_given(parts: Path) -> None:
    files = sorted((parts / "good").iterdir())
    for path in files[:4]:
        (parts / "more").mkdir(exist_ok=True)
        path.rename(parts / "more" / path.name)
    dataset = Folder(
        parts, normal={"train": "good", "test": "more"}, anomalous={"scratch": "scratch"}
    )
    samples, _ = dataset.scan("line")
    assert {(s.part, s.defect) for s in samples} == {
        ("train", "good"),
        ("test", "good"),
        ("test", "scratch"),
    }
    assert load_search_split(dataset, "line", 8, Validation()).division is None


def test_the_same_images_in_mvtecs_layout_are_the_same_split(parts: Path) -> None:
    dataset = Folder(parts, division=Division(seed=3))
    found = load_search_split(dataset, "line", 8, Validation())
    assert found.division is not None
    assert (found.division.train, found.division.normal, found.division.anomalous) == (6, 4, 7)
    from anomtune.datasets.io.cache import open_category

    copy = parts.parent / "copy"
    for sample in open_category(dataset, "line", 8).samples:
        target = copy / sample.part / sample.defect / Path(sample.key).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(parts / sample.key, target)
    other = load_search_split(Folder(copy), "copy", 8, Validation())
    assert other.split_hash == found.split_hash
    assert np.array_equal(other.validation_labels, found.validation_labels)
    assert np.array_equal(other.train, found.train)
    assert (other.n_test_normal, other.n_test_anomalous) == (
        found.n_test_normal,
        found.n_test_anomalous,
    )


@pytest.mark.slow
def test_both_forms_keep_the_contract(parts: Path) -> None:
    check_dataset(Folder(parts))
    check_dataset(Folder(normal=parts / "good", anomalous=parts / "scratch", group=r"/(\d)"))


def test_a_pattern_names_groups(parts: Path) -> None:
    samples, problems = Folder(parts, group=r"^(good|dent)/00(\d)").scan("line")
    assert {s.key: s.group for s in samples}["good/003.png"] == "good/3"
    assert {s.group for s in samples if s.defect == "scratch"} == {""}
    assert ["each counts as a part of its own" in str(p) for p in problems] == [True]
    (problem,) = Folder(parts, group="view").scan("line")[1]
    assert problem.fatal
    assert str(problem) == (
        "line: dataset.group: 'view' is found in no path of an image, such as 'dent/000.png'"
    )


def wrong(root: Path, **options: Any) -> str:
    """Returns what is told first of folders that cannot be used."""
    try:
        dataset = Folder(root if options.pop("rooted", True) else None, **options)
        fatal = [str(p) for p in dataset.scan(dataset.categories()[0])[1] if p.fatal]
    except DataError as error:
        return str(error)
    return fatal[0] if fatal else ""


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"anomalous": "scratch"}, "dataset.anomalous: say where the normal images are, too"),
        ({"normal": "god"}, "god: no such folder; correct the path"),
        ({"normal": "good/000.png"}, "000.png: is not a folder; correct the path"),
        (
            {"normal": "good", "anomalous": "good"},
            "dataset.anomalous: the same folder as dataset.normal",
        ),
        ({"normal": "good", "anomalous": {"ok": "dent"}}, "a defect type cannot be called 'ok'"),
        ({"normal": {"training": "good"}}, "dataset.normal: has training; give one folder, or one"),
        ({"normal": "../elsewhere"}, "dataset.normal: ../elsewhere lies outside of dataset.root"),
        ({"normal": "empty"}, "line/empty: no images; put images of normal products here"),
        (
            {"normal": "good", "anomalous": {"scratch": "dent"}, "masks": "masks"},
            "line/masks/dent/000_mask.png: mask without image: nothing named 'dent/000' in any",
        ),
        (
            {"normal": "good", "anomalous": "."},
            "line/masks: named as masks are, among anomalous images; set dataset.masks",
        ),
        ({"group": "("}, "dataset.group: '(' is not a regular expression"),
        ({"group": ".*"}, "dataset.group: '.*' matches anything; say what names the part"),
        ({"normal": "/usr", "anomalous": "/etc", "rooted": False}, "have no folder in common"),
    ],
)
def test_what_is_wrong_is_one_line(parts: Path, options: dict[str, Any], told: str) -> None:
    (parts / "empty").mkdir()
    found = wrong(parts, **options)
    assert told in found
    assert "\n" not in found


def test_two_folders_of_normal_images_are_refused(parts: Path) -> None:
    shutil.copytree(parts / "good", parts / "ok")
    assert (
        wrong(parts) == "line/ok: holds normal images by its name, and so does good; make them one"
    )


def test_a_part_of_a_divided_category_is_none_itself(tree: Path) -> None:
    for part in ("train", "test"):
        with pytest.raises(DataError, match="this lies inside of one") as error:
            Folder(tree / "part" / part).categories()
        one_line(error)
        (tree / "part" / part).rename(tree / "part" / part.title())
    with pytest.raises(DataError, match="no category here"):
        Folder(tree / "part").categories()


def test_masks_among_images_are_refused(parts: Path) -> None:
    (parts / "masks/dent").rename(parts / "dent/masks")
    assert wrong(parts) == "line/dent/masks: named as masks are, among images; set dataset.masks"


def test_what_lies_beside_is_named(parts: Path) -> None:
    save(Image.new("L", (4, 4)), parts / "loose.png")
    (parts / "README.md").touch()
    (parts / "gone").symlink_to(parts / "absent")
    messages = [str(p) for p in Folder(parts).scan("line")[1]]
    assert messages == [
        "line/gone: link to a missing file; fetch it or remove the link",
        "line: 'loose.png' ignored; images belong in good and other folders",
    ]


def test_links_to_folders_are_not_followed(parts: Path) -> None:
    (parts / "good/again").symlink_to(parts / "good")
    samples, problems = Folder(parts).scan("line")
    assert by_defect(samples)["good"] == 10
    assert [str(p) for p in problems] == ["line/good: 'again' ignored: links to folders"]


def test_a_changed_image_is_seen(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomtune.datasets.io.files._SETTLE_NS", 0)
    dataset = Folder(parts, normal="good", anomalous={"dent": "dent"}, masks="masks")
    before = dataset.fingerprint("line")
    assert before is not None
    for key in ("scratch/000.png", "dent/000.png", "masks/dent/000_mask.png"):
        (parts / key).unlink()
        assert (dataset.fingerprint("line") == before) == key.startswith("scratch")
        before = dataset.fingerprint("line")
