"""What a sweep may still spend: trials of each category, or hours of the whole.

How many trials a study is to have follows from the records alone. How much time is left follows
from a clock that outlives a killed driver (`anomtune.search.store.spent`). Pure logic.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from math import inf

from anomtune.search.config import Sweep
from anomtune.search.store.records import StudyKey

#: Parts of the hours that are kept for confirm runs, at most: of all that are worth having, and of
#: the first winner of each category alone.
_CONFIRM_SHARE, _FIRST_SHARE = 0.35, 0.5
#: Part of the hours in which tables are written and processes end.
_CLOSING_SHARE = 0.02


def trial_targets(
    config: Sweep,
    known: Mapping[StudyKey, int],
    searched: Callable[[StudyKey], bool],
    *,
    closed: bool = False,
) -> dict[StudyKey, int]:
    """Returns how many trials each study is to have, as far as that can be said now.

    Where nothing is searched, one trial says all. Records beyond the sweep's number are kept, and
    what was begun of them is finished. What a category shares is spread evenly over its methods;
    a race spreads it otherwise as it goes, and the sum stays.

    Args:
        config: The sweep.
        known: How many records there are of each study; all studies are named.
        searched: Whether a study has hyperparameters to search.
        closed: Whether the time for searching is over: then there are no more.
    """
    if closed:
        return dict(known)
    most = {
        key: max(config.trials if searched(key) else 1, number) for key, number in known.items()
    }
    if config.budget is None or config.budget.trials is None:
        return most
    by_category: dict[str, list[StudyKey]] = defaultdict(list)
    for key in known:
        by_category[key.category].append(key)
    found: dict[StudyKey, int] = {}
    for keys in by_category.values():
        found |= _spread(config.budget.trials, keys, known, most)
    return found


def _spread(
    trials: int, keys: list[StudyKey], known: Mapping[StudyKey, int], most: Mapping[StudyKey, int]
) -> dict[StudyKey, int]:
    """Returns the targets of a category's studies: those behind are filled up first."""
    found = {key: known[key] for key in keys}
    left = trials - sum(found.values())
    while left > 0:
        behind = [key for key in keys if found[key] < most[key]]
        if not behind:
            break
        found[min(behind, key=lambda key: found[key])] += 1
        left -= 1
    return found


class Hours:
    """The time of a sweep that has ``budget: {hours: ...}``; without it time never ends.

    Args:
        config: The sweep.
        spent: Returns the seconds that all its starts have taken so far.
    """

    def __init__(self, config: Sweep, spent: Callable[[], float] = lambda: 0.0) -> None:
        hours = None if config.budget is None else config.budget.hours
        self.seconds = inf if hours is None else 3600 * hours
        self._spent = spent
        #: How many runs there are at once.
        self.slots = 1

    @property
    def limited(self) -> bool:
        """Whether the sweep has a number of hours."""
        return self.seconds < inf

    @property
    def left(self) -> float:
        """Seconds in which runs may still end."""
        return self.seconds * (1 - _CLOSING_SHARE) - self._spent() if self.limited else inf

    def for_search(self, confirm: float, first: float) -> float:
        """Returns the seconds in which trials may still end.

        Args:
            confirm: Seconds that all confirm runs worth having would take one after the other.
            first: Those of each category's first winner alone.
        """
        if not self.limited:
            return inf
        wanted = min(confirm / max(1, self.slots), _CONFIRM_SHARE * self.seconds)
        least = min(first / max(1, self.slots), _FIRST_SHARE * self.seconds)
        return self.left - max(wanted, least)
