"""The directories of the cache and its notes: where they lie, whole or absent, built once."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from anomtune.datasets.folder import Folder
from anomtune.datasets.io import cache as cache_module
from anomtune.datasets.io import store
from anomtune.datasets.io.cache import open_category
from anomtune.datasets.synthetic import Synthetic
from anomtune.errors import StorageError

pytestmark = pytest.mark.slow


def entries(cache: Path) -> list[str]:
    return sorted(
        p.name for p in (cache / "categories").iterdir() if p.suffix not in (".lock", ".used")
    )


def test_cache_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ANOMTUNE_CACHE", str(tmp_path / "a"))
    assert store.cache_root() == tmp_path / "a"
    monkeypatch.delenv("ANOMTUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert store.cache_root() == tmp_path / "x/anomtune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "h"))
    assert store.cache_root() == tmp_path / "h/.cache/anomtune"


def test_a_user_without_a_home_is_told_of_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ANOMTUNE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(StorageError, match="set the environment variable ANOMTUNE_CACHE"):
        open_category(Synthetic(), "grain", 8)


def test_notes_of_killed_writers_are_removed(cache: Path) -> None:
    (cache / "index").mkdir(parents=True)
    (cache / "index/aa.1-x.tmp").write_text("half")
    store.remember("bb", "value")
    assert store.recall("bb") == "value"
    assert not list((cache / "index").glob("*.tmp"))


@pytest.mark.parametrize("harm", ["truncate", "delete", "garble"])
def test_damaged_entry_is_built_again(tree: Path, cache: Path, harm: str) -> None:
    good = open_category(Folder(tree), "part", 8).images[:]
    (entry,) = entries(cache)
    victim = cache / "categories" / entry / "images.npy"
    if harm == "truncate":
        victim.write_bytes(victim.read_bytes()[:500])
    elif harm == "delete":
        victim.unlink()
    else:
        victim.write_bytes(b"\x80\x04 not an array")
    assert (open_category(Folder(tree), "part", 8).images[:] == good).all()
    assert entries(cache) == [entry]


def test_unwritable_cache_names_the_variable(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ANOMTUNE_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(StorageError, match="set the environment variable ANOMTUNE_CACHE") as error:
        open_category(Folder(tree), "part", 8)
    assert "\n" not in str(error.value)


def test_full_disk_names_the_variable_and_leaves_nothing(
    tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache_module, "start_array", full)
    with pytest.raises(StorageError, match=r"No space left on device.*ANOMTUNE_CACHE"):
        open_category(Folder(tree), "part", 8)
    assert entries(cache) == []


SLOW_BUILDER = """
import sys, time
from pathlib import Path
from anomtune.datasets.folder import Folder
from anomtune.datasets.io.cache import open_category
root, log, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
read = Folder.read_image
def slowly(self, category, key):
    with log.open("a") as file:
        file.write(key + "\\n")
    time.sleep(pause)
    return read(self, category, key)
Folder.read_image = slowly
print(open_category(Folder(root), "part", 8).images[:].sum())
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
    arrays = open_category(Folder(tree), "part", 8)
    expected = sum(
        int(np.asarray(Image.open(tree / "part" / s.key).resize((8, 8), 2)).sum())
        for s in arrays.samples
    )
    assert int(arrays.images[:].astype(np.int64).sum()) == expected
    (entry,) = entries(cache)
    assert not entry.endswith(".tmp")
    assert sorted(p.name for p in (cache / "categories" / entry).iterdir()) == [
        "images.npy",
        "masks.bin",
        "meta.json",
        "training.npy",
    ]


def test_leftovers_of_other_categories_go_too(tree: Path, cache: Path) -> None:
    family = cache / "categories"
    abandoned, busy = family / "aa.1-x.tmp", family / "bb.1-x.tmp"
    for folder in (abandoned, busy):
        folder.mkdir(parents=True)
    with FileLock(family / "bb.lock"):
        open_category(Folder(tree), "part", 8)
        assert not abandoned.exists()
        assert busy.exists(), "somebody is at work on it"


def test_several_processes_at_once_decode_once(tree: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    builders = [start(tree, log, 0.05) for _ in range(3)]
    results = {b.communicate(timeout=60)[0] for b in builders}
    assert [b.returncode for b in builders] == [0, 0, 0]
    assert len(results) == 1
    assert lines(log) == 17


def test_every_file_of_a_nested_entry_is_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    real = os.fsync
    monkeypatch.setattr(
        store.os,
        "fsync",
        lambda fd: (flushed.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name), real(fd))[1],
    )

    def build(folder: Path) -> None:
        (folder / "a/b").mkdir(parents=True)
        (folder / "a/b/deep").write_text("x")
        (folder / "flat").write_text(json.dumps(1))

    place = store.obtain("nested", "key", build, lambda p: (p / "a/b/deep").read_text())
    assert place == "x"
    assert sorted(flushed) == ["deep", "flat"]
