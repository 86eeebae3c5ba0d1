"""Where on a node a run could be, and what must be given up there for it. Pure logic."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from anomtune.search.run.claims import Held

#: Shares are no exact binary fractions.
ROUNDING = 1e-6


class Node(Protocol):
    """A node of the cluster."""

    @property
    def id(self) -> str:
        """Ray's name for it."""

    @property
    def resources(self) -> Mapping[str, float]:
        """What it has: ``CPU``, ``GPU``, ``accelerator_type:A100``, ..."""


class Option(NamedTuple):
    """A place for a run.

    Attributes:
        gpus: The GPUs; one for a share of it.
        gpu: GPUs that must be given up there.
        cpu: CPUs that must be given up on the node, beside those of the workers on these GPUs.
    """

    gpus: tuple[str, ...]
    gpu: float
    cpu: float


@dataclass(frozen=True)
class Site:
    """A node, and what is on it.

    Attributes:
        node: The node.
        held: What is held there.
        going: The part of it that can be given up.
        taken: GPUs that are reserved.
        kept_cpu: CPUs that are reserved.
    """

    node: Node
    held: Sequence[Held]
    going: Sequence[Held]
    taken: Set[str]
    kept_cpu: float

    def options(
        self, needs: tuple[float, float], only: tuple[str, ...] | None = None
    ) -> Iterator[Option]:
        """Yields the places for a run that the node has.

        Args:
            needs: GPUs and CPUs of the run.
            only: The GPUs that it must be, if they are chosen already.
        """
        gpu, cpu = needs
        free = self.node.resources.get("CPU", 0) - sum(h.cpu for h in self.held) - self.kept_cpu
        lacking = max(0.0, cpu - free)
        if gpu == 0:
            if sum(h.cpu for h in self.going) >= lacking - ROUNDING:
                yield Option((), 0.0, lacking)
            return
        part, number = min(gpu, 1.0), max(1, round(gpu))
        cpus = _by_gpu(self.going, "cpu")
        usable = self._usable(part, only)
        for chosen in [usable[:number]] if number > 1 else [[one] for one in usable]:
            if len(chosen) < number:
                continue
            freed = sum(amount for amount, _ in chosen)
            with_them = sum(cpus[name] if part == 1 else min(cpus[name], cpu) for _, name in chosen)
            still = max(0.0, lacking - (with_them if freed else 0.0))
            here = {name for _, name in chosen}
            elsewhere = sum(h.cpu for h in self.going if not here & set(h.gpus))
            if elsewhere >= still - ROUNDING:
                yield Option(tuple(name for _, name in chosen), freed, still)

    def _usable(self, part: float, only: tuple[str, ...] | None) -> list[tuple[float, str]]:
        """Returns the GPUs that can have so much room, and what must be given up for it."""
        used, movable = _by_gpu(self.held, "gpu"), _by_gpu(self.going, "gpu")
        names = sorted(used)
        # Of GPUs that nobody holds the names are not known; there is nothing to give up, either.
        count = int(self.node.resources.get("GPU", 0))
        names += [f"free {index}" for index in range(count - len(names))]
        found = []
        for name in names:
            lacking = max(0.0, part - (1 - used[name]))
            wanted = name not in self.taken and (only is None or name in only)
            if wanted and movable[name] >= lacking - ROUNDING:
                found.append((lacking, name))
        return sorted(found)


def _by_gpu(places: Sequence[Held], what: str) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    for held in places:
        for name in held.gpus:
            sums[name] += getattr(held, what) / len(held.gpus)
    return sums
