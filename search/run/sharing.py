"""How runs get room in a cluster that is full. Pure logic: no Ray.

A worker keeps its place (its CPUs, and its share of a GPU) for the runs that follow, so that small
ones could fill all GPUs for ever, and the sweep that came first the whole cluster. Therefore what
waits for room *reserves* a place: a node and some of its GPUs. Workers there are given up as their
runs end, and whoever is not entitled to it starts no new worker meanwhile. So

- a run that wants more of a GPU than others of its sweep has it at the latest when the runs have
  ended that were on these GPUs when it began to wait, plus `PATIENCE` and `BEAT` seconds and the
  start of a process: one run's length;
- a sweep that holds less than its fair share of the cluster, the n-th part of it for n sweeps, has
  that as soon where runs are alike: on the places that it has reserved the others begin no further
  run. Where they are not (one wants two GPUs of a node, others parts of these) the sweeps have
  their turn in the order in which they reserved. They note what they hold and want on a board, and
  read it every `BEAT` seconds. A worker that has just begun is kept for `QUANTUM` seconds, so that
  sweeps that take turns do not only start processes.

A sweep alone reserves nothing but for its larger runs, and uses all there is.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from anomtune.search.run.claims import Claim, Held, Reservation
from anomtune.search.run.places import ROUNDING, Node, Site

#: Seconds for which a run waits before it reserves a place: what has room needs some, too.
PATIENCE = 2.0
#: Seconds between two looks at the board.
BEAT = 1.0
#: Seconds after which a claim that has not changed is that of a driver that was killed.
EXPIRES = 15.0
#: Seconds after which it is removed.
_GONE = 600.0
#: Seconds for which a worker that has begun is not given up for another sweep.
QUANTUM = 10.0
#: Seconds after which a reservation says anew what must go, or tries another place if nothing can.
_ANEW = 10.0
#: Seconds for which a place is left alone that was free, for all that is known, and had no room.
_BLOCKED = 60.0


class Board(Protocol):
    """Where the drivers of a cluster note their claims."""

    def read(self) -> Mapping[str, Claim]:
        """Returns the claims of all other drivers, by name."""

    def write(self, claim: Claim) -> None:
        """Replaces one's own."""

    def remove(self, name: str) -> None:
        """Removes the claim of a driver that was killed."""


class NobodyElse:
    """The board of a driver that has its cluster for itself."""

    def read(self) -> Mapping[str, Claim]:
        """Returns no claim."""
        return {}

    def write(self, claim: Claim) -> None:
        """Does nothing."""

    def remove(self, name: str) -> None:
        """Does nothing."""


@dataclass
class Worker:
    """A process that holds a place.

    Attributes:
        shape: What it holds, as Ray counts it.
        begun: When it was first seen, by the clock.
        node: Where it is; ``None`` before it has said so.
        gpus: The GPUs that it has there.
    """

    shape: Mapping[str, float]
    begun: float
    node: str | None = None
    gpus: tuple[str, ...] = ()


def size(shape: Mapping[str, float]) -> tuple[float, float]:
    """Returns GPUs and CPUs of a shape; the greater is the larger."""
    return shape.get("GPU", 0.0), shape.get("CPU", 0.0)


class Sharing:
    """Says which workers a driver gives up, and whether it may start others.

    Args:
        nodes: Returns the living nodes.
        board: Where other drivers note what they hold.
        clock: Seconds, of this process.
        now: Seconds since 1970.
    """

    def __init__(
        self,
        nodes: Callable[[], Sequence[Node]] = lambda: (),
        board: Board | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._read_nodes, self._board = nodes, board or NobodyElse()
        self._clock, self._now = clock, now
        self._nodes: Sequence[Node] = ()
        self._name = secrets.token_hex(8)
        self._beat = self._number = 0
        self._looked = -BEAT
        self.workers: dict[Hashable, Worker] = {}
        self._others: dict[str, Claim] = {}
        #: When each of the others' claims was seen to change, by its beat.
        self._changes: dict[str, tuple[int, float]] = {}
        #: Since when runs of each shape wait for room, and how many.
        self._since: dict[tuple[tuple[str, float], ...], float] = {}
        self._waiting: Counter[tuple[tuple[str, float], ...]] = Counter()
        self._reserved: dict[Reservation, bool] = {}
        self._said: dict[Reservation, float] = {}
        self._given: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._blocked: dict[tuple[str, tuple[str, ...]], float] = {}

    @property
    def reserved(self) -> list[Reservation]:
        """The places that runs of this sweep wait for."""
        return list(self._reserved)

    @property
    def contended(self) -> bool:
        """Whether any place is reserved, by whomever."""
        return bool(self._reserved) or any(claim.reserved for claim in self._others.values())

    @property
    def uncovered(self) -> bool:
        """Whether a run waits for room that has no place reserved."""
        covered = Counter(reservation.needs for reservation in self._reserved)
        wanted: Counter[tuple[float, float]] = Counter()
        for shape, number in self._waiting.items():
            wanted[size(dict(shape))] += number
        return any(number > covered[needs] for needs, number in wanted.items())

    def look(
        self,
        held: Mapping[Hashable, Mapping[str, float]],
        waiting: Iterable[Mapping[str, float]],
    ) -> None:
        """Takes in what this driver holds and waits for, and what others have noted.

        Args:
            held: What each of its workers holds.
            waiting: The shapes of its runs for which there is no room yet, or that are held back.
        """
        now = self._clock()
        for worker in self.workers.keys() - held.keys():
            del self.workers[worker]
        for worker in held.keys() - self.workers.keys():
            self.workers[worker] = Worker(held[worker], now)
        before = self._waiting.keys()
        self._waiting = Counter(tuple(sorted(shape.items())) for shape in waiting)
        self._since = {shape: self._since.get(shape, now) for shape in self._waiting}
        if now - self._looked < BEAT and before == self._waiting.keys():
            self._drop()
            return
        self._looked = now
        self._read(now)
        patient = all(now - since < PATIENCE for since in self._since.values())
        if self._others or self._reserved or not patient:
            self._nodes = self._read_nodes()
        self._drop()
        self._yield()
        self._reserve(now)
        self._write()

    def place(self, worker: Hashable, node: str, gpus: tuple[str, ...]) -> None:
        """Notes where a worker is."""
        if worker in self.workers:
            self.workers[worker].node, self.workers[worker].gpus = node, gpus

    def holds_back(
        self, shape: Mapping[str, float], beside: Iterable[Mapping[str, float]] = ()
    ) -> bool:
        """Whether no worker of a shape may be started now: its place is wanted by others.

        Args:
            shape: What it would hold.
            beside: What others will hold that are to start as well.
        """
        needs = size(shape)
        if any(mine.needs > needs for mine in self._reserved):
            return True
        theirs = [r for claim in self._others.values() for r in claim.reserved]
        if not theirs:
            return False
        if not self._entitled(needs, map(size, beside)):
            return True
        # Who reserved first is first: what is given up for one anybody's run could take.
        mine = min((r.since for r in self._reserved if r.needs == needs), default=self._now())
        return any(their.since < mine for their in theirs)

    def gives_up(self, worker: Hashable) -> bool:
        """Whether a worker that has nothing to do is to go; if so, it counts as given up."""
        known = self.workers.get(worker)
        if known is None or known.node is None:
            return False
        mine = [("", reservation) for reservation in self._reserved]
        theirs = [(name, r) for name, claim in self._others.items() for r in claim.reserved]
        young = self._clock() - known.begun < QUANTUM
        for name, reservation in [*mine, *(() if young else theirs)]:
            if not name and size(known.shape) >= reservation.needs:
                continue
            if self._helps(known, reservation, self._given[name, reservation.number]):
                given = self._given[name, reservation.number]
                gpu, cpu = size(known.shape)
                given[0] += gpu
                given[1] += 0.0 if set(known.gpus) & set(reservation.gpus) else cpu
                del self.workers[worker]
                return True
        return False

    @staticmethod
    def _helps(worker: Worker, reservation: Reservation, given: Sequence[float]) -> bool:
        if worker.node != reservation.node:
            return False
        if set(worker.gpus) & set(reservation.gpus):
            return given[0] < reservation.gpu - ROUNDING
        return given[1] < reservation.cpu - ROUNDING

    def _read(self, now: float) -> None:
        """Reads the board; the claim of a killed driver changes no more."""
        found = self._board.read()
        self._changes = {name: self._changes.get(name, (-1, now)) for name in found}
        for name, claim in found.items():
            if claim.beat != self._changes[name][0]:
                self._changes[name] = claim.beat, now
        for name in found:
            if now - self._changes[name][1] >= _GONE:
                self._board.remove(name)
        self._others = {
            name: claim for name, claim in found.items() if now - self._changes[name][1] < EXPIRES
        }
        open_ = {("", r.number) for r in self._reserved}
        open_ |= {(name, r.number) for name, claim in self._others.items() for r in claim.reserved}
        for key in self._given.keys() - open_:
            del self._given[key]

    def _write(self) -> None:
        self._beat += 1
        gpu, cpu = self._sum()
        alone = not self._others
        self._board.write(
            Claim(
                beat=self._beat,
                cpu=cpu,
                gpu=gpu,
                waits=bool(self._waiting),
                places=() if alone else tuple(self._places()),
                reserved=() if alone else tuple(r for r, own in self._reserved.items() if not own),
            )
        )

    def _sum(self) -> tuple[float, float]:
        sizes = [size(worker.shape) for worker in self.workers.values()]
        return sum(gpu for gpu, _ in sizes), sum(cpu for _, cpu in sizes)

    def _places(self, below: tuple[float, float] | None = None) -> list[Held]:
        """Returns what this driver holds where; only of workers below a size, if one is given."""
        sums: dict[tuple[str, tuple[str, ...]], list[float]] = defaultdict(lambda: [0.0, 0.0])
        for worker in self.workers.values():
            if worker.node is not None and (below is None or size(worker.shape) < below):
                gpu, cpu = size(worker.shape)
                place = sums[worker.node, worker.gpus]
                place[0] += gpu
                place[1] += cpu
        return [
            Held(node=node, gpus=gpus, cpu=cpu, gpu=gpu)
            for (node, gpus), (gpu, cpu) in sums.items()
        ]

    def _total(self, name: str) -> float:
        return sum(node.resources.get(name, 0) for node in self._nodes)

    def _part(self, gpu: float, cpu: float) -> float:
        """Returns the part of the cluster that is held: of its GPUs or its CPUs, what is more."""
        return max(gpu / max(1.0, self._total("GPU")), cpu / max(1.0, self._total("CPU")))

    def _fair(self) -> float:
        """Returns the part that each sweep may have while all want more."""
        others = sum(bool(c.waits or c.cpu or c.gpu) for c in self._others.values())
        return 1 / (1 + others)

    def _entitled(self, needs: tuple[float, float], beside: Iterable[tuple[float, float]]) -> bool:
        """Whether a run is within what this sweep may have while others want room, too.

        Args:
            needs: GPUs and CPUs of the run.
            beside: Those of others that wait as well.
        """
        gpu, cpu = self._sum()
        for also, more in beside:
            gpu, cpu = gpu + also, cpu + more
        if not gpu and not cpu:
            return True
        also, more = needs
        return self._part(gpu + also, cpu + more) <= self._fair() + ROUNDING

    def _drop(self) -> None:
        """Forgets the places of runs that wait no more."""
        if self._surplus(self._reserved):
            # Where the most is left to be given up the run has not begun.
            for reservation in self._surplus(sorted(self._reserved, key=self._left, reverse=True)):
                self._forget(reservation)

    def _surplus(self, reserved: Iterable[Reservation]) -> list[Reservation]:
        """Returns the last of some reservations: more than runs wait, or than it is entitled to."""
        wanted: Counter[tuple[float, float]] = Counter()
        for shape, number in self._waiting.items():
            wanted[size(dict(shape))] += number
        kept: list[tuple[float, float]] = []
        surplus = []
        for reservation in reserved:
            needs, own = reservation.needs, self._reserved[reservation]
            wanted[needs] -= 1
            if wanted[needs] < 0 or not (own or self._entitled(needs, kept)):
                surplus.append(reservation)
            elif not own:
                kept.append(needs)
        return surplus

    def _left(self, reservation: Reservation) -> float:
        """Returns how much is still held, in its place, by what is to go."""
        places = self._places(below=reservation.needs)
        places += [held for claim in self._others.values() for held in claim.places]
        return sum(
            held.gpu + held.cpu
            for held in places
            if held.node == reservation.node
            and (not reservation.gpus or set(held.gpus) & set(reservation.gpus))
        )

    def _forget(self, reservation: Reservation) -> None:
        del self._reserved[reservation], self._said[reservation]

    def _yield(self) -> None:
        """Gives way where another driver has chosen the same place: the first has it."""
        theirs = [r for claim in self._others.values() for r in claim.reserved]
        for mine in list(self._reserved):
            same = (r for r in theirs if r.node == mine.node and set(r.gpus) & set(mine.gpus))
            if any((r.since, r.by) < (mine.since, mine.by) for r in same):
                self._forget(mine)

    def _reserve(self, now: float) -> None:
        """Reserves places for what has waited long enough, and says anew what must go."""
        for reservation, own in list(self._reserved.items()):
            if now - self._said[reservation] < _ANEW:
                self._move(reservation, own)
                continue
            self._forget(reservation)
            again = self._choose(reservation.needs, own, reservation, fairly=False)
            if again is None:
                continue
            if again.cpu or again.gpu or reservation.cpu or reservation.gpu:
                self._put(again, own)  # what is there has not gone yet, or just now
            else:
                self._blocked[reservation.node, reservation.gpus] = now
        self._blocked = {p: at for p, at in self._blocked.items() if now - at < _BLOCKED}
        for shape, number in self._waiting.items():
            if now - self._since[shape] < PATIENCE:
                continue
            needs = size(dict(shape))
            missing = number - sum(r.needs == needs for r in self._reserved)
            for _ in range(missing):
                if not self._reserve_one(needs):
                    break

    def _reserve_one(self, needs: tuple[float, float]) -> bool:
        # What its own smaller runs hold a sweep may always have; others', if it has less than them.
        kept = [r.needs for r, own in self._reserved.items() if not own]
        if self._others and self._entitled(needs, kept):
            found = self._choose(needs, own=False) or self._choose(needs, own=False, fairly=False)
            if found is not None:
                self._put(found, own=False)
                return True
        if self._places(below=needs):
            found = self._choose(needs, own=True)
            if found is not None:
                self._put(found, own=True)
                return True
        return False

    def _move(self, reservation: Reservation, own: bool) -> None:
        """Takes another place if one that has no more than its share has come to this one."""
        if own:
            return
        said = self._said[reservation]
        self._forget(reservation)
        if self._choose(reservation.needs, own, reservation) is None:
            other = self._choose(reservation.needs, own)
            if other is not None:
                self._put(other.model_copy(update={"since": reservation.since}), own)
                return
        self._reserved[reservation], self._said[reservation] = own, said

    def _put(self, reservation: Reservation, own: bool) -> None:
        self._reserved[reservation] = own
        self._said[reservation] = self._clock()

    def _choose(
        self,
        needs: tuple[float, float],
        own: bool,
        place: Reservation | None = None,
        *,
        fairly: bool = True,
    ) -> Reservation | None:
        """Returns the place where the least must be given up; ``None`` if there is none.

        Args:
            needs: GPUs and CPUs.
            own: Whether only this sweep's own workers are to go.
            place: The place, if it is only to be said anew.
            fairly: Whether others are to go only if their sweep has more than its share; else
                they may also have less, but more than this one.
        """
        claims = self._others.values()
        shape = next((dict(one) for one in self._waiting if size(dict(one)) == needs), {})
        held = [*self._places(), *(h for claim in claims for h in claim.places)]
        going = list(self._places(below=needs))
        bound = self._fair() if fairly else self._part(*self._sum())
        for claim in () if own else claims:
            if self._part(claim.gpu, claim.cpu) > bound + ROUNDING:
                going += claim.places
        reserved = [*self._reserved, *(r for claim in claims for r in claim.reserved)]
        gpu, cpu = self._sum()
        spare = (
            self._total("GPU") - gpu - sum(claim.gpu for claim in claims),
            self._total("CPU") - cpu - sum(claim.cpu for claim in claims),
        )
        best: Reservation | None = None
        for node in self._nodes:
            if place is not None and node.id != place.node:
                continue
            if any(node.resources.get(name, 0) < amount for name, amount in shape.items()):
                continue
            site = Site(
                node,
                [h for h in held if h.node == node.id],
                [h for h in going if h.node == node.id],
                {gpu for r in reserved if r.node == node.id for gpu in r.gpus},
                sum(r.needs[1] for r in reserved if r.node == node.id),
            )
            for option in site.options(needs, None if place is None else place.gpus):
                if place is None and (node.id, option.gpus) in self._blocked:
                    continue
                # What seems free may be held by workers that have not said where they are.
                if needs[0] - option.gpu > max(0.0, spare[0]) + ROUNDING:
                    continue
                if not needs[0] and needs[1] - option.cpu > max(0.0, spare[1]) + ROUNDING:
                    continue
                if best is None or option.gpu + option.cpu < best.gpu + best.cpu - ROUNDING:
                    self._number += 1
                    best = Reservation(
                        node=node.id,
                        gpus=option.gpus,
                        needs=needs,
                        cpu=option.cpu,
                        gpu=option.gpu,
                        since=self._now() if place is None else place.since,
                        by=self._name,
                        number=self._number,
                    )
        return best
