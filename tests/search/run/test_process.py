"""Importing anomtune and running a sweep leave the caller's process as it was."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import subprocess
import sys
import warnings
import weakref
from pathlib import Path

import pytest

from anomtune.search.run.process import (
    muted,
    no_interrupt_lost,
    rare_full_collections,
    terminate_as_interrupt,
    unchanged_process,
)

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


def script(name: str, *arguments: object) -> dict:
    """Runs a script beside this file in a fresh interpreter; returns what it prints last."""
    command = [sys.executable, str(HERE / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_every_module_changes_nothing():
    told = script("import_all.py")
    assert len(told["modules"]) > 80
    assert told["changes"] == []


@pytest.fixture(scope="module")
def own(tmp_path_factory, toy_data):
    """What a script with a method of its own prints after its sweep on real Ray."""
    return script("own_script.py", toy_data, tmp_path_factory.mktemp("own") / "sweep")


@pytest.mark.ray
def test_a_sweep_changes_nothing(own):
    assert own["changes"] == []


@pytest.mark.ray
def test_a_method_of_a_script_reaches_the_workers(own):
    assert own["errors"] == []
    assert own["finished"]
    assert own["methods"] == ["mine"] * 4 + ["toy"] * 4
    assert own["figures"] == [0.25] * 4 + [None] * 4


def test_what_is_changed_meanwhile_is_changed_back(monkeypatch):
    monkeypatch.setenv("RAY_KEPT", "old")
    monkeypatch.setenv("RAY_GONE", "old")
    logger = logging.getLogger("ray.tests")
    state = dict(os.environ), list(warnings.filters), list(logger.handlers), sys.excepthook
    handler = signal.getsignal(signal.SIGUSR1)
    with unchanged_process({"RAY_KEPT": "default", "ADDED": "default"}):
        assert (os.environ["RAY_KEPT"], os.environ["ADDED"]) == ("old", "default")
        os.environ["RAY_KEPT"] = "new"
        del os.environ["RAY_GONE"]
        os.environ["TUNE_NEW"] = "new"
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
        sys.excepthook = print
        signal.signal(signal.SIGUSR1, lambda *_: None)
    assert (
        dict(os.environ), list(warnings.filters), list(logger.handlers), sys.excepthook,
    ) == state  # fmt: skip
    assert (logger.level, logger.propagate) == (logging.NOTSET, True)
    assert signal.getsignal(signal.SIGUSR1) == handler


def test_what_the_caller_sets_meanwhile_stays(monkeypatch):
    monkeypatch.setenv("BEFORE", "old")
    monkeypatch.delenv("DURING", raising=False)
    logger = logging.getLogger("tests.process")
    with unchanged_process({"ADDED": "1"}):
        monkeypatch.setenv("BEFORE", "new")
        monkeypatch.setenv("DURING", "1")
        logger.setLevel(logging.ERROR)
    assert (os.environ["BEFORE"], os.environ["DURING"]) == ("new", "1")
    assert logger.level == logging.ERROR
    logger.setLevel(logging.NOTSET)


def test_an_error_passes_and_everything_is_changed_back(monkeypatch):
    monkeypatch.delenv("ADDED", raising=False)

    def fail():
        with unchanged_process({"ADDED": "1"}), rare_full_collections(), terminate_as_interrupt():
            raise KeyError

    before = gc.get_threshold(), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError):
        fail()
    assert "ADDED" not in os.environ
    assert (gc.get_threshold(), signal.getsignal(signal.SIGTERM)) == before


@pytest.fixture
def _heard():
    """Interrupts are heard: a shell in whose background the tests run has them ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heard")
def test_an_interrupt_that_a_fork_swallows_is_raised_afterwards():
    before = signal.getsignal(signal.SIGINT)

    class Swallows:
        def __del__(self):  # as hooks around a fork do
            signal.raise_signal(signal.SIGINT)

    done = []
    context = no_interrupt_lost()
    context.__enter__()
    swallows = Swallows()
    del swallows
    done.append("went on")
    with pytest.raises(KeyboardInterrupt):
        context.__exit__(None, None, None)
    assert done == ["went on"]
    assert signal.getsignal(signal.SIGINT) == before
    with no_interrupt_lost():
        done.append("nothing came")
    assert done[1:] == ["nothing came"]


def test_a_logger_that_is_stricter_stays_so():
    logger = logging.getLogger("tests.muted")
    logger.setLevel(logging.CRITICAL)
    with muted(logging.ERROR, "tests.muted"):
        assert logger.level == logging.CRITICAL
    logger.setLevel(logging.NOTSET)
    with muted(logging.ERROR, "tests.muted"):
        assert logger.level == logging.ERROR
    assert logger.level == logging.NOTSET


@pytest.fixture
def collections():
    """Says how often the collector has looked at the youngest, the middle and all objects."""
    gc.collect()

    def count() -> list[int]:
        return [generation["collections"] for generation in gc.get_stats()]

    return count


def many_records(number: int) -> list[list[int]]:
    return [[item] for item in range(number)]


def test_what_is_there_is_not_looked_at_again_however_much_there_is(collections):
    with rare_full_collections():
        before = collections()
        records = many_records(500_000)
        after = collections()
    assert after[1] > before[1], "what is young is collected"
    assert after[2] == before[2]
    assert len(records) == 500_000


def test_without_it_all_is_looked_at_again_and_again(collections):
    """What the test above stands on: so many records would do."""
    before = collections()
    assert many_records(500_000)
    assert collections()[2] > before[2]


def test_garbage_is_freed_all_the_same():
    class Node:
        pass

    nodes = []
    with rare_full_collections():
        for _ in range(1000):
            node = Node()
            node.self = node
            nodes.append(weakref.ref(node))
            del node
        assert many_records(100_000)
    assert sum(node() is not None for node in nodes) < 10


def test_nothing_of_it_stays():
    before = gc.get_threshold(), gc.get_freeze_count(), gc.isenabled()
    with rare_full_collections():
        assert gc.get_threshold()[:2] == before[0][:2]
    assert (gc.get_threshold(), gc.get_freeze_count(), gc.isenabled()) == before


def test_old_garbage_is_freed_when_the_time_has_come():
    class Node:
        pass

    now = [0.0]

    def clock() -> float:
        now[0] += 0.5  # a collection takes half a second
        return now[0]

    with rare_full_collections(clock) as tidy:
        node = Node()
        node.self = node
        seen = weakref.ref(node)
        gc.collect(1)  # as old as can be
        gc.collect(1)
        del node
        assert many_records(100_000)
        tidy()
        assert seen() is not None, "not before a thousand times the last one's duration"
        now[0] += 500
        tidy()
        assert seen() is None
