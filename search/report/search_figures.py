"""Figures of how a study was searched: progress, pruning, and what each hyperparameter did.

Optuna's own plots show completed trials alone, or do not tell them from pruned ones; where most
trials are pruned, that is not the picture. Its importances are used.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import numpy as np
import optuna

from anomtune.models.ranges import Choice, SearchRange
from anomtune.search.decide.optuna_internals import fast_truncated_normal, quiet
from anomtune.search.report.traces import (
    BEST,
    COMPLETE,
    DEFAULT,
    FAILED,
    GAP,
    MUTED,
    RUNNING,
    Figure,
    Point,
    digits,
    figure,
    line,
    markers,
    text,
)
from anomtune.search.store.records import TrialRecord, best_record

_VALIDATION = "validation AUROC"
#: Trials of a study that its figures show, and how many of them are its best.
_DRAWN, HIGHEST = 300, 50


def drawn_trials(records: Sequence[TrialRecord]) -> set[int]:
    """Returns the numbers of the trials that the figures of a study show; all, if there are few.

    So that the page does not grow with the search: the paper's config, every trial that was the
    best when it ended, the highest, and of the others every n-th.

    Args:
        records: Its trials.
    """
    if len(records) <= _DRAWN:
        return {record.number for record in records}
    ranked = sorted(
        (record for record in records if record.value is not None),
        key=lambda record: (-(record.value or 0.0), record.number),
    )
    chosen = {record.number for record in ranked[:HIGHEST]}
    for place in (_spent(records), {record.number: record.number for record in records}):
        best = -math.inf
        for record in sorted(records, key=lambda record: place.get(record.number, math.inf)):
            if record.value is not None and record.value > best:
                best = record.value
                chosen.add(record.number)
    chosen.add(0)
    others = [record.number for record in records if record.number not in chosen]
    step = max(1, math.ceil(len(others) / max(1, _DRAWN - len(chosen))))
    return chosen | set(others[::step])


def history(
    records: Sequence[TrialRecord],
    shown: Container[int] | None = None,
    *,
    by_time: bool = False,
) -> Figure | None:
    """Returns how the best AUROC of a study rose, over its trials or over what they cost.

    Args:
        records: Its trials.
        shown: Numbers of those that get a point; default: all.
        by_time: Whether x is the time of training and evaluation, summed over the trials in the
            order of their end.
    """
    spent = _spent(records)
    scale, unit = time_unit(max(spent.values(), default=0.0))
    place = {number: digits(at / scale) if by_time else number for number, at in spent.items()}
    pruned, completed = (
        [
            _point(r, place)
            for r in records
            if r.number in place and r.curve and r.state == state
            if shown is None or r.number in shown
        ]
        for state in ("PRUNED", "COMPLETE")
    )
    traces = [
        markers("pruned", pruned, MUTED, "circle-open"),
        markers("completed", completed, COMPLETE),
        line("best so far", best_so_far(records, place), BEST, shape="hv"),
    ]
    default = next((record.paper_value for record in records if record.number == 0), None)
    if default is not None:
        begin = 0 if by_time else min(place.values())
        ends = [(begin, default), (max(place.values()), default)]
        traces.append(line("paper's config", ends, DEFAULT, 1.5, dash="dot"))
    return figure(traces, f"compute ({unit})" if by_time else "trial", _VALIDATION)


def race(studies: Mapping[str, Sequence[TrialRecord]], palette: Mapping[str, str]) -> Figure | None:
    """Returns the best AUROC so far of each method of a category over the compute spent on it."""
    spent = {method: _spent(records) for method, records in studies.items()}
    scale, unit = time_unit(max((at for one in spent.values() for at in one.values()), default=0.0))
    traces = []
    for method, records in studies.items():
        place = {number: digits(at / scale) for number, at in spent[method].items()}
        trace = line(method, best_so_far(records, place), palette[method], shape="hv")
        traces.append(trace | {"mode": "lines+markers", "marker": {"size": 5}})
    return figure(traces, f"compute ({unit})", f"best {_VALIDATION}")


def best_so_far(
    records: Sequence[TrialRecord], place: Mapping[int, float]
) -> list[tuple[float, float]]:
    """Returns where the best AUROC of a study rose, and its end.

    Args:
        records: Its trials.
        place: Where each ended trial stands, by number.
    """
    rises: list[tuple[float, float]] = []
    for record in sorted(records, key=lambda record: place.get(record.number, math.inf)):
        value = record.value
        if record.number in place and value is not None and (not rises or value > rises[-1][1]):
            rises.append((place[record.number], value))
    return [*rises, (max(place.values()), rises[-1][1])] if rises else []


def pruning(records: Sequence[TrialRecord]) -> Figure | None:
    """Returns the AUROC of every trial at each rung: those that were stopped, and the others."""
    best = best_record(records)
    groups: dict[str, list[TrialRecord]] = defaultdict(list)
    for record in records:
        if record is best:
            groups["best"].append(record)
        else:
            groups["paper's config" if record.number == 0 else record.state].append(record)
    traces = [
        _curves("pruned", groups["PRUNED"], MUTED, 1),
        _curves("failed", groups["FAIL"], FAILED, 1),
        _curves("running", groups["RUNNING"], RUNNING, 1.5),
        _curves("completed", groups["COMPLETE"], COMPLETE, 1.5),
        _curves("paper's config", groups["paper's config"], DEFAULT, 2),
        _curves("best", groups["best"], BEST, 2.5),
    ]
    drawn = figure(traces, "rung", _VALIDATION)
    if drawn is not None:
        drawn["layout"]["xaxis"] |= {"dtick": 1}
    return drawn


def _curves(name: str, records: Sequence[TrialRecord], colour: str, width: float) -> Figure:
    """Returns the curves of several trials as one trace, with a gap after each."""
    points: list[Point] = []
    numbers: list[int | None] = []
    for record in records:
        if record.curve:
            points += [*((rung.step, rung.auroc) for rung in record.curve), GAP]
            numbers += [*(record.number for _ in record.curve), None]
    return line(name, points, colour, width) | {
        "mode": "lines+markers",
        "marker": {"size": 4},
        "customdata": numbers,
        "hovertemplate": "trial %{customdata}, rung %{x}: %{y:.3f}",
    }


def slice_of(records: Sequence[TrialRecord], name: str, item: SearchRange) -> Figure | None:
    """Returns the AUROC of the trials over one hyperparameter.

    Args:
        records: The trials of a study.
        name: The hyperparameter.
        item: What it was searched over.
    """
    ended = _measured(records)
    if not ended:
        return None
    best = best_record(ended)
    categorical = isinstance(item, Choice)
    place: dict[int, Any] = {
        r.number: short(r.params[name]) if categorical else r.params[name] for r in ended
    }

    def points(wanted: Callable[[TrialRecord], bool]) -> list[tuple[Any, float, str]]:
        return [_point(record, place) for record in ended if wanted(record)]

    traces = [
        markers("pruned", points(lambda r: r.state == "PRUNED"), MUTED, "circle-open", 6),
        markers("completed", points(lambda r: r.state == "COMPLETE" and r is not best), COMPLETE),
        markers("best", points(lambda r: r is best), BEST, "star", 12),
        markers("paper's config", points(lambda r: r.number == 0), DEFAULT, "circle-open", 14),
    ]
    drawn = figure(traces, "", "AUROC")
    if drawn is None:
        return None
    drawn["layout"]["showlegend"] = False
    axis = drawn["layout"]["xaxis"]
    if isinstance(item, Choice):
        order = list(dict.fromkeys([*map(short, item.choices), *place.values()]))
        axis |= {
            "type": "category",
            "categoryorder": "array",
            "categoryarray": [text(value) for value in order],
            "range": [-0.5, len(order) - 0.5],
        }
    elif item.log:
        low, high = min(item.low, *place.values()), max(item.high, *place.values())
        ticks = [low, math.sqrt(low * high), high]
        axis |= {
            "type": "log",
            "tickvals": ticks,
            "ticktext": [short(float(tick)) for tick in ticks],
        }
    return drawn


def parallel(
    records: Sequence[TrialRecord],
    space: Mapping[str, SearchRange],
    order: Sequence[str],
    shown: Container[int] | None = None,
) -> Figure | None:
    """Returns parallel coordinates of a study: a line per trial, through its values to its AUROC.

    Drawn as plain lines: plotly's ``parcoords`` needs WebGL, which a browser without a GPU lacks.

    Args:
        records: The trials.
        space: What was searched.
        order: Its names from left to right.
        shown: Numbers of the trials that get a line; default: all.
    """
    ended = _measured(records)
    if len(order) < 2 or len(ended) < 2:
        return None
    final = [record.curve[-1].auroc for record in ended]
    axes = [_axis(space[name], [record.params[name] for record in ended]) for name in order]
    axes.append(_continuous(final, min(final), max(final), log=False))
    best = best_record(ended)
    upper = float(np.quantile(final, 0.75))

    def lines(name: str, wanted: Callable[[TrialRecord], bool], *style: Any) -> Figure:
        points: list[Point] = []
        labels: list[str | None] = []
        for column, record in enumerate(ended):
            if (shown is None or record.number in shown) and wanted(record):
                points += [*((x, axis.heights[column]) for x, axis in enumerate(axes)), GAP]
                values = [f"{name} {short(record.params[name])}" for name in order]
                values.append(f"AUROC {record.curve[-1].auroc:.3f}")
                labels += [*(text(f"trial {record.number}: {value}") for value in values), None]
        return line(name, points, *style) | {"text": labels, "hovertemplate": "%{text}"}

    def completed(record: TrialRecord, *, good: bool) -> bool:
        value = record.value
        return value is not None and record is not best and (value >= upper) == good

    traces = [
        lines("pruned", lambda r: r.state == "PRUNED", MUTED, 1) | {"opacity": 0.5},
        lines("completed", lambda r: completed(r, good=False), COMPLETE, 1.5) | {"opacity": 0.5},
        lines("upper quarter", lambda r: completed(r, good=True), COMPLETE, 2),
        lines("best", lambda r: r is best, BEST, 3),
    ]
    drawn = figure(traces, "", "")
    if drawn is not None:
        drawn["layout"] = {
            "xaxis": {
                "tickvals": list(range(len(axes))),
                "ticktext": [text(name) for name in (*order, "AUROC")],
                "range": [-0.4, len(axes) - 0.7],
            },
            "yaxis": {"visible": False, "range": [-0.06, 1.06]},
            "annotations": [
                {"x": x, "y": height, "text": text(label), "showarrow": False}
                for x, axis in enumerate(axes)
                for label, height in axis.ticks
            ],
        }
    return drawn


class _Axis:
    """One axis of parallel coordinates.

    Args:
        values: Of the trials.
        ticks: Labels, and the values where they stand.
        scale: Gives a value its height in [0, 1].
    """

    def __init__(self, values: Sequence[Any], ticks: Sequence[tuple[str, Any]],
                 scale: Callable[[Any], float]) -> None:  # fmt: skip
        self.heights = [digits(scale(value)) for value in values]
        self.ticks = [(label, digits(scale(value))) for label, value in ticks]


def _axis(item: SearchRange, values: Sequence[Any]) -> _Axis:
    if isinstance(item, Choice):
        order = list(dict.fromkeys([*map(short, item.choices), *map(short, values)]))
        last = max(1, len(order) - 1)
        return _Axis(
            [*map(short, values)], [(name, name) for name in order], lambda v: order.index(v) / last
        )
    # The paper's value may lie outside the range.
    return _continuous(values, min(item.low, *values), max(item.high, *values), log=item.log)


def _continuous(values: Sequence[float], low: float, high: float, *, log: bool) -> _Axis:
    def scale(value: float) -> float:
        if high <= low:
            return 0.5
        if log and low > 0:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    middle = math.sqrt(low * high) if log and low > 0 else (low + high) / 2
    ticks = (low, middle, high) if high > low else (low,)
    return _Axis(values, [(short(float(tick)), tick) for tick in ticks], scale)


def importances(study: optuna.Study) -> dict[str, float] | None:
    """Returns the share of each hyperparameter in how good trials are, the largest first.

    Optuna's default, PED-ANOVA (Watanabe et al. 2023), over the completed trials. ``None`` where
    they say nothing: fewer than four, or all alike.

    Args:
        study: The study with all its trials.
    """
    completed = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len({trial.value for trial in completed}) < 4:
        return None
    try:
        with quiet(), fast_truncated_normal():
            shares = optuna.importance.get_param_importances(study, normalize=False)
    except (ValueError, RuntimeError):  # too few trials, or nothing that varies
        return None
    total = sum(shares.values())
    if not math.isfinite(total) or total <= 0:
        return None
    return {name: share / total for name, share in shares.items()}


def time_unit(seconds: float) -> tuple[float, str]:
    """Returns how many seconds the unit has in which a time is best told, and its name."""
    for size, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return size, name
    return 1, "seconds"


def short(value: object) -> str:
    """Returns a value of a hyperparameter in few characters."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if 100 <= abs(value) < 1e6 else f"{value:.3g}"


def _spent(records: Sequence[TrialRecord]) -> dict[int, float]:
    """Returns the seconds that a study had cost when each of its trials ended, by number."""
    ended = [record for record in records if record.state != "RUNNING"]
    spent, total = {}, 0.0
    for record in sorted(ended, key=lambda record: (record.cost.finished_at or "", record.number)):
        total += record.cost.train_seconds + record.cost.evaluate_seconds
        spent[record.number] = total
    return spent


def _measured(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    return [record for record in records if record.curve and record.state in {"COMPLETE", "PRUNED"}]


def _point(record: TrialRecord, place: Mapping[int, Any]) -> tuple[Any, float, str]:
    return place[record.number], record.curve[-1].auroc, f"trial {record.number}"
