"""Progress bars of long steps: on a terminal, below what is printed, gone when they end."""

from __future__ import annotations

from rich.console import Console
from rich.errors import LiveError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from anomtune.errors import one_line


class Bars:
    """Draws what `anomtune.progress` tells; the listener of every command.

    Args:
        console: Where to; if it is no terminal, or quiet, nothing is drawn.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._drawn = console.is_terminal and not console.quiet
        self._progress: Progress | None = None

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """Takes how far a step is."""
        if not self._drawn:
            return
        if self._progress is None:
            progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
                # Else what a command prints would go where the bars are.
                redirect_stdout=False,
                redirect_stderr=False,
            )
            try:
                progress.start()
            except LiveError:  # something else is drawn there
                return
            self._progress = progress
        name = one_line(what)
        known = {task.description: task.id for task in self._progress.tasks}
        if total is not None and done >= total:
            if name in known:
                self._progress.remove_task(known.pop(name))
            if not known:
                self.stop()
        elif name in known:
            self._progress.update(known[name], completed=done, total=total)
        else:
            self._progress.add_task(name, completed=done, total=total)

    def stop(self) -> None:
        """Takes the bars away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
