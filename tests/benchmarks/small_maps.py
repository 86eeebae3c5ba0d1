"""Compares layers on small maps, computed as matrix products, with torch's convolutions.

    python tests/benchmarks/small_maps.py

Forward and backward pass of layers of the students of ResNet18 and MobileNetV2, 16 or 32 images,
in one thread, both in turns: milliseconds in the median, in float32 and, where the CPU has it, in
bfloat16. Layers with up to `small_maps._POINTS` points for each output number are products in a
training; the others are shown for comparison, as products all the same.
"""

from __future__ import annotations

import copy
import statistics
import time

import torch
from torch import Tensor, nn

from anomtune.models.layers import small_maps
from anomtune.models.layers.precision import has_bfloat16

TURNS = 15
#: Images, channels, side of the map, output channels, kernel and stride; -2 is transposed.
LAYERS = (
    (16, 512, 2, 512, 3, 1),
    (16, 768, 4, 512, 3, 2),
    (16, 512, 2, 256, 2, -2),
    (16, 256, 4, 256, 3, 1),
    (16, 512, 4, 512, 3, 1),
    (32, 192, 4, 192, 3, 1),
    (32, 288, 8, 192, 3, 2),
    (16, 256, 8, 256, 3, 1),
    (16, 128, 8, 128, 3, 1),
)


def seconds(layer: nn.Module, x: Tensor, dtype: torch.dtype) -> float:
    """Returns what a forward and a backward pass take."""
    layer.zero_grad()
    x.grad = None
    begin = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = layer(x.to(dtype))
    y.backward(torch.ones_like(y))
    return time.perf_counter() - begin


def main() -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    rule, small_maps._POINTS = small_maps._POINTS, 10**9
    dtypes = [torch.float32] + [torch.bfloat16] * has_bfloat16(torch.device("cpu"))
    print("| layer | points for each number | precision | convolution | product | ratio |")
    print("|---|---|---|---|---|---|")
    for images, channels, side, outputs, kernel, stride in LAYERS:
        if stride < 0:
            plain: nn.Module = nn.ConvTranspose2d(channels, outputs, kernel, -stride, bias=False)
            ratio = images * side**2 / (outputs * kernel**2)
        else:
            plain = nn.Conv2d(channels, outputs, kernel, stride, kernel // 2, bias=False)
            ratio = images * (side // stride) ** 2 / outputs
        plain.to(memory_format=torch.channels_last)
        product = copy.deepcopy(plain)
        small_maps.use_small_maps(product)
        x = torch.randn(images, channels, side, side).to(memory_format=torch.channels_last)
        x.requires_grad_()
        for dtype in dtypes:
            turns = [(seconds(plain, x, dtype), seconds(product, x, dtype)) for _ in range(TURNS)]
            theirs, ours = (statistics.median(taken) for taken in zip(*turns, strict=True))
            what = f"{kernel}, stride {stride}" if stride > 0 else f"{kernel}, transposed"
            used = "" if ratio <= rule else " (not used)"
            print(
                f"| {images} x {channels} x {side} x {side} to {outputs}, kernel {what} "
                f"| {ratio:.2g}{used} | {str(dtype)[6:]} | {theirs * 1e3:.1f} ms "
                f"| {ours * 1e3:.1f} ms | {theirs / ours:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
