"""The front door: what `import anomtune` gives, and what it leaves alone."""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import anomtune as at
from tests.conftest import FORKS, PROJECT


def python(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_import_takes_nothing_heavy_along() -> None:
    heavy = {"ray", "torch", "optuna", "numpy", "pyarrow", "pydantic", "rich", "typer"}
    done = python("-c", f"import sys, anomtune; print(*({heavy} & set(sys.modules)))")
    assert done.stdout.split() == [], done


def test_every_public_name_is_there_and_documented() -> None:
    stub = ast.parse((PROJECT / "anomtune/__init__.pyi").read_text())
    listed = {
        a.asname for node in stub.body if isinstance(node, ast.ImportFrom) for a in node.names
    }
    assert set(at.__all__) == listed | {"__version__"}
    assert listed <= set(dir(at))
    for name in at.__all__:
        assert getattr(at, name).__doc__, f"{name} has no docstring"
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = at.no_such_thing
    assert (PROJECT / "anomtune/py.typed").exists()


def documented() -> list[str]:
    """Returns the modules that public names live in."""
    modules = {
        getattr(at, name).__module__ for name in at.__all__ if name[0] != "_" and name != "testing"
    }
    return sorted(modules | {"anomtune"})


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.ray if name == "anomtune.search.sweep" else ())
        for name in documented()
    ],
)
def test_docstrings_run(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert failed == 0


def test_there_are_docstrings_to_run() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    examples = [
        example
        for name in documented()
        for test in finder.find(importlib.import_module(name))
        for example in test.examples
    ]
    assert len(examples) > 20


@pytest.mark.slow
def test_python_m_anomtune_is_the_command() -> None:
    done = python("-m", "anomtune", "--help")
    assert done.returncode == 0
    assert "sweep" in done.stdout
    done = python("-m", "anomtune", "leaderboard", "/no/such")
    assert done.returncode == 2
    assert done.stderr.startswith("anomtune: /no/such: no sweep.yaml there")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["checkout", "elsewhere"])
def test_sub_packages_are_found_from_everywhere(where: str, tmp_path: Path) -> None:
    """Python started in a checkout finds its folder `anomtune` first, with no `search` in it."""
    code = "import anomtune, anomtune.search.config, anomtune.cli.main; print(anomtune.__version__)"
    done = python("-c", code, cwd=PROJECT if where == "checkout" else tmp_path)
    assert done.stdout.strip() == at.__version__, done.stderr


@pytest.mark.ray
def test_the_example_of_the_documentation(tmp_path: Path, toy_data: Path) -> None:
    """A fresh interpreter runs it as a script, away from the checkout, on a Ray of its own."""
    script = PROJECT / "tests/example/line_3.py"
    environment = os.environ | {"PYTHONPATH": str(FORKS)}  # and not the toy's
    done = python(script, toy_data, tmp_path, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all as documented\n")
    for event in (
        "SweepStarted(slots=",
        "TrialStarted(category='plate'",
        "RungReached(",
        "state='COMPLETE'",
        "ConfirmEnded(",
    ):
        assert event in done.stdout, event
