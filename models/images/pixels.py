"""Images on their way to a network: float32, on its device, channels last in memory."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(images: Tensor, device: torch.device) -> Tensor:
    """Returns uint8 images ``(B, 3, S, S)`` as float32 with ImageNet's mean and deviation."""
    mean, std = _imagenet_statistics(device)
    return _floats(images, device).sub_(mean).div_(std)


@cache
def _imagenet_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns mean and deviation of 8-bit images; kept, as each copy makes the CPU wait."""
    with torch.inference_mode(False):  # Kept for training, whoever asks first.
        mean = torch.tensor(IMAGENET_MEAN, device=device).view(1, 3, 1, 1) * 255
        std = torch.tensor(IMAGENET_STD, device=device).view(1, 3, 1, 1) * 255
    return mean, std


def unit_range(images: Tensor, device: torch.device) -> Tensor:
    """Returns uint8 images ``(B, 3, S, S)`` as float32 in ``[0, 1]``."""
    return _floats(images, device).div_(255)


def normalise_unit(images: Tensor) -> Tensor:
    """Returns images ``(B, 3, S, S)`` in ``[0, 1]`` with ImageNet's mean and deviation."""
    mean, std = _imagenet_statistics(images.device)
    return (images * 255 - mean) / std


def symmetric_range(images: Tensor, device: torch.device) -> Tensor:
    """Returns uint8 images ``(B, 3, S, S)`` as float32 in ``[-1, 1]``."""
    return _floats(images, device).div_(127.5).sub_(1)


def _floats(images: Tensor, device: torch.device) -> Tensor:
    return upload(images, device).to(torch.float32, memory_format=torch.channels_last)


def upload(numbers: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor on the device. A GPU is not waited for: meanwhile the next can be sent."""
    if device.type == "cuda" and numbers.is_cpu:
        numbers = numbers.pin_memory()
    return numbers.to(device, non_blocking=True)
