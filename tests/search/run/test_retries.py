"""What becomes of runs whose worker or node died, as the engine's adapters see it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from anomtune.search.config import parse_sweep
from anomtune.search.run.adapters import _AGAIN_ELSEWHERE
from tests.search.conftest import sweep_dict
from tests.search.run.test_gpu_sharing import Engine, numbers

DEATH = "Failure # 1\nThe actor died unexpectedly before finishing this task.\n"
LOSS = "Failure # 1\nThe actor died because its node has died. Node Id: 12ab\n"


@pytest.fixture
def engine(simulation, tmp_path):
    simulation.categories = ("a",)
    made = Engine(parse_sweep(sweep_dict(trials=3, concurrency=1), "test"), simulation, gpus=0)

    def die(name: str, text: str) -> None:
        file = tmp_path / "error.txt"
        file.write_text(text)
        trial = SimpleNamespace(trial_id=name, error_file=str(file))
        made.scheduler.on_trial_error(None, trial)
        made.searcher.on_trial_complete(name, error=True)
        assert made.handout.failure is None

    made.die = die
    return made


def test_a_run_whose_worker_died_is_run_once_more(engine):
    engine.start()
    engine.die("0", DEATH)
    assert engine.record(0).state == "RUNNING"
    assert numbers(engine.start()) == [0]
    engine.die("1", DEATH)
    assert engine.record(0).state == "FAIL"
    assert engine.record(0).error.startswith("the worker process died")
    assert engine.record(0).error.endswith("this was attempt 2")


@pytest.mark.parametrize("text", [DEATH, LOSS])
def test_what_is_done_at_the_second_attempt_is_done(engine, text):
    engine.start()
    engine.die("0", text)
    engine.start()
    engine.complete("1", peak=1)
    assert engine.record(0).state == "COMPLETE"
    assert numbers(engine.start()) == [1]


def test_nodes_come_and_go_but_not_for_ever(engine):
    for attempt in range(_AGAIN_ELSEWHERE):
        engine.start()
        engine.die(str(attempt), LOSS)
        assert engine.record(0).state == "RUNNING"
    engine.start()
    engine.die(str(_AGAIN_ELSEWHERE), LOSS)
    assert engine.record(0).error == "its node went away; this was attempt 6"


def test_a_lost_node_does_not_count_as_a_death(engine):
    for attempt, text in enumerate((LOSS, DEATH, LOSS)):
        engine.start()
        engine.die(str(attempt), text)
    engine.start()
    engine.complete("3", peak=1)
    assert engine.record(0).state == "COMPLETE"
