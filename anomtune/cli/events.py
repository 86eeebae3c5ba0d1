"""The events of a sweep as rows of JSON; docs/terminal.md says what each holds."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from anomtune.cli.output import write_rows
from anomtune.search.decide.progress import StudyProgress
from anomtune.search.events import Event, SweepEnded, SweepStarted, TrialEnded


class JsonEvents:
    """Writes each event as a row, and one more when a category has a new leader.

    Args:
        write: Takes a row.
    """

    def __init__(self, write: Callable[[Mapping[str, Any]], object] | None = None) -> None:
        self._write = write or (lambda row: write_rows([row]))
        self._best: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        """Takes what happens."""
        match event:
            case SweepStarted(slots, studies, seconds):
                for study in studies:
                    self._is_best(study.key.category, study.best)
                rows = [study_row(study) for study in studies]
                self.write("sweep_started", slots=slots, seconds=seconds, studies=rows)
            case SweepEnded():
                return  # `finished` follows, which also says how
            case _:
                self.write(_name(event), **asdict(event))
        if isinstance(event, TrialEnded) and self._is_best(event.category, event.auroc):
            self.write(
                "leader",
                category=event.category,
                method=event.method,
                number=event.number,
                auroc=event.auroc,
            )

    def write(self, event: str, **fields: Any) -> None:
        """Writes a row."""
        self._write({"event": event, "time": datetime.now(UTC).isoformat(), **fields})

    def _is_best(self, category: str, auroc: float | None) -> bool:
        """Whether a value is the highest of its category so far; notes it if so."""
        if auroc is None or auroc <= self._best.get(category, -1.0):
            return False
        self._best[category] = auroc
        return True


def study_row(study: StudyProgress) -> dict[str, Any]:
    """Returns how far a study is as a row."""
    fields = asdict(study)
    del fields["key"]
    return {"category": study.key.category, "method": study.key.method, **fields}


def _name(event: Event) -> str:
    """Returns the name of an event's class in lower case with underscores."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()
