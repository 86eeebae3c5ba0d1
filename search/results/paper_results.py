"""What papers report: figures to hold one's own against.

``paper_results.csv`` has a row per dataset, category and method: the image AUROC, where there is
one the pixel AUROC and the AUPRO per image, and the paper with its table. A method's figures are
not always from its own paper: RD4AD's and PatchCore's on MVTec AD are those of ReContrast's table.
On datasets with shifted domains the figure is that of the training images' domain. Papers take
validation and test from the same images (the protocol ``test``).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class Published:
    """What a paper reports of a method on a category.

    Attributes:
        figures: By name of the metric, in [0, 1], rounded as in the paper.
        source: The paper and its table.
    """

    figures: Mapping[str, float]
    source: str


def published(dataset: str, category: str, method: str) -> Published | None:
    """Returns what is published of a method on a category, ``None`` if nothing is known.

    Args:
        dataset: Name of the dataset as it is registered.
        category: Name of the category.
        method: Name of the method as it is registered.
    """
    return _table().get((dataset, category, method))


def paper_auroc(dataset: str, category: str, method: str) -> float | None:
    """Returns the published image AUROC, in [0, 1]; see `published`."""
    found = published(dataset, category, method)
    return found and found.figures["auroc"]


@cache
def _table() -> dict[tuple[str, str, str], Published]:
    content = (
        resources.files("anomtune.search.results").joinpath("paper_results.csv").read_text("utf-8")
    )
    return {
        (row.pop("dataset"), row.pop("category"), row.pop("method")): Published(
            source=row.pop("source"),
            figures={name: float(value) for name, value in row.items() if value},
        )
        for row in csv.DictReader(content.splitlines())
    }
