"""What `anomtune reproduce` found: runs of a paper's config, as rows beside published values."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from anomtune.models.hyperparameters import Hyperparameters
from anomtune.registry import METHODS
from anomtune.search.config import Sweep
from anomtune.search.results.paper_results import published
from anomtune.search.store.held_out import DomainFigures
from anomtune.search.store.part import Part


class PaperRun(Part):
    """One training of the paper's config, judged as the paper does.

    Attributes:
        dataset: Name of the dataset.
        category: One of its categories.
        method: Name of the method.
        seed: What it was trained with.
        image_size: Side of the maps in pixels.
        content: Digest of the category's images and masks.
        hyperparameters: All of them.
        seen: How much of each side of the images the method sees; figures of pixels are of that.
        state: ``COMPLETE``, or ``FAIL`` of a training that gave no usable detector.
        figures: On all test images, by domain; "" is that of the training images.
        error: Why it failed.
        train_seconds: Time spent in training.
        parameters: Of the network.
    """

    dataset: str
    category: str
    method: str
    seed: int
    image_size: int
    content: str
    hyperparameters: dict[str, Any]
    seen: float = 1.0
    state: Literal["COMPLETE", "FAIL"]
    figures: dict[str, DomainFigures] = {}  # noqa: RUF012 - pydantic copies it
    error: str | None = None
    train_seconds: float | None = None
    parameters: int | None = None


@dataclass(frozen=True)
class Figure:
    """One figure beside its published value; both in [0, 1].

    Attributes:
        mean: Over the seeds, ``None`` if it is not defined or no run gave it.
        std: Of the seeds, ``None`` of less than two.
        published: What the paper reports, if it does.
    """

    mean: float | None
    std: float | None
    published: float | None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        if self.mean is None or self.published is None:
            return None
        return self.mean - self.published


@dataclass(frozen=True)
class Row:
    """A category, or the mean of all of them.

    Attributes:
        category: Its name, ``mean`` of all of them.
        domain: The shifted domain, "" for that of the training images.
        figures: By name: ``auroc``, ``pixel_auroc`` and the paper's own ``aupro``.
        source: The paper and its table, if it is published.
    """

    category: str
    domain: str
    figures: Mapping[str, Figure]
    source: str | None = None


@dataclass(frozen=True)
class Reproduction:
    """What was trained and found.

    Attributes:
        config: The resolved sweep whose trials 0 these are.
        runs: Of each category, one per seed.
        differs: What of the config is not the paper's own, in words; empty if all of it is.
        warnings: What is odd about the images, one line each: a copy that is not complete.
    """

    config: Sweep
    runs: Mapping[str, Sequence[PaperRun]]
    differs: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def method(self) -> str:
        """Name of the method."""
        return next(iter(self.config.methods))

    @property
    def inferred(self) -> list[str]:
        """The hyperparameters whose value for some category no source tells."""
        kind, dataset = METHODS.get(self.method).Hyperparameters, self.config.dataset.name
        settings = (kind.settings_for(dataset, category) for category in self.runs)
        return sorted({name for each in settings for name, s in each.items() if s.inferred})

    @property
    def figure_names(self) -> tuple[str, str, str]:
        """Image AUROC, pixel AUROC and AUPRO in the paper's variant, as metrics are called."""
        return figure_names(METHODS.get(self.method).Hyperparameters)

    def rows(self) -> list[Row]:
        """Returns a row for each category and domain, then the mean if there are several."""
        rows = [row for category in self.runs for row in self._rows(category)]
        own = [row for row in rows if row.domain == ""]
        if len(own) > 1:
            rows.append(
                Row(
                    "mean",
                    "",
                    {name: _mean([row.figures[name] for row in own]) for name in self.figure_names},
                )
            )
        return rows

    def _rows(self, category: str) -> Iterator[Row]:
        runs = [run for run in self.runs[category] if run.state == "COMPLETE"]
        known = published(self.config.dataset.name, category, self.method)
        for domain in sorted({domain for run in runs for domain in run.figures} | {""}):
            told = known if domain == "" else None
            values = {
                name: [run.figures[domain].figures.get(name) for run in runs]
                for name in self.figure_names
            }
            yield Row(
                category,
                domain,
                {
                    name: _figure(found, told.figures.get(name) if told else None)
                    for name, found in values.items()
                },
                told.source if told else None,
            )


def figure_names(kind: type[Hyperparameters]) -> tuple[str, str, str]:
    """Returns what is compared of a method: metrics by name."""
    aupro = "aupro_per_image" if kind.protocol.aupro_per_image else "aupro"
    return ("auroc", "pixel_auroc", aupro)


def _figure(values: Sequence[float | None], told: float | None) -> Figure:
    found = [value for value in values if value is not None]
    return Figure(
        mean=statistics.fmean(found) if found else None,
        std=statistics.stdev(found) if len(found) > 1 else None,
        published=told,
    )


def _mean(figures: Sequence[Figure]) -> Figure:
    """Returns the mean over categories; it is not defined if one of them has none."""
    ours = [figure.mean for figure in figures]
    told = [figure.published for figure in figures]
    return Figure(
        mean=statistics.fmean(v for v in ours if v is not None) if None not in ours else None,
        std=None,
        published=statistics.fmean(v for v in told if v is not None) if None not in told else None,
    )
