"""How the methods of a category share a budget: the next trial goes where it promises most.

First every method shows the paper's config, then each gets a few more trials. From then on a trial
is worth what it is expected to add to the category's best figure, by the mean and the spread of
its method's trials so far (expected improvement, Jones et al., Journal of Global Optimization
1998), and costs the seconds that such a trial takes. The most worth per second is next, so that a
method which cannot win any more gets nothing. FLAML (Wang et al., MLSys 2021) shares time among
learners by a like estimate. Pure logic.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence

from anomtune.search.decide.pace import Candidate, Pace
from anomtune.search.store.records import StudyKey

#: So many trials of each method come first, of which the first is the paper's config; fewer where
#: they would take more than half of the category's trials.
_LOOK = 3
#: What trials of one method spread by before they have shown it, as AUROC, and how many trials it
#: takes to believe them rather than that.
_SPREAD, _BELIEF = 0.03, 2


class Race:
    """Says whose turn it is in a sweep with a budget.

    Args:
        pace: Knows how long trials take.
        trials: How many each category has; ``None``: as time allows.
    """

    def __init__(self, pace: Pace, trials: int | None = None) -> None:
        self._pace = pace
        self._trials = trials

    def choose(self, studies: Sequence[Candidate]) -> StudyKey | None:
        """Returns the study that starts the next trial; ``None`` if none can.

        Args:
            studies: All of the sweep, in its order, which settles ties.
        """
        categories: dict[str, list[Candidate]] = defaultdict(list)
        for study in studies:
            categories[study.key.category].append(study)
        ready = [group for group in categories.values() if any(s.may_start for s in group)]
        if not ready:
            return None
        return self._next_of(min(ready, key=self._spent))

    def _spent(self, category: Sequence[Candidate]) -> tuple[bool, float]:
        """Orders categories: first those where a method has shown nothing, then by what they took.

        That is the number of trials where these are what they have, else seconds.
        """
        shown = all(study.started or not study.may_start for study in category)
        if self._trials is not None:
            return shown, sum(study.started for study in category)
        return shown, sum(
            study.started * self._pace.seconds(study.key.method) for study in category
        )

    def _next_of(self, category: Sequence[Candidate]) -> StudyKey:
        ready = [study for study in category if study.may_start]
        least = min(ready, key=lambda study: study.started)
        if least.started < self._look(len(category)):
            return least.key
        best = max(
            (value - study.handicap for study in category for value in study.figures), default=0.0
        )

        def worth(study: Candidate) -> float:
            gain = expected_improvement(study.figures, best + study.handicap) / (1 + study.running)
            return gain / max(self._pace.seconds(study.key.method), 1e-3)

        return max(ready, key=worth).key

    def _look(self, methods: int) -> int:
        if self._trials is None:
            return _LOOK
        return min(_LOOK, max(1, self._trials // (2 * methods)))


def expected_improvement(figures: Collection[float], best: float) -> float:
    """Returns what one more trial of a method is expected to add to the best figure, in AUROC.

    Args:
        figures: AUROCs of its trials so far; those cut short count as they were then.
        best: Of all methods.
    """
    if not figures:
        return 0.0  # all have failed
    mean = sum(figures) / len(figures)
    squares = sum((value - mean) ** 2 for value in figures) + _BELIEF * _SPREAD**2
    spread = math.sqrt(squares / (len(figures) - 1 + _BELIEF))
    z = (mean - best) / spread
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return (mean - best) * 0.5 * math.erfc(-z / math.sqrt(2)) + spread * density
