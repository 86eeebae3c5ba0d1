"""How much of a GPU a run takes, learned from the runs before it. Pure logic: no Ray, no CUDA.

The first run of its kind has a whole GPU, and its peak of memory is measured. Later ones take the
smallest share that holds that peak with a margin. When the runs that share a GPU are slowed down
by more than their number, so that one after the other would have been faster, they take larger
shares again. The records say all that is needed, so that a resumed sweep goes on packed.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable
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

    #: The highest peak, or memory that was not enough, in bytes; 0 if nothing was measured.
    need: int = 0
    #: Seconds per iteration of the latest runs, by GPU (its bytes of memory tell apart types of
    #: different speed) and share.
    seconds: dict[tuple[int, float], deque[float]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=_RECENT))
    )

    def is_slow(self, share: float) -> bool:
        """Whether runs that share a GPU so are slower than one after the other."""
        devices = {device for device, measured in self.seconds if measured == share}
        return share < 1 and any(self._is_slow_on(device, share) for device in devices)

    def _is_slow_on(self, device: int, share: float) -> bool:
        alone, shared = self.seconds.get((device, 1.0)), self.seconds[device, share]
        if not alone or len(shared) < _ENOUGH:
            return False
        return median(shared) > median(alone) / share


class Packer:
    """Learns what runs need, and says which share of a GPU the next one takes."""

    def __init__(self) -> None:
        self._known: dict[Kind, _Experience] = defaultdict(_Experience)
        #: Memory of the GPUs that runs had, in bytes: since this start of the sweep, and before.
        self._devices: set[int] = set()
        self._earlier_devices: set[int] = set()
        #: What `share` has answered since something new was learned.
        self._shares: dict[Kind, float] = {}

    @property
    def smallest(self) -> float:
        """The smallest share that a run would take now."""
        return min(map(self.share, self._known), default=1.0)

    def share(self, kind: Kind) -> float:
        """Returns the share that the next run of a kind takes, one of `SHARES`."""
        if kind not in self._shares:
            self._shares[kind] = self._choose(self._known.get(kind))
        return self._shares[kind]

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
            place = (cost.gpu_memory_bytes or 0, cost.gpu)
            self._known[kind].seconds[place].append(cost.train_seconds / cost.iterations)
            self._shares.clear()

    def _learn_memory(self, kind: Kind, cost: Cost, device: int, devices: set[int]) -> None:
        lacking = 0 if cost.ran_out_with is None else memory_limit(cost.ran_out_with, device)
        need = max(cost.peak_memory_bytes or 0, lacking)
        known = self._known[kind]
        if device not in devices or need > known.need:
            devices.add(device)
            known.need = max(need, known.need)
            self._shares.clear()

    def _choose(self, known: _Experience | None) -> float:
        # A sweep that has moved to other machines has other GPUs.
        devices = self._devices or self._earlier_devices
        if known is None or not known.need or not devices:
            return 1.0
        # Ray does not say beforehand which GPU it will be: the smallest must do.
        limits = {share: memory_limit(share, min(devices)) for share in SHARES}
        too_slow = max((share for share in SHARES if known.is_slow(share)), default=0.0)
        holding = (share for share in SHARES if known.need * MARGIN <= limits[share])
        return min((share for share in holding if share > too_slow), default=1.0)
