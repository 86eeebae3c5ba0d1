"""How many runs a cluster holds at once. Pure logic: it is told what the nodes have.

Nodes come and go while a sweep runs, and runs take different shares of a GPU: whether another one
finds room is asked anew each time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from anomtune.errors import SweepError
from anomtune.search.config import Sweep
from anomtune.search.run.ray_internals import ACCELERATOR_TYPE as TYPE

#: What one node has, as Ray counts it: ``CPU``, ``GPU``, ``accelerator_type:A100``, ...
Resources = Mapping[str, float]

#: Seconds for which what the nodes have is believed.
_FRESH = 2.0
#: How much a run asks for of what says which GPUs a node has: of the sort, not of them.
_TYPE_SHARE = 0.001
#: Shares are no exact binary fractions.
_ROUNDING = 1e-6


def count_slots(nodes: Sequence[Resources], shape: Resources) -> int:
    """Returns how many runs of one shape the nodes hold at once; no run spans two nodes."""
    return sum(
        min(_times(node.get(name, 0), amount, name) for name, amount in shape.items())
        for node in nodes
    )


def _times(there: float, amount: float, name: str) -> int:
    if name == "GPU" and amount < 1:  # no run spans two GPUs, either
        return int(there) * int(1 / amount + _ROUNDING)
    return int(there / amount + _ROUNDING)


class Slot(NamedTuple):
    """What a run has of the GPUs.

    Attributes:
        gpu: How many, below 1 a share of one.
        gpu_type: Ray's name for their type; ``None``: whichever there is.
    """

    gpu: float
    gpu_type: str | None = None


class Capacity:
    """Says what a run occupies and whether the cluster has room for another.

    Args:
        config: The sweep.
        read_nodes: Returns what every living node has.
        clock: Seconds.

    Raises:
        SweepError: If the cluster has not the resources for a single run, and concurrency is no
            number: with one, runs wait for nodes.
    """

    def __init__(
        self,
        config: Sweep,
        read_nodes: Callable[[], Sequence[Resources]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wanted = config.resources
        self._most = config.concurrency
        #: Somebody who gives a number may have a cluster that grows when it sees runs wait.
        self._grows = config.concurrency != "auto"
        self._read_nodes = read_nodes
        self._clock = clock
        self._has_gpus = False
        self._read()
        self.slots = self._first_slots()

    @property
    def packs(self) -> bool:
        """Whether runs are to share GPUs as they need."""
        self._refresh()
        return self._wanted.gpu == "auto" and self._has_gpus

    @property
    def gpu(self) -> float:
        """How many GPUs a run is given if it does not share one."""
        return float(self.packs) if self._wanted.gpu == "auto" else self._wanted.gpu

    @property
    def gpu_types(self) -> tuple[str | None, ...]:
        """The types of GPU that a run can ask for; ``None`` alone where it makes no difference."""
        if self._wanted.accelerator is not None:
            return (self._wanted.accelerator,)
        if not self.packs:
            return (None,)
        found: set[str] = set()
        for node in self._nodes:
            names = [name.removeprefix(TYPE) for name in node if name.startswith(TYPE)]
            if node.get("GPU", 0) > 0:
                if len(names) != 1:
                    return (None,)  # who asks for a type would never have this node
                found.add(names[0])
        return tuple(sorted(found)) if len(found) > 1 else (None,)

    def shape(self, gpu: float, gpu_type: str | None = None) -> dict[str, float]:
        """Returns what a run occupies, as Ray counts it.

        Args:
            gpu: How many GPUs it has.
            gpu_type: Of which type; ``None``: of the one that the sweep file names, if it does.
        """
        shape: dict[str, float] = {"CPU": self._wanted.cpu}
        if gpu > 0:
            shape["GPU"] = gpu
            name = gpu_type or self._wanted.accelerator
            if name is not None:
                shape[TYPE + name] = _TYPE_SHARE
        return shape

    def has_room(self, running: Counter[Slot], slot: Slot) -> bool:
        """Whether another run may be handed out.

        Args:
            running: How many runs have been handed out with so much each.
            slot: What the next one takes, at least.
        """
        if self._most != "auto" and running.total() >= self._most:
            return False
        if not self.allows((self.shape(*other) for other in running.elements()), slot.gpu):
            return False
        # Which part of the cluster, or of its GPUs of this type, they take; one that fits nowhere
        # any more waits for all of it.
        load = sum(
            number / max(1, self._slots_of(other))
            for other, number in running.items()
            if None in (slot.gpu_type, other.gpu_type) or other.gpu_type == slot.gpu_type
        )
        slots = self._slots_of(slot)
        # What waits is what the cluster must see, to grow: as much again as there is.
        most = 2 if self._grows else min(1, slots)
        return load + 1 / max(1, slots) <= most + _ROUNDING

    def allows(self, held: Iterable[Resources], gpu: float) -> bool:
        """Whether another run stays within what the sweep occupies at most.

        Args:
            held: What it occupies.
            gpu: How many GPUs the next run takes.
        """
        limits = {"CPU": self._wanted.max.cpu, "GPU": self._wanted.max.gpu}
        if not any(limits.values()):
            return True
        shapes = [*held, self.shape(gpu)]
        return all(
            limit is None or sum(shape.get(name, 0) for shape in shapes) <= limit + _ROUNDING
            for name, limit in limits.items()
        )

    def _slots_of(self, slot: Slot) -> int:
        self._refresh()
        if slot not in self._slots:
            self._slots[slot] = count_slots(self._nodes, self.shape(*slot))
        return self._slots[slot]

    def _refresh(self) -> None:
        if self._clock() - self._read_at > _FRESH:
            self._read()

    def _read(self) -> None:
        self._nodes = self._read_nodes()
        self._read_at = self._clock()
        self._slots: dict[Slot, int] = {}
        # Should all nodes with GPUs go, runs wait for the next: a CPU would take them for ever.
        wanted = self._wanted.accelerator is not None
        self._has_gpus |= wanted or any(node.get("GPU", 0) > 0 for node in self._nodes)

    def _first_slots(self) -> int:
        wanted = self.shape(self.gpu)
        slots = self._slots_of(Slot(self.gpu))
        if slots < 1 and not self._grows:
            types = sorted({name for node in self._nodes for name in node if TYPE in name})
            have = {name: sum(node.get(name, 0) for node in self._nodes) for name in ("CPU", "GPU")}
            raise SweepError(
                f"resources: a trial wants {_words(wanted)} on one node, the cluster has "
                f"{_words(have | dict.fromkeys(types, 1))} in all; ask for less, or give "
                "concurrency a number if the cluster grows by itself"
            )
        most = slots if self._most == "auto" else min(self._most, slots)
        while most > 1 and not self.allows([wanted] * (most - 1), self.gpu):
            most -= 1
        return most


def _words(resources: Resources) -> str:
    """Returns resources in words: ``4 CPU, 0.5 GPU, GPU type A100``."""
    return ", ".join(
        f"GPU type {name.removeprefix(TYPE)}" if name.startswith(TYPE) else f"{amount:g} {name}"
        for name, amount in resources.items()
    )
