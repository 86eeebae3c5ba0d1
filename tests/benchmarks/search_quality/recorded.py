"""The recorded tables as something to search: what is known of a config, and what it takes.

Half of the test images, drawn anew for each split, are the validation images that a search sees;
the other half says what its answer is worth. A config that was not recorded takes what the nearest
recorded one gave.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from record import FIXED, RUNGS, SETS
from tables import Table, Training, load

from anomtune.models.ranges import Choice, FloatRange, IntRange
from anomtune.search.config import MethodConfig
from anomtune.search.decide.plan import SearchPlan, plan_search
from anomtune.search.metrics.delong import errors_against_first, placements

Figures = npt.NDArray[np.float64]


class Category:
    """A table and a split of its images into those that a search sees and those that it does not.

    Args:
        table: The recorded trainings.
        split: Number of the split.
    """

    def __init__(self, table: Table, split: int) -> None:
        self.table = table
        generator = np.random.default_rng(split)
        self.seen = np.zeros(len(table.labels), np.bool_)
        for label in (0, 1):
            images = generator.permutation(np.flatnonzero(table.labels == label))
            self.seen[images[: len(images) // 2]] = True
        self.labels = table.labels[self.seen]
        self._known: dict[tuple[str, int, int, bool], Figures] = {}
        self._errors: dict[tuple[str, int], Figures] = {}

    def aurocs(self, training: Training, rung: int, *, held_out: bool = False) -> Figures:
        """Returns the AUROC of each scoring ``(G,)`` at a rung, counted from 0."""
        key = training.method, training.number, rung, held_out
        if key not in self._known:
            part = ~self.seen if held_out else self.seen
            scores = training.ranks[rung][:, part].astype(np.float64)
            self._known[key] = placements(self.table.labels[part], scores)[2]
        return self._known[key]

    def errors(self, training: Training) -> Figures:
        """Returns the standard errors ``(G,)`` of what the scorings have over the paper's."""
        key = training.method, training.number
        if key not in self._errors:
            scores = training.ranks[-1][:, self.seen].astype(np.float64)
            self._errors[key] = errors_against_first(self.labels, scores)
        return self._errors[key]


@dataclasses.dataclass(frozen=True)
class TablePlan(SearchPlan):
    """A plan whose scorings are those that the table has kept."""

    kept: tuple[dict[str, Any], ...] = ()

    @cached_property
    def scorings(self) -> tuple[dict[str, Any], ...]:
        """The scorings that every training is judged with, the paper's first."""
        return self.kept


@lru_cache
def plan(name: str, method: str) -> TablePlan:
    """Returns how a method was searched when a table was recorded."""
    table = table_of(name)
    recorded = table.trainings[method][0]
    fixed = dict(FIXED[method])
    sides = sorted(
        {training.point.get("resolution") for training in table.trainings[method]} - {None}
    )
    if "epochs" in recorded.params:
        fixed["epochs"] = recorded.params["epochs"]
    space = {"resolution": {"choices": sides}} if sides else {}
    images = SETS[name]
    found = plan_search(
        method,
        MethodConfig(fixed=fixed, space=space),
        images.dataset,
        images.category,
        image_size=images.image_size,
    )
    searched = {key: item for key, item in found.space.items() if key in recorded.point}
    defaults = found.hyperparameters(recorded.point)
    return TablePlan(method, defaults, searched, None, tuple(table.scorings[method]))


@lru_cache
def table_of(name: str) -> Table:
    """Returns a table, read once."""
    return load(name)


def nearest(name: str, method: str, point: dict[str, Any]) -> Training:
    """Returns the recorded training whose config is nearest to a point of the space."""
    space = plan(name, method).space

    def distance(training: Training) -> float:
        return sum(
            _apart(item, point[key], training.point[key]) ** 2 for key, item in space.items()
        )

    return min(table_of(name).trainings[method], key=distance)


def _apart(item: Any, one: Any, other: Any) -> float:
    match item:
        case Choice():
            return float(one != other)
        case FloatRange() | IntRange():
            scale = math.log if item.log else float
            low, high = scale(item.low), scale(item.high)
            return abs(scale(one) - scale(other)) / (high - low or 1)


def rungs(training: Training) -> Iterator[tuple[int, int, float]]:
    """Yields the rungs of a training: number from 1, index, and the seconds up to it."""
    count, seconds = len(training.fit_seconds), 0.0
    for index in range(count):
        # A search scores half of the images that were scored.
        seconds += training.fit_seconds[index] + training.score_seconds[index] / 2
        yield RUNGS - count + index + 1, index, seconds
