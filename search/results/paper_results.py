"""What papers report: image AUROCs to hold one's own against.

``paper_results.csv`` has a row per dataset, category and method, with the paper and its table. A
method's figures are not always from its own paper: RD4AD's and PatchCore's on MVTec AD are those
of ReContrast's table. On datasets with shifted domains the figure is that of the training images'
domain. Papers take validation and test from the same images (the protocol ``test``).
"""

from __future__ import annotations

import csv
from functools import cache
from importlib import resources


def paper_auroc(dataset: str, category: str, method: str) -> float | None:
    """Returns the published image AUROC of a method on a category, ``None`` if none is known.

    Args:
        dataset: Name of the dataset as it is registered.
        category: Name of the category.
        method: Name of the method as it is registered.

    Returns:
        AUROC in [0, 1], rounded as in the paper.
    """
    return _table().get((dataset, category, method))


def published_categories(dataset: str) -> tuple[str, ...]:
    """Returns the categories of a dataset that a paper has figures of, as the table has them."""
    return tuple(dict.fromkeys(category for name, category, _ in _table() if name == dataset))


@cache
def _table() -> dict[tuple[str, str, str], float]:
    content = (
        resources.files("anomtune.search.results").joinpath("paper_results.csv").read_text("utf-8")
    )
    return {
        (row["dataset"], row["category"], row["method"]): float(row["auroc"])
        for row in csv.DictReader(content.splitlines())
    }
