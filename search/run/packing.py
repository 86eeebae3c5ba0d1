"""How much of a GPU a run takes, learned from the runs before it. Pure logic: no Ray, no CUDA.

The first run of its kind has a whole GPU, and its peak of memory is measured. Later ones take the
smallest share that holds that peak with a margin. When the runs that share a GPU are slowed down
by more than their number, so that one after the other would have been faster, they take larger
shares again. The records say all that is needed, so that a resumed sweep goes on packed.

Where a cluster has GPUs of several types, all of this is learned of each type by itself. What was
learned where there was one type, which records then do not name, counts until a type has its own
experience; and where there is one type, what was learned of any does.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from anomtune.registry import METHODS
from anomtune.search.store.records import AnyRecord, Cost

#: Few, so that a worker that has ended a trial finds another of the same shape.
SHARES = (1.0, 1 / 2, 1 / 3, 1 / 4, 1 / 8)

#: Room above the largest peak that was measured: fragments, and configs that need a little more.
MARGIN = 1.2
#: What a process occupies beside its tensors (CUDA's context and kernels); 512 MiB.
CONTEXT_BYTES = 512 << 20

#: Runs of a kind in a share before their speed is believed.
_ENOUGH = 2
#: The latest runs of a kind in a share, whose median speed counts.
_RECENT = 31


#: Ray's name for a type of GPU (``A100``); ``None``: whichever there is, as there is only one, or
#: they have no names.
GpuType = str | None


class Kind(NamedTuple):
    """Runs of a kind need about the same memory: one method, backbone and size of its images.

    Attributes:
        method: Name of the method.
        backbone: Its hyperparameter of that name, ``None`` for methods without one.
        input_size: Side of the images that it is given, in pixels.
    """

    method: str
    backbone: Hashable
    input_size: int


def kind_of(record: AnyRecord, image_size: int) -> Kind:
    """Returns the kind of a run.

    Args:
        record: A run whose hyperparameters are valid.
        image_size: Of the sweep.
    """
    hyperparameters = METHODS.get(record.method).Hyperparameters(**record.params)
    backbone = record.params.get("backbone")
    return Kind(record.method, backbone, hyperparameters.input_size(image_size))


def memory_limit(share: float, device_bytes: int) -> int:
    """Returns the bytes that the tensors of a process may take in its share of a GPU."""
    return max(0, int(share * device_bytes) - CONTEXT_BYTES)


def larger_share(share: float) -> float:
    """Returns the next larger of `SHARES` than one below a whole GPU."""
    return min(larger for larger in SHARES if larger > share)


def share_name(share: float) -> str:
    """Returns a share in words: ``a whole GPU``, ``1/3 of a GPU``, ``2 GPUs``."""
    if share == 1:
        return "a whole GPU"
    if share > 1:
        return f"{share:g} GPUs"
    parts = 1 / share
    whole = abs(parts - round(parts)) < 1e-3
    return f"1/{round(parts)} of a GPU" if whole else f"{share:g} of a GPU"


@dataclass
class _Experience:
    """What is known of a kind: its need of memory, and its speed by share."""

    #: The highest peak, or memory that was not enough, in bytes, by type of GPU.
    needs: dict[GpuType, int] = field(default_factory=dict)
    #: Seconds per iteration of the latest runs, by type of GPU, its bytes of memory (which tell
    #: apart types that have no name) and share.
    seconds: dict[tuple[GpuType, int, float], deque[float]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=_RECENT))
    )

    def need(self, gpu_type: GpuType) -> int:
        """Returns the bytes needed on GPUs of a type, else on others; 0 if nothing is known."""
        return self.needs.get(gpu_type) or max(self.needs.values(), default=0)

    def is_slow(self, share: float, gpu_type: GpuType) -> bool:
        """Whether runs that share a GPU so are slower than one after the other."""
        seen = [(name, memory) for name, memory, measured in self.seconds if measured == share]
        own = [one for one in seen if one[0] == gpu_type] or [one for one in seen if one[0] is None]
        if gpu_type is None and all(name is not None for name, _, _ in self.seconds):
            own = seen  # any may be had
        return share < 1 and any(self._is_slow_on(name, memory, share) for name, memory in own)

    def pace(self, share: float, gpu_type: GpuType) -> float | None:
        """Returns the seconds of an iteration in a share, before there are any on a whole GPU.

        ``None`` if neither is known of this type.
        """
        for wanted in (share, 1.0):
            found = [
                median(seconds)
                for (name, _, measured), seconds in self.seconds.items()
                if name == gpu_type and measured == wanted and seconds
            ]
            if found:
                return max(found)
        return None

    def _is_slow_on(self, name: GpuType, memory: int, share: float) -> bool:
        alone = self.seconds.get((name, memory, 1.0))
        shared = self.seconds[name, memory, share]
        if not alone or len(shared) < _ENOUGH:
            return False
        return median(shared) > median(alone) / share


class Packer:
    """Learns what runs need, and says which share of a GPU the next one takes."""

    def __init__(self) -> None:
        self._known: dict[Kind, _Experience] = defaultdict(_Experience)
        #: Memory of the GPUs that runs had, in bytes, by their type: since this start of the sweep,
        #: and before. A sweep that has moved to other machines has other GPUs.
        self._devices: dict[GpuType, set[int]] = defaultdict(set)
        self._earlier_devices: dict[GpuType, set[int]] = defaultdict(set)
        #: What `share` has answered since something new was learned.
        self._shares: dict[tuple[Kind, GpuType], float] = {}

    def smallest(self, gpu_type: GpuType = None) -> float:
        """Returns the smallest share that a run would take now."""
        return min((self.share(kind, gpu_type) for kind in self._known), default=1.0)

    def share(self, kind: Kind, gpu_type: GpuType = None) -> float:
        """Returns the share of a GPU that the next run of a kind takes, one of `SHARES`."""
        if (kind, gpu_type) not in self._shares:
            self._shares[kind, gpu_type] = self._choose(self._known.get(kind), gpu_type)
        return self._shares[kind, gpu_type]

    def best(self, kind: Kind, gpu_types: Sequence[GpuType]) -> GpuType:
        """Returns the type of GPU that the next run of a kind takes.

        One of those that hold it, and then one that has not been tried: its first run tells what
        can be expected of it. Of those that are known the fastest. What no type holds has the one
        with the most memory.

        Args:
            kind: The kind.
            gpu_types: Types of which there are free ones.
        """
        known = self._known.get(kind, _Experience())
        holding = [one for one in gpu_types if self._holds(known, one)]
        if not holding:
            return max(gpu_types, key=self._memory)
        return min(holding, key=lambda one: known.pace(self.share(kind, one), one) or 0.0)

    def larger(self, gpu_type: GpuType, gpu_types: Sequence[GpuType]) -> GpuType:
        """Returns the next type of GPU with more memory than one; ``None`` if there is none."""
        more = [one for one in gpu_types if self._memory(one) > self._memory(gpu_type)]
        return min(more, key=self._memory, default=None)

    def remember(self, kind: Kind, cost: Cost) -> None:
        """Learns from a run of an earlier start of the sweep."""
        if cost.gpu_memory_bytes is not None:
            self._learn_memory(kind, cost, cost.gpu_memory_bytes, self._earlier_devices)
            self.learn_speed(kind, cost)

    def learn_memory(self, kind: Kind, cost: Cost) -> None:
        """Learns what a run has needed so far, or that it was not given enough."""
        if cost.gpu_memory_bytes is not None:
            self._learn_memory(kind, cost, cost.gpu_memory_bytes, self._devices)

    def learn_speed(self, kind: Kind, cost: Cost) -> None:
        """Learns how fast a run was that has ended."""
        if cost.gpu is not None and cost.iterations:
            place = (cost.gpu_type, cost.gpu_memory_bytes or 0, cost.gpu)
            self._known[kind].seconds[place].append(cost.train_seconds / cost.iterations)
            self._shares.clear()

    def _learn_memory(
        self, kind: Kind, cost: Cost, device: int, devices: dict[GpuType, set[int]]
    ) -> None:
        gpu_type, same = cost.gpu_type, devices[cost.gpu_type]
        lacking = 0 if cost.ran_out_with is None else memory_limit(cost.ran_out_with, device)
        need = max(cost.peak_memory_bytes or 0, lacking)
        known = self._known[kind]
        if device not in same or need > known.needs.get(gpu_type, 0):
            same.add(device)
            known.needs[gpu_type] = max(need, known.needs.get(gpu_type, 0))
            self._shares.clear()

    def _memory(self, gpu_type: GpuType) -> int:
        """Returns the bytes of GPUs of a type, the smallest of them; 0 if nothing ran on one."""
        found = self._devices.get(gpu_type) or self._earlier_devices.get(gpu_type)
        return min(found) if found else 0

    def _memory_of_others(self, gpu_type: GpuType) -> int:
        """Returns the bytes that a type is taken to have on which nothing ran; 0 if unknown."""
        if gpu_type is not None:
            return min(self._earlier_devices.get(None, ()), default=0)
        known = self._devices.keys() | self._earlier_devices.keys()
        return min(filter(None, map(self._memory, known)), default=0)

    def _holds(self, known: _Experience, gpu_type: GpuType) -> bool:
        memory = self._memory(gpu_type)
        return not memory or known.need(gpu_type) <= memory_limit(1.0, memory)

    def _choose(self, known: _Experience | None, gpu_type: GpuType) -> float:
        memory = self._memory(gpu_type) or self._memory_of_others(gpu_type)
        if known is None or not known.need(gpu_type) or not memory:
            return 1.0
        # Ray does not say beforehand which GPU of the type it will be: the smallest must do.
        limits = {share: memory_limit(share, memory) for share in SHARES}
        slow = (share for share in SHARES if known.is_slow(share, gpu_type))
        too_slow = max(slow, default=0.0)
        need = known.need(gpu_type) * MARGIN
        holding = (share for share in SHARES if need <= limits[share])
        return min((share for share in holding if share > too_slow), default=1.0)
