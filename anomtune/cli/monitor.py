"""What the terminal shows while a sweep runs: a live table, or plain lines where there is none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from anomtune.cli.terminal import cell
from anomtune.search.decide.progress import StudyProgress
from anomtune.search.decide.timeleft import RunTimes
from anomtune.search.events import (
    ConfirmEnded,
    ConfirmStarted,
    Event,
    Note,
    RungReached,
    SearchEnded,
    SweepEnded,
    SweepStarted,
    TrialEnded,
    TrialStarted,
)
from anomtune.search.results.duration import duration
from anomtune.search.results.figures import figure
from anomtune.search.store.records import StudyKey

#: Seconds between two lines where the output is a file or a pipe.
_LINE_EVERY = 15.0

_COUNTED = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}


class Monitor:
    """Shows the progress of a sweep: the observer of `anomtune.run` in a terminal.

    Args:
        console: Where to; a live table on a terminal, a line now and then elsewhere.
        clock: Seconds, for the time that is gone.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._progress: _Shown | None = None
        self._live: Live | None = None
        self._stop = threading.Event()
        self._lines: threading.Thread | None = None

    def __call__(self, event: Event) -> None:
        """Takes what happens."""
        match event:
            case Note(text):
                self._console.print(cell(text), style="dim")
            case SweepStarted(studies=studies, seconds=seconds, times=times):
                self._progress = _Shown(studies, times, self._clock, seconds)
                self._start(self._progress)
            case SweepEnded():
                self.stop()
            case _:
                if self._progress is not None:
                    self._progress.update(event)

    def stop(self) -> None:
        """Ends the show."""
        self._stop.set()
        if self._live is not None:
            self._live.stop()
        if self._lines is not None:
            self._lines.join()

    def _start(self, progress: _Shown) -> None:
        if self._console.quiet:
            return
        self._stop.clear()
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=lambda: progress.table(self._console.height),
                console=self._console,
                refresh_per_second=2,
                transient=True,
            )
            self._live.start()
            return
        self._lines = threading.Thread(target=self._print_lines, args=(progress,), daemon=True)
        self._lines.start()

    def _print_lines(self, progress: _Shown) -> None:
        while not self._stop.wait(_LINE_EVERY):
            self._console.print(progress.line(), markup=False, highlight=False)


class _Shown:
    """The studies as the events tell of them; drawn by a thread of its own."""

    def __init__(
        self,
        studies: tuple[StudyProgress, ...],
        times: RunTimes | None,
        clock: Callable[[], float],
        seconds: float | None = None,
    ) -> None:
        # What ran when an earlier start was killed is handed out anew.
        self._studies = {study.key: replace(study, running=0, confirming=0) for study in studies}
        self._handed_out: set[tuple[StudyKey, int]] = set()
        self._times = times
        self._clock = clock
        self._began = clock()
        #: When the sweep must have ended, if it has a number of hours.
        self._end = None if seconds is None else self._began + seconds

    def update(self, event: Event) -> None:
        """Takes what happened to a study."""
        if isinstance(event, Note | SweepStarted | SweepEnded | RungReached):
            return
        key = StudyKey(event.category, event.method)
        study = self._studies[key]
        match event:
            case TrialStarted(number=number):
                self._handed_out.add((key, number))
                study = replace(study, running=study.running + 1)
            case TrialEnded(number=number, state=state, auroc=auroc):
                name = _COUNTED[state]
                # One of an earlier start may end without having been handed out in this one.
                if (key, number) in self._handed_out:
                    self._handed_out.remove((key, number))
                    study = replace(study, running=study.running - 1)
                study = replace(study, **{name: getattr(study, name) + 1})
                if auroc is not None:
                    study = replace(study, best=max(auroc, study.best or 0.0))
                    study = replace(study, default=auroc) if number == 0 else study
            case SearchEnded(owed=number):
                # Of a shared budget it may have had less than its part.
                study = replace(study, target=study.ended, confirm_target=study.confirmed + number)
            case ConfirmStarted():
                study = replace(study, confirming=study.confirming + 1)
            case ConfirmEnded(state=state, error=error):
                study = replace(
                    study, confirming=study.confirming - 1, confirmed=study.confirmed + 1
                )
                if state == "FAIL":
                    failed = study.confirm_failed + 1
                    study = replace(study, confirm_failed=failed, confirm_error=error)
        self._studies[key] = study

    def line(self) -> str:
        """Returns the state of the sweep in a line."""
        studies = list(self._studies.values())
        ended, target = (sum(getattr(s, name) for s in studies) for name in ("ended", "target"))
        running = sum(study.running + study.confirming for study in studies)
        # How many there will be in some hours nobody knows.
        told = f"{ended}/{target}" if self._end is None else str(ended)
        parts = [f"{told} trials", f"{running} running"]
        for word in ("pruned", "failed"):
            number = sum(getattr(study, word) for study in studies)
            parts += [f"{number} {word}"] if number else []
        confirm = self._owed() - (target - ended)
        searched = self._end is None or ended == target
        parts += [f"{confirm} to confirm"] if confirm and searched else []
        lost = sum(study.confirm_failed for study in studies)
        parts += [f"{lost} confirm runs failed"] if lost else []
        return ", ".join([*parts, f"{duration(self._clock() - self._began)} gone", self._left()])

    def table(self, height: int) -> RenderableType:
        """Returns the state of every study, busy ones first if they do not all fit."""
        table = Table(header_style="bold", box=None, pad_edge=False)
        table.add_column("study", no_wrap=True)
        for title in ("trials", "running", "pruned", "failed", "best", "default"):
            table.add_column(title, justify="right")
        studies = list(self._studies.values())
        room = max(3, height - 5)
        hidden = len(studies) - room
        if hidden > 0:
            studies = sorted(studies, key=lambda study: not study.running)[: room - 1]
        for study in studies:
            table.add_row(
                cell(str(study.key)),
                str(study.ended) if self._end else f"{study.ended}/{study.target}",
                *(str(number or "") for number in (study.running, study.pruned, study.failed)),
                figure(study.best),
                figure(study.default),
            )
        rest = [Text(f"... and {hidden + 1} more studies", style="dim")] if hidden > 0 else []
        return Group(table, *rest, Text(self.line(), style="bold"))

    def _owed(self) -> int:
        return sum(study.owed for study in self._studies.values())

    def _left(self) -> str:
        if self._end is not None:  # how much there will be to do in it nobody knows
            return f"{duration(max(0.0, self._end - self._clock()))} left"
        if self._times is None:
            return "time left: not known"
        left = self._times.left(list(self._studies.values()), datetime.now(UTC))
        if left.seconds is None:
            return "time left: not known yet"
        late = f", {len(left.overdue)} running longer than expected" if left.overdue else ""
        return f"about {duration(left.seconds)} left{late}"
