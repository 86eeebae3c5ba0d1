from __future__ import annotations

import torch

from anomtune.models.training.batches import BatchOrder


def test_every_pass_visits_every_image_once_in_a_new_order() -> None:
    order = BatchOrder(4, seed=0)
    passes = [[order.draw(10) for _ in range(3)] for _ in range(2)]
    for batches in passes:
        assert [len(batch) for batch in batches] == [4, 4, 2]
        assert sorted(torch.cat(batches).tolist()) == list(range(10))
    assert torch.cat(passes[0]).tolist() != torch.cat(passes[1]).tolist()


def test_a_small_set_is_used_whole() -> None:
    assert sorted(BatchOrder(16, seed=0).draw(3).tolist()) == [0, 1, 2]


def test_a_last_batch_can_be_filled_up() -> None:
    order = BatchOrder(4, seed=0, smallest=2)
    batches = [order.draw(5) for _ in range(2)]
    assert len(batches[1]) == 2
    assert batches[1][1] == batches[0][0]


def test_a_last_batch_can_be_dropped_but_never_the_only_one() -> None:
    order = BatchOrder(4, seed=0, drop_last=True)
    assert [len(order.draw(10)) for _ in range(5)] == [4] * 5
    assert len(BatchOrder(4, seed=0, drop_last=True).draw(3)) == 3


def test_the_order_goes_on_after_loading() -> None:
    order, copy = BatchOrder(4, seed=0), BatchOrder(4, seed=9)
    order.draw(10)
    copy.load_state_dict(order.state_dict())
    for _ in range(6):
        assert torch.equal(order.draw(10), copy.draw(10))


def test_the_order_of_a_pass_lies_where_the_images_are() -> None:
    order, device = BatchOrder(4, seed=0), torch.device("meta")
    first, second = order.draw(10, device), order.draw(10, device)
    assert first.device == second.device == device
    assert first._base is second._base, "both are views of one copy"
