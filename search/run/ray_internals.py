"""All that is used of Ray beyond its public interface; `test_ray_internals.py` guards it.

Seen in Ray 2.60, unless it says otherwise. A later Ray that has changed one of these fails that
test, which names it. Importing this imports no Ray: it is slow, and a refusal does not need it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

#: How Tune and its workers are set up where Tune has no argument for it. Read by the driver when it
#: runs, and by the raylet, from which the workers have it, when it starts.
SWITCHES = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our records and curves replace Tune's
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # our results are messages, without a metric
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # its snapshot is not the truth, and costs time
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000000",  # the searcher says when there is no more room
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "10",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

#: How a Ray that only this driver uses is set up. Its head would keep what the last 100,000 tasks
#: came to, 13 kB of each trial, and nobody can look at it without a dashboard.
OWN = {"task_events_report_interval_ms": 0}

#: What Ray's job client tells of uploads and connections, of no use to people.
CLIENT_LOGGERS = (
    "ray._private.runtime_env.packaging",
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
)
#: Ray's job client lets these replace the address that it is given.
CLIENT_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
#: Seconds between SIGTERM and SIGKILL when a job is stopped; since 2.2.
JOB_STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
#: Set in every process that a raylet starts: the raylet's own, whose environment is the node's.
RAYLET_PID = "RAY_RAYLET_PID"

#: Read for the seconds after which a process ends that finds no head, and what they are else.
HEAD_PATIENCE = ("RAY_gcs_rpc_server_reconnect_timeout_s", "60")

#: Read for the folder of Ray's sockets, before the system's ``TMPDIR``.
TEMPORARY_FOLDER = "RAY_TMPDIR"
#: The longest socket below it, as Ray names it, but for the number of the process.
LONGEST_SOCKET = "ray/session_2025-01-01_00-00-00_000000_4194304/sockets/plasma_store"

#: In `ray._private.services`: what all processes of a Ray are started with, a `subprocess.Popen`.
STARTER = "ConsolePopen"

#: In `ray._private.utils`: gives the command line of this process, which Ray takes in UTF-8 alone.
COMMAND_LINE = "get_entrypoint_name"

#: In `ray.tune.execution.class_cache`: the variables that Tune gives its workers, on their command
#: lines, which everybody on a machine can read. Keys of AWS are among them.
PROPAGATED = "ENV_VARS_TO_PROPAGATE"

#: Begins the name of the resource that a node with GPUs of a type has one of.
ACCELERATOR_TYPE = "accelerator_type:"

#: After so many trials what is kept of actors is looked through.
_SOMETIMES = 100
#: Seconds for which workers are not looked at while something else is waited for.
_GLANCE = 0.005

#: How Ray says that an actor went with its node: once it knows, and before. That it died is an
#: exception of its own, why it died is told in words alone.
NODE_LOST = ("its node has died", "is unavailable")
#: How it says that the process died, and that it killed it since the node had no memory left.
ACTOR_DIED = "actor died"
MEMORY_RAN_OUT = "node running low on memory"


class LiveNode(NamedTuple):
    """What `ray.nodes` says of a node that is alive; it returns dictionaries.

    Attributes:
        id: Ray's name for it, 56 hexadecimal digits.
        host: Its host name.
        address: Its IP address.
        resources: What it has: ``CPU``, ``GPU``, ``accelerator_type:A100``, ...
    """

    id: str
    host: str
    address: str
    resources: Mapping[str, float]


class LoopWaker:
    """Lets Tune's loop, which waits for its workers alone, go round when something else happens.

    Args:
        idle: Whether nothing else can happen now.
        wait: Waits so many seconds for it; whether it has happened.
    """

    def __init__(self, idle: Callable[[], bool], wait: Callable[[float], bool]) -> None:
        self._idle = idle
        self._wait = wait
        self._next: Callable[..., bool] | None = None

    def attach(self, controller: Any) -> None:
        """Takes the place of what the loop waits with, once."""
        if self._next is None:
            manager = controller._actor_manager
            self._next, manager.next = manager.next, self._next_or_other

    def _next_or_other(self, timeout: float | None = None) -> bool:
        assert self._next is not None
        end = math.inf if timeout is None else time.monotonic() + timeout
        while not self._idle() and time.monotonic() < end:
            if self._next(timeout=0):
                return True
            if self._wait(_GLANCE):
                return True
        left = None if timeout is None else max(0.0, end - time.monotonic())
        if self._next(timeout=left):
            return True
        if timeout is not None:  # with nothing to wait for it does not wait
            time.sleep(max(0.0, end - time.monotonic()))
        return False


class Actors:
    """Tune's actors: what they hold, what waits for room, and which stay for the runs that follow.

    By itself Tune keeps one for each trial that waits, and one more, for ever. Here the next trial
    is chosen when one has ended, so that none waits: of two that end together one would lose its
    process, and a new one take seconds to begin, by when the other has done its trial.

    Args:
        stays: Whether an actor stays that has had nothing to do for so many seconds.
        clock: Seconds.
    """

    def __init__(
        self,
        stays: Callable[[Hashable, float], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stays = stays
        self._clock = clock
        self._controller: Any = None
        self._idle_since: dict[Hashable, float] = {}

    def attach(self, controller: Any) -> None:
        """Decides from now on which actors of a controller stay; to be called at every trial."""
        if self._controller is None:
            self._controller = controller
            cache = controller._actor_cache
            cache.cache_object, cache.flush_cached_objects = self._keep, self._let_go
            _take_for_deaths(controller._actor_manager)
            # The controller hides behind a wrapper, which takes no attributes.
            inner = getattr(controller, "_tune_controller", controller)
            _never_sleep(inner)
            _let_start(inner)

    def held(self) -> dict[Hashable, Mapping[str, float]]:
        """Returns what each actor holds, also while it has nothing to do."""
        if self._controller is None:
            return {}
        live = self._controller._actor_manager._live_actors_to_ray_actors_resources
        return {actor: has.resource_request.bundles[0] for actor, (_, has) in live.items()}

    def waiting(self) -> list[Mapping[str, float]]:
        """Returns the shapes of trials for which there is no room yet."""
        if self._controller is None:
            return []
        staged = self._controller._actor_manager._resource_manager._request_to_staged_pgs
        return [request.bundles[0] for request, groups in staged.items() for _ in groups]

    def idle(self, shape: Mapping[str, float]) -> int:
        """Returns how many actors of a shape have nothing to do."""
        if self._controller is None:
            return 0
        cached = self._controller._actor_cache._cached_objects
        return sum(len(actors) for key, actors in cached.items() if key.bundles[0] == shape)

    def actor_of(self, trial: Any) -> Hashable:
        """Returns the actor of a trial that runs."""
        actor: Hashable = self._controller._trial_to_actor[trial]
        return actor

    def without_room(self) -> list[tuple[Any, Mapping[str, float]]]:
        """Returns the trials that wait for room, and their shapes."""
        if self._controller is None:
            return []
        pending = self._controller._actor_manager._pending_actors_to_attrs
        trials = self._controller._actor_to_trial
        return [(trials[a], has[2].bundles[0]) for a, has in pending.items() if a in trials]

    def _keep(self, key: Any, actor: Any) -> bool:
        """Takes the place of the cache's own rule: whether an actor stays whose trial has ended."""
        if not self._stays(actor, 0.0):
            return False
        cache = self._controller._actor_cache
        cache._cached_objects[key].append(actor)
        cache._num_cached_objects += 1
        self._idle_since[actor] = self._clock()
        return True

    def _let_go(self, force_all: bool = False) -> Iterator[Any]:
        """Takes the place of the cache's own rule: yields the actors that are to end."""
        cache = self._controller._actor_cache
        cached = {actor for actors in cache._cached_objects.values() for actor in actors}
        self._idle_since = {a: since for a, since in self._idle_since.items() if a in cached}
        for actors in cache._cached_objects.values():
            for actor in list(actors):
                idle = self._clock() - self._idle_since.get(actor, 0.0)
                if force_all or not self._stays(actor, idle):
                    actors.remove(actor)
                    cache._num_cached_objects -= 1
                    yield actor


def _take_for_deaths(manager: Any) -> None:
    """Lets Tune take every error of Ray by which a worker is lost for the death of an actor.

    Of a worker that Ray has killed since the node's memory ran out, it gets another one, which it
    takes for a fault of its own: it would end, and the sweep with it.
    """
    from ray.exceptions import (  # noqa: PLC0415 - see above
        ActorDiedError,
        RayActorError,
        RayError,
        RayTaskError,
    )

    failed = manager._actor_task_failed

    def task_failed(tracked_actor_task: Any, exception: Exception) -> None:
        told = isinstance(exception, RayActorError | RayTaskError)
        if isinstance(exception, RayError) and not told:
            exception = RayActorError(error_msg=f"{ActorDiedError.BASE_ERROR_MSG}\n{exception}")
        failed(tracked_actor_task, exception)

    manager._actor_task_failed = task_failed


def _never_sleep(controller: Any) -> None:
    """Lets Tune's loop go round also while no trial can be handed out.

    It would ask again each second, for ten minutes, and meanwhile end no actor.
    """
    update = controller._update_trial_queue
    controller._update_trial_queue = lambda blocking=False, timeout=0: update(blocking=False)


def _let_start(controller: Any) -> None:
    """Lets a worker whose process begins do the trial that it begins for.

    Tune would give that trial any worker that another one leaves, and end the one that begins.
    Where trials are shorter than the start of a process, places stay empty for ever.
    """
    reuse = controller._maybe_reuse_cached_actor

    def reuse_unless_one_begins(trial: Any) -> bool:
        actor = controller._trial_to_actor.get(trial)
        begins = actor in controller._actor_manager._live_actors_to_ray_actors_resources
        return False if begins else reuse(trial)

    controller._maybe_reuse_cached_actor = reuse_unless_one_begins


class EndedTrials:
    """Lets Tune forget trials that have ended: of each it keeps 30 kB, for nothing that we need.

    The records say what came of them. Tune keeps every trial, and looks through all of them. Its
    actor manager keeps what was to be done by an actor that another one came before, and with it
    the trial; and the future of everything that an actor has done, and with it the result. The
    last trial stays: Tune takes a run without any for stuck.
    """

    def __init__(self) -> None:
        self._ended: deque[Any] = deque()
        self._count = 0

    def note(self, trial: Any) -> None:
        """Takes in a trial that ends now."""
        self._ended.append(trial)

    def forget(self, controller: Any) -> None:
        """Forgets those that have ended by now; to be called in each round of Tune's loop."""
        while len(self._ended) > 1 and self._ended[0].is_finished():
            trial = self._ended.popleft()
            # A list, in the order in which they came: those in front of it still run.
            with suppress(ValueError):  # one that failed while it ended is here twice
                controller._trials.remove(trial)
            for kept in ("_stopped_trials", "_failed_trials", "_trials_to_cache"):
                getattr(controller, kept).discard(trial)
            # What prints progress, here nothing, keeps every trial for it.
            told = controller._callbacks._callbacks
            told[:] = [one for one in told if type(one).__name__ != "TrialProgressCallback"]
            self._count += 1
            if self._count % _SOMETIMES == 0:
                self._forget_tasks(controller._actor_manager)

    @staticmethod
    def _forget_tasks(manager: Any) -> None:
        waiting = manager._pending_actors_to_enqueued_actor_tasks
        for actor in waiting.keys() - manager._pending_actors_to_attrs.keys():
            del waiting[actor]
        not_done = manager._actor_task_events.get_futures()
        for futures in manager._tracked_actors_to_task_futures.values():
            futures.intersection_update(not_done)


def go_on(controller: Any, trial: Any) -> None:
    """Lets a trial whose result was answered with ``NOOP`` do its next step."""
    controller._schedule_trial_train(trial)


def live_nodes(nodes: Iterable[Mapping[str, Any]]) -> list[LiveNode]:
    """Returns those nodes that are alive.

    Args:
        nodes: From `ray.nodes`.
    """
    return [
        LiveNode(
            node["NodeID"],
            node["NodeManagerHostname"],
            node["NodeManagerAddress"],
            node["Resources"],
        )
        for node in nodes
        if node["Alive"]
    ]


def error_text(trial: Any) -> str:
    """Returns what Tune wrote of the end of a trial that could not run.

    A scheduler is told that it could not, not why.
    """
    path = trial.error_file
    if not path or not Path(path).exists():
        return ""
    return Path(path).read_text(encoding="utf-8", errors="backslashreplace").strip()
