"""The garbage collector does not look through the records of a sweep again and again."""

from __future__ import annotations

import gc

import pytest

from anomtune.search.run.collector import Collector


@pytest.fixture(autouse=True)
def thaw():
    yield
    gc.unfreeze()


def tracked(objects):
    living = {id(item) for item in gc.get_objects()}
    return sum(id(item) in living for item in objects)


def test_what_was_there_before_is_left_alone():
    records = [[number] for number in range(100)]
    assert tracked(records) == 100
    Collector()
    assert tracked(records) == 0


def test_what_ended_runs_leave_is_left_alone_soon():
    collector = Collector()
    records = []
    for number in range(1000):
        records.append([number])
        collector.ended()
        assert tracked(records) <= 50


def test_garbage_is_freed_all_the_same():
    class Node:
        freed = 0

        def __del__(self):
            Node.freed += 1

    collector = Collector()
    for _ in range(100):
        node = Node()
        node.self = node
        del node
        collector.ended()
    assert Node.freed == 100
