"""Images that look natural to a network's early layers, drawn and not downloaded.

In the dead leaves model opaque leaves of random size, place and colour fall on each other until
nothing else is seen (Matheron 1968). With sizes that follow a power law of exponent -3 it has the
scale invariance, edges and occlusions of photographs (Lee, Mumford and Huang, "Occlusion models
for natural images", IJCV 2001), and networks trained on such images instead of photographs learn
useful features (Baradad et al., "Learning to see by looking at noise", NeurIPS 2021). Here the
leaves are discs and polygons, shaded and textured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

#: Each point is covered by so many leaves on average: 1.8 % see the ground.
_COVER = 4.0

#: Pixels that are drawn at once: bounds memory.
_BLOCK = 2**21

_TILES = 8


@lru_cache(maxsize=2)
@torch.inference_mode(False)  # Kept for training, whoever asks first.
def dead_leaves(count: int, side: int) -> Tensor:
    """Returns uint8 images ``(count, 3, side, side)``, always the same; do not write to them.

    Args:
        count: Number of images.
        side: Side of the images in pixels.
    """
    generator = torch.Generator().manual_seed(count * 10007 + side)
    with torch.no_grad():
        radius, centre, front = _fall(count, side, generator)
        return _paint(radius, centre, front, generator)


def _fall(count: int, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Returns radii ``(count, L)`` and centres ``(count, L, 2)`` of leaves, and who is seen where.

    The last is the leaf at each pixel, ``(count, side, side)``; a leaf hides those before it.
    """
    smallest, largest = max(1.5, side / 40), side / 2.5
    margin = 0.1 * side
    ratio = (smallest / largest) ** 2
    mean_area = math.pi * smallest**2 * math.log(1 / ratio) / (1 - ratio)
    leaves = math.ceil(_COVER * (side + 2 * margin) ** 2 / mean_area)
    shape = (count, leaves)
    # Density proportional to r^-3, by the inverse of its distribution function.
    radius = smallest / (1 - torch.rand(shape, generator=generator) * (1 - ratio)).sqrt()
    radius[:, 0] = largest  # Leaf 0 is also the ground, wherever nothing else lies.
    centre = torch.rand(*shape, 2, generator=generator) * (side + 2 * margin) - margin
    angle = torch.rand(shape, generator=generator) * 2 * math.pi
    # By up to 1.5, so that a leaf reaches at most 1.25 radii from its centre.
    stretch = 1.5 ** torch.empty(shape).uniform_(-1, 1, generator=generator)
    sides = torch.randint(2, 7, shape, generator=generator)  # 2 stands for a disc

    front = torch.zeros(count * side * side, dtype=torch.int32)
    image = torch.arange(count).view(-1, 1).expand(shape)
    # Leaves of similar size are drawn together, in boxes that the largest of them fits in.
    level = (3 * (radius / smallest).log2()).floor()
    for step in torch.unique(level).tolist():
        chosen = level == step
        box = math.ceil(2 * 1.25 * smallest * 2 ** ((step + 1) / 3)) + 2
        number = chosen.nonzero()[:, 1].int()
        parts = [part[chosen] for part in (radius, centre, angle, stretch, sides, image)]
        for block in zip(
            *(torch.split(part, max(1, _BLOCK // box**2)) for part in (*parts, number)), strict=True
        ):
            _stamp(front, side, box, block)
    return radius, centre, front.view(count, side, side)


def _stamp(
    front: Tensor,
    side: int,
    box: int,
    leaves: Sequence[Tensor],
) -> None:
    """Lets leaves of similar size fall: raises ``front`` to their numbers where they lie.

    The highest number stays whatever the order, so all leaves of a block are drawn at once, each
    in a box of ``box`` x ``box`` pixels.
    """
    radius, centre, angle, stretch, sides, image, number = leaves
    corner = (centre - box / 2).floor().long()
    steps = torch.arange(box)
    y = (corner[:, :1] + steps).view(-1, box, 1)
    x = (corner[:, 1:] + steps).view(-1, 1, box)
    dy, dx = y - centre[:, 0].view(-1, 1, 1), x - centre[:, 1].view(-1, 1, 1)
    cos, sin = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1)
    along = (dx * cos + dy * sin) * stretch.view(-1, 1, 1).sqrt()
    across = (dy * cos - dx * sin) / stretch.view(-1, 1, 1).sqrt()
    sector = 2 * math.pi / sides.view(-1, 1, 1)
    turn = torch.remainder(torch.atan2(across, along), sector) - sector / 2
    distance = torch.hypot(along, across)
    # Distance to the nearest edge of a polygon, over that to its corners.
    polygon = distance * turn.cos() <= radius.view(-1, 1, 1) * (sector / 2).cos()
    disc = distance <= radius.view(-1, 1, 1)
    inside = torch.where(sides.view(-1, 1, 1) == 2, disc, polygon)
    inside &= (y >= 0) & (y < side) & (x >= 0) & (x < side)
    leaf, row, column = inside.nonzero(as_tuple=True)
    pixel = (image[leaf] * side + corner[leaf, 0] + row) * side + corner[leaf, 1] + column
    front.scatter_reduce_(0, pixel, number[leaf], "amax")


def _paint(radius: Tensor, centre: Tensor, front: Tensor, generator: torch.Generator) -> Tensor:
    """Returns uint8 images: every leaf has a colour, a shading, stripes and a grain."""
    count, leaves = radius.shape
    side = front.shape[-1]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    # Photographs vary in brightness more than in colour, and each has a cast of its own.
    opponent = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-0.5, 1.0, -0.5]])
    spread = torch.tensor([1.0, 0.4, 0.25]) * (0.08 + 0.2 * uniform(count, 1, 1))
    cast = normal(count, 1, 3) * torch.tensor([0.1, 0.08, 0.04])
    colour = 0.45 + (cast + spread * normal(count, leaves, 3)) @ opponent

    seen = front.long().flatten(1)

    def each(values: Tensor) -> Tensor:
        """Returns values ``(count, L)`` of the leaves at the pixels, ``(count, side, side)``."""
        return values.gather(1, seen).view(count, side, side)

    y = torch.arange(side).view(1, -1, 1) - each(centre[..., 0])
    x = torch.arange(side).view(1, 1, -1) - each(centre[..., 1])
    shade = 0.12 * (
        y * each(normal(count, leaves) / radius) + x * each(normal(count, leaves) / radius)
    )
    # Stripes on a third of the leaves, 3 to 20 pixels wide.
    wave = 2 * math.pi / (3 * (20 / 3) ** uniform(count, leaves))
    angle = math.pi * uniform(count, leaves)
    strength = 0.15 * uniform(count, leaves) * (uniform(count, leaves) < 1 / 3)
    phase = y * each(wave * angle.sin()) + x * each(wave * angle.cos())
    stripes = each(strength) * phase.sin()
    # Each leaf cuts its grain out of a tile of noise, from a place of its own.
    tiles = _noise(side, generator)
    which = torch.randint(_TILES, (count, leaves), generator=generator)
    start = torch.randint(side, (2, count, leaves), generator=generator)
    row = (torch.arange(side).view(1, -1, 1) + each(start[0])) % side
    column = (torch.arange(side).view(1, 1, -1) + each(start[1])) % side
    grain = each(0.12 * uniform(count, leaves)) * tiles[each(which), row, column]

    light = (shade + stripes + grain).unsqueeze(1)
    pixels = torch.stack([each(colour[..., channel]) for channel in range(3)], 1) + light
    return pixels.clamp_(0, 1).mul_(255).round_().to(torch.uint8)


def _noise(side: int, generator: torch.Generator) -> Tensor:
    """Returns periodic noise ``(tiles, side, side)`` of variance 1, from white to cloudy."""
    frequency = torch.fft.fftfreq(side).square().view(-1, 1) + torch.fft.rfftfreq(side).square()
    power = torch.linspace(0, 1.5, _TILES).view(-1, 1, 1)
    falloff = frequency.clamp_min(1 / side**2).sqrt() ** -power
    falloff[:, 0, 0] = 0
    white = torch.randn(_TILES, side, side, generator=generator)
    noise: Tensor = torch.fft.irfft2(torch.fft.rfft2(white) * falloff, s=(side, side))
    noise /= noise.std((1, 2), keepdim=True)
    return noise
