"""A dataset that is opened by name: what it is called, and whose complaint is passed on."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomtune.datasets.opening import open_dataset
from anomtune.datasets.splits.shift import Shift
from anomtune.datasets.synthetic import Synthetic
from anomtune.errors import DataError, StorageError
from anomtune.registry import DATASETS


class Mine(Synthetic):
    """One that somebody else wrote."""


class Broken(Synthetic):
    error: type[Exception] = ValueError

    def __init__(self, root: Path | None = None) -> None:
        raise self.error("not today")


def test_it_is_called_by_what_it_was_opened_by(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Mine().name == "Mine"
    path = f"{__name__}:Mine"
    monkeypatch.setitem(DATASETS._registered, "mine", Mine)
    for name in ("mine", path):
        assert open_dataset(name, None).name == name
        assert open_dataset(name, None, Shift()).name == name
    assert (Mine.name, Synthetic.name) == ("Mine", "synthetic")


def test_its_own_complaint_is_passed_on_and_a_fault_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(DATASETS._registered, "broken", Broken)
    for error in (DataError, StorageError):
        monkeypatch.setattr(Broken, "error", error)
        with pytest.raises(error, match=r"^not today$"):
            open_dataset("broken", None)
    monkeypatch.setattr(Broken, "error", KeyError)
    with pytest.raises(DataError, match="'broken' cannot be used: KeyError: 'not today'"):
        open_dataset("broken", None)
