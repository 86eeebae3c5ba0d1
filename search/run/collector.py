"""Keeps Python's garbage collector from stopping the driver of a large sweep.

A driver holds every record of its sweep. None of that is garbage, yet each full collection looks
through all of it: half a second at 20,000 trials, during which no slot is given its next one.
"""

from __future__ import annotations

import gc

#: Ended runs between two looks: few enough that what they leave is looked through in milliseconds.
_EVERY = 50


class Collector:
    """Collects what little is new, and then never looks at the survivors again."""

    def __init__(self) -> None:
        self._ended = 0
        self._settle()

    def ended(self) -> None:
        """To be called whenever a run has ended."""
        self._ended += 1
        if self._ended % _EVERY == 0:
            self._settle()

    @staticmethod
    def _settle() -> None:
        # What is alive here and becomes garbage in a cycle later is never freed: a few objects
        # of the runs under way, of which there are never more than slots.
        gc.collect()
        gc.freeze()
