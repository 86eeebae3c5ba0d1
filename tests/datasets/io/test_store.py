"""Where the cache lies, and its notes."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomtune.datasets.io import store
from anomtune.datasets.io.cache import open_category
from anomtune.datasets.synthetic import SyntheticDataset
from anomtune.errors import DataError


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
    with pytest.raises(DataError, match="set the environment variable ANOMTUNE_CACHE"):
        open_category(SyntheticDataset(), "grain", 8)


def test_notes_of_killed_writers_are_removed(cache: Path) -> None:
    (cache / "index").mkdir(parents=True)
    (cache / "index/aa.1-x.tmp").write_text("half")
    store.remember("bb", "value")
    assert store.recall("bb") == "value"
    assert not list((cache / "index").glob("*.tmp"))
