"""Where images lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anomtune.search.detector import devices
from anomtune.search.detector.devices import as_images


@pytest.mark.parametrize(("total", "where"), [(4 * 3 * 64 + 4, "meta"), (4 * 3 * 64 - 4, "cpu")])
def test_images_that_take_too_much_of_a_gpu_stay_in_the_computers_memory(
    monkeypatch: pytest.MonkeyPatch, total: int, where: str
) -> None:
    monkeypatch.setattr(devices, "gpu_memory", lambda device: total)
    images = as_images(np.zeros((1, 8, 8, 3), np.uint8), torch.device("meta"))
    assert images.device.type == where
    assert images.shape == (1, 3, 8, 8)


def test_on_a_cpu_nothing_is_copied() -> None:
    array = np.zeros((2, 8, 8, 3), np.uint8)
    images = as_images(array, torch.device("cpu"))
    array[1, 3, 4, 2] = 9
    assert images[1, 2, 3, 4] == 9
