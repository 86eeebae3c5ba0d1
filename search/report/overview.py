"""The parts of the page that show all categories at once: tables, and what lies behind them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

import pyarrow as pa

from anomtune.search.config import Sweep
from anomtune.search.report.accuracy_figures import ranked_interval, ranked_value
from anomtune.search.report.evidence import CategoryEvidence, Evidence, StudyEvidence
from anomtune.search.report.verdict import confirmed, count, deviation, is_papers, spread
from anomtune.search.results.column import Row
from anomtune.search.results.columns import columns_named, is_of_plugin, ranked_by_both
from anomtune.search.results.figures import figure, interval, signed


@dataclass(frozen=True)
class ForestRow:
    """A method in the picture of a category's verdict; places are percent of the picture's width.

    Attributes:
        method: Its name.
        tied: Whether it cannot be told from rank 1; ``None`` where that was not tested.
        low: Where the 95 % interval of the validation AUROC begins by which it is ranked.
        width: How wide it is; 0 if it is not known.
        value: Where that AUROC stands.
        test: Where the mean held-out AUROC stands.
        label: The figures in words.
    """

    method: str
    tied: bool | None
    low: float
    width: float
    value: float
    test: float | None
    label: str


def forest_start(evidence: Evidence) -> float:
    """Returns the AUROC at the left end of the pictures: the lowest that is shown, rounded down."""
    shown = [
        value
        for study in evidence.studies
        for value in (
            *(ranked_interval(study.row) or ()),
            study.row["confirmed_auroc_mean"],
            study.row["test_auroc_mean"],
        )
        if value is not None
    ]
    return min(0.9, math.floor(min(shown, default=0.5) * 10) / 10)


def forest(category: CategoryEvidence, start: float) -> list[ForestRow]:
    """Returns the picture of a category: the interval of each method that has a result.

    Args:
        category: The category.
        start: The AUROC at the left end.
    """

    def place(value: float) -> float:
        return round(100 * (value - start) / (1 - start), 2)

    rows = []
    for study in category.studies:
        row = study.row
        if row["val_auroc"] is None:
            continue
        test = row["test_auroc_mean"]
        label = f"validation {figure(row['val_auroc'])} ({_of_search(row)})"
        if row["n_seeds"]:
            label += f", retrained {confirmed(row)}"
        label += "" if test is None else f", held out {spread(row, 'test_auroc')}"
        low, high = map(place, ranked_interval(row) or (ranked_value(row),) * 2)
        rows.append(
            ForestRow(
                method=row["method"],
                tied=row["tied"],
                low=low,
                width=round(high - low, 2),
                value=place(ranked_value(row)),
                test=None if test is None else place(test),
                label=label,
            )
        )
    return rows


@dataclass(frozen=True)
class HeatCell:
    """A cell of a heat map: ``level`` in [0, 1] is its colour, ``note`` what it says besides."""

    value: str
    note: str
    level: float
    best: bool
    tied: bool
    title: str


@dataclass(frozen=True)
class HeatMap:
    """AUROC of methods and categories.

    Attributes:
        name: Which AUROC.
        explanation: What a cell shows.
        rows: By category; ``None`` for a study without a result.
        low: The AUROC of the weakest colour.
        high: That of the strongest.
    """

    name: str
    explanation: str
    rows: Sequence[tuple[str, Sequence[HeatCell | None]]]
    low: str
    high: str


def heat_maps(evidence: Evidence) -> list[HeatMap]:
    """Returns the heat map of validation and, if anything is held out, that of held-out images."""
    maps = [
        _heat_map(
            evidence,
            "Validation",
            "By this the methods are ranked, less what choosing a scoring may have added by chance "
            "(one standard error), and its 95 % interval: the mean over the seeds, with "
            "other images and other seeds (of a single seed: with other images), where a config is "
            "confirmed; else one training of the search, with other images, ranked after all that "
            "are confirmed.",
            ranked_value,
            lambda study: interval(*(ranked_interval(study.row) or (None, None))),
        )
    ]
    if any(study.row["test_auroc_mean"] is not None for study in evidence.studies):
        maps.append(
            _heat_map(
                evidence,
                "Held out",
                "Mean over the seeds, on images that neither search nor choice has seen, and its "
                "95 % interval with other images and other seeds (of a single seed: with other "
                "images).",
                lambda row: row["test_auroc_mean"],
                lambda study: (
                    interval(study.held_out.low, study.held_out.high)
                    if study.held_out
                    else deviation(study.row, "test_auroc")
                ),
            )
        )
    return maps


def _heat_map(
    evidence: Evidence,
    name: str,
    explanation: str,
    value: Callable[[Row], float | None],
    note: Callable[[StudyEvidence], str],
) -> HeatMap:
    known = {
        (study.row["category"], study.row["method"]): (study, found)
        for study in evidence.studies
        if study.row["params"] is not None and (found := value(study.row)) is not None
    }
    values = [found for _, found in known.values()]
    low, high = min(values, default=0.0), max(values, default=1.0)
    rows = []
    for category in evidence.categories:
        best = max((known[k][1] for k in known if k[0] == category.name), default=None)
        cells: list[HeatCell | None] = []
        for method in evidence.methods:
            if (category.name, method) not in known:
                cells.append(None)
                continue
            study, found = known[category.name, method]
            row = study.row
            below = note(study)
            title = f"{category.name}, {method}, rank {row['rank']}: {figure(found)} {below}"
            title += f"; search {figure(row['val_auroc'])} ({_of_search(row)})"
            if row["tied"]:
                title += "; not to be told from rank 1 by a paired test (5 %)"
            cells.append(
                HeatCell(
                    value=figure(found),
                    note=below,
                    level=0.5 if high <= low else round((found - low) / (high - low), 3),
                    best=found == best,
                    tied=bool(row["tied"]),
                    title=title,
                )
            )
        rows.append((category.name, cells))
    return HeatMap(name, explanation, rows, figure(low), figure(high))


def agreement_in_words(evidence: Evidence) -> list[str]:
    """Returns what the held-out images say of the search as a whole, in sentences."""
    rows = [s.row for s in evidence.studies if s.row["test_auroc_mean"] is not None]
    if not rows:
        return []
    gap = mean(row["optimism_gap"] for row in rows)
    sentences = [
        f"Validation minus held-out AUROC of the chosen configs: {signed(gap)} on average "
        f"({count(len(rows), 'config')})."
    ]
    gains = [
        row["test_auroc_mean"] - row["default_test_auroc_mean"]
        for row in rows
        if not is_papers(row) and row["default_test_auroc_mean"] is not None
    ]
    if gains:
        better = sum(gain > 0 for gain in gains)
        sentences.append(
            f"Chosen instead of the paper's own config ({count(len(gains), 'config')}): better on "
            f"held-out images in {better}, {signed(mean(gains))} on average."
        )
    papers = sum(map(is_papers, rows))
    if papers:
        sentences.append(f"The paper's own config was chosen in {papers} of {len(rows)}.")
    return sentences


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what it shows, and by what it is sorted."""

    text: str
    key: float | str | None


@dataclass(frozen=True)
class TableColumn:
    """A column of a table; a phone shows the ``main`` ones."""

    title: str
    meaning: str
    cells: Sequence[Cell]
    numeric: bool = True
    main: bool = True


#: Columns of the leaderboard that the page shows, where anything was measured; metrics of plug-ins
#: follow those of anomtune.
_SHOWN = (
    "category",
    "rank",
    "ranked_by",
    "method",
    "val_auroc",
    "val_auroc_low",
    "gain",
    "confirmed_auroc_mean",
    "confirmed_auroc_low",
    "test_auroc_mean",
    "default_test_auroc_mean",
    "test_pixel_auroc_mean",
    "test_aupro_mean",
)
#: What fits a phone: the figures of the ranking and of the held-out images.
_MAIN = {
    "category",
    "rank",
    "method",
    "confirmed_auroc_mean",
    "test_auroc_mean",
    "gain",
    "image_ms",
}
_SHOWN_LAST = (
    "shifted_auroc_mean",
    "optimism_gap",
    "trials",
    "train_seconds",
    "image_ms",
    "parameters",
    "peak_memory_bytes",
)


def leaderboard(evidence: Evidence) -> list[TableColumn]:
    """Returns the leaderboard's columns, without those in which nothing was measured."""
    rows = [study.row for study in evidence.studies]
    names = evidence.board.schema.names
    columns = columns_named(names)
    confirmed_any = any(row["confirmed_auroc_mean"] is not None for row in rows)
    shown = []
    for name in (*_SHOWN, *filter(is_of_plugin, names), *_SHOWN_LAST):
        column = columns[name]
        cells = [Cell("" if row[name] is None else column.format(row), row[name]) for row in rows]
        numeric = not pa.types.is_dictionary(column.type)
        if name == "ranked_by" and not ranked_by_both(rows):
            continue
        if any(cell.key is not None for cell in cells):
            main = name in _MAIN or (name == "val_auroc" and not confirmed_any)
            shown.append(TableColumn(column.title, column.meaning, cells, numeric, main))
    return shown


def provenance(evidence: Evidence) -> list[tuple[str, str]]:
    """Returns what a reader needs to make the same again, or to doubt it: names and values."""
    config = evidence.config
    metadata = {
        name.decode(): value.decode() for name, value in evidence.board.schema.metadata.items()
    }
    confirm = "none"
    if config.confirm.top:
        seeds = ", ".join(map(str, config.confirm.seeds))
        confirm = f"the best {config.confirm.top} of each study, with seeds {seeds}"
    validation = config.validation
    protocol: str = validation.protocol
    if protocol != "test":
        protocol += f", fraction {validation.fraction}, seed {validation.seed}"
    versions = json.loads(metadata["anomtune.library_versions"])
    hardware = json.loads(metadata["anomtune.hardware"])
    return [
        ("sweep", config.name),
        ("sha256 of the sweep", metadata["anomtune.sweep_sha256"]),
        ("dataset", config.dataset.name),
        ("validation", protocol),
        ("image size", f"{config.image_size} pixels"),
        ("budget", _budget(config)),
        ("search", f"{config.trials} trials per study, {config.rungs} rungs, {config.sampler}, "
                   f"pruner {config.pruner}, seed {config.seed}"),
        ("confirm", confirm),
        ("anomtune", metadata["anomtune.code_version"]),
        ("libraries", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("page written on", ", ".join(f"{name} {value}" for name, value in hardware.items())),
    ]  # fmt: skip


def _budget(config: Sweep) -> str:
    budget = config.budget
    if budget is None:
        return "none"
    spent = f"{budget.hours:g} hours" if budget.trials is None else f"{budget.trials} trials"
    each = "of the whole sweep" if budget.trials is None else "of each category"
    return f"{spent} {each}, allocation {config.allocation}"


def image_counts(evidence: Evidence) -> list[tuple[str, str, str, str]]:
    """Returns of each category the numbers of validation and held-out images, and its split."""
    rows = []
    for category in evidence.categories:
        row = next(
            (study.row for study in category.studies if study.row["split_hash"]),
            category.studies[0].row,
        )
        validation = _images(row["n_val_normal"], row["n_val_anomalous"])
        held_out = _images(row["n_test_normal"], row["n_test_anomalous"])
        rows.append((category.name, validation, held_out, (row["split_hash"] or "")[:12]))
    return rows


def _images(normal: int | None, anomalous: int | None) -> str:
    if normal is None or anomalous is None:
        return "not known yet"
    return f"{normal} normal, {anomalous} anomalous" if normal + anomalous else "none"


def _of_search(row: Row) -> str:
    return interval(row["val_auroc_low"], row["val_auroc_high"])
