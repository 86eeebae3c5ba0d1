from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from anomtune.errors import MethodError
from anomtune.models import registry
from anomtune.models.rd4ad import RD4AD
from anomtune.models.recontrast import ReContrast
from anomtune.registry import METHODS

Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes entry points ``name=value`` the only ones there are."""

    def install(*pairs: tuple[str, str]) -> None:
        entries = [EntryPoint(name, value, registry.GROUP) for name, value in pairs]

        def entry_points(*, group: str, name: str | None = None) -> list[EntryPoint]:
            assert group == registry.GROUP
            return [entry for entry in entries if name in (None, entry.name)]

        monkeypatch.setattr(registry, "entry_points", entry_points)

    return install


def test_the_methods_of_this_package() -> None:
    assert {"rd4ad", "recontrast"} <= set(available())
    assert METHODS.get("rd4ad") is RD4AD
    assert METHODS.get("recontrast") is ReContrast


def test_an_unknown_name_gets_the_nearest(install: Install) -> None:
    install(("rd4ad", "a:B"), ("recontrast", "a:C"))
    with pytest.raises(MethodError, match=r"there are rd4ad, recontrast; did you mean 'recontra"):
        METHODS.get("re_contrast")
    with pytest.raises(MethodError, match=r"recontrast$"):
        METHODS.get("zzz")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_module_at_all:X", "no_such_module_at_all.* cannot be used: ModuleNotFound"),
        ("json:no_such_name", "cannot be used: AttributeError"),
        ("json:dumps", "not a subclass of .*Detector; repair or uninstall"),
    ],
)
def test_a_broken_plug_in(install: Install, value: str, message: str) -> None:
    install(("broken", value))
    assert available() == ("broken",)
    with pytest.raises(MethodError, match=message):
        METHODS.get("broken")


def test_a_plug_ins_error_of_several_lines_becomes_one(
    install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "anomtune_broken_plugin.py").write_text("raise ImportError('one\\ntwo')")
    monkeypatch.syspath_prepend(str(tmp_path))
    install(("broken", "anomtune_broken_plugin:X"))
    with pytest.raises(MethodError, match="ImportError: one two; repair or uninstall") as error:
        METHODS.get("broken")
    assert "\n" not in str(error.value)


def test_a_name_claimed_twice(install: Install) -> None:
    install(("x", "a:B"), ("x", "c:D"))
    with pytest.raises(MethodError, match="more than once: a:B, c:D"):
        METHODS.get("x")
    same = "anomtune.models.rd4ad:RD4AD"  # an editable install may list itself twice
    install(("x", same), ("x", same))
    assert METHODS.get("x") is RD4AD


def test_names_are_known_without_torch() -> None:
    code = (
        "import sys; from anomtune.models.registry import available; available(); "
        "import anomtune.models.hyperparameters; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
