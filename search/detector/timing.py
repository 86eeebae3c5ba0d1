"""How long a detector takes: what ``image_ms`` is, and how `anomtune bench` measures.

``image_ms`` is the time from an image that is decoded, resized and on the detector's device to its
map and its score: evidence, scoring and all, with nothing known of the image beforehand, in batches
of `usual_batch`, with the threads that the process has. It is the median of several calls after
one that warms up (memory, kernels, caches), divided by the images of a call. What else runs on the
machine meanwhile slows it down: within a sweep, whose runs are neighbours, it is an upper bound.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from anomtune.models.base import Detector
from anomtune.search.detector.devices import wait_for

#: Seconds that `image_ms` measures if a few calls take no longer.
_SECONDS = 0.5
_FEWEST, _MOST = 2, 1000


def usual_batch(device: torch.device) -> int:
    """Returns how many images pass through the network together where nobody says."""
    return 32 if device.type == "cuda" else 8


def times(
    call: Callable[[], object], seconds: float, *, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Calls something again and again; the first call warms up and does not count.

    Args:
        call: Ends when all is done, also what it started on a GPU.
        seconds: For how long; there are some calls, however long they take.
        clock: Seconds.

    Returns:
        The seconds of each call, at least two of them.
    """
    call()
    found: list[float] = []
    end = clock() + seconds
    while len(found) < _FEWEST or (len(found) < _MOST and clock() < end):
        begin = clock()
        call()
        found.append(clock() - begin)
    return found


def network_times(detector: Detector[Any], images: Tensor, seconds: float) -> list[float]:
    """Returns the seconds of each of several calls of a detector on the same images.

    Args:
        detector: Trained; that nothing is known of the images is up to the caller.
        images: uint8 ``(N, 3, I, I)``, brought to the detector's device before.
        seconds: See `times`.
    """
    there = images.to(detector.device)

    def call() -> None:
        detector.predict(there)
        wait_for(detector.device)

    return times(call, seconds)


def image_ms(detector: Detector[Any], images: Tensor) -> float:
    """Measures the milliseconds that an image takes; the module says what they include.

    Args:
        detector: Trained; that nothing is known of the images is up to the caller.
        images: uint8 ``(N, 3, I, I)``, at least one; the first few are used.
    """
    batch = images[: usual_batch(detector.device)]
    return statistics.median(network_times(detector, batch, _SECONDS)) / len(batch) * 1e3


def usual(seconds: Sequence[float]) -> float:
    """Returns the median of what calls took that were made anyway, the first of them left out.

    Args:
        seconds: Of each call, at least one; if there is but one, it counts.
    """
    return statistics.median(seconds[1:] or seconds)
