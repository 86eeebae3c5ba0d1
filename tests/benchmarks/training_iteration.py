"""Compares training steps of ``rd4ad`` and ``recontrast`` with straightforward ones.

The other side is `straightforward.py`. Both start from the same weights, see the same batches
(normalised by the same function) and take turns in one process, with one thread: a trial's share
of a machine. Ours trains as a trial does: in bfloat16 where the CPU has it, with what the frozen
encoder says of the images from the cache.

    python tests/benchmarks/training_iteration.py [PAIRS]

First the losses of both are compared in float64 on small images: they must agree to 1e-5 in all
iterations. (In float32 they agree at first and drift apart: AdamW turns the last bit of a
vanishing gradient into a full step.) Then the times are: the median over all pairs of rungs, a few
steps each, of the other's time divided by ours.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import straightforward
import torch
import torch.nn.functional as F
from torch import Tensor

from anomtune.models.images.pixels import normalise
from anomtune.models.layers.precision import has_bfloat16
from anomtune.models.training.batches import BatchOrder
from anomtune.registry import METHODS
from anomtune.search.detector.features import know_features

BATCH, IMAGES, TOTAL = 16, 32, 2000
BACKBONES = ("resnet18", "mobilenet_v2")
SIZES = (64, 128, 256)
#: Steps between two looks at a trial.
RUNG = 6
SMALL_SIZE, COMPARED, TOLERANCE = 64, 10, 1e-5


class BothSides:
    """Our detector and the other model, with the same weights and images."""

    def __init__(self, method: str, backbone: str, size: int, dtype: torch.dtype) -> None:
        coarse = torch.rand(
            IMAGES, 3, size // 8, size // 8, generator=torch.Generator().manual_seed(0)
        )
        images = F.interpolate(coarse, size=size, mode="bilinear").mul(255).to(torch.uint8)
        self.images = images.contiguous(memory_format=torch.channels_last)
        fields = {"backbone": backbone, "weights": "random", "batch_size": BATCH}
        kind = METHODS.get(method)
        self.ours = kind(kind.Hyperparameters(**fields, iterations=TOTAL), image_size=size)
        self.other = straightforward.METHODS[method](backbone)
        network, other = self.ours.network, self.other
        other.encoder.network.load_state_dict(network.encoder.state_dict())
        for mine, theirs in (
            (other.bottleneck, network.student.bottleneck),
            (other.decoder, network.student.decoder),
        ):
            # The layers are registered in the same order under other names.
            for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
                a.data.copy_(b.data)
        other.to(dtype).prepare()
        network.to(dtype)
        other.train()
        if dtype == torch.float64:
            for module in (network, network.encoder):
                module.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype),))
        else:
            know_features(self.ours, (self.images,), (method, backbone, size))
        self._order = BatchOrder(BATCH, seed=0)
        self._dtype = dtype
        self._iteration = 0

    def our_steps(self, count: int) -> float:
        return self.ours.fit(self.images, count)["loss"]

    def other_step(self) -> float:
        # The same numbers to the last bit, or float64 would compare roundings of the input.
        rows: Tensor = self.images[self._order.draw(len(self.images))]
        batch = normalise(rows, torch.device("cpu")).contiguous().to(self._dtype)
        loss = straightforward.step(self.other, batch, self._iteration, TOTAL)
        self._iteration += 1
        return loss


def compare_losses(method: str, backbone: str) -> float:
    """Returns the largest difference of the losses of the first iterations."""
    sides = BothSides(method, backbone, SMALL_SIZE, torch.float64)
    return max(abs(sides.our_steps(1) - sides.other_step()) for _ in range(COMPARED))


def compare_times(method: str, backbone: str, size: int, pairs: int) -> tuple[float, float, float]:
    """Returns the seconds of a step of ours and the other's, and the ratio, as medians."""
    sides = BothSides(method, backbone, size, torch.float32)
    taken: list[tuple[float, float]] = []
    for _ in range(pairs + 1):
        start = time.perf_counter()
        sides.our_steps(RUNG)
        middle = time.perf_counter()
        for _ in range(RUNG):
            sides.other_step()
        taken.append(((middle - start) / RUNG, (time.perf_counter() - middle) / RUNG))
    del taken[0]  # the first allocates
    ours, other = (statistics.median(side) for side in zip(*taken, strict=True))
    return ours, other, statistics.median(b / a for a, b in taken)


def main(pairs: int) -> int:
    """Returns the exit code: 0 if the losses are equal and no step is slower."""
    torch.set_num_threads(1)
    differences, ratios = [], []
    for method in straightforward.METHODS:
        for backbone in BACKBONES:
            differences.append(compare_losses(method, backbone))
            print(f"{method}, {backbone}: losses apart by {differences[-1]:.1e}", flush=True)
    print(f"allowed: {TOLERANCE:.0e}\n\nbfloat16: {has_bfloat16(torch.device('cpu'))}")
    print("| method | backbone | px | straightforward | anomtune | ratio |")
    print("|---|---|---|---|---|---|")
    for method in straightforward.METHODS:
        for backbone in BACKBONES:
            for size in SIZES:
                ours, other, ratio = compare_times(method, backbone, size, pairs)
                ratios.append(ratio)
                figures = f"{other:.3f} s | {ours:.3f} s | {ratio:.2f}"
                print(f"| {method} | {backbone} | {size} | {figures} |", flush=True)
    return int(min(ratios) < 1 or max(differences) > TOLERANCE)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ["ANOMTUNE_CACHE"] = cache
        sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
