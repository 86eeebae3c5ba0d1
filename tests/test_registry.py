"""One registry for all that a sweep file can name, in three ways, and other people's mistakes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from anomtune import registry
from anomtune.datasets.folder import Folder
from anomtune.datasets.opening import open_dataset
from anomtune.datasets.synthetic import Synthetic
from anomtune.errors import AnomtuneError, DataError, MethodError, SweepError
from anomtune.models.rd4ad import RD4AD
from anomtune.models.recontrast import ReContrast
from anomtune.registry import ALL, DATASETS, METHODS, METRICS, PRUNERS, SAMPLERS, Registry
from anomtune.search.metrics.metric import Metric

Install = Callable[..., None]


@pytest.fixture(autouse=True)
def _nothing_stays_registered() -> Iterator[None]:
    yield
    for known in ALL:
        known._registered.clear()


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes entry points ``name=value`` the only ones of a kind."""

    def install(*pairs: tuple[str, str], kind: Registry = METHODS) -> None:
        entries = [EntryPoint(name, value, kind.group) for name, value in pairs]

        def entry_points(*, group: str) -> list[EntryPoint]:
            return entries if group == kind.group else []

        monkeypatch.setattr(registry, "entry_points", entry_points)
        registry._entry_points.cache_clear()

    yield install
    monkeypatch.undo()
    registry._entry_points.cache_clear()


def test_what_this_package_brings() -> None:
    assert METHODS.get("rd4ad") is RD4AD
    assert METHODS.get("recontrast") is ReContrast
    assert {"folder", "synthetic", "mvtec"} <= set(DATASETS.names())
    assert {"tpe", "random", "gp", "cmaes"} <= set(SAMPLERS.names())
    assert {"successive_halving", "hyperband", "median", "none"} <= set(PRUNERS.names())
    for known in ALL:
        assert list(known.names()) == sorted(known.names())


def test_opens_by_name(toy_data: Path) -> None:
    assert isinstance(open_dataset("folder", toy_data), Folder)
    assert isinstance(open_dataset("synthetic", None), Synthetic)


def test_an_unknown_name_gets_the_nearest(install: Install) -> None:
    install(("rd4ad", "a:B"), ("recontrast", "a:C"))
    with pytest.raises(MethodError, match=r"there is rd4ad, recontrast; did you mean 'recontra"):
        METHODS.get("re_contrast")
    with pytest.raises(MethodError, match=r"recontrast$"):
        METHODS.get("zzz")
    with pytest.raises(SweepError, match=r"no sampler 'tpo'; there is none"):
        SAMPLERS.get("tpo")


def test_an_unknown_dataset_gets_the_nearest() -> None:
    with pytest.raises(DataError, match=r"no dataset 'foldr'; .*; did you mean 'folder'") as error:
        open_dataset("foldr", None)
    assert "synthetic" in str(error.value)


BROKEN = [
    ("no_such_module_at_all:X", "no_such_module_at_all.* cannot be used: ModuleNotFound"),
    ("json:no_such_name", "cannot be used: AttributeError"),
    ("json:dumps", "it is no subclass of anomtune.models.base.Detector; repair or uninstall"),
    ("pathlib:Path", "it is no subclass of anomtune.models.base.Detector; repair or uninstall"),
]


@pytest.mark.parametrize(("value", "message"), BROKEN)
def test_a_broken_plug_in(install: Install, value: str, message: str) -> None:
    install(("broken", value))
    assert METHODS.declared() == ("broken",)
    with pytest.raises(MethodError, match=message):
        METHODS.get("broken")


@pytest.mark.parametrize("value", ["no_such_package.data:Thing", "pathlib:Path", "json:gone"])
def test_a_broken_package_is_a_data_error(install: Install, value: str) -> None:
    install(("broken", value), kind=DATASETS)
    with pytest.raises(
        DataError, match=r"cannot be used.*repair or uninstall that package"
    ) as error:
        open_dataset("broken", None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("value", "message"), BROKEN)
def test_a_wrong_import_path(value: str, message: str) -> None:
    with pytest.raises(MethodError, match=message.partition("; repair")[0]) as error:
        METHODS.get(value)
    assert str(error.value).endswith("correct the import path")
    assert "\n" not in str(error.value)


def test_an_import_path_is_as_good_as_a_name() -> None:
    assert METHODS.get("anomtune.models.rd4ad:RD4AD") is RD4AD
    assert isinstance(open_dataset("anomtune.datasets.synthetic:Synthetic", None), Synthetic)
    assert METHODS.name_of(RD4AD) == "rd4ad"
    assert DATASETS.name_of(Folder) == "folder"


def test_a_plug_ins_error_of_several_lines_becomes_one(
    install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "anomtune_broken_plugin.py").write_text("raise ImportError('one\\ntwo')")
    monkeypatch.syspath_prepend(str(tmp_path))
    install(("broken", "anomtune_broken_plugin:X"))
    with pytest.raises(MethodError, match="ImportError: one two; repair or uninstall") as error:
        METHODS.get("broken")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [METHODS, DATASETS], ids=["method", "dataset"])
def test_a_name_claimed_twice(install: Install, kind: Registry) -> None:
    install(("x", "a:B"), ("x", "c:D"), kind=kind)
    assert kind.declared() == ("x",)
    with pytest.raises(AnomtuneError, match="more than once: a:B, c:D; uninstall all but one"):
        kind.get("x")
    # An editable install may list itself twice.
    same = {
        "method": "anomtune.models.rd4ad:RD4AD",
        "dataset": "anomtune.datasets.synthetic:Synthetic",
    }[kind.kind]
    install(("x", same), ("x", same), kind=kind)
    assert kind.get("x").__name__ in same


def test_a_datasets_own_complaint_is_passed_on() -> None:
    with pytest.raises(DataError, match=r"needs a folder: set dataset\.root"):
        open_dataset("folder", None)


def test_names_are_known_without_what_they_name() -> None:
    code = (
        "import sys; from anomtune.registry import ALL; [known.names() for known in ALL]; "
        "import anomtune.models.hyperparameters; "
        "sys.exit(bool({'torch', 'ray', 'optuna', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_decorator_makes_a_class_known() -> None:
    @METHODS.register("mine")
    class Mine(RD4AD): ...

    assert METHODS.get("mine") is Mine
    assert "mine" in METHODS.names()
    assert METHODS.name_of(Mine) == "mine"

    @METHODS.register("mine")
    class Better(RD4AD): ...

    assert METHODS.get("mine") is Better, "a cell of a notebook that is run again"


def test_what_cannot_be_registered() -> None:
    with pytest.raises(MethodError, match="'rd4ad' is the name of an installed one"):
        METHODS.register("rd4ad", ReContrast)
    with pytest.raises(MethodError, match=r"it is no subclass of anomtune\.models\.base\.Detector"):
        METHODS.register("mine", Folder)
    with pytest.raises(MethodError, match=r"it is no subclass of anomtune\.models\.base\.Detector"):
        METHODS.register("mine", object.__new__(RD4AD))
    with pytest.raises(SweepError, match=r"it is no anomtune\.search\.metrics\.metric\.Metric"):
        METRICS.register("mine", Metric)
    with pytest.raises(SweepError, match="it cannot be called"):
        SAMPLERS.register("mine", 3)
    for name in ("", "a:b", "a/b", "..", ".a", "a\n"):
        with pytest.raises(MethodError, match="choose a name"):
            METHODS.register(name, RD4AD)


def test_a_class_that_no_worker_would_find() -> None:
    class Local(Synthetic): ...

    with pytest.raises(DataError, match=r"give it a name with @anomtune\.register_dataset"):
        DATASETS.name_of(Local)


def test_another_process_can_adopt_what_was_registered() -> None:
    @METHODS.register("mine")
    class Mine(RD4AD): ...

    given = registry.registrations()
    METHODS._registered.clear()
    with pytest.raises(MethodError, match="no method 'mine'"):
        METHODS.get("mine")
    registry.adopt(given)
    registry.adopt(given)
    assert METHODS.get("mine") is Mine


def test_what_is_adopted_goes_before_what_is_installed() -> None:
    """A node may have a package that the driver has not."""
    registry.adopt({"method": {"rd4ad": ReContrast}})
    assert METHODS.get("rd4ad") is ReContrast
