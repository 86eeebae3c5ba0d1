"""The per-node cache: found by content, whole or absent, built once."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from anomtune.datasets.base import Dataset
from anomtune.datasets.folder import FolderDataset
from anomtune.datasets.io import cache as cache_module
from anomtune.datasets.io.cache import open_category
from anomtune.datasets.synthetic import SyntheticDataset
from anomtune.errors import DataError

Draw = Callable[..., Image.Image]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of all images that were decoded during a test."""
    keys: list[str] = []
    original = FolderDataset.read_image

    def spy(self: FolderDataset, category: str, key: str) -> np.ndarray:
        keys.append(key)
        return original(self, category, key)

    monkeypatch.setattr(FolderDataset, "read_image", spy)
    return keys


@pytest.fixture
def digested(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    keys: list[str] = []
    original = FolderDataset.file_digest

    def spy(self: FolderDataset, category: str, key: str) -> str:
        keys.append(key)
        return original(self, category, key)

    monkeypatch.setattr(FolderDataset, "file_digest", spy)
    return keys


def settle() -> None:
    """Waits until the times of files just written are trusted."""
    time.sleep(0.15)


def entries(cache: Path) -> list[str]:
    return sorted(p.name for p in (cache / "categories").iterdir() if p.suffix != ".lock")


def test_arrays_hold_what_the_files_hold(tree: Path) -> None:
    dataset = FolderDataset(tree)
    arrays = open_category(dataset, "part", 8)
    assert arrays.images.shape == (17, 8, 8, 3)
    assert arrays.images.dtype == arrays.masks.dtype == np.uint8
    assert arrays.masks.shape == (17, 8, 8)
    assert arrays.samples == dataset.scan("part")[0]
    for i, sample in enumerate(arrays.samples):
        image = Image.open(tree / "part" / sample.key).convert("RGB")
        expected = np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR))
        assert (arrays.images[i] == expected).all()
        assert arrays.has_mask[i] == sample.anomalous
        assert set(np.unique(arrays.masks[i])) == ({0, 1} if sample.anomalous else {0})
    assert len(set(arrays.pixel_hashes)) == 17


def test_writing_to_an_opened_array_does_not_change_the_cache(tree: Path) -> None:
    first = open_category(FolderDataset(tree), "part", 8)
    before = first.images[0].copy()
    first.images[0] = 255 - before
    assert (open_category(FolderDataset(tree), "part", 8).images[0] == before).all()


def test_second_opening_reads_no_image(tree: Path, decoded: list[str], digested: list[str]) -> None:
    settle()
    open_category(FolderDataset(tree), "part", 8)
    assert len(decoded) == 17
    assert len(digested) == 24
    open_category(FolderDataset(tree), "part", 8)
    assert (len(decoded), len(digested)) == (17, 24)
    open_category(FolderDataset(tree), "part", 12)
    assert (len(decoded), len(digested)) == (34, 24), "another size decodes, but hashes nothing"


def test_young_files_are_not_trusted_to_their_time(tree: Path) -> None:
    (tree / "part/train/good/000.png").touch()
    assert FolderDataset(tree).fingerprint("part") is None
    settle()
    assert FolderDataset(tree).fingerprint("part") is not None


@pytest.mark.parametrize("how", ["move", "copy", "rename category"])
def test_moved_folder_is_found_again(
    tree: Path, decoded: list[str], tmp_path: Path, how: str, cache: Path
) -> None:
    first = open_category(FolderDataset(tree), "part", 8)
    decoded.clear()
    name, place = "part", tmp_path / "elsewhere"
    if how == "copy":
        shutil.copytree(tree, place)
    else:
        tree.rename(place)
    if how == "rename category":
        name = "piece"
        (place / "part").rename(place / "piece")
    again = open_category(FolderDataset(place), name, 8)
    assert decoded == []
    assert again.content == first.content
    assert len(entries(cache)) == 1


def test_changed_image_is_never_served_from_the_cache(
    tree: Path, picture: Draw, decoded: list[str]
) -> None:
    path = tree / "part/train/good/000.png"
    settle()
    before = open_category(FolderDataset(tree), "part", 8)
    info, size = path.stat(), path.stat().st_size
    picture(777).save(path)
    # The most treacherous edit: same length and the old modification time put back.
    data = path.read_bytes()
    path.write_bytes(data + b"\0" * max(0, size - len(data)))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    settle()
    after = open_category(FolderDataset(tree), "part", 8)
    assert after.content != before.content
    i = [s.key for s in after.samples].index("train/good/000.png")
    assert after.pixel_hashes[i] != before.pixel_hashes[i]
    assert (after.images[i] != before.images[i]).any()


def test_edit_during_the_reading_is_refused(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle()
    path = tree / "part/train/good/000.png"
    original = cache_module._decode_all

    def edit(*args: object) -> None:
        original(*args)  # type: ignore[arg-type]
        path.write_bytes(path.read_bytes() + b"\0")
        settle()

    monkeypatch.setattr(cache_module, "_decode_all", edit)
    with pytest.raises(DataError, match="changed while it was read; try again"):
        open_category(FolderDataset(tree), "part", 8)
    monkeypatch.undo()


def test_edit_of_young_files_during_the_reading_is_refused(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tree / "part/train/good/000.png"
    original = cache_module._decode_all

    def edit(*args: object) -> None:
        original(*args)  # type: ignore[arg-type]
        path.write_bytes(path.read_bytes() + b"\0")

    monkeypatch.setattr(FolderDataset, "fingerprint", Dataset.fingerprint)
    monkeypatch.setattr(cache_module, "_decode_all", edit)
    with pytest.raises(DataError, match="changed while it was read; try again"):
        open_category(FolderDataset(tree), "part", 8)


def test_a_file_that_appears_while_opening_is_found_by_the_next(
    tree: Path, picture: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle()
    original = FolderDataset.scan

    def scan(self: FolderDataset, category: str) -> object:
        listed = original(self, category)
        picture(99).save(tree / "part/train/good/new.png")
        settle()
        return listed

    with monkeypatch.context() as patch:
        patch.setattr(FolderDataset, "scan", scan)
        with pytest.raises(DataError, match="changed while it was read"):
            open_category(FolderDataset(tree), "part", 8)
    assert len(open_category(FolderDataset(tree), "part", 8).images) == 18


def test_the_note_knows_the_listing(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A later version may list the same files otherwise: as other defects, without masks.
    settle()
    monkeypatch.setattr(FolderDataset, "fingerprint", lambda *_: "the same")
    whole = open_category(FolderDataset(tree), "part", 8)
    original = FolderDataset.scan

    def scan(self: FolderDataset, category: str) -> object:
        samples, problems = original(self, category)
        return tuple(replace(s, mask=None) for s in samples), problems

    monkeypatch.setattr(FolderDataset, "scan", scan)
    bare = open_category(FolderDataset(tree), "part", 8)
    assert bare.content != whole.content
    assert not bare.masks.any()


def test_same_pixels_in_another_format_share_their_hash(tree: Path, picture: Draw) -> None:
    picture(0).save(tree / "part/train/good/copy.bmp")  # picture(0) is 000.png
    arrays = open_category(FolderDataset(tree), "part", 8)
    by_key = dict(zip((s.key for s in arrays.samples), arrays.pixel_hashes, strict=True))
    assert by_key["train/good/copy.bmp"] == by_key["train/good/000.png"]


def test_mask_of_another_size(tree: Path) -> None:
    Image.new("L", (10, 16), 255).save(tree / "part/ground_truth/dent/001_mask.png")
    with pytest.raises(DataError, match=r"the mask is 10x16 but its image .* is 20x16") as error:
        open_category(FolderDataset(tree), "part", 8)
    assert "ground_truth/dent/001_mask.png" in str(error.value)
    assert "\n" not in str(error.value)


def test_unreadable_image_leaves_nothing_behind(tree: Path, cache: Path) -> None:
    (tree / "part/train/good/000.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"train/good/000\.png: cannot be read"):
        open_category(FolderDataset(tree), "part", 8)
    assert entries(cache) == []


def test_fatal_problems_are_refused_with_the_way_to_see_them_all(tree: Path) -> None:
    for name in ("000", "001"):
        (tree / f"part/test/scratch/{name}.png").unlink()
    with pytest.raises(DataError, match=r"000_mask.png: mask without image.*\(and 1 more\)") as e:
        open_category(FolderDataset(tree), "part", 8)
    assert str(e.value).endswith(f"run `anomtune audit folder {tree}`")
    spaced = tree.rename(tree.with_name("my data"))
    with pytest.raises(DataError, match=f"run `anomtune audit folder '{spaced}'`$"):
        open_category(FolderDataset(spaced), "part", 8)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("harm", ["truncate", "delete", "garble"])
def test_damaged_entry_is_built_again(tree: Path, cache: Path, harm: str) -> None:
    good = open_category(FolderDataset(tree), "part", 8).images.copy()
    (entry,) = entries(cache)
    victim = cache / "categories" / entry / "images.npy"
    if harm == "truncate":
        victim.write_bytes(victim.read_bytes()[:500])
    elif harm == "delete":
        victim.unlink()
    else:
        victim.write_bytes(b"\x80\x04 not an array")
    assert (open_category(FolderDataset(tree), "part", 8).images == good).all()
    assert entries(cache) == [entry]


def test_unwritable_cache_names_the_variable(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ANOMTUNE_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(DataError, match="set the environment variable ANOMTUNE_CACHE") as error:
        open_category(FolderDataset(tree), "part", 8)
    assert "\n" not in str(error.value)


def test_full_disk_names_the_variable_and_leaves_nothing(
    tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache_module, "start_array", full)
    with pytest.raises(DataError, match=r"No space left on device.*ANOMTUNE_CACHE"):
        open_category(FolderDataset(tree), "part", 8)
    assert entries(cache) == []


def test_an_error_of_reading_is_not_blamed_on_the_cache(
    tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(*_: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    for name in ("file_digest", "read_mask", "read_image"):
        with monkeypatch.context() as patch:
            patch.setattr(FolderDataset, name, stale)
            with pytest.raises(DataError, match=r"part/.*\.png: cannot be read \(Stale") as error:
                open_category(FolderDataset(tree), "part", 8)
            assert "ANOMTUNE_CACHE" not in str(error.value)


SLOW_BUILDER = """
import sys, time
from pathlib import Path
from anomtune.datasets.folder import FolderDataset
from anomtune.datasets.io.cache import open_category
root, log, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
read = FolderDataset.read_image
def slowly(self, category, key):
    with log.open("a") as file:
        file.write(key + "\\n")
    time.sleep(pause)
    return read(self, category, key)
FolderDataset.read_image = slowly
print(open_category(FolderDataset(root), "part", 8).images.sum())
"""


def start(tree: Path, log: Path, pause: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW_BUILDER, str(tree), str(log), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ.copy())


def lines(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_builder_killed_at_any_moment(tree: Path, tmp_path: Path, cache: Path) -> None:
    expected = 0
    for wanted in (1, 9):
        log = tmp_path / f"log{wanted}"
        builder = start(tree, log, 0.2)
        deadline = time.monotonic() + 30
        while lines(log) < wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(builder.pid, signal.SIGKILL)
        builder.wait()
        left = entries(cache)
        assert len(left) == 1, "the leftover of the builder before was removed"
        assert left[0].endswith(".tmp"), "half an entry never has the name of a whole one"
    arrays = open_category(FolderDataset(tree), "part", 8)
    expected = sum(
        int(np.asarray(Image.open(tree / "part" / s.key).resize((8, 8), 2)).sum())
        for s in arrays.samples
    )
    assert int(arrays.images.astype(np.int64).sum()) == expected
    (entry,) = entries(cache)
    assert not entry.endswith(".tmp")
    assert sorted(p.name for p in (cache / "categories" / entry).iterdir()) == [
        "images.npy",
        "masks.npy",
        "meta.json",
    ]


def test_leftovers_of_other_categories_go_too(tree: Path, cache: Path) -> None:
    family = cache / "categories"
    abandoned, busy = family / "aa.1-x.tmp", family / "bb.1-x.tmp"
    for folder in (abandoned, busy):
        folder.mkdir(parents=True)
    with FileLock(family / "bb.lock"):
        open_category(FolderDataset(tree), "part", 8)
        assert not abandoned.exists()
        assert busy.exists(), "somebody is at work on it"


def test_several_processes_at_once_decode_once(tree: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    builders = [start(tree, log, 0.05) for _ in range(3)]
    results = {b.communicate(timeout=60)[0] for b in builders}
    assert [b.returncode for b in builders] == [0, 0, 0]
    assert len(results) == 1
    assert lines(log) == 17


def test_dataset_without_fingerprint_still_works(decoded: list[str], tree: Path) -> None:
    class Plain(FolderDataset):
        fingerprint = Dataset.fingerprint

    open_category(Plain(tree), "part", 8)
    open_category(Plain(tree), "part", 8)
    assert len(decoded) == 17


def test_synthetic_category(cache: Path) -> None:
    arrays = open_category(SyntheticDataset(), "washer", 32)
    assert arrays.images.shape == (122, 32, 32, 3)
    assert arrays.has_mask.sum() == 42


def test_battery_weld(real: Callable[[str], Path]) -> None:
    arrays = open_category(FolderDataset(real("battery_weld")), "battery_weld", 64)
    assert arrays.images.shape == (158, 64, 64, 3)
    assert arrays.has_mask.sum() == 93
    assert 0.01 < arrays.masks[arrays.has_mask].mean() < 0.5


READER = """
import sys
from pathlib import Path
from anomtune.datasets.folder import FolderDataset
from anomtune.datasets.splits.split import Validation, load_search_split
split = load_search_split(FolderDataset(Path(sys.argv[1])), "part", 512, Validation())
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
