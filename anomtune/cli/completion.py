"""What the shell offers when somebody presses TAB: names, found without Ray, torch or Optuna."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import typer

from anomtune.names import plain_name, utf8


def method_names(incomplete: str) -> list[str]:
    """Returns the methods that begin so; those of anomalib are many and left out."""
    from anomtune.registry import METHODS

    return _beginning(METHODS.declared(), incomplete)


def dataset_names(incomplete: str) -> list[str]:
    """Returns the dataset families that begin so."""
    from anomtune.registry import DATASETS

    return _beginning(DATASETS.declared(), incomplete)


def published_categories(context: typer.Context, incomplete: str) -> list[str]:
    """Returns the categories of a known dataset that begin so."""
    from anomtune.search.results.paper_results import published_categories as known

    return _beginning(known(_given(context, "dataset") or ""), incomplete)


def searched_categories(context: typer.Context, incomplete: str) -> list[str]:
    """Returns the categories of a sweep's directory that begin so."""
    return _beginning(_folders(context, "trials"), incomplete)


def searched_methods(context: typer.Context, incomplete: str) -> list[str]:
    """Returns the methods of a sweep's directory that begin so."""
    chosen = context.params.get("category")
    categories = _folders(context, "trials") if chosen is None else [str(chosen)]
    found = {name for each in categories for name in _folders(context, "trials", each)}
    return _beginning(found, incomplete)


def _folders(context: typer.Context, *below: str) -> list[str]:
    """Returns the names of the folders in one of a sweep's directory; none of a remote one."""
    several = context.params.get("directories")
    given = several or [_given(context, "directory")]
    found: list[str] = []
    for directory in filter(None, given):
        with suppress(OSError, ValueError):
            for entry in os.scandir(Path(directory, *map(plain_name, below))):
                if entry.is_dir():
                    found.append(utf8(entry.name))
    return found


def _given(context: typer.Context, name: str) -> str | None:
    """Returns what was typed for a parameter."""
    value = context.params.get(name)
    if value is None and context.args:  # behind an option without its value nothing is sorted in
        value = context.args[-1]
    return None if value is None else str(value)


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))
