"""Which share of a GPU a run takes: the rule, and what it does on GPUs that exist only here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomtune.search.config import parse_sweep
from anomtune.search.run.capacity import Capacity, Slot
from anomtune.search.run.packing import (
    CONTEXT_BYTES,
    MARGIN,
    SHARES,
    Kind,
    Packer,
    kind_of,
    larger_share,
    memory_limit,
    share_name,
)
from anomtune.search.store.records import Cost, TrialRecord
from tests.search.conftest import sweep_dict

GIB = 1 << 30
KIND = Kind("rd4ad", "resnet18", 256)


def cost(peak: float, device: float = 16, share: float = 1.0, seconds: float = 1.0) -> Cost:
    """What a run of ten iterations took; memory in GiB, seconds per iteration."""
    return Cost(
        train_seconds=10 * seconds,
        iterations=10,
        peak_memory_bytes=int(peak * GIB),
        gpu=share,
        gpu_memory_bytes=int(device * GIB),
    )


gibibytes = st.floats(0.1, 100)
costs = st.builds(
    cost,
    gibibytes,
    st.sampled_from([8, 16, 24, 80]),
    st.sampled_from(SHARES),
    st.floats(0.01, 10),
)


def after(*seen: Cost) -> Packer:
    packer = Packer()
    for item in seen:
        packer.learn_memory(KIND, item)
        packer.learn_speed(KIND, item)
    return packer


@pytest.mark.parametrize(
    ("peak", "share"), [(0.5, 1 / 8), (2, 1 / 4), (3, 1 / 3), (5, 1 / 2), (7, 1), (40, 1)]
)
def test_the_smallest_share_that_holds_the_peak_with_a_margin(peak, share):
    assert after(cost(peak)).share(KIND) == share


def test_without_a_measurement_a_run_has_a_whole_gpu():
    assert Packer().share(KIND) == Packer().smallest() == 1
    on_a_cpu = Cost(peak_memory_bytes=GIB, gpu=1.0)
    assert after(on_a_cpu).share(KIND) == 1
    assert after(cost(1)).share(KIND._replace(backbone="resnet50")) == 1


def test_the_smallest_of_several_gpus_must_do():
    assert after(cost(5, device=80), cost(5, device=16)).share(KIND) == 1 / 2


def test_gpus_of_an_earlier_start_count_until_there_are_others():
    packer = Packer()
    packer.remember(KIND, cost(5, device=16))
    assert packer.share(KIND) == 1 / 2
    packer.learn_memory(KIND, cost(5, device=80))
    assert packer.share(KIND) == 1 / 8


def test_a_share_that_was_not_enough_is_not_given_again():
    packer = after(cost(2))
    assert packer.share(KIND) == 1 / 4
    packer.learn_memory(KIND, Cost(gpu_memory_bytes=16 * GIB, ran_out_with=1 / 4))
    assert packer.share(KIND) == 1 / 3
    assert packer.smallest() == 1 / 3


@pytest.mark.parametrize(("slower", "share"), [(3.9, 1 / 4), (4.1, 1 / 3)])
def test_runs_take_larger_shares_when_together_is_slower_than_in_turn(slower, share):
    shared = [cost(2, share=1 / 4, seconds=slower)] * 2
    assert after(cost(2), *shared).share(KIND) == share


def test_when_two_slow_each_other_more_than_twofold_a_method_is_not_packed():
    packer = after(cost(5))
    for seen in range(2):
        assert packer.share(KIND) == 1 / 2, seen  # one slow run proves nothing
        packer.learn_speed(KIND, cost(5, share=1 / 2, seconds=2.5))
    assert packer.share(KIND) == 1


def test_gpus_of_another_type_are_no_measure_of_speed():
    fast_alone = cost(2, device=80, seconds=1)
    slow_shared = [cost(2, device=16, share=1 / 4, seconds=9)] * 5
    assert after(fast_alone, *slow_shared).share(KIND) == 1 / 4
    slow_alone = cost(2, device=16, seconds=2)
    assert after(fast_alone, slow_alone, *slow_shared).share(KIND) == 1 / 3


@given(st.lists(costs, max_size=8))
def test_a_share_is_one_of_few_and_holds_all_that_was_measured(seen):
    packer = after(*seen)
    share = packer.share(KIND)
    assert share in SHARES
    if share < 1:
        device = min(item.gpu_memory_bytes for item in seen)
        peak = max(item.peak_memory_bytes for item in seen)
        assert peak * MARGIN <= memory_limit(share, device)
        assert round(1 / share) * (peak + CONTEXT_BYTES) <= device


@given(st.lists(costs, min_size=1, max_size=8), gibibytes)
def test_more_memory_never_gets_a_smaller_share(seen, peak):
    less, more = after(*seen), after(*seen)
    more.learn_memory(KIND, cost(peak, device=min(c.gpu_memory_bytes for c in seen) / GIB))
    assert more.share(KIND) >= less.share(KIND)


@given(st.lists(costs, max_size=8))
def test_what_an_earlier_start_learned_is_learned_from_its_records(seen):
    resumed = Packer()
    for item in seen:
        resumed.remember(KIND, Cost.model_validate_json(item.model_dump_json()))
    assert resumed.share(KIND) == after(*seen).share(KIND)
    assert resumed.smallest() == after(*seen).smallest()


def test_records_of_before_still_load():
    old = '{"train_seconds": 1.5, "peak_memory_bytes": 7, "started_at": null}'
    assert Cost.model_validate_json(old).gpu is None


def of(gpu_type: str | None, item: Cost) -> Cost:
    """The same on a GPU of a type."""
    return item.model_copy(update={"gpu_type": gpu_type})


def learned(packer: Packer, gpu_type: str | None, *seen: Cost) -> None:
    for item in seen:
        packer.learn_memory(KIND, of(gpu_type, item))
        packer.learn_speed(KIND, of(gpu_type, item))


def test_memory_and_speed_are_learned_of_each_type_of_gpu():
    packer = Packer()
    assert packer.share(KIND, "A100") == packer.share(KIND, "T4") == 1
    learned(packer, "A100", cost(6, device=80))
    assert packer.share(KIND, "A100") == 1 / 8
    assert packer.share(KIND, "T4") == 1, "its memory is not known"
    learned(packer, "T4", cost(5, device=16, seconds=4))  # less: another implementation
    assert packer.share(KIND, "T4") == 1 / 2
    assert packer.share(KIND, "A100") == 1 / 8, "the smaller GPU decides for the larger one"
    assert (packer.smallest("T4"), packer.smallest("A100")) == (1 / 2, 1 / 8)
    # On one type two slow each other down, on the other they do not; both have as much memory.
    learned(packer, "H100", cost(5, device=16))
    learned(packer, "T4", *[cost(5, device=16, share=1 / 2, seconds=9)] * 2)
    learned(packer, "H100", *[cost(5, device=16, share=1 / 2, seconds=1.5)] * 2)
    assert (packer.share(KIND, "T4"), packer.share(KIND, "H100")) == (1, 1 / 2)


def test_what_earlier_starts_learned_counts_until_a_type_has_its_own_experience():
    packer = Packer()
    packer.remember(KIND, cost(5, device=16))
    assert packer.share(KIND, "A100") == 1 / 2
    learned(packer, "A100", cost(5, device=80))
    assert packer.share(KIND, "A100") == 1 / 8


def test_what_earlier_starts_learned_of_a_type_counts_for_it_alone():
    packer = Packer()
    packer.remember(KIND, of("A100", cost(12, device=80)))
    for _ in range(2):
        packer.remember(KIND, of("A100", cost(12, device=80, share=1 / 4, seconds=9)))
    assert packer.share(KIND, "A100") == 1 / 3, "together they were slow"
    assert packer.share(KIND, "T4") == 1, "its memory is not known"
    packer.remember(KIND, of("T4", cost(5, device=16)))
    assert (packer.share(KIND, "A100"), packer.share(KIND, "T4")) == (1 / 3, 1 / 2)
    assert packer.larger("T4", ("A100", "T4")) == "A100"
    packer.remember(KIND, of("T4", cost(40, device=16)))
    assert packer.best(KIND, ("A100", "T4")) == "A100", "the other one does not hold it"


def test_what_was_learned_of_types_counts_where_they_are_not_told_apart():
    """The nodes of all types but one have gone."""
    packer = Packer()
    packer.remember(KIND, of("A100", cost(5, device=80)))
    assert packer.share(KIND) == 1 / 8
    learned(packer, "T4", cost(5, device=16))
    assert packer.share(KIND) == 1 / 2, "the smaller one must do"
    learned(packer, "T4", *[cost(5, device=16, share=1 / 2, seconds=9)] * 2)
    assert packer.share(KIND) == 1
    learned(packer, None, cost(5, device=80))
    assert packer.share(KIND) == 1 / 8, "there is experience of what is there"


def test_a_run_takes_the_fastest_type_that_holds_it():
    packer, both = Packer(), ("A100", "T4")
    assert packer.best(KIND, both) == "A100"
    learned(packer, "A100", cost(12, device=80, seconds=1))
    assert packer.best(KIND, both) == "T4", "one that was not tried comes first"
    learned(packer, "T4", cost(12, device=16, seconds=3))
    learned(packer, "A100", *[cost(12, device=80, share=1 / 4, seconds=2)] * 2)
    assert packer.best(KIND, both) == "A100"
    assert packer.best(KIND, ["T4"]) == "T4"
    learned(packer, "A100", cost(40, device=80))
    learned(packer, "T4", Cost(gpu_memory_bytes=16 * GIB, ran_out_with=1.0))
    assert packer.best(KIND, both) == "A100"
    assert packer.larger("T4", both) == "A100"
    assert packer.larger("A100", both) is None
    assert Packer().larger(None, (None,)) is None


def test_backbone_and_image_size_make_the_kind():
    def record(**params):
        return TrialRecord(
            dataset="d", category="c", method="toy", number=0, state="COMPLETE", seed=0,
            params=params, split_hash="h",
        )  # fmt: skip

    assert kind_of(record(quality=0.1), 64) == kind_of(record(quality=0.9), 64)
    assert kind_of(record(side=48), 64) == Kind("toy", None, 48)


def test_shares_have_names():
    assert list(map(share_name, (1, 1 / 2, 1 / 3, 2, 0.4))) == [
        "a whole GPU", "1/2 of a GPU", "1/3 of a GPU", "2 GPUs", "0.4 of a GPU",
    ]  # fmt: skip


@dataclass
class Job:
    kind: Kind
    need: float
    work: float = 10.0
    left: float = 0.0
    share: float = 0.0
    gpu: int = 0
    attempts: int = 0


class Device:
    """GPUs on one node, with a clock: runs that share one slow each other down.

    Like Ray, it starts what waits in order of its coming, where the least is left that suffices.
    """

    def __init__(self, gpus: int, slowdown: Callable[[int], float], memory: float = 16) -> None:
        self.slowdown, self.memory = slowdown, memory
        node = {"CPU": 8.0 * gpus, "GPU": float(gpus)}
        self.capacity = Capacity(parse_sweep(sweep_dict(), "test"), lambda: [node])
        self.packer = Packer()
        self.free = [1.0] * gpus
        self.clock = self.busy = 0.0
        self.shares: list[float] = []
        self.out_of_memory = 0

    def run(self, jobs: list[Job], *, packed: bool = True) -> float:
        """Returns when all jobs are done."""
        again: list[Job] = []
        waiting: list[Job] = []
        running: list[Job] = []
        while jobs or again or waiting or running:
            handed_out = Counter(Slot(job.share) for job in waiting + running)
            least = self.packer.smallest() if packed and not again else 1.0
            if (jobs or again) and self.capacity.has_room(handed_out, Slot(least)):
                job = again.pop() if again else jobs.pop(0)
                if packed and job.attempts == 0:
                    job.share = self.packer.share(job.kind)
                else:
                    job.share = larger_share(job.share) if job.attempts == 1 else 1.0
                waiting.append(job)
                continue
            for job in list(waiting):
                fitting = [g for g, free in enumerate(self.free) if free > job.share - 1e-6]
                if fitting:
                    job.gpu = min(fitting, key=self.free.__getitem__)
                    job.left = job.work
                    self.free[job.gpu] -= job.share
                    waiting.remove(job)
                    running.append(job)
                    self.shares.append(job.share)
                    if job.need * GIB > memory_limit(job.share, int(self.memory * GIB)):
                        job.left = 0.1
            self._check(running)
            self._advance(running)
            for job in [job for job in running if job.left < 1e-9]:
                running.remove(job)
                self.free[job.gpu] += job.share
                if job.need * GIB > memory_limit(job.share, int(self.memory * GIB)):
                    assert job.share < 1
                    self.out_of_memory += 1
                    job.attempts += 1
                    again.append(job)
        return self.clock

    def _check(self, running: list[Job]) -> None:
        for gpu in range(len(self.free)):
            here = [job for job in running if job.gpu == gpu]
            used = sum(min(job.need * GIB, memory_limit(job.share, int(self.memory * GIB)))
                       + CONTEXT_BYTES for job in here)  # fmt: skip
            assert used <= self.memory * GIB or len(here) == 1

    def _advance(self, running: list[Job]) -> None:
        crowd = Counter(job.gpu for job in running)
        speed = {gpu: 1 / self.slowdown(number) for gpu, number in crowd.items()}
        step = min(job.left / speed[job.gpu] for job in running)
        self.clock += step
        self.busy += step * sum(1 - free for free in self.free)
        for job in running:
            job.left -= step * speed[job.gpu]
            if job.left < 1e-9 and job.need * GIB <= memory_limit(job.share, int(16 * GIB)):
                seen = cost(job.need, self.memory, job.share, 1 / speed[job.gpu])
                self.packer.learn_memory(job.kind, seen)
                self.packer.learn_speed(job.kind, seen)


def gentle(number: int) -> float:
    return 1 + 0.2 * (number - 1)


def harsh(number: int) -> float:
    return 1.0 if number == 1 else 1.3 * number


def jobs(number: int, need: Callable[[int], float] = lambda index: 2.0) -> list[Job]:
    return [Job(KIND, need(index)) for index in range(number)]


def test_packing_is_faster_where_gpus_bear_it():
    alone = Device(4, gentle).run(jobs(80), packed=False)
    device = Device(4, gentle)
    assert device.run(jobs(80)) < 0.5 * alone
    assert device.shares[:4] == [1.0] * 4
    assert device.out_of_memory == 0


def test_packing_stops_where_gpus_do_not_bear_it():
    alone = Device(4, harsh).run(jobs(200), packed=False)
    device = Device(4, harsh)
    assert device.run(jobs(200)) < 1.15 * alone
    assert device.shares[-40:] == [1.0] * 40
    # From larger share to larger share, never back.
    packed = [share for share in device.shares if share < 1]
    assert packed == sorted(packed)


def test_a_config_that_needs_more_is_run_again_and_the_next_have_more():
    device = Device(2, gentle)
    device.run(jobs(40, need=lambda index: 5.0 if index == 20 else 2.0))
    assert device.out_of_memory == 2
    assert set(device.shares) == {1.0, 1 / 4, 1 / 3, 1 / 2}
    assert device.shares[-1] == 1 / 2


def test_large_and_small_runs_side_by_side_leave_few_gpus_idle():
    big = Kind("recontrast", "wide_resnet50_2", 512)
    mixed = [
        Job(big, 12.0, work=8 + index % 5) if index % 3 == 0 else Job(KIND, 2.0, work=8 + index % 4)
        for index in range(600)
    ]
    device = Device(8, lambda number: 1.0)
    end = device.run(mixed)
    assert device.busy / (8 * end) > 0.8
    assert math.isfinite(end)
