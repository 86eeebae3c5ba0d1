"""What Ray Tune's own loop takes of a result, on a Ray of this machine; `scale.py` has the rest.

Tune waits for one event at a time, among one future for each worker's life and one for its next
result: the more workers are busy, the longer that takes. Workers that are busy for ever are stood
in for by tasks that no node can run.

Run: python tests/benchmarks/tune_loop.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Any

import ray
from ray import tune
from ray.air.execution import PlacementGroupResourceManager
from ray.air.execution._internal.actor_manager import RayActorManager

from anomtune.search.run.process import unchanged_process
from anomtune.search.run.ray_cluster import ray_cluster
from anomtune.search.run.ray_internals import SWITCHES

BUSY = (0, 100, 1000, 2000, 5000, 10_000)
#: Seconds between two results of a worker: a trial of 20 minutes with 8 rungs.
BETWEEN = 150
EVENTS = 30


@ray.remote(resources={"nowhere": 1})
def never() -> None:
    """Waits for a node that there is not."""


def results_a_second(trials: int, results: int) -> tuple[float, float]:
    """Returns the results that Tune takes a second of two workers, and its CPU ms for each."""

    class Quick(tune.Trainable):  # type: ignore[misc]
        """Has its results at once; in here, so that a worker gets it whole."""

        def step(self) -> dict[str, Any]:
            return {"value": 1.0}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

    with tempfile.TemporaryDirectory() as scratch, unchanged_process(SWITCHES):
        begin, cpu = time.perf_counter(), time.thread_time()
        grid = tune.Tuner(
            tune.with_resources(Quick, {"cpu": 1}),
            tune_config=tune.TuneConfig(num_samples=trials, reuse_actors=True),
            run_config=tune.RunConfig(
                storage_path=scratch,
                verbose=0,
                stop={"training_iteration": results},
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
        assert grid.num_terminated == trials
        count = trials * results
        return count / (time.perf_counter() - begin), (time.thread_time() - cpu) * 1e3 / count


def milliseconds_beside(busy: int) -> float:
    """Returns the CPU time in which Tune takes one event while so many workers are busy."""
    manager = RayActorManager(resource_manager=PlacementGroupResourceManager())
    waiting = [never.remote() for _ in range(2 * busy)]
    for future in waiting[:busy]:
        manager._actor_state_events.track_future(future)
    for future in waiting[busy:]:
        manager._actor_task_events.track_future(future)
    taken = []
    for _ in range(EVENTS):
        manager._actor_task_events.track_future(ray.put(0))
        begin = time.thread_time()
        assert manager.next(timeout=1)
        taken.append((time.thread_time() - begin) * 1e3)
    return statistics.median(taken)


def main() -> None:
    """Prints both."""
    with ray_cluster(None):
        rate, cpu = results_a_second(2, 500)
        print(f"two workers: {rate:.0f} results a second, {cpu:.1f} ms of CPU time each")
        for busy in BUSY:
            took = milliseconds_beside(busy)
            print(
                f"beside {busy} busy workers an event is taken in {took:.2f} ms: at most "
                f"{1e3 / (took + cpu):.0f} results a second; they have {busy / BETWEEN:.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
