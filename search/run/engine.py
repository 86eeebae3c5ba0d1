"""Runs a sweep on Ray Tune. Optuna decides, in the pool; Ray Tune only executes.

How many runs are handed out, and which share of a GPU each has, is decided here as well
(`Capacity`, `Packer`); where they run, Ray decides.
"""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.tune.execution import class_cache

from anomtune.registry import registrations
from anomtune.search.config import Sweep
from anomtune.search.decide.work import Work
from anomtune.search.run.adapters import PoolScheduler, PoolSearcher
from anomtune.search.run.board import ray_board
from anomtune.search.run.capacity import Capacity
from anomtune.search.run.handout import Handout, SpecMaker
from anomtune.search.run.messages import Assignment
from anomtune.search.run.process import (
    muted,
    rare_full_collections,
    terminate_as_interrupt,
    unchanged_process,
)
from anomtune.search.run.ray_internals import PROPAGATED, SWITCHES, LiveNode, live_nodes
from anomtune.search.run.sharing import Sharing
from anomtune.search.run.worker import TrialActor
from anomtune.search.store.writer import OrderedWriter

#: What a worker must know of what was registered in this process; the rest only the driver uses.
_FOR_WORKERS = ("method", "dataset", "metric")


def run_work(
    config: Sweep, work: Work, make_spec: SpecMaker, capacity: Capacity, records: OrderedWriter
) -> None:
    """Runs what remains of a sweep; returns early, with work left, if it is interrupted.

    Args:
        config: The sweep.
        work: The searches and confirm runs.
        make_spec: Says what a worker is told of a run.
        capacity: Says what a run occupies and how many there can be.
        records: Where the work puts its records, each under its path.

    Raises:
        SweepError, DataError, StorageError: If the sweep directory refuses a record, or data or
            storage fail on a worker.
    """
    if work.remaining == 0:
        return
    scratch = tempfile.mkdtemp(prefix="anomtune-")
    try:
        with (
            unchanged_process(SWITCHES),
            muted(logging.CRITICAL, "ray.tune"),  # what it says of trials, the records say better
            rare_full_collections() as tidy,
            terminate_as_interrupt(),
            ray_board() as board,
            _keys_kept_back(),
        ):
            handout = Handout(
                config, work, make_spec, capacity, records, sharing=Sharing(_nodes, board)
            )
            handout.tidy = tidy
            _tuner(handout, scratch).fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if handout.failure is not None:
        raise handout.failure


def _nodes() -> list[LiveNode]:
    return live_nodes(ray.nodes())


@contextmanager
def _keys_kept_back() -> Iterator[None]:
    """Keeps Tune from writing keys of this process's environment onto command lines of workers.

    The nodes have their own: a Ray of this machine inherits them.
    """
    given = getattr(class_cache, PROPAGATED)
    setattr(class_cache, PROPAGATED, {name for name in given if not name.startswith("AWS_")})
    try:
        yield
    finally:
        setattr(class_cache, PROPAGATED, given)


def _tuner(handout: Handout, scratch: str) -> tune.Tuner:
    known = {kind: items for kind, items in registrations().items() if kind in _FOR_WORKERS}
    actor = tune.with_parameters(TrialActor, path=sys.path, known=cloudpickle.dumps(known))
    return tune.Tuner(
        tune.with_resources(actor, _placement),
        tune_config=tune.TuneConfig(
            search_alg=PoolSearcher(handout),
            scheduler=PoolScheduler(handout),
            num_samples=-1,  # the searcher says when nothing is left
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=scratch,
            verbose=0,
            # Ours, not Tune's, to count: it takes a worker that died between two runs, unnoticed,
            # for two failures of the second one.
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )


def _placement(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    return tune.PlacementGroupFactory([Assignment.of(config).shape])
