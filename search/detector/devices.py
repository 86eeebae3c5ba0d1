"""The device that a detector runs on: which, how much of its memory, and how much was taken."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomtune.errors import MethodError

#: Images that take a larger part of a GPU's memory stay in the computer's; batches are sent over.
_LARGEST_PART = 0.25


def choose_device(name: str | None = None) -> torch.device:
    """Returns the device of that name; by default a GPU if there is one.

    Raises:
        MethodError: If there is no such device, or no GPU where one is asked for.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise MethodError(f"device {name}: there is cpu, cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MethodError(f"device {name}: torch sees no GPU here; use cpu")
    return device


def wait_for(device: torch.device) -> None:
    """Waits until a GPU has done all that it was told, so that its time can be taken."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def gpu_memory(device: torch.device) -> int | None:
    """Returns the memory of a whole GPU in bytes, ``None`` of a CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def limit_memory(device: torch.device, limit: int) -> None:
    """Keeps the tensors of this process to so many bytes of a GPU, whose rest belongs to others."""
    total = gpu_memory(device)
    if total is not None:
        # Of the current device: Ray shows a process that has a share no other.
        torch.cuda.set_per_process_memory_fraction(limit / total)


def reset_peak_memory(device: torch.device) -> None:
    """Lets `peak_memory` begin anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text(
            "5", encoding="ascii"
        )  # Linux: forget the process's peak so far


def peak_memory(device: torch.device) -> int | None:
    """Returns the peak of GPU memory, on a CPU of the process's resident memory, in bytes.

    ``None`` where the operating system has no such figure (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        pass
    try:
        import resource  # noqa: PLC0415 - POSIX alone has it
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def as_images(array: Any, device: torch.device) -> Tensor:
    """Returns ``(N, S, S, 3)`` uint8 images as the tensor that detectors take.

    No copy on a CPU, nor of images that would take too much of a GPU: the tensor is then a
    channels-last view of the memory-mapped file, of which detectors send batches over.
    """
    images = torch.from_numpy(array)
    total = gpu_memory(device)
    if total is None or images.nbytes <= _LARGEST_PART * total:
        images = images.to(device)
    return images.permute(0, 3, 1, 2)
