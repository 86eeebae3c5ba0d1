"""Figures of how good the chosen configs are: against their cost, and on held-out images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from anomtune.search.decide.confirm import Confirmed
from anomtune.search.metrics.image import roc_curve
from anomtune.search.report.traces import MUTED, Figure, digits, figure, line, markers
from anomtune.search.results.column import Row
from anomtune.search.store.held_out import HeldOutScores

#: Points that are drawn of a ROC curve.
_ROC_POINTS = 400


def cost(rows: Sequence[Row], palette: Mapping[str, str], column: str, title: str) -> Figure | None:
    """Returns accuracy over cost of the methods of a category, with the Pareto front.

    Args:
        rows: The category's rows of the leaderboard.
        palette: A colour for each method.
        column: The cost.
        title: What it is called.
    """
    known = [row for row in rows if row["val_auroc"] is not None and row[column]]
    front = pareto([(row[column], ranked_value(row)) for row in known])
    traces = []
    if len(front) > 1:
        traces.append(line("Pareto front", front, MUTED, 1.5, dash="dash", shape="hv"))
    for row in known:
        value = ranked_value(row)
        point = (row[column], value, row["method"])
        symbol = "star" if row["rank"] == 1 else "circle"
        trace = markers(row["method"], [point], palette[row["method"]], symbol, 13)
        if ends := ranked_interval(row):
            trace["error_y"] = {
                "type": "data",
                "symmetric": False,
                "array": [digits(max(0.0, ends[1] - value))],
                "arrayminus": [digits(max(0.0, value - ends[0]))],
                "thickness": 1,
                "width": 4,
            }
        trace["hovertemplate"] = "%{customdata}: %{y:.3f} at %{x:.3s}<extra></extra>"
        traces.append(trace)
    drawn = figure(traces, title, "validation AUROC")
    if drawn is not None:
        drawn["layout"]["xaxis"] |= _cost_axis([row[column] for row in known])
    return drawn


def _cost_axis(values: Sequence[float]) -> Figure:
    """Returns a logarithmic axis where costs differ by much, with full numbers at its ticks."""
    low, high = min(values), max(values)
    if high < 3 * low:
        return {"exponentformat": "SI"}
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    return {"type": "log", "tickvals": ticks, "tickformat": "~s"}


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the points that no other beats in both cost (lower) and accuracy (higher)."""
    front: list[tuple[float, float]] = []
    for price, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((price, value))
    return front


def ranked_value(row: Row) -> float:
    """Returns the AUROC by which a row with a config is ranked: confirmed, else of the search."""
    confirmed = row["confirmed_auroc_mean"]
    return float(row["val_auroc"] if confirmed is None else confirmed)


def ranked_interval(row: Row) -> tuple[float, float] | None:
    """Returns the 95 % interval of that AUROC, ``None`` where scores of a seed are missing."""
    name = "val_auroc" if row["confirmed_auroc_mean"] is None else "confirmed_auroc"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return None if low is None or high is None else (low, high)


def roc(runs: Sequence[tuple[int, HeldOutScores]], colour: str) -> Figure | None:
    """Returns the ROC curves of a config on held-out images, one per seed.

    Args:
        runs: Seeds, with labels and scores.
        colour: Of the curves.
    """
    chance = line("chance", [(0, 0), (1, 1)], MUTED, 1, dash="dot")
    traces: list[Figure] = []
    for seed, (labels, scores) in runs:
        if len(np.unique(labels)) < 2 or not np.isfinite(scores).all():
            continue
        false_positives, true_positives = roc_curve(labels, scores)
        last = len(false_positives) - 1
        kept = np.unique(np.linspace(0, last, min(last + 1, _ROC_POINTS)).round().astype(int))
        points = zip(false_positives[kept].tolist(), true_positives[kept].tolist(), strict=True)
        trace = line(f"seed {seed}", [(digits(x), y) for x, y in points], colour, 1.75)
        trace["opacity"] = max(0.35, 1 - 0.3 * len(traces))
        trace["hovertemplate"] = "%{y:.0%} of defects found at %{x:.0%} false alarms"
        traces.append(trace)
    if not traces:
        return None
    drawn = figure([chance, *traces], "false positive rate", "true positive rate")
    if drawn is not None:
        drawn["layout"]["xaxis"] |= {"range": [-0.01, 1.01]}
        drawn["layout"]["yaxis"] |= {"range": [-0.01, 1.02]}
    return drawn


class Config(NamedTuple):
    """A confirmed config, for `agreement`."""

    category: str
    method: str
    confirmed: Confirmed
    chosen: bool

    @property
    def label(self) -> str:
        """What the hover calls it."""
        notes = [" (paper's config)"] * (self.confirmed.number == 0) + [" (chosen)"] * self.chosen
        return f"{self.category}, trial {self.confirmed.number}{''.join(notes)}"


def agreement(configs: Iterable[Config], palette: Mapping[str, str]) -> Figure | None:
    """Returns held-out over validation AUROC of every confirmed config, and of each of its seeds.

    Args:
        configs: What was confirmed.
        palette: A colour for each method.
    """
    lowest = 1.0
    seeds: list[Figure] = []
    means: list[Figure] = []
    known = [config for config in configs if config.confirmed.test_auroc is not None]
    for method in palette:
        runs, points, chosen, papers = [], [], [], []
        for config in known:
            if config.method != method:
                continue
            for run in config.confirmed.runs:
                if run.val_auroc is not None and run.test and run.test.auroc is not None:
                    label = f"{config.label}, seed {run.seed}"
                    runs.append((digits(run.val_auroc), run.test.auroc, label))
                    lowest = min(lowest, run.val_auroc, run.test.auroc)
            x, y = config.confirmed.val_auroc, config.confirmed.test_auroc or 0.0
            points.append((digits(x), y, config.label))
            chosen.append(config.chosen)
            papers.append(config.confirmed.number == 0)
        mean = markers(method, points, palette[method], size=9)
        mean["marker"]["symbol"] = [
            ("diamond" if paper else "circle") + ("" if wins else "-open")
            for paper, wins in zip(papers, chosen, strict=True)
        ]
        mean["showlegend"] = False  # its first shape would stand for all
        single = markers(method, runs, palette[method], size=4.5) | {"opacity": 0.6}
        for trace, into in ((single, seeds), (mean, means)):
            trace["legendgroup"] = method
            trace["hovertemplate"] = "%{customdata}<br>validation %{x:.3f}, held out %{y:.3f}"
            into.append(trace)
    if not known:
        return None
    low = math.floor(lowest * 20) / 20 - 0.01
    equal = line("equal", [(low, low), (1, 1)], MUTED, 1, dash="dot") | {"showlegend": False}
    drawn = figure([equal, *seeds, *means], "validation AUROC", "held-out AUROC")
    if drawn is not None:
        drawn["layout"]["legend"] = {"itemsizing": "constant"}
        drawn["layout"]["xaxis"] |= {"range": [low, 1.01]}
        drawn["layout"]["yaxis"] |= {"range": [low, 1.01]}
    return drawn
