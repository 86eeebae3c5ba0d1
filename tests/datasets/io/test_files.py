"""Finding image files: which are found, in which order, and what is passed over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from anomtune.datasets.io import files
from anomtune.datasets.io.files import image_files, images_below, is_image, left_out
from anomtune.datasets.io.foreign import list_images
from tests.datasets.conftest import save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for name in (
        "b/2.png", "b/10.JPG", "b/c/1.tiff", "b.png", "a/1.jpeg", ".hidden/1.png",
        "__MACOSX/1.png", "a/._1.png",
    ):  # fmt: skip
        save(Image.new("RGB", (4, 4)), root / name)
    for name in ("notes.txt", "Thumbs.db", "a/png"):
        (root / name).write_text("no image")
    return root


FOUND = ["a/1.jpeg", "b/10.JPG", "b/2.png", "b/c/1.tiff", "b.png"]


def names(root: Path, found: object) -> list[str]:
    return [path.relative_to(root).as_posix() for path in found]  # type: ignore[attr-defined]


def test_images_are_found_by_name_to_any_depth(folder: Path) -> None:
    assert names(folder, images_below(folder)) == FOUND
    assert list_images(folder) == list(images_below(folder)) == sorted(images_below(folder))


def test_files_are_taken_as_they_are_given_and_folders_searched(folder: Path) -> None:
    given = [folder / "notes.txt", str(folder / "b"), folder / "absent.png", folder / "a"]
    assert names(folder, image_files(given)) == [
        "notes.txt", "b/10.JPG", "b/2.png", "b/c/1.tiff", "absent.png", "a/1.jpeg",
    ]  # fmt: skip


def test_links_to_folders_are_not_followed_but_those_that_are_given(folder: Path) -> None:
    (folder / "a/loop").symlink_to(folder)
    (folder / "a/link.png").symlink_to(folder / "b/2.png")
    (folder / "a/lost.png").symlink_to(folder / "absent.png")
    assert names(folder, images_below(folder))[:3] == ["a/1.jpeg", "a/link.png", "a/lost.png"]
    assert [path.name for path in image_files([folder / "a/loop"])].count("2.png") == 1
    assert names(folder, list_images(folder)) == ["a/1.jpeg", "a/link.png", *FOUND[1:]]


def test_what_is_passed_over_is_named(folder: Path) -> None:
    (folder / "a/lost.png").symlink_to(folder / "absent.png")
    passed: list[Path] = []
    list_images(folder, passed)
    assert sorted(names(folder, passed)) == [".hidden", "a/lost.png", "a/png", "notes.txt"]
    passed.clear()
    assert len(list(image_files([folder, folder / "notes.txt"], passed))) == 7
    assert sorted(names(folder, passed)) == [".hidden", "a/png", "notes.txt"]
    assert left_out(passed).startswith("3 passed over, no PNG, JPEG, BMP, TIFF or WebP file or hid")


def test_no_folder_holds_no_images(folder: Path) -> None:
    assert list(images_below(folder / "absent")) == []
    assert list(images_below(folder / "notes.txt")) == []


def test_a_folder_that_cannot_be_listed_is_yielded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = files.listing

    def refuse(place: Path) -> tuple[list[os.DirEntry[str]], list[str]]:
        if place.name == "b":
            raise PermissionError(13, "Permission denied", str(place))
        return listed(place)

    monkeypatch.setattr(files, "listing", refuse)
    assert names(folder, images_below(folder)) == ["a/1.jpeg", "b", "b.png"]
    assert names(folder, list_images(folder)) == ["a/1.jpeg", "b.png"]


@pytest.mark.parametrize(
    ("name", "image"),
    [("a.png", True), ("a/b.TIF", True), ("a.b.jpeg", True), ("a.webp", True), (".png", False),
     ("png", False), ("a.png/b", False)],
)  # fmt: skip
def test_an_image_by_its_name(name: str, image: bool) -> None:
    assert is_image(Path(name)) == image
