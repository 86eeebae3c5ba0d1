"""The installed Ray still has what `ray_internals` uses of it."""

from __future__ import annotations

import gc
import inspect
import logging
import mmap
import subprocess
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)
from ray.tune.execution import class_cache

from anomtune.search.events import TrialEnded
from anomtune.search.run import ray_internals
from anomtune.search.run.ray_internals import (
    ACCELERATOR_TYPE,
    ACTOR_DIED,
    CLIENT_ADDRESSES,
    CLIENT_LOGGERS,
    COMMAND_LINE,
    JOB_STOP_WAIT,
    LONGEST_SOCKET,
    MEMORY_RAN_OUT,
    NODE_LOST,
    OWN,
    PROPAGATED,
    RAYLET_PID,
    STARTER,
    SWITCHES,
    TEMPORARY_FOLDER,
    Actors,
    EndedTrials,
    LiveNode,
    error_text,
    live_nodes,
)
from anomtune.search.sweep import run as run_sweep
from tests.search.conftest import parse_sweep, sweep_dict

ROOT = Path(ray.__file__).parent


@pytest.fixture(scope="module")
def sources() -> str:
    """The Python files of Ray in which these names stand."""
    folders = ("_private", "tune", "dashboard/modules", "autoscaler/_private")
    files = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return "".join(path.read_text(errors="replace") for path in files if "test" not in path.parts)


@pytest.mark.parametrize("name", [*SWITCHES, *CLIENT_ADDRESSES, JOB_STOP_WAIT])
def test_ray_still_reads_the_variable(sources, name):
    assert name in sources, f"Ray {ray.__version__} does not read {name} any more"


def test_every_process_of_a_raylet_has_its_number():
    assert holds(ROOT / "core/src/ray/raylet/raylet", RAYLET_PID)


def holds(path: Path, text: str) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text.encode()) >= 0


def test_ray_says_in_these_words_that_a_node_is_lost():
    """In the C++ of the process that knows all nodes, and where an actor cannot be reached."""
    dead, unreachable = NODE_LOST
    assert holds(ROOT / "core/src/ray/gcs/gcs_server", dead), f"Ray does not say {dead!r} any more"
    assert unreachable in str(ActorUnavailableError("lost", b"\0" * 16))


def test_ray_says_in_these_words_that_a_worker_died():
    assert ACTOR_DIED in str(ActorDiedError())
    assert not any(sign in str(ActorDiedError()) for sign in NODE_LOST)


@pytest.mark.parametrize("name", OWN)
def test_ray_still_has_the_setting(name):
    assert holds(ROOT / "core/src/ray/gcs/gcs_server", name)


def test_ray_says_in_these_words_that_memory_ran_out():
    assert holds(ROOT / "core/src/ray/raylet/raylet", MEMORY_RAN_OUT)


@pytest.mark.parametrize(
    "error", [OutOfMemoryError("node running low on memory"), WorkerCrashedError(), RayError("x")]
)
def test_a_worker_that_ray_has_killed_is_one_that_died(error):
    """Tune would take these for a fault of its own, and end."""
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.air.execution._internal.tracked_actor import TrackedActor

    manager = RayActorManager(SimpleNamespace(free_resources=lambda **_: None))
    told = []
    tracked = TrackedActor(0, on_error=lambda _, error: told.append(error))
    manager._live_actors_to_ray_actors_resources[tracked] = (
        None,
        SimpleNamespace(resource_request=None),
    )
    task = SimpleNamespace(_tracked_actor=tracked, _on_error=lambda _, error: told.append(error))
    with pytest.raises(RuntimeError, match="unexpected exception"):
        manager._actor_task_failed(tracked_actor_task=task, exception=error)
    controller = SimpleNamespace(
        _actor_manager=manager,
        _actor_cache=SimpleNamespace(),
        _update_trial_queue=None,
        _maybe_reuse_cached_actor=None,
    )
    Actors(lambda actor, idle: True).attach(controller)
    manager._actor_task_failed(tracked_actor_task=task, exception=error)
    assert [type(error) for error in told] == [RayActorError] * 2
    assert ACTOR_DIED in str(told[0])
    assert str(error) in str(told[0])


@pytest.mark.parametrize("name", CLIENT_LOGGERS)
def test_the_job_client_still_has_the_logger(name):
    assert find_spec(name) is not None, f"Ray has no module {name} any more"
    __import__(name)
    assert name in logging.root.manager.loggerDict


def test_the_name_of_gpu_types():
    from ray._common import utils

    assert utils.RESOURCE_CONSTRAINT_PREFIX == ACCELERATOR_TYPE


def test_tune_writes_why_a_trial_could_not_run_into_the_trials_error_file(tmp_path):
    from ray.tune.experiment import Trial

    assert isinstance(Trial.error_file, property)
    assert error_text(SimpleNamespace(error_file=None)) == ""
    assert error_text(SimpleNamespace(error_file=str(tmp_path / "none"))) == ""
    (tmp_path / "error.txt").write_text("it died\n")
    assert error_text(SimpleNamespace(error_file=str(tmp_path / "error.txt"))) == "it died"


@pytest.mark.ray
def test_what_ray_says_of_nodes(ray_session):
    [node] = live_nodes(ray_session.nodes())
    assert isinstance(node, LiveNode)
    assert len(node.id) == 56
    assert node.host
    assert node.address.count(".") == 3
    assert node.resources["CPU"] >= 1
    assert live_nodes([{**ray_session.nodes()[0], "Alive": False}]) == []


def test_ray_starts_its_processes_and_tells_its_command_line_so():
    from ray._private import services, utils, worker

    assert issubclass(getattr(services, STARTER), subprocess.Popen)
    assert f"{STARTER}(" in inspect.getsource(services.start_ray_process)
    assert callable(getattr(utils, COMMAND_LINE))
    assert f"_private.utils.{COMMAND_LINE}()" in inspect.getsource(worker)


def test_tune_gives_its_workers_keys_unless_it_is_kept_from_it():
    given = getattr(class_cache, PROPAGATED)
    assert {name for name in given if "SECRET" in name or "TOKEN" in name} <= {
        name for name in given if name.startswith("AWS_")
    }
    assert f"in {PROPAGATED}:" in inspect.getsource(class_cache._ActorClassCache.get)


def test_sockets_lie_where_ray_puts_them():
    from ray._common import utils
    from ray._private import node

    source = inspect.getsource(node.Node)
    assert TEMPORARY_FOLDER in inspect.getsource(utils.get_default_system_temp_dir)
    for part in ('"%Y-%m-%d_%H-%M-%S_%f"', 'f"session_{date_str}_{os.getpid()}"', '"sockets"'):
        assert part in source
    assert LONGEST_SOCKET.endswith("/sockets/plasma_store")
    assert 'default_prefix="plasma_store"' in source


def test_tunes_loop_waits_for_workers_and_goes_on_with_a_trial_so():
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.tune.execution.tune_controller import TuneController

    step = inspect.getsource(TuneController.step)
    assert step.index("_maybe_add_actors()") < step.index("_actor_manager.next(timeout=0.1)")
    assert "choose_trial_to_run" in inspect.getsource(TuneController._maybe_add_actors)
    assert list(inspect.signature(RayActorManager.next).parameters) == ["self", "timeout"]
    action = inspect.getsource(TuneController._execute_action)
    assert "self._schedule_trial_train(trial)" in action
    assert "self.stop_trial(trial)" in action
    assert "TrialScheduler.NOOP:\n            pass" in action


def test_tune_keeps_actors_as_it_is_told():
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.utils.object_cache import _ObjectCache

    source = inspect.getsource(TuneController)
    assert "self._maybe_reuse_cached_actor(trial):" in source
    assert "self._remove_actor(tracked_actor=original_actor)" in source
    for call in (".cache_object(", ".flush_cached_objects(\n", ".pop_cached_object("):
        assert f"_actor_cache{call}" in source, call
    asks = inspect.getsource(TuneController._maybe_update_trial_queue)
    assert "_update_trial_queue(blocking=not dont_wait_for_trial)" in asks
    cache = _ObjectCache(may_keep_one=True)
    updates, reused = [], []
    controller = SimpleNamespace(
        _actor_cache=cache,
        _actor_manager=SimpleNamespace(
            _actor_task_failed=None, _live_actors_to_ray_actors_resources={"begins": None}
        ),
        _trial_to_actor={"a": "begins", "b": "waits"},
        _maybe_reuse_cached_actor=lambda trial: reused.append(trial) or True,
        _update_trial_queue=lambda *, blocking: updates.append(blocking),
    )
    clock, told = SimpleNamespace(now=0.0), []

    def stays(actor: object, idle: float) -> bool:
        told.append((actor, idle))
        return actor != "unwanted" and idle < 10

    actors = Actors(stays, lambda: clock.now)
    for _ in range(2):
        actors.attach(controller)
    controller._update_trial_queue(blocking=True)
    assert updates == [False], "it would sleep, and end no actor meanwhile"
    assert [controller._maybe_reuse_cached_actor(trial) for trial in "abc"] == [False, True, True]
    assert reused == ["b", "c"], "one that begins for a trial would be ended"
    whole = type("Key", (), {"bundles": [{"CPU": 1.0}]})()
    assert cache.cache_object(whole, "one")
    assert not cache.cache_object(whole, "unwanted")
    clock.now = 6.0
    assert cache.cache_object(whole, "two")
    assert actors.idle({"CPU": 1.0}) == cache.num_cached_objects == 2
    assert actors.idle({"CPU": 2.0}) == 0
    assert list(cache.flush_cached_objects()) == []
    clock.now = 11.0
    assert list(cache.flush_cached_objects()) == ["one"]
    assert cache.pop_cached_object(whole) == "two"
    assert cache.num_cached_objects == 0
    assert cache.cache_object(whole, "two")
    assert list(cache.flush_cached_objects(force_all=True)) == ["two"]


def test_what_actors_hold_and_what_waits_for_room_is_found_in_tune():
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.air.execution.resources.placement_group import PlacementGroupResourceManager

    manager = RayActorManager(resource_manager=PlacementGroupResourceManager())
    assert manager._live_actors_to_ray_actors_resources == {}
    assert manager._pending_actors_to_attrs == {}
    assert manager._resource_manager._request_to_staged_pgs == {}
    controller = SimpleNamespace(
        _actor_manager=manager,
        _actor_cache=SimpleNamespace(),
        _update_trial_queue=None,
        _maybe_reuse_cached_actor=None,
        _actor_to_trial={"a": "trial"},
    )
    actors = Actors(lambda actor, idle: True)
    actors.attach(controller)
    key = type("Key", (), {"bundles": [{"CPU": 1.0, "GPU": 0.5}]})()
    manager._live_actors_to_ray_actors_resources["b"] = (
        "handle",
        SimpleNamespace(resource_request=key),
    )
    manager._resource_manager._request_to_staged_pgs[key] = {"group", "other"}
    manager._pending_actors_to_attrs["a"] = "class", {}, key
    assert actors.held() == {"b": key.bundles[0]}
    assert actors.waiting() == [key.bundles[0]] * 2
    assert actors.without_room() == [("trial", key.bundles[0])]
    for trial in list(manager._live_actors_to_ray_actors_resources):
        del manager._live_actors_to_ray_actors_resources[trial]


def test_tune_keeps_trials_that_have_ended_and_lets_them_be_forgotten():
    from ray.tune.callback import Callback, CallbackList
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial
    from ray.tune.progress_reporter import TrialProgressCallback

    for name in ("_trials", "_stopped_trials", "_failed_trials", "_trials_to_cache"):
        assert f"self.{name}: " in inspect.getsource(TuneController.__init__)
    assert Trial.__eq__ is object.__eq__
    runs, first, second, third = (Ended(ends) for ends in (False, True, True, True))
    controller = SimpleNamespace(
        _trials=[runs, first, second, third],
        _stopped_trials={first, third},
        _failed_trials={second},
        _trials_to_cache={runs, first, second, third},
        _callbacks=CallbackList([TrialProgressCallback(), Callback()]),
    )
    ended = EndedTrials()
    for trial in (first, first, second, third):
        ended.note(trial)
    ended.forget(controller)
    assert [type(one) for one in controller._callbacks._callbacks] == [Callback]
    assert controller._trials == [runs, third], "what runs stays, and so does the last that ended"
    assert (controller._stopped_trials, controller._failed_trials) == ({third}, set())
    assert controller._trials_to_cache == {runs, third}
    ended.note(runs)
    ended.forget(controller)
    assert controller._trials == [runs]


class Ended:
    def __init__(self, ends: bool) -> None:
        self.is_finished = lambda: ends


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_run_of_many_trials_keeps_none_of_them(toy_data, tmp_path, monkeypatch):
    """By itself Tune keeps every one, and what its actors did."""
    from ray.tune.experiment import Trial

    monkeypatch.setattr(ray_internals, "_SOMETIMES", 10)
    alive = []

    def count(event: object) -> None:
        if isinstance(event, TrialEnded) and event.number == 39:
            gc.collect()
            alive.append(sum(isinstance(item, Trial) for item in gc.get_objects()))

    config = parse_sweep(sweep_dict(toy_data, trials=40, rungs=1), "test")
    run_sweep(config, tmp_path, on_event=count)
    assert len(alive) == 2
    assert max(alive) < 30, alive
