"""The clock of a sweep that has a number of hours: no start sets it back."""

from __future__ import annotations

import time

import pytest

from anomtune.search.config import parse_sweep
from anomtune.search.store.spent import Spent, SpentClock, read_spent
from anomtune.search.store.storage import Storage
from tests.search.conftest import sweep_dict


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path)


def sweep(hours):
    return parse_sweep(sweep_dict(budget=hours and {"hours": hours}), "test")


def test_the_seconds_of_all_starts_add_up(storage):
    now = [100.0]
    for start in range(3):
        clock = SpentClock(storage, sweep(1.0), now[0], lambda: now[0])
        assert clock.seconds() == 7.0 * start
        with clock.running():
            now[0] += 7.0
        now[0] += 1000.0  # between two starts
    assert read_spent(storage).seconds == 21.0


def test_it_is_kept_while_it_runs(storage, monkeypatch):
    monkeypatch.setattr("anomtune.search.store.spent._SHORTEST", 0.01)
    clock = SpentClock(storage, sweep(0.001), time.monotonic())
    with clock.running():
        first = read_spent(storage).seconds
        while read_spent(storage).seconds == first:
            time.sleep(0.01)


def test_what_is_over_is_over_for_those_hours_alone(storage):
    clock = SpentClock(storage, sweep(1.0), 0.0, lambda: 5.0)
    clock.end_search()
    clock.end_confirm()
    found = read_spent(storage)
    assert found == Spent(seconds=5.0, searched_for=1.0, confirmed_for=1.0)
    for hours, over in ((1.0, True), (0.5, True), (2.0, False), (None, False)):
        assert found.search_is_over(sweep(hours)) is over
        assert found.confirm_is_over(sweep(hours)) is over


def test_without_hours_nothing_is_written(storage):
    with SpentClock(storage, sweep(None), 0.0, lambda: 5.0).running():
        pass
    assert storage.read("spent.json") is None


def test_a_damaged_file_costs_the_time_and_nothing_else(storage):
    storage.write("spent.json", b"{")
    assert read_spent(storage) == Spent()
