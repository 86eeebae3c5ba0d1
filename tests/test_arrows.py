"""Imports run one way: each room knows the rooms below it, and nothing of those above."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT

#: From the lowest floor to the highest; rooms of one floor know nothing of each other.
FLOORS = (
    ("names",),
    ("bounded", "errors", "files", "settings", "progress"),
    ("registry",),
    ("datasets", "models"),
    ("search",),
    ("cluster",),
    ("testing", "cli"),
    ("__init__", "__main__"),
)
SEARCH_FLOORS = (
    ("yaml_text", "explain", "logger_config", "source"),
    ("config", "metrics"),
    ("store",),
    ("decide", "detector"),
    ("run", "results", "events", "propose"),
    ("preparation", "journal"),
    ("sweep", "report", "reproduce"),
    ("watch",),
)
#: What a room must not import, directly or through others.
STRANGERS = {
    "datasets": {"ray", "optuna", "torch"},
    "models": {"ray", "optuna"},
    "search.config": {"ray", "optuna", "torch"},
    "search.store": {"ray", "optuna", "torch"},
    "search.decide": {"ray", "torch"},
    "search.detector": {"ray", "optuna"},
}
#: What may be used where a process has it already, and is never imported first.
GUESTS = {"datasets.io.fast": {"torch"}}


def sources() -> Iterator[tuple[str, Path]]:
    """Yields the dotted name, without ``anomtune.``, and the file of every module."""
    for folder in ("anomtune", "datasets", "models", "search", "cluster"):
        for path in sorted((PROJECT / folder).rglob("*.py")):
            parts = path.relative_to(PROJECT).with_suffix("").parts
            if parts[0] == "anomtune":
                parts = parts[1:]
            if parts[-1] == "__init__" and len(parts) > 1:
                parts = parts[:-1]
            yield ".".join(parts), path


SOURCES = dict(sources())


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the line and the dotted name of all that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports by relative path"
            for alias in node.names:
                # `from package import module` names a module, `from module import name` does not.
                whole = f"{node.module}.{alias.name}"
                known = whole.removeprefix("anomtune.") in SOURCES
                yield node.lineno, whole if known else str(node.module)


def floor_of(name: str) -> tuple[int, int, str]:
    """Returns the floor of a module, within `search` as well, and its room."""
    room, _, rest = name.partition(".")
    (height,) = (i for i, rooms in enumerate(FLOORS) if room in rooms)
    if room != "search" or not rest:
        return height, 0, room
    inner = rest.partition(".")[0]
    (inside,) = (i for i, rooms in enumerate(SEARCH_FLOORS) if inner in rooms)
    return height, inside, f"search.{inner}"


def backward(name: str, path: Path) -> Iterator[str]:
    """Yields the imports of a module that run up, or across a floor."""
    own = floor_of(name)
    for line, imported in imports(path):
        if not imported.startswith("anomtune."):
            continue
        target = floor_of(imported.removeprefix("anomtune."))
        if target[2] != own[2] and target[:2] >= own[:2]:
            yield f"{path.relative_to(PROJECT)}:{line}: {own[2]} imports {imported}"


def test_every_module_has_a_floor() -> None:
    assert len(SOURCES) > 100
    for name in SOURCES:
        floor_of(name)


def test_no_arrow_runs_back() -> None:
    wrong = [arrow for name, path in SOURCES.items() for arrow in backward(name, path)]
    assert not wrong, "\n".join(wrong)


def test_an_arrow_that_runs_back_is_seen(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tests.test_arrows.PROJECT", tmp_path)
    path = tmp_path / "pool.py"
    for line in (
        "from anomtune.search.run.engine import run_work",
        "from anomtune.search.detector import train",
        "from anomtune.search import sweep",
        "import anomtune.cli.main",
        "def f():\n    from anomtune.cluster import jobs",
    ):
        path.write_text(line)
        assert list(backward("search.decide.pool", path)), line
    path.write_text("import optuna\nfrom anomtune.search.store.records import Rung")
    assert not list(backward("search.decide.pool", path))


@pytest.mark.slow
@pytest.mark.parametrize("room", STRANGERS)
def test_a_room_does_not_import_strangers(room: str) -> None:
    names = [name for name in SOURCES if f"{name}.".startswith(f"{room}.")]
    for name in names:
        for line, imported in imports(SOURCES[name]):
            stranger = imported.partition(".")[0]
            strangers = STRANGERS[room] - GUESTS.get(name, set())
            assert stranger not in strangers, f"{SOURCES[name]}:{line} imports {imported}"
    modules = ", ".join(f"anomtune.{name}" for name in names)
    code = f"import sys, {modules}\nprint(*({STRANGERS[room]} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
