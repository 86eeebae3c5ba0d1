"""The MVTec layout: what is listed, what is accepted, what is refused and in which words."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from anomtune.datasets.folder import Folder
from anomtune.errors import DataError, ImageError
from tests.datasets.conftest import one_line, save

Draw = Callable[..., Image.Image]


def fatal(root: Path, category: str = "part") -> list[str]:
    return [str(p) for p in Folder(root).scan(category)[1] if p.fatal]


def warnings(root: Path, category: str = "part") -> list[str]:
    return [str(p) for p in Folder(root).scan(category)[1] if not p.fatal]


def test_lists_a_folder_of_categories_and_a_single_one(tree: Path) -> None:
    many, single = Folder(tree), Folder(tree / "part")
    assert many.categories() == single.categories() == ("part",)
    assert many.scan("part") == single.scan("part")
    samples, problems = many.scan("part")
    assert problems == ()
    assert [s.key for s in samples] == sorted(s.key for s in samples)
    assert len(samples) == 17
    scratch = next(s for s in samples if s.key == "test/scratch/002.png")
    assert (scratch.part, scratch.defect, scratch.anomalous) == ("test", "scratch", True)
    assert scratch.mask == "ground_truth/scratch/002_mask.png"
    assert many.read_image("part", scratch.key).shape == (16, 20, 3)
    assert many.read_mask("part", scratch.mask).sum() == 64


@pytest.mark.parametrize("ext", ["PNG", "Jpg", "jpeg", "BMP", "tif", "TIFF"])
def test_extensions_in_any_case(tree: Path, picture: Draw, ext: str) -> None:
    save(picture(99), tree / "part/train/good" / f"x.{ext}")
    keys = [s.key for s in Folder(tree).scan("part")[0]]
    assert f"train/good/x.{ext}" in keys


def test_junk_is_skipped_silently_and_other_files_are_named(tree: Path) -> None:
    good = tree / "part/train/good"
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._000.png"):
        (good / name).write_bytes(b"junk")
    (tree / "__MACOSX/train").mkdir(parents=True)
    (tree / ".hidden/train").mkdir(parents=True)
    assert Folder(tree).categories() == ("part",)
    assert len(Folder(tree).scan("part")[0]) == 17
    assert warnings(tree) == []
    (good / "notes.txt").write_text("hm")
    assert ["notes.txt" in w for w in warnings(tree)] == [True]


@pytest.mark.parametrize(
    "key",
    ["train/good/000.png", "test/scratch/000.png", "ground_truth/scratch/000_mask.png"],
)
def test_link_to_a_missing_file_is_fatal(tree: Path, key: str) -> None:
    path = tree / "part" / key
    path.unlink()
    path.symlink_to("../.git/annex/objects/000.png")
    assert f"part/{key}: link to a missing file; fetch it or remove the link" in fatal(tree)


def test_links_that_lead_somewhere_are_images(tree: Path) -> None:
    path = tree / "part/train/good/000.png"
    path.rename(tree / "elsewhere.png")
    path.symlink_to(tree / "elsewhere.png")
    assert len(Folder(tree).scan("part")[0]) == 17
    assert fatal(tree) == []


def test_a_folder_named_like_an_image_is_fatal(tree: Path) -> None:
    (tree / "part/train/good/x.png").mkdir()
    assert fatal(tree) == ["part/train/good/x.png: not a file; rename or remove it"]


def test_link_to_a_missing_folder_is_fatal(tree: Path) -> None:
    (tree / "part/test/hole").symlink_to(tree / "absent")
    assert ["part/test/hole: link to a missing file" in m for m in fatal(tree)] == [True]
    assert warnings(tree) == []


@pytest.mark.parametrize("part", ["train", "test"])
def test_good_in_another_case_is_fatal(tree: Path, part: str) -> None:
    (tree / "part" / part / "good").rename(tree / "part" / part / "Good")
    assert f"part/{part}/Good: rename to good" in fatal(tree)
    samples, problems = Folder(tree).scan("part")
    assert {s.defect for s in samples} <= {"good", "scratch", "dent"}
    assert any(str(p) == f"part/{part}/Good: rename to good" and p.fatal for p in problems)


def test_folders_beside_the_categories_are_named(tree: Path) -> None:
    assert Folder(tree).warnings() == ()
    for name in ("b/Train", "b/Test", "c"):
        (tree / name).mkdir(parents=True)
    for number in range(7):
        (tree / f"d/{number}").mkdir(parents=True)
    (tree / "e").symlink_to(tree / "absent")
    (tree / "readme.txt").write_text("not a folder")
    found = Folder(tree).warnings()
    assert not any(p.fatal for p in found)
    assert [str(p) for p in found] == [
        "b: ignored, it has no train folder; it has Test, Train",
        "c: ignored, it has no train folder; it has no folders",
        "d: ignored, it has no train folder; it has 0, 1, 2, 3, 3 more",
        "e: ignored, it is a link to a missing file; fetch it or remove the link",
    ]
    assert Folder(tree / "part").warnings() == ()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter every folder")
def test_a_folder_that_may_not_be_entered_is_named(tree: Path) -> None:
    (tree / "lost+found").mkdir(mode=0)
    assert Folder(tree).categories() == ("part",)
    (found,) = Folder(tree).warnings()
    assert "cannot be listed" in str(found)


def test_masks_pair_by_stem_with_any_extension(tree: Path) -> None:
    masks = tree / "part/ground_truth/scratch"
    Image.open(masks / "000_mask.png").save(masks / "000.BMP")
    (masks / "000_mask.png").unlink()
    samples, problems = Folder(tree).scan("part")
    assert problems == ()
    assert {s.key: s.mask for s in samples}["test/scratch/000.png"].endswith("000.BMP")  # type: ignore[union-attr]


def test_several_masks_of_an_image_lie_in_a_folder_and_are_united(tree: Path) -> None:
    masks = tree / "part/ground_truth/dent"
    (masks / "000").mkdir()
    (masks / "000_mask.png").rename(masks / "000/one.png")
    for name, box in (("one", (0, 0, 4, 4)), ("two", (2, 2, 9, 9))):
        image = Image.new("L", (20, 16))
        image.paste(7 if name == "two" else 255, box)
        image.save(masks / "000" / f"{name}.png")
    dataset = Folder(tree)
    samples, problems = dataset.scan("part")
    assert problems == ()
    (key,) = {s.mask for s in samples if s.key == "test/dent/000.png"}
    assert key == "ground_truth/dent/000"
    mask = dataset.read_mask("part", key)
    assert mask.sum() == 16 + 49 - 4
    before = dataset.file_digest("part", key)
    (masks / "000/two.png").unlink()
    assert dataset.file_digest("part", key) != before
    Image.new("L", (20, 16), 255).save(masks / "000_mask.png")
    (problem,) = dataset.scan("part")[1]
    assert "has 2 masks" in problem.message
    assert "put them into a folder ground_truth/dent/000, whose masks count" in problem.message


def test_hidden_files_and_loose_images_are_named(tree: Path, picture: Draw) -> None:
    for name in (".a.png", "._a.png", ".DS_Store"):
        picture(1).save(tree / "part/train/good" / name, format="PNG")
    picture(1).save(tree / "loose.png")
    dataset = Folder(tree)
    assert [str(p) for p in dataset.scan("part")[1]] == [
        "part/train/good: '.a.png' ignored: hidden"
    ]
    assert [str(p) for p in dataset.warnings()] == [
        f"{tree.name}: 'loose.png' ignored, beside the categories"
    ]


def test_mask_without_image_is_fatal(tree: Path) -> None:
    (tree / "part/test/scratch/000.png").unlink()
    (found,) = fatal(tree)
    assert found.startswith("part/ground_truth/scratch/000_mask.png: mask without image")
    shutil.rmtree(tree / "part/test/dent")
    assert len(fatal(tree)) == 4


def test_image_without_mask_is_a_warning_only_where_others_have_one(tree: Path) -> None:
    (tree / "part/ground_truth/scratch/000_mask.png").unlink()
    assert fatal(tree) == []
    assert [w.startswith("part/test/scratch/000.png: no mask") for w in warnings(tree)] == [True]
    shutil.rmtree(tree / "part/ground_truth")
    assert Folder(tree).scan("part")[1] == ()


@pytest.mark.parametrize("name", ["Ground_Truth", "ground-truth", "GroundTruth", "masks", "Mask"])
def test_a_misspelt_mask_folder_does_not_mean_no_masks(tree: Path, name: str) -> None:
    (tree / "part/ground_truth").rename(tree / "part" / name)
    assert fatal(tree) == [f"part/{name}: rename to ground_truth"]
    (tree / "part/ground_truth").mkdir()
    assert fatal(tree) == [
        f"part/{name}: move what is in it to ground_truth, which is the folder that is read"
    ]


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_misspelt_part_is_fatal(tree: Path, part: str) -> None:
    (tree / "part" / part).rename(tree / "part" / part.upper())
    assert f"part/{part.upper()}: rename to {part}" in fatal(tree)


def test_what_lies_beside_the_parts_is_named(tree: Path, picture: Draw) -> None:
    save(picture(1), tree / "part/loose.png")
    (tree / "part/validation").mkdir()
    for name in ("notes.csv", "readme.txt", "LICENSE"):
        (tree / "part" / name).write_text("no image")
    assert fatal(tree) == []
    assert warnings(tree) == [
        "part: 'loose.png', 'notes.csv' ignored; images belong in train/good and test",
        "part/validation: ignored; a category has train, test, ground_truth",
    ]
    (tree / "part/hole").symlink_to(tree / "absent")
    assert fatal(tree) == ["part/hole: link to a missing file; fetch it or remove the link"]


def test_one_defect_type_without_masks_is_one_warning(tree: Path) -> None:
    shutil.rmtree(tree / "part/ground_truth/scratch")
    assert warnings(tree) == [
        "part/ground_truth/scratch: no such folder; all 4 images of test/scratch are left out of "
        "pixel metrics: copy their masks again"
    ]
    (tree / "part/ground_truth/scratch").mkdir()
    assert ["scratch: no masks here; all 4" in w for w in warnings(tree)] == [True]


def test_normal_images_by_another_name_are_questioned(tree: Path) -> None:
    (tree / "part/test/good").rename(tree / "part/test/OK")
    assert warnings(tree) == [
        "part/ground_truth/OK: no such folder; all 4 images of test/OK are left out of pixel "
        "metrics: copy their masks again",
        "part/test/OK: taken for a defect type; if these images are normal, move them to test/good",
    ]


def test_an_empty_folder_of_a_type_is_reported(tree: Path) -> None:
    (tree / "part/test/hole").mkdir()
    assert warnings(tree) == [
        "part/test/hole: no images here; copy them again or remove the folder"
    ]


def test_a_zip_unpacked_into_a_folder_and_one_that_is_not(tree: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    (outer / "data.zip").touch()
    with pytest.raises(DataError, match=r"found 'data\.zip'; unpack it"):
        Folder(outer).categories()
    tree.rename(outer / "data")
    with pytest.raises(DataError, match=r"found data/ inside; set dataset\.root to") as error:
        Folder(outer).categories()
    assert one_line(error).endswith(str(outer / "data"))
    with pytest.raises(DataError, match=r"this lies inside of one; set dataset\.root to") as error:
        Folder(outer / "data/part/test").categories()
    assert one_line(error).endswith(str(outer / "data/part"))


def test_ambiguous_names_are_fatal(tree: Path, picture: Draw) -> None:
    save(picture(7), tree / "part/test/scratch/000.bmp")
    assert ["shares its name" in m for m in fatal(tree)] == [True]
    save(Image.new("L", (20, 16), 255), tree / "part/ground_truth/dent/001.png")
    assert any("has 2 masks" in m for m in fatal(tree))
    save(picture(8), tree / "part/test/good/000.bmp")
    assert len(fatal(tree)) == 2, "normal images need no mask, so their names may repeat"


def test_no_such_folder_no_category_no_training_no_test(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder; set dataset\.root") as error:
        Folder(tmp_path / "absent").categories()
    assert str(tmp_path / "absent") in one_line(error)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no category here; expected <category>/train/good"):
        Folder(tmp_path / "empty").categories()
    with pytest.raises(DataError, match=r"needs a folder: set dataset\.root"):
        Folder(None)
    shutil.rmtree(tree / "part/train")
    assert fatal(tree) == [
        "part/train/good: no training images; put images of normal products here"
    ]
    shutil.rmtree(tree / "part/test")
    (tree / "part/train").mkdir()
    assert any("no test images" in w for w in warnings(tree))


@pytest.mark.parametrize(
    "name", ["../data/part", "..", ".", "", "/etc", "part/train", "prat", "a\0"]
)
def test_unknown_or_escaping_category_is_refused(tree: Path, name: str) -> None:
    for call in (Folder(tree).scan, Folder(tree).fingerprint):
        with pytest.raises(DataError, match="no category") as error:
            call(name)
    if name == "prat":
        assert "did you mean 'part'" in one_line(error)


@pytest.mark.parametrize("key", ["../../secret.png", "/etc/passwd", "", "test/../../x.png"])
def test_escaping_key_is_refused(tree: Path, key: str) -> None:
    with pytest.raises(DataError, match="is not the path of an image"):
        Folder(tree).read_image("part", key)


def test_loose_and_ignored_folders_are_reported(tree: Path, picture: Draw) -> None:
    save(picture(1), tree / "part/test/loose.png")
    save(picture(1), tree / "part/train/bad/x.png")
    found = warnings(tree)
    assert any("images belong in test/<defect type>" in w for w in found)
    assert any("part/train/bad: ignored" in w for w in found)


def test_a_file_name_with_a_newline_stays_one_line(tree: Path) -> None:
    (tree / "part/train/good/a\nb.png").write_bytes(b"not an image")
    with pytest.raises(ImageError, match=r"a\\nb\.png: cannot be read") as error:
        Folder(tree).read_image("part", "train/good/a\nb.png")
    one_line(error)
    save(Image.new("L", (2, 2)), tree / "part/ground_truth/dent/a\nb.png")
    assert not any("\n" in message for message in fatal(tree))


def test_errors_survive_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(ImageError("a.png", "is bad")))
    assert (str(error), error.reason) == ("a.png: is bad", "is bad")


def test_battery_weld(real: Callable[[str], Path]) -> None:
    samples, problems = Folder(real("battery_weld")).scan("battery_weld")
    assert problems == ()
    assert sum(s.part == "train" for s in samples) == 37
    assert sum(s.part == "test" and not s.anomalous for s in samples) == 28
    assert sum(s.anomalous and s.mask is not None for s in samples) == 93
