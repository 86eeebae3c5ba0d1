"""Datasets by name, and other people's broken packages."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from anomtune.datasets import registry
from anomtune.datasets.folder import FolderDataset
from anomtune.datasets.opening import open_dataset
from anomtune.datasets.synthetic import SyntheticDataset
from anomtune.errors import DataError


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed, whether or not anomtune itself is, and three broken packages."""
    names = {
        "folder": "anomtune.datasets.folder:FolderDataset",
        "synthetic": "anomtune.datasets.synthetic:SyntheticDataset",
        "gone": "no_such_package.data:Thing",
        "wrong": "pathlib:Path",
        "raises": "anomtune.datasets.registry:available",
    }
    install(monkeypatch, *names.items())


def install(monkeypatch: pytest.MonkeyPatch, *pairs: tuple[str, str]) -> None:
    """Makes entry points ``name=value`` the only ones there are."""
    points = [EntryPoint(n, v, registry.GROUP) for n, v in pairs]

    def entry_points(*, group: str, name: str | None = None) -> list[EntryPoint]:
        assert group == registry.GROUP
        return [point for point in points if name in (None, point.name)]

    monkeypatch.setattr(registry, "entry_points", entry_points)


def test_opens_by_name(tree: Path) -> None:
    assert {"folder", "synthetic"} <= set(available())
    assert list(available()) == sorted(available())
    assert isinstance(open_dataset("folder", tree), FolderDataset)
    assert isinstance(open_dataset("synthetic", None), SyntheticDataset)


def test_unknown_name_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"no dataset 'foldr': .*; did you mean 'folder'") as error:
        open_dataset("foldr", None)
    assert "synthetic" in str(error.value)


@pytest.mark.parametrize("name", ["gone", "wrong", "raises"])
def test_broken_package_is_a_data_error(name: str) -> None:
    with pytest.raises(
        DataError, match=r"cannot be used.*repair or uninstall that package"
    ) as error:
        open_dataset(name, None)
    assert "\n" not in str(error.value)


def test_a_name_claimed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, ("x", "a:B"), ("x", "c:D"))
    assert available() == ("x",)
    with pytest.raises(DataError, match="more than once: a:B, c:D; uninstall all but one"):
        open_dataset("x", None)
    same = "anomtune.datasets.synthetic:SyntheticDataset"  # an editable install may list it twice
    install(monkeypatch, ("x", same), ("x", same))
    assert isinstance(open_dataset("x", None), SyntheticDataset)


def test_a_datasets_own_complaint_is_passed_on() -> None:
    with pytest.raises(DataError, match=r"needs a folder: set dataset\.root"):
        open_dataset("folder", None)


def test_package_knows_nothing_of_ray_torch_or_optuna() -> None:
    code = (
        "import sys, anomtune.datasets.splits.split, anomtune.datasets.splits.audit, anomtune.datasets.registry,"
        "anomtune.datasets.synthetic, anomtune.datasets.folder;"
        "print({'ray', 'torch', 'optuna'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
