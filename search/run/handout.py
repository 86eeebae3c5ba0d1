"""What is handed out: which run begins now, as what, and which workers stay for those that follow.

Between the work, which says what is to run, and the adapters, which Tune asks for it.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from anomtune.search.config import Sweep
from anomtune.search.decide.work import Work
from anomtune.search.run.capacity import Capacity, Slot
from anomtune.search.run.packing import Kind, Packer, kind_of
from anomtune.search.run.ray_internals import Actors
from anomtune.search.run.sharing import Sharing
from anomtune.search.run.trial import TrialSpec
from anomtune.search.store.records import AnyRecord, Cost
from anomtune.search.store.writer import OrderedWriter

#: Seconds for which a worker may have nothing to do: then others, and the autoscaler, may have what
#: it holds.
IDLE_SECONDS = 10.0

#: Seconds in which what waits takes an actor of its own shape that has nothing to do.
_TURN = 0.5
#: Seconds between two looks at what the actors hold.
_GLANCE = 0.1

#: Says what a worker is told of a run that has so many GPUs.
SpecMaker = Callable[[AnyRecord, float], TrialSpec]


@dataclass(frozen=True)
class Run:
    """A trial or confirm run that Tune has been given.

    Attributes:
        record: What it is.
        gpu: GPUs that it has.
        gpu_type: The type that it asks for; ``None``: whichever there is.
        kind: What it shares GPUs as; ``None`` if the sweep file says how many GPUs it has.
        ran_out_with: The share with which its latest attempt ran out of memory.
        deaths: How many attempts ended with the death of their worker.
        losses: How many ended with the loss of their node.
    """

    record: AnyRecord
    gpu: float
    gpu_type: str | None = None
    kind: Kind | None = None
    ran_out_with: float | None = None
    deaths: int = 0
    losses: int = 0

    @property
    def slot(self) -> Slot:
        """What it has of the GPUs."""
        return Slot(self.gpu, self.gpu_type)

    def of_its_type(self, cost: Cost) -> Cost:
        """Returns what its worker has measured, of the type of GPU that it has."""
        return cost.model_copy(update={"gpu_type": self.gpu_type})


class Handout:
    """What is handed out: the work that the adapters share, and Tune's names for its runs.

    What is decided of a run reaches its worker when its record is safe; the other runs go on.
    """

    def __init__(
        self,
        config: Sweep,
        work: Work,
        make_spec: SpecMaker,
        capacity: Capacity,
        records: OrderedWriter,
        *,
        sharing: Sharing | None = None,
    ) -> None:
        self.work = work
        self.sharing = sharing or Sharing()
        self.actors = Actors(self._stays)
        #: Shapes of runs that are not given to Tune: others want the room that they would take.
        self._held_back: list[dict[str, float]] = []
        #: Of each shape, runs that have been given to Tune and have not taken their actor yet.
        self._taking: Counter[Slot] = Counter()
        self._looked = 0.0
        #: Whether a run would be more than the sweep may occupy, idle actors included.
        self._too_much = False
        #: Tune's names of runs that are taken back: others want the room that they wait for.
        self.withdrawn: set[str] = set()
        self.records = records
        self.make_spec = make_spec
        self.capacity = capacity
        self.packer = Packer()
        for record in work.ended_before():
            if record.cost.gpu_memory_bytes is not None:
                self.packer.remember(kind_of(record, config.image_size), record.cost)
        self._image_size = config.image_size
        self._handed_out: Counter[Slot] = Counter()
        self._again: deque[Run] = deque()
        #: What is to run now, and whose records may not be safe yet.
        self._starting: list[Run] = []
        self.runs: dict[str, Run] = {}
        #: Tune's trials that wait for a verdict, and what it will be.
        self.verdicts: dict[str, tuple[Any, str]] = {}
        self.pruned: set[str] = set()
        #: Why Ray gave up on a trial, and whether it went with its node.
        self.reasons: dict[str, tuple[str, bool]] = {}
        #: The first failure of the work itself (storage), which ends the run.
        self.failure: Exception | None = None
        #: Called when a run has ended.
        self.tidy: Callable[[], None] = lambda: None

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Keeps a failure for after the run: Tune would bury it in its own."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised again by run_work
            self.failure = self.failure or error

    def start(self, trial_id: str) -> Run | None:
        """Returns what is to run now under Tune's name, ``None`` if nothing can."""
        while (run := self._next()) is not None:
            self._handed_out[run.slot] += 1
            self._starting.append(run)
            if not self._has_place(run):
                break  # nor has what would follow it
        while self._starting:
            self._held_back.clear()
            self._too_much = False
            for run in self._starting:
                if self.is_safe(run) and self._has_place(run):
                    self._starting.remove(run)
                    self._taking[run.slot] += 1
                    self.runs[trial_id] = run
                    return run
            if self.runs or all(map(self.is_safe, self._starting)):
                return None
            # There is nothing else to decide.
            self.records.settle()
            self.records.wait(1.0)
        return None

    def look(self) -> None:
        """Looks at what the actors hold and wait for; called in each round of Tune's loop."""
        self._taking.clear()
        if time.monotonic() - self._looked < _GLANCE:  # there may be thousands of actors
            return
        self._looked = time.monotonic()
        waiting = [*self.actors.waiting(), *self._held_back]
        self.sharing.look(self.actors.held(), waiting)

    def _has_place(self, run: Run) -> bool:
        """Whether a run may begin: on an actor that has nothing to do, or on a new one."""
        shape = self.capacity.shape(*run.slot)
        if self.actors.idle(shape) > self._taking[run.slot]:
            return True
        if self.sharing.holds_back(shape, self._to_come()):
            self._held_back.append(shape)
            return False
        if not self.capacity.allows(self._all_held(), run.gpu):
            self._too_much = True
            return False
        return True

    def _to_come(self) -> Iterator[Mapping[str, float]]:
        """Yields the shapes of runs that Tune has been given and that hold nothing yet."""
        yield from self.actors.waiting()
        yield from (self.capacity.shape(*slot) for slot in self._taking.elements())

    def _all_held(self) -> Iterator[Mapping[str, float]]:
        """Yields what the actors hold, and will hold."""
        yield from self.actors.held().values()
        yield from self._to_come()

    def _stays(self, actor: Hashable, idle: float) -> bool:
        """Whether an actor stays that has had nothing to do for so many seconds."""
        if idle >= IDLE_SECONDS or self.sharing.gives_up(actor):
            return False
        # What waits could not be helped otherwise; one that has just ended its run may be for it.
        return idle < _TURN or not (self.sharing.uncovered or self._too_much)

    def is_safe(self, run: Run) -> bool:
        """Whether the record of a run has been written as it is.

        Raises:
            StorageError: If it could not be.
        """
        return self.records.is_done(run.record.path)

    def end(self, trial_id: str) -> Run:
        """Returns what ran under Tune's name and has ended."""
        run = self.runs.pop(trial_id)
        self._handed_out[run.slot] -= 1
        self.tidy()
        return run

    def retry(self, run: Run) -> None:
        """Runs once more, before anything else, what has not really ended. Its record stays."""
        self._again.append(run)

    def _next(self) -> Run | None:
        if self._held_back:
            return None  # they are the next
        types = self.capacity.gpu_types
        if self._again:
            run = self._again[0]
            if run.gpu_type not in types:  # the last node of its type has gone
                run = replace(run, gpu_type=types[0])
            if not self.capacity.has_room(self._handed_out, run.slot):
                return None
            self._again.popleft()
            return run
        packs = self.capacity.packs
        free = []
        for one in types:
            least = self.packer.smallest(one) if packs else self.capacity.gpu
            if self.capacity.has_room(self._handed_out, Slot(least, one)):
                free.append(one)
        record = self.work.ask() if free else None
        if record is None:
            return None
        if not packs:
            return Run(record, self.capacity.gpu, types[0])
        kind = kind_of(record, self._image_size)
        best = self.packer.best(kind, free)
        return Run(record, self.packer.share(kind, best), best, kind)
