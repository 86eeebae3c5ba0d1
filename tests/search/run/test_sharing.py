"""How sweeps share a cluster that is full: on nodes and with a clock that exist only here."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest

from anomtune.search.run.claims import Claim, Held
from anomtune.search.run.handout import IDLE_SECONDS
from anomtune.search.run.places import Site
from anomtune.search.run.sharing import EXPIRES, PATIENCE, QUANTUM, Sharing

STEP = 0.25
#: What reading the board late, and a process that starts, may add.
SLACK = PATIENCE + 4.0

WHOLE = {"CPU": 1.0, "GPU": 1.0}
QUARTER = {"CPU": 1.0, "GPU": 0.25}


class Node(NamedTuple):
    id: str
    resources: Mapping[str, float]


class Unfair(Sharing):
    """What there was before."""

    def holds_back(self, shape, beside=()):
        return False

    def gives_up(self, worker):
        return False


@dataclass
class Actor:
    shape: Mapping[str, float]
    node: str
    gpus: tuple[str, ...]
    until: float = 0.0
    idle: bool = True


@dataclass
class Begun:
    at: float
    shape: Mapping[str, float]
    node: str
    gpus: tuple[str, ...]


class Cluster:
    """Nodes, where what waits is put as Ray puts it: anywhere with room, fullest GPU first."""

    def __init__(self, **gpus: int) -> None:
        self.nodes = [
            Node(name, {"CPU": 8.0 * count or 4.0, "GPU": float(count)})
            for name, count in gpus.items()
        ]
        self.clock = 0.0
        self.claims: dict[str, Claim] = {}
        self.drivers: list[Driver] = []

    def find(self, shape: Mapping[str, float]) -> tuple[str, tuple[str, ...]] | None:
        actors = [actor for driver in self.drivers for actor in driver.actors.values()]
        best = None
        for node in self.nodes:
            here = [actor for actor in actors if actor.node == node.id]
            if sum(a.shape["CPU"] for a in here) + shape["CPU"] > node.resources["CPU"]:
                continue
            free = {str(index): 1.0 for index in range(int(node.resources["GPU"]))}
            for actor in here:
                for gpu in actor.gpus:
                    free[gpu] -= actor.shape["GPU"] / len(actor.gpus)
            wanted = shape.get("GPU", 0.0)
            fitting = sorted(
                (room, gpu) for gpu, room in free.items() if room > min(wanted, 1) - 1e-6
            )
            number = 0 if wanted == 0 else max(1, round(wanted))
            if len(fitting) < number:
                continue
            chosen = fitting[:number]
            if best is None or sum(room for room, _ in chosen) < best[0]:
                best = sum(room for room, _ in chosen), (node.id, tuple(g for _, g in chosen))
        return None if best is None else best[1]

    def run(self, seconds: float) -> None:
        end = self.clock + seconds
        while self.clock < end:
            self.clock += STEP
            for driver in self.drivers:
                driver.step()


@dataclass
class Driver:
    """A sweep that hands out what is in its queue, as the engine does."""

    cluster: Cluster
    name: str
    queue: list[tuple[Mapping[str, float], float]]
    most: int = 64
    fair: type[Sharing] = Sharing
    actors: dict[int, Actor] = field(default_factory=dict)
    pending: list[tuple[Mapping[str, float], float]] = field(default_factory=list)
    begun: list[Begun] = field(default_factory=list)
    held_back: list[Mapping[str, float]] = field(default_factory=list)
    serial: itertools.count = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.sharing = self.fair(
            lambda: self.cluster.nodes, self, lambda: self.cluster.clock, lambda: self.cluster.clock
        )
        self.cluster.drivers.append(self)

    def read(self) -> dict[str, Claim]:
        return {name: claim for name, claim in self.cluster.claims.items() if name != self.name}

    def write(self, claim: Claim) -> None:
        self.cluster.claims[self.name] = Claim.model_validate_json(claim.model_dump_json())

    def remove(self, name: str) -> None:
        del self.cluster.claims[name]

    def step(self) -> None:
        now, sharing = self.cluster.clock, self.sharing
        for actor in self.actors.values():
            if not actor.idle and actor.until <= now:
                actor.idle = True
        held = {key: actor.shape for key, actor in self.actors.items()}
        sharing.look(held, [*(shape for shape, _ in self.pending), *self.held_back])
        for key, actor in self.actors.items():
            if sharing.workers[key].node is None:
                sharing.place(key, actor.node, actor.gpus)
        for key, actor in list(self.actors.items()):
            if not actor.idle:
                continue
            unwanted = sharing.uncovered and now - actor.until >= 2 * STEP
            if sharing.gives_up(key) or now - actor.until >= IDLE_SECONDS or unwanted:
                del self.actors[key]
        pending, self.pending = self.pending, []
        for one in pending:
            back = sharing.holds_back(one[0], [shape for shape, _ in self.pending])
            (self.queue if back else self.pending).insert(0 if back else 999, one)
        self._hand_out()
        for one in list(self.pending):
            place = self.cluster.find(one[0])
            if place is not None:
                self.pending.remove(one)
                key = next(self.serial)
                self.actors[key] = Actor(one[0], *place)
                self._begin(key, one[1])

    def _hand_out(self) -> None:
        self.held_back = []
        while self.queue:
            shape, seconds = self.queue[0]
            idle = [key for key, a in self.actors.items() if a.idle and a.shape == shape]
            running = sum(not actor.idle for actor in self.actors.values())
            if running + len(self.pending) >= self.most:
                return
            if idle:
                self._begin(idle[0], seconds)
            elif not self.sharing.holds_back(shape, [waits for waits, _ in self.pending]):
                self.pending.append((shape, seconds))
            else:
                self.held_back = [shape]
                return
            self.queue.pop(0)

    def _begin(self, key: int, seconds: float) -> None:
        actor = self.actors[key]
        actor.idle, actor.until = False, self.cluster.clock + seconds
        self.begun.append(Begun(self.cluster.clock, actor.shape, actor.node, actor.gpus))

    def gpus(self) -> float:
        return sum(actor.shape.get("GPU", 0.0) for actor in self.actors.values())

    def first(self, shape: Mapping[str, float]) -> float | None:
        return next((run.at for run in self.begun if run.shape == shape), None)


def staggered(shape, number: int = 4000, seconds: float = 8.0):
    """Runs whose ends never fall together."""
    return [(shape, seconds * (0.6 + 0.4 * (index * 7 % 10) / 9)) for index in range(number)]


@pytest.mark.parametrize("gpus", [{"a": 2}, {"a": 2, "b": 2, "c": 1}])
def test_a_run_that_wants_a_whole_gpu_has_it_after_one_run_length(gpus):
    waits = {}
    for fair in (Sharing, Unfair):
        cluster = Cluster(**gpus)
        slots = 4 * sum(gpus.values())
        driver = Driver(cluster, "one", staggered(QUARTER), most=slots, fair=fair)
        cluster.run(20)
        assert driver.gpus() == sum(gpus.values())
        driver.queue.insert(0, (WHOLE, 8.0))
        asked = cluster.clock
        cluster.run(60)
        first = driver.first(WHOLE)
        waits[fair] = None if first is None else first - asked
    assert waits[Unfair] is None, "the test shows nothing"
    assert waits[Sharing] <= 8.0 + SLACK


def test_only_the_gpu_that_is_wanted_is_emptied():
    cluster = Cluster(a=8)
    driver = Driver(cluster, "one", staggered(QUARTER), most=32)
    cluster.run(20)
    driver.queue.insert(0, (WHOLE, 8.0))
    lowest = 99.0
    while driver.first(WHOLE) is None:
        cluster.run(STEP)
        lowest = min(lowest, sum(not a.idle for a in driver.actors.values()))
    assert lowest >= 32 - 4 - 2


def test_several_that_want_whole_gpus_do_not_wait_for_each_other():
    cluster = Cluster(a=4)
    driver = Driver(cluster, "one", staggered(QUARTER), most=16)
    cluster.run(20)
    driver.queue[:0] = [(WHOLE, 100.0)] * 3
    asked = cluster.clock
    driver.most += 3
    cluster.run(8 + SLACK + 4)
    begun = [run.at - asked for run in driver.begun if run.shape == WHOLE]
    assert len(begun) == 3
    assert max(begun) <= 8 + SLACK


@pytest.mark.parametrize("fair", [Sharing, Unfair])
def test_two_gpus_of_one_node_are_had_from_another_sweep(fair):
    two = {"CPU": 1.0, "GPU": 2.0}
    cluster = Cluster(a=4, b=1)
    small = Driver(cluster, "small", staggered(QUARTER), most=20, fair=fair)
    cluster.run(20)
    large = Driver(cluster, "large", [(two, 8.0)] * 50, most=1, fair=fair)
    asked = cluster.clock
    cluster.run(60)
    first = large.first(two)
    if fair is Unfair:
        assert first is None, "the test shows nothing"
        return
    assert first is not None
    assert first - asked <= 8 + QUANTUM + SLACK
    assert small.gpus() >= 2, "more has been given up than was wanted"


def test_three_sweeps_have_a_third_each_after_one_run_length():
    """The one that came first holds everything, and its runs are long."""
    cluster = Cluster(a=3, b=3)
    first = Driver(cluster, "first", staggered(WHOLE, seconds=30), most=6)
    cluster.run(40)
    assert first.gpus() == 6
    others = [Driver(cluster, name, staggered(WHOLE, seconds=3), most=6) for name in "xy"]
    before = len(first.begun)
    cluster.run(30 + SLACK)
    assert [driver.gpus() for driver in (first, *others)] == [2, 2, 2]
    # It goes on where it may, and begins nothing on what the others are to have.
    assert len(first.begun) - before <= 6
    marks = [len(driver.begun) for driver in (first, *others)]
    cluster.run(120)
    more = [len(driver.begun) - mark for driver, mark in zip((first, *others), marks, strict=True)]
    assert more[0] >= 6
    assert min(more[1:]) >= 40
    assert [driver.gpus() for driver in (first, *others)] == [2, 2, 2]


def test_what_a_sweep_does_not_want_the_others_have():
    cluster = Cluster(a=6)
    first = Driver(cluster, "first", staggered(WHOLE, seconds=10), most=6)
    cluster.run(20)
    other = Driver(cluster, "other", staggered(WHOLE, seconds=10), most=1)
    cluster.run(30)
    assert (first.gpus(), other.gpus()) == (5, 1)
    other.queue.clear()
    cluster.run(40)
    assert first.gpus() == 6


def test_more_sweeps_than_gpus_take_turns():
    cluster = Cluster(a=1)
    drivers = [Driver(cluster, name, staggered(WHOLE, seconds=4), most=1) for name in "xyz"]
    cluster.run(400)
    begun = [len(driver.begun) for driver in drivers]
    assert min(begun) >= 10
    assert max(begun) <= 3 * min(begun)


def test_sweeps_without_gpus_share_cores():
    core = {"CPU": 1.0}
    cluster = Cluster(a=0, b=0)
    first = Driver(cluster, "first", staggered(core, seconds=12), most=8)
    cluster.run(20)
    other = Driver(cluster, "other", staggered(core, seconds=12), most=8)
    cluster.run(12 + SLACK)
    assert (len(first.actors), len(other.actors)) == (4, 4)


def test_a_sweep_alone_is_never_held_back():
    cluster = Cluster(a=2)
    driver = Driver(cluster, "one", staggered(WHOLE), most=8)
    for _ in range(200):
        cluster.run(STEP)
        assert driver.sharing.reserved == []
        assert not driver.sharing.holds_back(WHOLE)
    assert driver.gpus() == 2
    assert cluster.claims["one"].places == ()


def test_the_claim_of_a_killed_driver_expires():
    cluster = Cluster(a=2)
    first = Driver(cluster, "first", staggered(WHOLE, seconds=4), most=2)
    cluster.run(20)
    other = Driver(cluster, "other", staggered(WHOLE, seconds=4), most=2)
    cluster.run(20)
    assert first.gpus() == 1
    cluster.drivers.remove(other)
    cluster.run(EXPIRES + 10)
    assert "other" in cluster.claims
    assert first.gpus() == 2
    first.queue += staggered(WHOLE)
    cluster.run(600)
    assert "other" not in cluster.claims


def test_a_place_that_others_keep_is_not_waited_for_for_ever():
    """Something that is no sweep holds a GPU, and says so nowhere."""
    cluster = Cluster(a=2)
    sweep = Driver(cluster, "one", staggered(QUARTER), most=4)
    stranger = Driver(cluster, "stranger", [(WHOLE, 1e9)], most=1)
    stranger.write = lambda claim: None
    cluster.run(20)
    sweep.queue.insert(0, (WHOLE, 5.0))
    asked = cluster.clock
    cluster.run(60)
    assert sweep.first(WHOLE) - asked <= 45
    assert sweep.first(QUARTER) is not None


def test_options_of_a_node_say_what_must_go():
    node = Node("a", {"CPU": 4.0, "GPU": 2.0})
    held = [Held(node="a", gpus=("0",), cpu=3, gpu=0.75), Held(node="a", gpus=("1",), cpu=1, gpu=1)]
    site = Site(node, held, held, set(), 0.0)
    assert [tuple(option) for option in site.options((1.0, 1.0))] == [
        (("0",), 0.75, 0.0),
        (("1",), 1.0, 0.0),
    ]
    # There is room on the GPU, but no core.
    assert (("0",), 0.0, 1.0) in [tuple(option) for option in site.options((0.25, 1.0))]
    assert list(Site(node, held, held, {"0"}, 0.0).options((2.0, 1.0))) == []
    assert list(Site(node, held, held[:1], set(), 0.0).options((2.0, 1.0))) == []
    assert Counter(gpus for gpus, *_ in site.options((2.0, 1.0))) == {("0", "1"): 1}
