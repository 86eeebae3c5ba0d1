"""How many runs a cluster holds: nodes of all sorts, which come and go."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomtune.errors import SweepError
from anomtune.search.config import parse_sweep
from anomtune.search.run.capacity import Capacity, Slot, count_slots
from anomtune.search.run.packing import SHARES
from tests.search.conftest import sweep_dict

HEAD = {"CPU": 2.0}
A100 = {"CPU": 16.0, "GPU": 2.0, "accelerator_type:A100": 1.0}
T4 = {"CPU": 4.0, "GPU": 1.0, "accelerator_type:T4": 1.0}


class Cluster:
    """Nodes that a test can change, and a clock that it moves."""

    def __init__(self, *nodes):
        self.nodes, self.clock, self.reads = list(nodes), 0.0, 0

    def read(self):
        self.reads += 1
        return list(self.nodes)

    def capacity(self, **changes) -> Capacity:
        config = parse_sweep(sweep_dict(**changes), "test")
        return Capacity(config, self.read, lambda: self.clock)


def handed_out(capacity: Capacity, gpu: float) -> int:
    """How many runs with so many GPUs are handed out before there is no more room."""
    running: Counter[Slot] = Counter()
    while capacity.has_room(running, Slot(gpu)):
        running[Slot(gpu)] += 1
    return running.total()


@pytest.mark.parametrize(
    ("resources", "slots"),
    [
        ({"cpu": 1}, 3),  # whole GPUs, and none on the head
        ({"cpu": 8}, 2),
        ({"gpu": 0}, 22),
        ({"gpu": 2}, 1),
        ({"gpu": 0.4}, 6),  # two on each GPU: no run spans two of them
        ({"accelerator": "A100"}, 2),
        ({"accelerator": "T4", "gpu": 0.25}, 4),
        ({"accelerator": "T4", "gpu": 0.125}, 4),  # the CPUs of its node
    ],
)
def test_slots_are_counted_node_by_node(resources, slots):
    capacity = Cluster(HEAD, A100, T4).capacity(resources=resources)
    assert capacity.slots == slots == handed_out(capacity, capacity.gpu)


def test_a_cpu_cluster_has_as_many_runs_as_cores():
    capacity = Cluster(HEAD, {"CPU": 5.0}).capacity(resources={"cpu": 2})
    assert not capacity.packs
    assert capacity.shape(capacity.gpu) == {"CPU": 2}
    assert handed_out(capacity, 0.0) == 3


def test_shapes_name_the_accelerator():
    capacity = Cluster(HEAD, A100).capacity(resources={"accelerator": "A100"})
    shape = capacity.shape(0.5)
    assert shape == {"CPU": 1, "GPU": 0.5, "accelerator_type:A100": 0.001}


@pytest.mark.parametrize(
    ("nodes", "resources", "message"),
    [
        ([HEAD], {"cpu": 3}, "a trial wants 3 CPU on one node, the cluster has 2 CPU, 0 GPU"),
        ([HEAD, HEAD], {"cpu": 3}, "the cluster has 4 CPU, 0 GPU in all; ask for less"),
        ([HEAD, T4], {"accelerator": "A100"}, "wants 1 CPU, 1 GPU, GPU type A100 on one node"),
        ([HEAD, T4], {"accelerator": "A100"}, "has 6 CPU, 1 GPU, GPU type T4 in all"),
    ],
)
def test_a_cluster_that_holds_no_run_is_an_error(nodes, resources, message):
    with pytest.raises(SweepError, match=message):
        Cluster(*nodes).capacity(resources=resources)


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"accelerator": "A100", "gpu": 0}, "resources: accelerator A100 with gpu: 0"),
        ({"gpu": 1.5}, "resources: gpu: more than one GPU is a whole number"),
        ({"accelerator": "../A100"}, r"resources\.accelerator: "),
        ({"cpu": 4, "max": {"cpu": 2}}, "resources: max.cpu: 2 is less than a trial's cpu: 4"),
        ({"gpu": 2, "max": {"gpu": 1}}, "resources: max.gpu: 1 is less than a trial's gpu: 2"),
        ({"max": {"gpu": 0.5}}, "max.gpu: 0.5 is less than a trial's whole GPU, with gpu: auto"),
        ({"max": {"gpus": 2}}, "resources.max.gpus: unknown key"),
        ({"max": {"cpu": 0}}, r"resources\.max\.cpu: "),
        ({"max": 0.5}, r"resources\.max: "),
    ],
)
def test_resources_that_cannot_be_are_refused(resources, message):
    with pytest.raises(SweepError, match=message):
        parse_sweep(sweep_dict(resources=resources), "test")


@pytest.mark.parametrize(
    ("resources", "slots"),
    [
        ({"gpu": 0, "max": {"cpu": 5}}, 5),
        ({"max": {"gpu": 2}}, 2),
        ({"max": {"gpu": 2, "cpu": 1}}, 1),
        ({"gpu": 0.5, "max": {"gpu": 1}}, 2),
        ({"gpu": 0, "cpu": 2, "max": {"cpu": 5}}, 2),
        ({"max": {"gpu": 99}}, 3),
    ],
)
def test_a_sweep_leaves_room_for_others(resources, slots):
    cluster = Cluster(HEAD, A100, T4)
    assert cluster.capacity(resources=resources).slots == slots
    for concurrency in ("auto", 64):  # also while it lets runs wait
        capacity = cluster.capacity(resources=resources, concurrency=concurrency)
        most = slots if resources.get("max") != {"gpu": 99} else handed_out(capacity, capacity.gpu)
        assert handed_out(capacity, capacity.gpu) == most


def test_workers_without_work_count_for_what_a_sweep_occupies():
    capacity = Cluster(A100).capacity(resources={"max": {"gpu": 1}})
    assert capacity.allows([{"CPU": 1, "GPU": 0.25}] * 3, 0.25)
    assert not capacity.allows([{"CPU": 1, "GPU": 0.25}] * 3, 0.5)
    assert not capacity.allows([{"CPU": 1, "GPU": 0.25}], 1.0)


def test_nodes_come_and_go():
    cluster = Cluster(HEAD, T4)
    capacity = cluster.capacity()
    assert handed_out(capacity, 1.0) == 1
    cluster.nodes.append(A100)
    assert handed_out(capacity, 1.0) == 1  # the nodes are not read at every question
    assert cluster.reads == 1
    cluster.clock = 3.0
    assert handed_out(capacity, 1.0) == 3
    cluster.nodes[1:] = []
    cluster.clock = 6.0
    assert handed_out(capacity, 1.0) == 0
    assert capacity.packs  # waits for GPUs to come back
    assert not capacity.has_room(Counter({Slot(1.0): 1}), Slot(1.0))


def test_gpus_that_come_late_are_used():
    cluster = Cluster(HEAD)
    capacity = cluster.capacity()
    assert (capacity.packs, capacity.gpu) == (False, 0.0)
    cluster.nodes.append(A100)
    cluster.clock = 3.0
    assert (capacity.packs, capacity.gpu) == (True, 1.0)


def test_a_number_is_not_exceeded_and_lets_runs_wait():
    cluster = Cluster({"CPU": 4.0})
    assert handed_out(cluster.capacity(concurrency=3), 0.0) == 3
    # More than there is room for: what a cluster that grows by itself must see.
    assert handed_out(cluster.capacity(concurrency=64), 0.0) == 8
    assert handed_out(cluster.capacity(concurrency=6), 0.0) == 6
    assert cluster.capacity(concurrency=64).slots == 4


def test_a_cluster_that_grows_from_nothing_is_shown_a_run():
    cluster = Cluster(HEAD)
    capacity = cluster.capacity(concurrency=64, resources={"accelerator": "A100"})
    assert capacity.slots == 0
    assert handed_out(capacity, 1.0) == 2
    cluster.nodes.append(A100)
    cluster.clock = 3.0
    assert handed_out(capacity, 1.0) == 4


@given(st.lists(st.sampled_from(SHARES), max_size=40))
def test_what_is_handed_out_never_exceeds_the_gpus(shares):
    capacity = Cluster({"CPU": 64.0, "GPU": 3.0}).capacity()
    running: Counter[Slot] = Counter()
    for slot in map(Slot, shares):
        if capacity.has_room(running, slot):
            running[slot] += 1
    assert sum(slot.gpu * number for slot, number in running.items()) <= 3 + 1e-6
    whole, third = Slot(1.0), Slot(1 / 3)
    assert not capacity.has_room(Counter({whole: 2, third: 3}), Slot(1 / 8))
    assert capacity.has_room(Counter({whole: 2, third: 2}), third)


def test_each_type_of_gpu_has_its_own_room():
    capacity = Cluster(HEAD, A100, T4).capacity()
    assert capacity.gpu_types == ("A100", "T4")
    assert capacity.shape(0.5, "T4") == {"CPU": 1, "GPU": 0.5, "accelerator_type:T4": 0.001}
    running = Counter({Slot(1.0, "T4"): 1})
    assert not capacity.has_room(running, Slot(1 / 8, "T4"))
    assert capacity.has_room(running, Slot(1.0, "A100"))
    running[Slot(1.0, "A100")] = 2
    assert not capacity.has_room(running, Slot(1.0, "A100"))


@pytest.mark.parametrize(
    ("nodes", "resources"),
    [
        ([HEAD, T4, T4], {}),
        ([HEAD], {}),
        ([A100, T4], {"gpu": 1}),
        ([A100, T4, {"CPU": 4.0, "GPU": 1.0}], {}),  # who asks for a type never has the last one
    ],
)
def test_where_types_make_no_difference_none_is_asked_for(nodes, resources):
    assert Cluster(*nodes).capacity(resources=resources).gpu_types == (None,)


@pytest.mark.parametrize("gpu", ["auto", 1])
def test_the_type_that_the_sweep_file_names_is_the_only_one(gpu):
    capacity = Cluster(A100, T4).capacity(resources={"gpu": gpu, "accelerator": "T4"})
    assert capacity.gpu_types == ("T4",)


def test_slots_of_thirds():
    assert count_slots([{"CPU": 9.0, "GPU": 2.0}], {"CPU": 1, "GPU": 1 / 3}) == 6
