"""What nobody waits for is done all the same, in order, and its failure is not lost."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from anomtune.search.store.behind import Behind


def test_all_is_done_in_order_at_the_end() -> None:
    gate, done = threading.Event(), []
    with Behind(100) as behind:
        behind.put(gate.wait)
        for number in range(50):
            behind.put(lambda number=number: done.append(number))
        assert done == [], "nobody waited"
        gate.set()
    assert done == list(range(50))


def test_who_puts_too_much_waits() -> None:
    gate, done = threading.Event(), []
    with Behind(2) as behind:
        behind.put(gate.wait)

        def fill() -> None:
            for number in range(4):
                behind.put(lambda number=number: done.append(number))
            done.append("all put")

        thread = threading.Thread(target=fill)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        gate.set()
        thread.join()
    assert sorted(done, key=str) == [0, 1, 2, 3, "all put"]


def put_all(*works: Callable[[], object]) -> None:
    with Behind(1) as behind:
        for work in works:
            behind.put(work)


def fail() -> None:
    raise OSError("disk full")


@pytest.mark.parametrize("more", [0, 1, 10])
def test_a_failure_ends_it_and_is_raised(more: int) -> None:
    done: list[int] = []
    with pytest.raises(OSError, match="disk full"):
        put_all(fail, *[lambda: done.append(1)] * more)
    assert done == []


def test_another_failure_is_not_hidden() -> None:
    def stop() -> None:
        with Behind(10) as behind:
            behind.put(fail)
            raise KeyError

    with pytest.raises(KeyError):
        stop()
