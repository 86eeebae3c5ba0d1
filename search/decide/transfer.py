"""Configs that won for the same method elsewhere, which a study tries right after trial 0.

Elsewhere is another sweep (``warm_start``) or another category of this one. A config is what its
training depends on: every study chooses its own scoring.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution

from anomtune.search.config import ConfirmConfig
from anomtune.search.decide.confirm import choose
from anomtune.search.decide.optuna_internals import contains
from anomtune.search.store.records import PAPER, SAMPLER, ConfirmRecord, StudyKey, TrialRecord

#: So many of them come right after trial 0, if there are any, and one more with every so many
#: trials.
_FIRST, _EVERY = 2, 4
#: What a config must have won over trial 0, as AUROC; less is luck.
_LEAST_GAIN = 0.003


@dataclass(frozen=True)
class Winner:
    """A config that won.

    Attributes:
        category: Where.
        params: All its hyperparameters.
        gain: By how much it beat trial 0 there, both with the same scoring, as AUROC.
        sweep: The directory of the sweep; ``None``: of this one.
    """

    category: str
    params: Mapping[str, Any]
    gain: float
    sweep: str | None = None

    @property
    def origin(self) -> str:
        """Where it comes from, in words."""
        return f"category {self.category}" + (f" of {self.sweep}" if self.sweep else "")


#: Configs that won, by method.
Winners = Mapping[str, Sequence[Winner]]


def winners_of(
    sweep: str,
    trials: Mapping[StudyKey, Sequence[TrialRecord]],
    runs: Mapping[StudyKey, Iterable[ConfirmRecord]],
    config: ConfirmConfig,
) -> dict[str, list[Winner]]:
    """Returns by method the config that won in each category of a sweep, if it beat trial 0.

    Args:
        sweep: The directory of the sweep.
        trials: Its trials, as the scoring of their study reads them.
        runs: Its confirm runs.
        config: How it confirms.
    """
    found: dict[str, list[Winner]] = defaultdict(list)
    for key, records in trials.items():
        best = choose(records, runs.get(key, ()), config)[0]
        default = next((record.value for record in records if record.number == 0), None)
        if best is None or best.value is None or default is None or best.number == 0:
            continue
        gain = best.value - default
        if gain >= _LEAST_GAIN:
            found[key.method].append(Winner(key.category, best.params, gain, sweep))
    return found


class Transfer:
    """Knows which configs have won elsewhere, and which a study should try.

    Args:
        winners: Of other sweeps.
    """

    def __init__(self, winners: Winners) -> None:
        self._known = winners
        self._here: dict[str, dict[str, Winner]] = defaultdict(dict)

    def learn(self, key: StudyKey, params: Mapping[str, Any], gain: float) -> None:
        """Learns what is best by now in a study of this sweep, and by how much it beats trial 0."""
        if gain >= _LEAST_GAIN:
            self._here[key.method][key.category] = Winner(key.category, params, gain)
        else:
            self._here[key.method].pop(key.category, None)

    def next(
        self,
        key: StudyKey,
        space: Mapping[str, BaseDistribution],
        records: Collection[TrialRecord],
    ) -> tuple[dict[str, Any], str] | None:
        """Returns the place in the space of a config to try now, and where it comes from.

        Args:
            key: The study.
            space: What it searches.
            records: Its trials so far.
        """
        candidates = self._in_order(key)
        if not candidates or not space or not records:
            return None
        tried = sum(record.origin not in (PAPER, SAMPLER) for record in records)
        if tried >= _FIRST + len(records) // _EVERY:
            return None
        points = [{name: record.params.get(name) for name in space} for record in records]
        for winner in candidates:
            point = {name: winner.params.get(name) for name in space}
            inside = all(contains(space[name], value) for name, value in point.items())
            if inside and point not in points:
                return point, winner.origin
        return None

    def _in_order(self, key: StudyKey) -> list[Winner]:
        """Returns what a study may try: of the same category first, then what won the most."""
        here = (w for w in self._here[key.method].values() if w.category != key.category)
        known = [*self._known.get(key.method, ()), *here]
        return sorted(known, key=lambda winner: (winner.category != key.category, -winner.gain))
