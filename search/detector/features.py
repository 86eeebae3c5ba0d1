"""Features of the images of a search, computed once on a node for all trainings that use them.

What a frozen encoder says of an image is the same at every rung, of every trial, seed and confirm
run. It is kept in the node's cache, memory-mapped: of training and validation images, by encoder,
weights, size and what the network sees of a pixel. Held-out images are never among them.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from anomtune.datasets.io import store
from anomtune.models.base import Detector
from anomtune.models.layers.encoder import Encoder
from anomtune.models.layers.frozen import KnownFeatures, digests_of
from anomtune.progress import steps

FORMAT = 2  # Raise it when features are computed otherwise.
#: Images that go through the encoder at a time: features depend on it in their last bits.
_BATCH = 16
#: Features that take a larger part of the cache than this are computed anew each time.
_LARGEST_PART = 0.25


def know_features(
    detector: Detector[Any], parts: Sequence[Tensor], images: Sequence[object]
) -> list[str]:
    """Tells a detector's frozen encoders what they say of the images of a search.

    To be called when the detector has its weights: they are forgotten when others are loaded.

    Args:
        detector: On a CPU; on a GPU nothing is done.
        parts: All images, uint8 ``(N, 3, I, I)`` each.
        images: What names them: the digest of the split, and how they were resized.

    Returns:
        What names the features, by encoder.
    """
    if detector.device.type != "cpu":
        return []
    names = []
    for encoder in detector.frozen_encoders():
        # The first image says what the network sees of a pixel, and of which part of the image.
        seen = digests_of(detector.inputs(parts[0][:1]))[0].hex()
        # Bits depend on them; results must not depend on who came first.
        arithmetic = torch.__version__, torch.get_num_threads()
        names.append(store.digest(FORMAT, encoder.digest(), *images, seen, *arithmetic))
        encoder.known = _obtain(detector, encoder, parts, names[-1])
    return names


class _TooLarge(Exception):  # noqa: N818 - ends a build, is no error
    """The features would take too much of the cache."""


def _obtain(
    detector: Detector[Any], encoder: Encoder, parts: Sequence[Tensor], name: str
) -> KnownFeatures | None:
    """Returns the features of images; ``None`` if they would take too much of the cache."""

    def build(folder: Path) -> None:
        _build(detector, encoder, parts, folder)

    def load(folder: Path) -> KnownFeatures:
        meta = json.loads((folder / "meta.json").read_text(encoding="ascii"))
        return KnownFeatures(
            [bytes.fromhex(digest) for digest in meta["digests"]],
            [
                _map(folder / f"stage{number}.npy", (len(meta["digests"]), *shape))
                for number, shape in enumerate(meta["shapes"])
            ],
            meta["seconds"],
        )

    try:
        return store.obtain("features", name, build, load)
    except _TooLarge:
        return None


def _build(
    detector: Detector[Any], encoder: Encoder, parts: Sequence[Tensor], folder: Path
) -> None:
    """Writes the features of all images, stage by stage, and the digests of what is seen.

    Raises:
        _TooLarge: If they would take too much of the cache.
    """
    count = sum(len(part) for part in parts)
    digests: list[str] = []
    shapes: list[tuple[int, ...]] = []
    seconds: list[float] = []
    with ExitStack() as files:
        opened: list[BinaryIO] = []
        batches = [batch for part in parts for batch in torch.split(part, _BATCH)]
        for batch in steps(batches, "computing features", len(batches)):
            inputs = detector.inputs(batch)
            digests += [digest.hex() for digest in digests_of(inputs)]
            begin = time.perf_counter()
            with torch.inference_mode():
                stages = encoder(inputs)
            seconds.append((time.perf_counter() - begin) / len(batch))
            values = [stage.permute(0, 2, 3, 1).contiguous().numpy() for stage in stages]
            if not opened:
                shapes = [value.shape[1:] for value in values]
                if count * sum(4 * math.prod(s) for s in shapes) > _LARGEST_PART * store.bound():
                    raise _TooLarge
                # Written, not mapped: on a full disk a mapped write is a SIGBUS.
                for number, shape in enumerate(shapes):
                    file = files.enter_context((folder / f"stage{number}.npy").open("wb"))
                    header = {"descr": "<f4", "fortran_order": False, "shape": (count, *shape)}
                    np.lib.format.write_array_header_1_0(file, header)
                    opened.append(file)
            for number, value in enumerate(values):
                opened[number].write(value.tobytes())
    meta = {"digests": digests, "shapes": shapes, "seconds": statistics.median(seconds)}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="ascii")


def _map(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Maps a stage into memory, ``(N, h, w, C)``.

    Raises:
        ValueError: If the file does not hold it whole.
    """
    array = np.load(path, mmap_mode="c", allow_pickle=False)
    if array.shape != shape or array.dtype != np.float32:
        raise ValueError(f"{path}: expected float32 {shape}, found {array.dtype} {array.shape}")
    return torch.from_numpy(array)
