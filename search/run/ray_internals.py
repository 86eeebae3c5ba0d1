"""All that is used of Ray beyond its public interface; `test_ray_internals.py` guards it.

Seen in Ray 2.60, unless it says otherwise. A later Ray that has changed one of these fails that
test, which names it. Importing this imports no Ray: it is slow, and a refusal does not need it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
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

#: Read for the folder of Ray's sockets, before the system's ``TMPDIR``.
TEMPORARY_FOLDER = "RAY_TMPDIR"
#: The longest socket below it, as Ray names it, but for the number of the process.
LONGEST_SOCKET = "ray/session_2025-01-01_00-00-00_000000_4194304/sockets/plasma_store"

#: In `ray._private.services`: what all processes of a Ray are started with, a `subprocess.Popen`.
STARTER = "ConsolePopen"

#: In `ray._private.utils`: gives the command line of this process, which Ray takes in UTF-8 alone.
COMMAND_LINE = "get_entrypoint_name"

#: Begins the name of the resource that a node with GPUs of a type has one of.
ACCELERATOR_TYPE = "accelerator_type:"

#: After so many trials what is kept of actors is looked through.
_SOMETIMES = 100
#: Seconds for which workers are not looked at while something else is waited for.
_GLANCE = 0.005

#: How Ray says that an actor went with its node: once it knows, and before. That it died is an
#: exception of its own, why it died is told in words alone.
NODE_LOST = ("its node has died", "is unavailable")
#: How it says that the process died.
ACTOR_DIED = "actor died"


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
        return self._next(timeout=left)


class ActorKeeper:
    """Lets Tune keep the actors of trials that have ended for the trials that follow.

    By itself it keeps one for each trial that waits, and one more. Here the next trial is chosen
    when one has ended, so that none waits: of two that end together one would lose its process,
    and a new one take seconds to begin, by when the other has done its trial.
    """

    def __init__(self) -> None:
        self._kept: Any = None
        self._count = 0

    def keep(self, controller: Any, trial: Any, count: int) -> None:
        """Keeps so many actors with the resources of a trial, and none with others."""
        resources, cache = trial.placement_group_factory, controller._actor_cache
        if (resources, count) == (self._kept, self._count):
            return
        if self._kept is not None:
            cache.decrease_max(self._kept, by=self._count)
        cache.increase_max(resources, by=count)
        self._kept, self._count = resources, count


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
