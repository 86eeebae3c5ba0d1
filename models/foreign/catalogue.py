"""Which models of anomalib are methods, by what lies in its folder: nothing is imported.

Neither is torch: names of methods are known before any of it is needed.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from anomtune.errors import suggest
from anomtune.models.foreign.table import table

#: What the names begin with.
PREFIX = "anomalib."
#: The oldest version that the adapter is tested with.
OLDEST = (2, 7)
_REMEDY = 'pip install "anomtune[anomalib]"'


def values() -> Mapping[str, str]:
    """Returns the import path of every method by its name; none without anomalib."""
    return {
        PREFIX + folder: f"anomtune.models.anomalib:{folder}"
        for folder in models()
        if folder not in table() or table()[folder].refused is None
    }


def why_not(name: str) -> str:
    """Says in one line why there is no method of a name that begins with the prefix."""
    folder = name.removeprefix(PREFIX)
    entry = table().get(folder)
    if entry is not None and entry.refused is not None:
        return f"method {name!r}: {entry.refused}"
    if _location() is None:
        return f"method {name!r} needs anomalib: {_REMEDY}"
    found = version("anomalib")
    if _too_old(found):
        return f"method {name!r} needs anomalib {_text(OLDEST)} or newer, not {found}: {_REMEDY}"
    return f"no method {name!r} in anomalib {found}{suggest(name, values())}"


def models() -> Mapping[str, str]:
    """Returns the classes of anomalib's image models by their folders; none without anomalib."""
    location = _location()
    if location is None or _too_old(version("anomalib")):
        return {}
    return _models(location)


def _location() -> str | None:
    return _find(tuple(sys.path))


@cache
def _find(path: tuple[str, ...]) -> str | None:
    """Returns the folder of anomalib, ``None`` if it is not installed."""
    try:
        version("anomalib")
        found = importlib.util.find_spec("anomalib")
    except (PackageNotFoundError, ImportError, ValueError):
        return None
    places = found and found.submodule_search_locations
    return next(iter(places), None) if places else None


@cache
def _models(location: str) -> Mapping[str, str]:
    """Reads what the package of the image models imports from the folders in it."""
    source = Path(location, "models", "image", "__init__.py")
    try:
        nodes = ast.parse(source.read_text("utf-8")).body
    except (OSError, SyntaxError):
        return {}
    return {
        node.module: node.names[0].name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
    }


def _too_old(found: str) -> bool:
    numbers = found.split(".")[:2]
    return tuple(int(part) for part in numbers if part.isdigit()) < OLDEST


def _text(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
