"""What nobody waits for is done all the same, in order under a name; its failure is not lost."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable

import pytest

from anomtune.search.store.writer import OrderedWriter


def test_nobody_waits_and_all_is_done_at_the_end() -> None:
    gate, done = threading.Event(), []
    with OrderedWriter(1, 100) as writer:
        writer.put("gate", lambda: gate.wait(10))
        for number in range(50):
            writer.put(str(number), lambda number=number: done.append(number))
        assert done == [], "nobody waited"
        assert not writer.is_done("7")
        gate.set()
    assert done == list(range(50))
    assert writer.idle
    assert writer.is_done("7")


def test_names_do_not_wait_for_each_other() -> None:
    gate = threading.Event()
    with OrderedWriter(2, 100) as writer:
        writer.put("slow", lambda: gate.wait(10))
        for _ in range(50):
            writer.put("quick", lambda: None)
            while not writer.is_done("quick"):
                writer.wait(1)
        assert not writer.is_done("slow")
        gate.set()


def test_under_a_name_one_is_done_at_a_time_and_the_latest_last() -> None:
    generator, inside = random.Random(0), defaultdict(int)
    written: dict[str, list[int]] = defaultdict(list)
    last: dict[str, int] = {}

    def write(name: str, number: int) -> None:
        inside[name] += 1
        assert inside[name] == 1
        time.sleep(generator.random() * 1e-3)
        written[name].append(number)
        inside[name] -= 1

    with OrderedWriter(8, 1000) as writer:
        for number in range(300):
            name = generator.choice("abcde")
            writer.put(name, lambda name=name, number=number: write(name, number))
            last[name] = number
    assert {name: numbers[-1] for name, numbers in written.items()} == last
    assert all(numbers == sorted(numbers) for numbers in written.values())
    assert sum(map(len, written.values())) < 300, "of what waits the latest is enough"


def test_what_comes_after_others_waits_for_them_alone() -> None:
    gates, done = defaultdict(threading.Event), []
    with OrderedWriter(3, 100) as writer:
        for name in ("a", "b"):
            writer.put(name, lambda name=name: gates[name].wait(10) and done.append(name))
        writer.put("c", lambda: done.append("c"), after=("a",))
        writer.put("c", lambda: done.append("c, changed"), after=("b", "never put"))
        writer.put("d", lambda: done.append("d"))
        while not writer.is_done("d"):
            writer.wait(1)
        gates["b"].set()
        while not writer.is_done("b"):
            writer.wait(1)
        assert not writer.is_done("c")
        gates["a"].set()
    assert done == ["d", "b", "a", "c, changed"]


def test_who_is_too_far_ahead_waits() -> None:
    gate, done = threading.Event(), []
    with OrderedWriter(2, 3) as writer:
        writer.put("slow", lambda: gate.wait(10))

        def fill() -> None:
            for number in range(4):
                writer.put(f"quick {number}", lambda number=number: done.append(number))
            done.append("all put")

        thread = threading.Thread(target=fill)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        assert done == [0, 1, 2]
        gate.set()
        thread.join()
    assert set(done) == {0, 1, 2, 3, "all put"}


def test_what_is_to_follow_is_done_in_order_by_who_settles() -> None:
    gate, done = threading.Event(), []
    with OrderedWriter(2, 100) as writer:
        writer.put("slow", lambda: gate.wait(10))
        writer.put("quick", lambda: None)
        writer.then(lambda: done.append("first"), "slow")
        writer.then(lambda: done.append((threading.current_thread().name, "second")), "quick")
        writer.then(lambda: done.append("third"))
        while not writer.is_done("quick"):
            writer.wait(1)
        writer.settle()
        assert done == []
        gate.set()
        writer.drain()
        assert done == ["first", (threading.current_thread().name, "second"), "third"]


def put_all(*works: Callable[[], object]) -> None:
    with OrderedWriter(1, 1) as writer:
        for number, work in enumerate(works):
            writer.put(str(number), work)


def fail() -> None:
    raise OSError("disk full")


@pytest.mark.parametrize("more", [0, 1, 10])
def test_a_failure_ends_it_and_is_raised(more: int) -> None:
    done: list[int] = []
    with pytest.raises(OSError, match="disk full"):
        put_all(fail, *[lambda: done.append(1)] * more)
    assert done == []


@pytest.mark.parametrize(
    "ask",
    [
        lambda writer: writer.put("y", lambda: None),
        lambda writer: writer.is_done("x"),
        OrderedWriter.settle,
        OrderedWriter.drain,
    ],
)
def test_a_failure_is_told_to_who_asks(ask: Callable[[OrderedWriter], object]) -> None:
    def fail_and_ask() -> None:
        with OrderedWriter(1, 9) as writer:
            writer.put("x", fail)
            assert writer.wait(10)
            assert writer.idle
            ask(writer)
            raise AssertionError("nothing was told")

    with pytest.raises(OSError, match="disk full"):
        fail_and_ask()


def test_another_failure_is_not_hidden() -> None:
    def stop() -> None:
        with OrderedWriter(1, 10) as writer:
            writer.put("x", fail)
            raise KeyError

    with pytest.raises(KeyError):
        stop()
