from __future__ import annotations

import pytest
import torch

from anomtune.models.images.pixels import normalise, symmetric_range, unit_range


def test_images_are_normalised_as_torchvision_does() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    actual = normalise(images, torch.device("cpu"))
    torch.testing.assert_close(actual, (images / 255 - mean) / std)


def test_normalising_makes_no_tensor_after_the_first_time(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    with torch.inference_mode():
        expected = normalise(images, torch.device("cpu"))
    monkeypatch.setattr(torch, "tensor", None)
    assert torch.equal(normalise(images, torch.device("cpu")), expected)


def test_ranges_end_at_black_and_white_and_the_images_stay_as_they_are() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(-1, 3, 4, 4)
    for scaled, black in ((unit_range, 0.0), (symmetric_range, -1.0)):
        pixels = scaled(images, torch.device("cpu"))
        assert pixels.dtype == torch.float32
        assert pixels.amin((1, 2, 3)).tolist() == pixels.amax((1, 2, 3)).tolist() == [black, 1.0]
        assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert images.unique().tolist() == [0, 255]
