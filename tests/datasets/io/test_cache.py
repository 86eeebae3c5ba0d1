"""The per-node cache: found by content, whole or absent, built once."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomtune.datasets.base import Dataset
from anomtune.datasets.folder import Folder
from anomtune.datasets.io import cache as cache_module
from anomtune.datasets.io.cache import open_category
from anomtune.datasets.synthetic import Synthetic
from anomtune.errors import DataError

pytestmark = pytest.mark.slow

Draw = Callable[..., Image.Image]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of all images that were decoded during a test."""
    keys: list[str] = []
    original = Folder.read_image

    def spy(self: Folder, category: str, key: str) -> np.ndarray:
        keys.append(key)
        return original(self, category, key)

    monkeypatch.setattr(Folder, "read_image", spy)
    return keys


@pytest.fixture
def digested(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    keys: list[str] = []
    original = Folder.file_digest

    def spy(self: Folder, category: str, key: str) -> str:
        keys.append(key)
        return original(self, category, key)

    monkeypatch.setattr(Folder, "file_digest", spy)
    return keys


def settle() -> None:
    """Waits until the times of files just written are trusted."""
    time.sleep(0.15)


def entries(cache: Path) -> list[str]:
    return sorted(
        p.name for p in (cache / "categories").iterdir() if p.suffix not in (".lock", ".used")
    )


def test_arrays_hold_what_the_files_hold(tree: Path) -> None:
    dataset = Folder(tree)
    arrays = open_category(dataset, "part", 8)
    assert arrays.images.shape == (17, 8, 8, 3)
    assert arrays.images.dtype == np.uint8
    assert len(arrays.masks) == 17
    assert arrays.samples == dataset.scan("part")[0]
    for i, sample in enumerate(arrays.samples):
        image = Image.open(tree / "part" / sample.key).convert("RGB")
        expected = np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR))
        assert (arrays.images[i] == expected).all()
        assert arrays.masks.drawn[i] == sample.anomalous
        drawn = np.zeros((16, 20), bool)
        drawn[4:12, 4:12] = sample.anomalous
        assert (arrays.masks[i] == drawn).all(), "as drawn, whatever the size of the images"
    assert len(set(arrays.pixel_hashes)) == 17


def test_writing_to_an_opened_array_does_not_change_the_cache(tree: Path) -> None:
    first = open_category(Folder(tree), "part", 8)
    before = first.images[0].copy()
    first.images[0][:] = 255 - before
    assert (open_category(Folder(tree), "part", 8).images[0] == before).all()


def test_second_opening_reads_no_image(tree: Path, decoded: list[str], digested: list[str]) -> None:
    settle()
    open_category(Folder(tree), "part", 8)
    assert len(decoded) == 17
    assert len(digested) == 24
    open_category(Folder(tree), "part", 8)
    assert (len(decoded), len(digested)) == (17, 24)
    open_category(Folder(tree), "part", 12)
    assert (len(decoded), len(digested)) == (34, 24), "another size decodes, but hashes nothing"


def test_pixels_are_hashed_once_for_all_sizes(
    tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle()
    first = open_category(Folder(tree), "part", 8)

    def forbidden(*_: object) -> None:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "hash_pixels", forbidden)
        assert open_category(Folder(tree), "part", 12).pixel_hashes == first.pixel_hashes
    for note in (cache / "index").iterdir():
        if note.is_file() and first.pixel_hashes[0] in note.read_text():
            note.write_text("half a note")
    assert open_category(Folder(tree), "part", 10).pixel_hashes == first.pixel_hashes


def test_young_files_are_not_trusted_to_their_time(tree: Path) -> None:
    (tree / "part/train/good/000.png").touch()
    assert Folder(tree).fingerprint("part") is None
    settle()
    assert Folder(tree).fingerprint("part") is not None


@pytest.mark.parametrize("how", ["move", "copy", "rename category"])
def test_moved_folder_is_found_again(
    tree: Path, decoded: list[str], tmp_path: Path, how: str, cache: Path
) -> None:
    first = open_category(Folder(tree), "part", 8)
    decoded.clear()
    name, place = "part", tmp_path / "elsewhere"
    if how == "copy":
        shutil.copytree(tree, place)
    else:
        tree.rename(place)
    if how == "rename category":
        name = "piece"
        (place / "part").rename(place / "piece")
    again = open_category(Folder(place), name, 8)
    assert decoded == []
    assert again.content == first.content
    assert len(entries(cache)) == 1


def test_changed_image_is_never_served_from_the_cache(
    tree: Path, picture: Draw, decoded: list[str]
) -> None:
    path = tree / "part/train/good/000.png"
    settle()
    before = open_category(Folder(tree), "part", 8)
    info, size = path.stat(), path.stat().st_size
    picture(777).save(path)
    # The most treacherous edit: same length and the old modification time put back.
    data = path.read_bytes()
    path.write_bytes(data + b"\0" * max(0, size - len(data)))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    settle()
    after = open_category(Folder(tree), "part", 8)
    assert after.content != before.content
    i = [s.key for s in after.samples].index("train/good/000.png")
    assert after.pixel_hashes[i] != before.pixel_hashes[i]
    assert (after.images[i] != before.images[i]).any()


def test_edit_during_the_reading_is_refused(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle()
    path = tree / "part/train/good/000.png"
    original = cache_module._decode_all

    def edit(*args: object, **sizes: object) -> None:
        original(*args, **sizes)  # type: ignore[arg-type]
        path.write_bytes(path.read_bytes() + b"\0")
        settle()

    monkeypatch.setattr(cache_module, "_decode_all", edit)
    with pytest.raises(DataError, match="changed while it was read; try again"):
        open_category(Folder(tree), "part", 8)
    monkeypatch.undo()


def test_edit_of_young_files_during_the_reading_is_refused(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tree / "part/train/good/000.png"
    original = cache_module._decode_all

    def edit(*args: object, **sizes: object) -> None:
        original(*args, **sizes)  # type: ignore[arg-type]
        path.write_bytes(path.read_bytes() + b"\0")

    monkeypatch.setattr(Folder, "fingerprint", Dataset.fingerprint)
    monkeypatch.setattr(cache_module, "_decode_all", edit)
    with pytest.raises(DataError, match="changed while it was read; try again"):
        open_category(Folder(tree), "part", 8)


def test_a_file_that_appears_while_opening_is_found_by_the_next(
    tree: Path, picture: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle()
    original = Folder.scan

    def scan(self: Folder, category: str) -> object:
        listed = original(self, category)
        picture(99).save(tree / "part/train/good/new.png")
        settle()
        return listed

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "scan", scan)
        with pytest.raises(DataError, match="changed while it was read"):
            open_category(Folder(tree), "part", 8)
    assert len(open_category(Folder(tree), "part", 8).images) == 18


def test_the_note_knows_the_listing(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A later version may list the same files otherwise: as other defects, without masks.
    settle()
    monkeypatch.setattr(Folder, "fingerprint", lambda *_: "the same")
    whole = open_category(Folder(tree), "part", 8)
    original = Folder.scan

    def scan(self: Folder, category: str) -> object:
        samples, problems = original(self, category)
        return tuple(replace(s, mask=None) for s in samples), problems

    monkeypatch.setattr(Folder, "scan", scan)
    bare = open_category(Folder(tree), "part", 8)
    assert bare.content != whole.content
    assert not bare.masks.drawn.any()


def test_same_pixels_in_another_format_share_their_hash(tree: Path, picture: Draw) -> None:
    picture(0).save(tree / "part/train/good/copy.bmp")  # picture(0) is 000.png
    arrays = open_category(Folder(tree), "part", 8)
    by_key = dict(zip((s.key for s in arrays.samples), arrays.pixel_hashes, strict=True))
    assert by_key["train/good/copy.bmp"] == by_key["train/good/000.png"]


def test_mask_of_another_size(tree: Path) -> None:
    Image.new("L", (10, 16), 255).save(tree / "part/ground_truth/dent/001_mask.png")
    with pytest.raises(DataError, match=r"the mask is 10x16 but its image .* is 20x16") as error:
        open_category(Folder(tree), "part", 8)
    assert "ground_truth/dent/001_mask.png" in str(error.value)
    assert "\n" not in str(error.value)


def test_unreadable_image_leaves_nothing_behind(tree: Path, cache: Path) -> None:
    (tree / "part/train/good/000.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"train/good/000\.png: cannot be read"):
        open_category(Folder(tree), "part", 8)
    assert entries(cache) == []


def test_fatal_problems_are_refused_with_the_way_to_see_them_all(tree: Path) -> None:
    for name in ("000", "001"):
        (tree / f"part/test/scratch/{name}.png").unlink()
    with pytest.raises(DataError, match=r"000_mask.png: mask without image.*\(and 1 more\)") as e:
        open_category(Folder(tree), "part", 8)
    assert str(e.value).endswith(f"run `anomtune audit folder {tree}`")
    spaced = tree.rename(tree.with_name("my data"))
    with pytest.raises(DataError, match=f"run `anomtune audit folder '{spaced}'`$"):
        open_category(Folder(spaced), "part", 8)
    assert "\n" not in str(e.value)


def test_an_error_of_reading_is_not_blamed_on_the_cache(
    tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(*_: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    for name in ("file_digest", "read_mask", "read_image"):
        with monkeypatch.context() as patch:
            patch.setattr(Folder, name, stale)
            with pytest.raises(DataError, match=r"part/.*\.png: cannot be read \(Stale") as error:
                open_category(Folder(tree), "part", 8)
            assert "ANOMTUNE_CACHE" not in str(error.value)


def test_dataset_without_fingerprint_still_works(decoded: list[str], tree: Path) -> None:
    class Plain(Folder):
        fingerprint = Dataset.fingerprint

    open_category(Plain(tree), "part", 8)
    open_category(Plain(tree), "part", 8)
    assert len(decoded) == 17


def test_synthetic_category(cache: Path) -> None:
    arrays = open_category(Synthetic(), "washer", 32)
    assert arrays.images.shape == (160, 32, 32, 3)
    assert arrays.masks.drawn.sum() == 60


def test_battery_weld(real: Callable[[str], Path]) -> None:
    arrays = open_category(Folder(real("battery_weld")), "battery_weld", 64)
    assert arrays.images.shape == (158, 64, 64, 3)
    assert arrays.masks.drawn.sum() == 93
    assert 0.01 < np.mean([mask.mean() for mask in arrays.masks if mask.any()]) < 0.5


READER = """
import sys
from pathlib import Path
from anomtune.datasets.folder import Folder
from anomtune.datasets.splits.split import load_search_split
from anomtune.datasets.splits.validation import Validation
split = load_search_split(Folder(Path(sys.argv[1])), "part", 512, Validation())
print(int(split.train.sum()) + int(split.validation.sum()), flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_processes_that_look_at_all_images_share_one_copy(tree: Path, cache: Path) -> None:
    command = [sys.executable, "-c", READER, str(tree)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    readers = [subprocess.Popen(command, text=True, env=os.environ.copy(), **pipes) for _ in "123"]
    sums = {reader.stdout.readline() for reader in readers}
    shares, private = 0, 0
    for reader in readers:
        mapped = ""
        for line in Path(f"/proc/{reader.pid}/smaps").read_text().splitlines():
            name, *values = line.split()
            if not name.endswith(":"):
                mapped = line
            elif f"{cache}/splits/" in mapped and name == "Pss:":
                shares += int(values[0]) * 1024
            elif f"{cache}/splits/" in mapped and name == "Private_Dirty:":
                private += int(values[0])
    for reader in readers:
        reader.communicate()
    assert len(sums) == 1
    assert sums != {""}
    one_copy = sum(path.stat().st_size for path in (cache / "splits").rglob("*.npy"))
    assert one_copy > 8e6
    assert 0.9 * one_copy < shares < 1.1 * one_copy
    assert private == 0
