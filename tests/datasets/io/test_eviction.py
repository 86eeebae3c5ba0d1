"""The cache of a node: what goes when it takes too much, and what stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anomtune.datasets.io import eviction, store
from anomtune.datasets.io.eviction import entries, evict, hold
from anomtune.errors import StorageError

_SIZE = 200_000


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANOMTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(eviction, "_held", type(eviction._held)())
    return tmp_path / "cache"


def obtain(key: str, kind: str = "images") -> Path:
    def build(folder: Path) -> None:
        (folder / "data").write_bytes(os.urandom(_SIZE))

    def load(folder: Path) -> Path:
        if (folder / "data").stat().st_size != _SIZE:
            raise ValueError
        return folder

    return store.obtain(kind, key, build, load)


def let_go() -> None:
    """As if the processes that opened the entries had ended."""
    for file in eviction._held.values():
        os.close(file)
    eviction._held.clear()


def age(place: Path, hours: float) -> None:
    used = place.with_name(place.name + ".used")
    os.utime(used, (time.time() - hours * 3600,) * 2)


def keys(root: Path) -> list[str]:
    return [entry.place.name for entry in entries(root)]


def test_what_was_used_least_recently_goes_first(root, monkeypatch):
    for hours, key in enumerate(("c", "b", "a")):
        age(obtain(key), hours + 1)
    let_go()
    obtain("a")
    let_go()
    assert keys(root) == ["b", "c", "a"]
    monkeypatch.setenv("ANOMTUNE_CACHE_GB", str(3.5 * _SIZE / 1e9))
    obtain("d")
    assert keys(root) == ["c", "a", "d"]


def test_what_this_process_has_opened_stays(root):
    obtain("a")
    obtain("b")
    evict(root, 0)
    assert sorted(keys(root)) == ["a", "b"]
    let_go()
    evict(root, 0)
    assert keys(root) == []
    assert obtain("a").exists()


def test_what_another_process_has_opened_stays_until_it_ends(root):
    obtain("a")
    obtain("b")
    let_go()
    script = (
        "import sys, pathlib; from anomtune.datasets.io.eviction import hold; "
        "hold(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, root / "images" / "a"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        evict(root, 0)
        assert keys(root) == ["a"]
        other.kill()
    evict(root, 0)
    assert keys(root) == []


def test_few_are_held_at_a_time(root, monkeypatch):
    monkeypatch.setattr(eviction, "_MOST_HELD", 2)
    for key in "abc":
        obtain(key)
    evict(root, 0)
    assert sorted(keys(root)) == ["b", "c"]


def test_links_count_once_and_fetched_files_go_when_no_tree_has_them(root):
    tree, whole = obtain("tree", "remote"), root / "objects/ab/abcd"
    whole.parent.mkdir(parents=True)
    os.link(tree / "data", whole)
    alone, young = whole.with_name("abce"), whole.with_name("abcf")
    alone.write_bytes(os.urandom(_SIZE))
    young.write_bytes(os.urandom(_SIZE))
    os.utime(alone, (time.time() - 5000,) * 2)
    assert keys(root) == ["abce", "tree"]
    assert sum(entry.size for entry in entries(root)) < 2.2 * _SIZE
    evict(root, 0)
    assert (whole.exists(), alone.exists(), young.exists()) == (True, False, True)


def test_a_folder_that_cannot_be_written_holds_nothing(tmp_path):
    hold(tmp_path / "absent/key")


@pytest.mark.parametrize("given", ["0", "-1", "many", "nan", "inf"])
def test_a_bound_that_is_none_is_refused(root, monkeypatch, given):
    monkeypatch.setenv("ANOMTUNE_CACHE_GB", given)
    with pytest.raises(StorageError, match=f"ANOMTUNE_CACHE_GB={given}: must be a number above 0"):
        obtain("a")
    assert not root.exists()


def test_the_bound_is_in_gigabytes(monkeypatch):
    monkeypatch.setenv("ANOMTUNE_CACHE_GB", "1.5")
    assert store.bound() == 1_500_000_000
    monkeypatch.delenv("ANOMTUNE_CACHE_GB")
    assert store.bound() == 50_000_000_000


def test_the_command_shows_it(root, run, monkeypatch):
    code, out, _ = run("cache")
    assert code == 0
    assert "0.0 MB of at most 50.0 GB (ANOMTUNE_CACHE_GB)" in out
    obtain("a")
    obtain("b", "features")
    code, out, _ = run("cache")
    rows = [line.split()[:4] for line in out.splitlines()]
    assert ["features", "1", "0.2", "MB"] in rows
    assert ["images", "1", "0.2", "MB"] in rows
    monkeypatch.setenv("ANOMTUNE_CACHE_GB", "x")
    code, _, err = run("cache")
    assert code == 2
    assert "ANOMTUNE_CACHE_GB=x" in err
