"""Compares the selection of PatchCore's memory bank with the plain greedy loop.

The other side is what one writes from the paper's algorithm, and what the libraries do: for each
pick, the distances of all patches to it, the smaller of these and the old ones, and the place of
the largest. Both select a tenth of the same patches, starting with the same one.

    python tests/benchmarks/coreset.py [RATIO]

The patches are those of MobileNetV2 at 256 pixels on the battery welds in ../shared/data (37
images, 37,888 patches of 128 channels); without them, random numbers of the same shape with
clusters in them. Ours must take at most a tenth of the time, at a covering radius that is at most
5 % larger.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anomtune.errors import MethodError
from anomtune.models.images.pixels import normalise
from anomtune.models.layers.coreset import greedy_coreset
from anomtune.models.patchcore import PatchCore, PatchCoreHyperparameters

SHARED = Path(__file__).parents[3] / "shared"
SIZE, BATCH = 256, 8


def weld_patches() -> Tensor:
    """Returns the patches ``(37888, 128)``, centred.

    Raises:
        FileNotFoundError: If the welds are not there.
        MethodError: If MobileNetV2's weights are not there.
    """
    files = sorted((SHARED / "data/battery_weld/train/good").iterdir())
    detector = PatchCore(PatchCoreHyperparameters(backbone="mobilenet_v2"), image_size=SIZE)
    parts = []
    for start in range(0, len(files), BATCH):
        images = [
            np.asarray(Image.open(file).convert("RGB").resize((SIZE, SIZE)))
            for file in files[start : start + BATCH]
        ]
        batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        with torch.no_grad():
            parts.append(detector.network(normalise(batch, detector.device)).flatten(0, 2))
    patches = torch.cat(parts)
    return patches - patches.mean(0)


def random_patches() -> Tensor:
    """Returns as many patches, around 500 centres."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(500, 128, generator=generator)
    members = torch.randint(500, (37_888,), generator=generator)
    return centres[members] + torch.randn(37_888, 128, generator=generator) / 2


def plain_loop(points: Tensor, size: int) -> tuple[Tensor, float]:
    """Returns the picks and the covering radius; a pass over all points per pick."""
    picks = [0]
    nearest = torch.linalg.vector_norm(points - points[0], dim=1)
    while len(picks) < size:
        picks.append(int(nearest.argmax()))
        distances = torch.linalg.vector_norm(points - points[picks[-1]], dim=1)
        nearest = torch.minimum(nearest, distances)
    return torch.tensor(picks), float(nearest.max())


def radius(points: Tensor, picks: Tensor) -> float:
    """Returns the covering radius, computed in the same way for both."""
    return max(
        float(
            torch.cdist(block, points[picks], compute_mode="donot_use_mm_for_euclid_dist")
            .amin(1)
            .max()
        )
        for block in points.split(1024)
    )


def timed(select: Callable[[], tuple[Tensor, object]]) -> tuple[float, Tensor]:
    begin = time.perf_counter()
    picks, _ = select()
    return time.perf_counter() - begin, picks


def main(ratio: float) -> int:
    """Returns the exit code: 0 if ours is ten times as fast and covers as well."""
    if (SHARED / "weights").is_dir():
        os.environ.setdefault("TORCH_HOME", str(SHARED / "weights"))
    try:
        points, kind = weld_patches(), "battery weld"
    except (FileNotFoundError, MethodError) as error:
        points, kind = random_patches(), f"random ({error})"
    size = int(ratio * len(points))
    print(f"{size} of {len(points)} patches of {points.shape[1]} channels, {kind}")
    print(f"{torch.get_num_threads()} threads", flush=True)
    greedy_coreset(points[:2000], 100)  # the first products set up their threads
    seconds, radii = {}, {}
    selected = {}
    for name, select in (("ours", greedy_coreset), ("plain loop", plain_loop)):
        seconds[name], selected[name] = timed(lambda select=select: select(points, size))
        radii[name] = radius(points, selected[name])
        print(f"{name}: {seconds[name]:.2f} s, covering radius {radii[name]:.5f}", flush=True)
    same = len(set(selected["ours"].tolist()) & set(selected["plain loop"].tolist())) / size
    faster = seconds["plain loop"] / seconds["ours"]
    wider = radii["ours"] / radii["plain loop"] - 1
    print(f"{same:.1%} of the picks are the same (the rest: float32 and ties)")
    print(f"ours is {faster:.1f} times as fast (must be 10) at a radius {wider:+.2%} (at most 5 %)")
    return int(faster < 10 or wider > 0.05)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 0.1))
