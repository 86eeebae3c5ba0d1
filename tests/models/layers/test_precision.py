"""Scores are computed in float32, on GPUs that would round it too."""

from __future__ import annotations

import pytest
import torch

from anomtune.models import base
from anomtune.models.layers.precision import full_precision
from anomtune.models.rd4ad import RD4AD, RD4ADHyperparameters


def flags() -> tuple[object, object]:
    return (
        torch.backends.cudnn.conv.fp32_precision,
        torch.backends.cuda.matmul.fp32_precision,
    )


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="as torch says it since 2.9")
def test_convolutions_of_a_gpu_are_not_rounded_meanwhile() -> None:
    before = flags()
    with full_precision(torch.device("cuda")):
        assert flags() == ("ieee", "ieee")
    assert flags() == before
    with full_precision(torch.device("cpu")):
        assert flags() == before


def test_whatever_predicts_does_so_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    entered = []

    def noted(device: torch.device):
        entered.append(device)
        return full_precision(device)

    monkeypatch.setattr(base, "full_precision", noted)
    hp = RD4ADHyperparameters(backbone="mobilenet_v2", weights="random", batch_size=2)
    detector = RD4AD(hp, image_size=32)
    detector.fit(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), 1)
    detector.score(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert set(entered) == {detector.device}
    entered.clear()
    detector.learn_normal(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert entered == [detector.device]
