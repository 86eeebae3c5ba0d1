"""What the terminal shows while a sweep runs."""

from __future__ import annotations

import pytest
from rich.console import Console

from anomtune.cli.monitor import Monitor, _Shown
from anomtune.search.decide.progress import StudyProgress
from anomtune.search.events import (
    Note,
    SearchEnded,
    SweepEnded,
    SweepStarted,
    TrialEnded,
    TrialStarted,
)
from anomtune.search.store.records import StudyKey


def studies(count: int) -> tuple[StudyProgress, ...]:
    """Studies of four trials each."""
    return tuple(
        StudyProgress(StudyKey(f"category-{index}", "toy"), target=4) for index in range(count)
    )


@pytest.mark.parametrize("height", [10, 40])
def test_the_progress_table_fits_the_terminal(height):
    ticks = iter(range(0, 10_000, 10))
    progress = _Shown(studies(20), None, lambda: next(ticks))
    for number in range(3):
        progress.update(TrialStarted("category-0", "toy", number))
    progress.update(TrialEnded("category-0", "toy", 2, "FAIL", error="x"))
    console = Console(width=100, height=height)
    with console.capture() as shown:
        console.print(progress.table(height))
    lines = shown.get().splitlines()
    assert len(lines) <= height
    assert "1/80 trials, 2 running, 1 failed" in lines[-1]
    assert ("more studies" in shown.get()) == (height == 10)


def test_of_some_hours_it_says_what_is_left_and_not_how_many_trials_there_will_be():
    now = [0.0]
    progress = _Shown(studies(2), None, lambda: now[0], 3600.0)
    for number in range(3):
        progress.update(TrialStarted("category-0", "toy", number))
        progress.update(TrialEnded("category-0", "toy", number, "COMPLETE", auroc=0.9))
    now[0] = 600.0
    assert progress.line() == "3 trials, 0 running, 10 min 00 s gone, 50 min 00 s left"
    for category, ended in (("category-0", 3), ("category-1", 0)):
        progress.update(SearchEnded(category, "toy", 2))
        assert f"{ended}" in progress.line()
    assert progress.line().startswith("3 trials, 0 running, 4 to confirm")


def test_a_trial_of_an_earlier_start_that_is_given_up_was_not_running():
    progress = _Shown(studies(1), None, lambda: 0.0)
    progress.update(TrialStarted("category-0", "toy", 1))
    progress.update(TrialEnded("category-0", "toy", 0, "PRUNED", error="x"))
    assert "1/4 trials, 1 running, 1 pruned" in progress.line()
    progress.update(TrialEnded("category-0", "toy", 1, "COMPLETE", auroc=0.9))
    assert "2/4 trials, 0 running, 1 pruned" in progress.line()


def test_without_a_terminal_there_are_lines(monkeypatch, capsys):
    monkeypatch.setattr("anomtune.cli.monitor._LINE_EVERY", 0.01)
    monitor = Monitor(Console(force_terminal=False, width=200))
    monitor(Note("reading plate"))
    monitor(SweepStarted(2, studies(2)))
    while "0/8 trials" not in (text := capsys.readouterr().out):
        assert "Traceback" not in text
    monitor(SweepEnded())
