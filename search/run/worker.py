"""The actor in which Ray Tune runs trials and confirm runs, one after the other.

It is used for many of them, so that imports, the CUDA context and the images are paid for once.
"""

from __future__ import annotations

import gc
import logging
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
import torch
from ray import cloudpickle, tune

from anomtune.errors import MethodError, StorageError, TrainingDivergedError
from anomtune.registry import adopt
from anomtune.search.run.held_out import run_confirm
from anomtune.search.run.messages import (
    SURROUNDINGS,
    Aborted,
    Assignment,
    ConfirmReport,
    Failed,
    Message,
    OutOfMemory,
    Placed,
    TrialReport,
    to_result,
)
from anomtune.search.run.trial import TrialResult, TrialSpec, run_trial
from anomtune.search.store.records import ConfirmResult

_LOG = logging.getLogger(__name__)

_Results = Iterator[TrialResult | ConfirmResult]

#: Failures of a config that say all in one line; other exceptions bring their traceback.
_EXPECTED = (MethodError, TrainingDivergedError, torch.OutOfMemoryError)
#: How CUDA's libraries say that memory ran out, where it is not the allocator that notices.
_NO_MEMORY = ("out of memory", "ALLOC_FAILED")
#: How CUDA says that this process can compute no more, whichever config it is given.
_CUDA_BROKEN = "CUDA error"


def _is_out_of_memory(error: Exception) -> bool:
    words = isinstance(error, RuntimeError) and any(part in str(error) for part in _NO_MEMORY)
    return words or isinstance(error, torch.OutOfMemoryError)


def _checked(spec: TrialSpec, results: _Results) -> _Results:
    _require_record(spec)
    yield from results


def _require_record(spec: TrialSpec) -> None:
    """Makes sure that this node sees the sweep directory, also one that has joined late.

    Raises:
        StorageError: If the run's record, which was written before it was handed out, is not there.
    """
    if spec.storage().read(f"{spec.record_path}.json") is None:
        raise StorageError(
            f"{spec.directory}: node {socket.gethostname()} does not see what the driver writes "
            "there; with more than one node give --dir a folder on a shared file system, or "
            "s3://bucket/folder"
        )


def _unpacked(known: bytes) -> Mapping[str, Mapping[str, Any]]:
    """Returns what the driver's process has registered; nothing if it cannot be had here.

    A trial that wants some of it then fails, and says that it is not known.
    """
    try:
        found: Mapping[str, Mapping[str, Any]] = cloudpickle.loads(known)
    except Exception:  # noqa: BLE001 - what is imported here may raise anything
        _LOG.warning("what the driver has registered cannot be used here", exc_info=True)
        return {}
    return found


def _breaks_the_process(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and _CUDA_BROKEN in str(error)


class TrialActor(tune.Trainable):  # type: ignore[misc]
    """Runs trials for Ray Tune, a rung per ``step``, and confirm runs in a single one.

    An exception is a result, not the end of the actor: only a dying process is Ray's business, and
    one whose GPU refuses all further work, as it does after an illegal access.
    """

    _results: _Results
    #: Whether it has said where it is.
    _told = True
    #: How many modules there were when what stays was last set apart.
    _imported = 0

    def setup(
        self, config: dict[str, Any], path: Sequence[str] = (), known: bytes | None = None
    ) -> None:
        """Begins the first trial.

        Args:
            config: The trial's `Assignment`.
            path: Where the driver's process looks for modules.
            known: What it has registered, serialised by Ray.
        """
        sys.path += [place for place in path if place not in sys.path]
        if known is not None:
            adopt(_unpacked(known))
        self._begin(config)
        self._told = False
        # Once: later runs of this process find the same file systems.
        self._results = _checked(self._spec, self._results)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begins another trial in the same process."""
        self.cleanup()
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        assignment = Assignment.of(config)
        self._spec = spec = assignment.spec
        self._results = run_confirm(spec) if assignment.confirm else run_trial(spec)

    def step(self) -> dict[str, Any]:
        """Trains up to the next rung; at first it only says where it is."""
        if not self._told and ray.is_initialized():  # without Ray there is no place
            self._told = True
            context = ray.get_runtime_context()
            gpus = tuple(context.get_accelerator_ids().get("GPU", ()))
            return to_result(Placed(node=context.get_node_id(), gpus=gpus))
        return to_result(self._advance())

    def _advance(self) -> Message:
        try:
            result = next(self._results)
        except SURROUNDINGS as error:
            return Aborted.by(error)
        except Exception as error:
            if self._spec.gpu > 0 and _is_out_of_memory(error):
                return OutOfMemory()
            if self._spec.gpu > 0 and _breaks_the_process(error):
                raise
            expected = isinstance(error, _EXPECTED)
            return Failed(
                error=f"{type(error).__name__}: {' '.join(str(error).split())}"[:500],
                traceback=None if expected else traceback.format_exc()[-4000:],
            )
        if isinstance(result, ConfirmResult):
            return ConfirmReport(result=result)
        return TrialReport(result=result)

    def cleanup(self) -> None:
        """Lets go of the trial's memory."""
        self._results = iter(())
        gc.collect()
        if len(sys.modules) != self._imported:
            # They stay: the collector need not look through them after each trial.
            self._imported = len(sys.modules)
            gc.freeze()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
