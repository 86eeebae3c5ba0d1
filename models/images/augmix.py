"""AugMix of whole batches on their device (Hendrycks et al., ICLR 2020; as GNL uses it).

An image is mixed with three chains of one to three operations each. The operations are those of
Pillow (autocontrast, equalize, posterize, solarize and the enhancers), to the grey level; none
moves anything, so that features of the views can be compared place by place.

What is drawn follows GNL's official code: the number of operations is drawn once per image and
holds for its three chains; an operation's level is uniform between 0.1 and the severity of its
image, an integer from 0 to 3. For severity 0 that is ``0.1 - 0.1 u``, between 0 and 0.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

OperationList = Literal["mvtec", "pacs"]

WIDTH = 3
MAX_DEPTH = 3
MAX_SEVERITY = 3

#: Maps uint8 images ``(n, 3, H, W)`` and levels ``(n,)``, float64, to new images.
Operation = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Plan:
    """What is drawn for ``B`` images, on the CPU.

    Attributes:
        mix: Share of the chains in the result, float32 ``(B,)``.
        weights: Share of each chain among the chains, float32 ``(WIDTH, B)``.
        depth: Operations per chain, int64 ``(B,)``.
        operations: Index of each operation, int64 ``(MAX_DEPTH, WIDTH, B)``; those from ``depth``
            on are not used.
        levels: Their levels, float64 ``(MAX_DEPTH, WIDTH, B)``.
    """

    mix: Tensor
    weights: Tensor
    depth: Tensor
    operations: Tensor
    levels: Tensor


class AugMix:
    """Draws and makes AugMix views.

    Args:
        operations: GNL's list for MVTec, or its longer one for PACS.
        generator: Where all draws come from, on the CPU: they are the same on every device.
    """

    def __init__(self, operations: OperationList, generator: torch.Generator) -> None:
        self.operations = OPERATIONS[operations]
        self.generator = generator

    def __call__(self, images: Tensor) -> Tensor:
        """Returns float32 views in pixel values of uint8 images ``(B, 3, H, W)``."""
        return self.apply(images, self.draw(len(images)))

    def draw(self, n_images: int) -> Plan:
        """Draws what happens to the next images."""
        generator = self.generator
        severity = torch.randint(0, MAX_SEVERITY + 1, (n_images,), generator=generator)
        # Normalised exponentials are Dirichlet(1, 1, 1), and Beta(1, 1) is uniform.
        weights = torch.empty(WIDTH, n_images).exponential_(generator=generator)
        mix = torch.rand(n_images, generator=generator)
        depth = torch.randint(1, MAX_DEPTH + 1, (n_images,), generator=generator)
        shape = (MAX_DEPTH, WIDTH, n_images)
        operations = torch.randint(0, len(self.operations), shape, generator=generator)
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
        levels = 0.1 + (severity.double() - 0.1) * uniform
        return Plan(mix, weights / weights.sum(0), depth, operations, levels)

    def apply(self, images: Tensor, plan: Plan) -> Tensor:
        """Returns float32 views in pixel values, ``(B, 3, H, W)``.

        The official code mixes normalised images. Normalising the result is the same, as the
        shares add up to 1, and is done once instead of four times.

        Args:
            images: uint8 ``(B, 3, H, W)``, on any device; not changed.
            plan: What was drawn for them.
        """
        device = images.device
        images = images.contiguous()
        chains = images.repeat(WIDTH, 1, 1, 1)  # chain by chain
        # The images that drew the same operation go through it together. The plan is sorted on
        # the CPU, where it was drawn: the GPU gets it in one go and never has to be waited for.
        unused = torch.arange(MAX_DEPTH).view(-1, 1, 1) >= plan.depth
        drawn = plan.operations.masked_fill(unused, len(self.operations)).flatten(1)
        groups = F.one_hot(drawn, len(self.operations) + 1).sum(1).tolist()
        order = drawn.argsort(dim=1)
        levels = plan.levels.flatten(1).gather(1, order).to(device, non_blocking=True)
        order = order.to(device, non_blocking=True)
        for position, sizes in enumerate(groups):
            members_of = torch.split(order[position], sizes)
            levels_of = torch.split(levels[position], sizes)
            # The last group is that of chains that have ended.
            for operation, members, level in zip(
                self.operations, members_of[:-1], levels_of[:-1], strict=True
            ):
                if len(members):
                    chains.index_copy_(0, members, operation(chains[members], level))
        shares = torch.cat([1 - plan.mix[None], plan.mix * plan.weights])
        shares = shares.to(device, non_blocking=True).view(WIDTH + 1, -1, 1, 1, 1)
        mixed = images * shares[0]
        for chain, share in zip(chains.chunk(WIDTH), shares[1:], strict=True):
            mixed += chain * share
        return mixed


def autocontrast(images: Tensor, level: Tensor) -> Tensor:
    """Stretches each channel's values to 0..255, as `PIL.ImageOps.autocontrast`; no level."""
    low, high = (part.unsqueeze(-1) for part in images.flatten(2).aminmax(dim=-1))
    # In Pillow's order of operations and precision, whose roundings the truncation shows. (A
    # number divided by a tensor would be its reciprocal times the number: rounded twice.)
    span = (high.double() - low.double()).clamp_min(1)
    scale = torch.full_like(span, 255) / span
    values = torch.arange(256, device=images.device)
    stretched = (values * scale + -low.double() * scale).long().clamp(0, 255)
    return _look_up(images, torch.where(high > low, stretched, values))


def equalize(images: Tensor, level: Tensor) -> Tensor:
    """Evens out each channel's histogram, as `PIL.ImageOps.equalize`; no level."""
    values = images.flatten(2)
    histogram = torch.zeros(*values.shape[:2], 256, dtype=torch.int64, device=images.device)
    histogram.scatter_add_(2, values.long(), histogram.new_ones(()).expand(values.shape))
    brightest = histogram.gather(2, values.amax(-1, keepdim=True).long())
    step = (values.shape[-1] - brightest) // 255
    below = histogram.cumsum(-1) - histogram
    table = ((step // 2 + below) // step.clamp_min(1)).clamp_max(255)
    return _look_up(images, torch.where(step > 0, table, torch.arange(256, device=images.device)))


def posterize(images: Tensor, level: Tensor) -> Tensor:
    """Keeps ``4 - int(level * 4 / 10)`` bits, as `PIL.ImageOps.posterize`."""
    dropped = 4 + (level * 4 / 10).long()
    return images & (256 - 2**dropped).to(torch.uint8).view(-1, 1, 1, 1)


def solarize(images: Tensor, level: Tensor) -> Tensor:
    """Inverts values from ``256 - int(level * 256 / 10)`` on, as `PIL.ImageOps.solarize`."""
    highest_kept = (255 - (level * 256 / 10).long()).to(torch.uint8).view(-1, 1, 1, 1)
    return torch.where(images <= highest_kept, images, 255 - images)


def color(images: Tensor, level: Tensor) -> Tensor:
    """Draws colours to grey, as `PIL.ImageEnhance.Color`."""
    return _enhance(images, _luma(images), level)


def contrast(images: Tensor, level: Tensor) -> Tensor:
    """Draws values to the image's mean grey, as `PIL.ImageEnhance.Contrast`."""
    mean = (_luma(images).double().mean((1, 2, 3), keepdim=True) + 0.5).floor()
    return _enhance(images, mean, level)


def brightness(images: Tensor, level: Tensor) -> Tensor:
    """Draws values to black, as `PIL.ImageEnhance.Brightness`."""
    return _enhance(images, torch.zeros_like(images), level)


def sharpness(images: Tensor, level: Tensor) -> Tensor:
    """Draws images to a smoothed copy, as `PIL.ImageEnhance.Sharpness`; the border stays."""
    wide = images.to(torch.int16)
    rows = wide[..., :-2, :] + wide[..., 1:-1, :] + wide[..., 2:, :]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * wide[..., 1:-1, 1:-1]
    smooth = images.clone()
    # Truncated. Thirteenths plus a half are never near an integer: float32 does.
    smooth[..., 1:-1, 1:-1] = (sums / 13).add_(0.5)
    return _enhance(images, smooth, level)


def _enhance(images: Tensor, degenerate: Tensor, level: Tensor) -> Tensor:
    """Blends by the factor ``level * 1.8 / 10 + 0.1`` in [0, 1], in float32 as Pillow does."""
    factor = (level * 1.8 / 10 + 0.1).float().view(-1, 1, 1, 1)
    start = degenerate.float()
    # Two operations: one that rounds once would now and then end on the other side of an integer.
    return (images.float() - start).mul_(factor).add_(start).to(torch.uint8)


def _luma(images: Tensor) -> Tensor:
    """Returns ITU-R 601 luma ``(n, 1, H, W)`` in Pillow's fixed-point arithmetic."""
    red, green, blue = images.to(torch.int32).chunk(3, dim=1)
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def _look_up(images: Tensor, table: Tensor) -> Tensor:
    """Replaces every value by the entry of its channel's table ``(n, 3, 256)``."""
    first = torch.arange(0, table.numel(), 256, dtype=torch.int32, device=images.device)
    entries = images + first.view(*images.shape[:2], 1, 1)
    return table.to(torch.uint8).flatten().index_select(0, entries.flatten()).view_as(images)


_MVTEC: tuple[Operation, ...] = (autocontrast, equalize, posterize, solarize, color, sharpness)

#: Operations by the data set that GNL's official code uses them for.
OPERATIONS: dict[OperationList, tuple[Operation, ...]] = {
    "mvtec": _MVTEC,
    "pacs": (*_MVTEC, contrast, brightness),
}
