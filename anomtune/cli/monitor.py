"""What the terminal shows while a sweep runs: a live table, or plain lines where there is none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from anomtune.cli.tables import figure
from anomtune.search.decide.pool import Study
from anomtune.search.decide.work import Work

#: Seconds between two lines where the output is a file or a pipe.
_LINE_EVERY = 15.0


class Monitor:
    """Shows the progress of a sweep.

    Args:
        console: Where to; a live table on a terminal, a line now and then elsewhere.
        clock: Seconds, for the time left.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._live: Live | None = None
        self._stop = threading.Event()
        self._lines: threading.Thread | None = None

    def note(self, text: str) -> None:
        """Prints a line about what is being prepared."""
        self._console.print(text, style="dim", markup=False, highlight=False)

    def running(self, work: Work, slots: int) -> None:
        """Begins to show the work."""
        progress = _Progress(work, slots, self._clock)
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

    def stopped(self) -> None:
        """Ends the show."""
        self._stop.set()
        if self._live is not None:
            self._live.stop()
        if self._lines is not None:
            self._lines.join()

    def _print_lines(self, progress: _Progress) -> None:
        while not self._stop.wait(_LINE_EVERY):
            self._console.print(progress.line(), markup=False, highlight=False)


class _Progress:
    def __init__(self, work: Work, slots: int, clock: Callable[[], float]) -> None:
        self._work = work
        self._pool = work.pool
        self._slots = slots
        self._clock = clock
        self._began = clock()
        self._before = work.remaining

    def line(self) -> str:
        """Returns the state of the sweep in a line."""
        pool = self._pool
        total = sum(pool.target(study) for study in pool.studies.values())
        parts = [f"{total - pool.remaining}/{total} trials", f"{self._work.running} running"]
        pruned = sum(study.finished["PRUNED"] for study in pool.studies.values())
        failed = sum(study.finished["FAIL"] for study in pool.studies.values())
        parts += [f"{pruned} pruned"] if pruned else []
        parts += [f"{failed} failed"] if failed else []
        confirm = self._work.confirmation.remaining
        parts += [f"{confirm} to confirm"] if confirm else []
        return ", ".join([*parts, f"{self._elapsed()} gone", self._left()])

    def table(self, height: int) -> RenderableType:
        """Returns the state of every study, busy ones first if they do not all fit."""
        table = Table(header_style="bold", box=None, pad_edge=False)
        table.add_column("study", no_wrap=True)
        for title in ("trials", "running", "pruned", "failed", "best", "default"):
            table.add_column(title, justify="right")
        studies = list(self._pool.studies.values())
        room = max(3, height - 5)
        hidden = len(studies) - room
        if hidden > 0:
            studies = sorted(studies, key=lambda study: not study.running)[: room - 1]
        for study in studies:
            table.add_row(*self._row(study))
        rest = [Text(f"... and {hidden + 1} more studies", style="dim")] if hidden > 0 else []
        return Group(table, *rest, Text(self.line(), style="bold"))

    def _row(self, study: Study) -> list[str]:
        best = study.best
        default = study.records.get(0)
        return [
            escape(str(study.key)),
            f"{study.finished.total()}/{self._pool.target(study)}",
            _count(len(study.running)),
            _count(study.finished["PRUNED"]),
            _count(study.finished["FAIL"]),
            figure(best.value if best else None),
            figure(default.value if default else None),
        ]

    def _elapsed(self) -> str:
        return duration(self._clock() - self._began)

    def _left(self) -> str:
        done = self._before - self._work.remaining
        if done < self._slots:
            return "time left: not known yet"
        each = (self._clock() - self._began) / done
        return f"about {duration(each * self._work.remaining)} left"


def _count(number: int) -> str:
    return str(number) if number else ""


def duration(seconds: float) -> str:
    """Returns a time in words: ``2 h 05 min``, ``3 min 20 s``, ``45 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if not hours and not minutes:
        return f"{rest} s"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
