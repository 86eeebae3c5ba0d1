"""Images and copies of them in which some regions are corrupted, to learn repairing from.

A patch ``P1`` of an image is transformed to ``P3`` and blended by a soft shape ``P2``:
``P4 = P2 P3 + (1 - P2) P1``; the mask ``M`` is ``P2`` embedded in zeros (Bauer, Nakajima and
Mueller, section 3.2 and figure 5). The paper gives no numbers: all of them are inferred. Its
words for the transformations: elastic deformation, cut-out (zeros), patch swapping, occlusion by
shapes with content of another source, rotation of the corrupted image, brightness of patches.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from anomtune.models.images.augmentation import random_crops
from anomtune.models.images.corruption_settings import (
    CHANGES,
    CONTENTS,
    CorruptionHyperparameters,
    corruption_weights,
)
from anomtune.models.images.procedural import procedural_textures

#: Lengths in pixels are those of an image of this side.
_REFERENCE_SIDE = 512


def blend(images: Tensor, contents: Tensor, mask: Tensor) -> Tensor:
    """Returns ``P2 P3 + (1 - P2) P1``, equal to the images where the mask is 0 (figure 5)."""
    return mask * contents + (1 - mask) * images


class Corruptor:
    """Corrupts batches of images.

    What is drawn per image comes from a CPU generator, so that its state goes on anywhere and
    nothing waits for the GPU; noise comes from a generator on the device, seeded by it each time.

    Args:
        settings: What to do.
        resolution: Side of whole images in pixels; batches may be crops of them.
        device: Where the images lie.
        foreign: Source of textures, uint8 ``(M, 3, I, I)``; None: procedural ones.
    """

    def __init__(
        self,
        settings: CorruptionHyperparameters,
        resolution: int,
        device: torch.device,
        foreign: Tensor | None = None,
    ) -> None:
        self._settings = settings
        self._scale = resolution / _REFERENCE_SIDE
        self._device = device
        self._foreign = foreign if foreign is not None and len(foreign) else None
        self._noise = torch.Generator(device)
        weights = corruption_weights(settings.corruption)
        self._kinds = tuple(weights)
        self._weights = torch.tensor(list(weights.values()), dtype=torch.float64)
        # What changes of brightness and rotations act on.
        self._contents = [kind for kind in self._kinds if kind in CONTENTS]
        self._content_weights = self._weights[[kind in CONTENTS for kind in self._kinds]]

    def __call__(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Corrupts each image by a kind that is drawn by its weight.

        Args:
            images: ``(B, 3, H, H)``, float32 in ``[0, 1]``, on the device.
            generator: On the CPU.

        Returns:
            The corrupted images ``(B, 3, H, H)`` in ``[0, 1]`` and masks ``(B, 1, H, H)`` in
            ``[0, 1]`` that hold for all channels. Outside its mask an image is unchanged; a
            rotated image has a mask of ones.
        """
        n = len(images)
        seed = torch.randint(2**62, (), generator=generator)
        self._noise.manual_seed(int(seed))
        clean = torch.rand(n, generator=generator) < self._settings.clean
        drawn = self._draw(self._weights, n, generator)
        beneath = self._draw(self._content_weights, n, generator)
        groups: dict[tuple[str | None, bool, bool], list[int]] = {}
        for row, (kind, below, skip) in enumerate(
            zip(drawn.tolist(), beneath.tolist(), clean.tolist(), strict=True)
        ):
            if skip:
                continue
            name = self._kinds[kind]
            content = name if name in CONTENTS else None
            if content is None and self._contents:
                content = self._contents[below]
            groups.setdefault((content, *(name == change for change in CHANGES)), []).append(row)

        corrupted = images.clone()
        masks = torch.zeros_like(images[:, :1])
        for (content, brightness, rotation), rows in groups.items():
            index = torch.tensor(rows).to(self._device, non_blocking=True)
            part, mask = images[index], masks[index]
            if content is not None or brightness:
                part, mask = self._patches(part, images, content, brightness, generator)
            if rotation:
                part, mask = self._rotate(part, generator), torch.ones_like(mask)
            corrupted[index], masks[index] = part, mask
        return corrupted, masks

    def _patches(
        self,
        images: Tensor,
        others: Tensor,
        content: str | None,
        brightness: bool,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Replaces one to several patches of each image; returns images and masks."""
        s, n = self._settings, len(images)
        counts = torch.randint(1, s.patches + 1, (n,), generator=generator)
        kept = torch.ones_like(images[:, :1])
        result = images
        for number in range(s.patches):
            boxes = self._boxes(n, images.shape[-1], generator)
            u = torch.rand(n, 8, generator=generator).to(self._device, non_blocking=True)
            mask = self._shapes(boxes, u[:, 0], u[:, 1], images.shape[-1])
            mask *= (counts > number).to(self._device, non_blocking=True).view(n, 1, 1, 1)
            if content == "elastic":
                patches = self._deform(result, boxes, u[:, 2], u[:, 3])
            elif content == "zeros":
                patches = torch.zeros_like(result)
            elif content == "patch_swap":
                patches = self._swap(others, boxes, u[:, 4:7], generator)
            elif content == "occlusion":
                patches = self._textures(n, images.shape[-1], generator)
            else:
                patches = result
            if brightness:
                change = (2 * u[:, 7] - 1) * s.brightness_max
                patches = (patches + change.view(n, 1, 1, 1)).clamp(0, 1)
            result = blend(result, patches, mask)
            kept = kept * (1 - mask)
        return result, 1 - kept

    def _boxes(self, n: int, size: int, generator: torch.Generator) -> Tensor:
        """Returns first and last pixel of random patches, ``(n, 4)``: top, left, bottom, right."""
        u = torch.rand(n, 4, generator=generator, dtype=torch.float64)
        low, high = self._settings.patch_min, self._settings.patch_max
        sides = ((low + (high - low) * u[:, :2]) * size).round().clamp(min(2, size), size)
        first = (u[:, 2:] * (size - sides + 1)).floor()
        boxes = torch.cat([first, first + sides - 1], dim=1).float()
        return boxes.to(self._device, non_blocking=True)

    def _shapes(self, boxes: Tensor, wobble: Tensor, blur: Tensor, size: int) -> Tensor:
        """Returns soft shapes ``(n, 1, size, size)`` inside the boxes: ellipses, more or less."""
        n = len(boxes)
        inside = _inside(boxes, size)
        sides = boxes[:, 2:] - boxes[:, :2] + 1
        smallest = sides.amin(1)
        place = torch.arange(size, device=self._device, dtype=torch.float32)
        radii = [
            ((place - boxes[:, axis, None] + 0.5) / sides[:, axis, None] * 2 - 1).square()
            for axis in (0, 1)
        ]
        distance = (radii[0][:, :, None] + radii[1][:, None, :]).unsqueeze(1)
        noise = self._smooth_noise(1, size, smallest / 6)
        noise = noise / noise.std((2, 3), keepdim=True).clamp_min(1e-6)
        shapes = ((1 - distance + wobble.view(n, 1, 1, 1) * noise > 0) & inside).float()
        deviation = self._between(blur, self._settings.blur_min, self._settings.blur_max)
        kernel = _gaussian_kernels(torch.minimum(deviation, smallest / 6), size)
        soft = (kernel @ shapes @ kernel.mT).clamp_(0, 1)
        # Without the Gaussian's far tail, which would change pixels by less than a mask can tell.
        return soft * (inside & (soft > 1e-3))

    def _deform(
        self, images: Tensor, boxes: Tensor, amplitude: Tensor, smoothness: Tensor
    ) -> Tensor:
        """Moves the content of each box by a smooth random field; nothing comes from outside."""
        s, n, size = self._settings, len(images), images.shape[-1]
        deviation = self._between(smoothness, s.smoothness_min, s.smoothness_max)
        field = self._smooth_noise(2, size, deviation)
        largest = (field.abs() * _inside(boxes, size)).amax((1, 2, 3)).clamp_min(1e-6)
        reach = self._between(amplitude, s.displacement_min, s.displacement_max)
        field = field * (reach / largest).view(n, 1, 1, 1)
        place = torch.arange(size, device=self._device, dtype=torch.float32)
        top, left, bottom, right = boxes[:, :, None, None].unbind(1)
        y = torch.minimum(torch.maximum(place.view(-1, 1) + field[:, 0], top), bottom)
        x = torch.minimum(torch.maximum(place + field[:, 1], left), right)
        return _sample(images, y, x)

    def _swap(self, others: Tensor, boxes: Tensor, u: Tensor, generator: torch.Generator) -> Tensor:
        """Puts into each box what is elsewhere in an image of the batch, the same one included."""
        n, size = len(boxes), others.shape[-1]
        partners = torch.randint(len(others), (n,), generator=generator)
        room = size - (boxes[:, 2:] - boxes[:, :2])
        shift = (u[:, :2] * room).floor() - boxes[:, :2]
        place = torch.arange(size, device=self._device)
        y, x = ((place + shift[:, axis, None]).long().clamp(0, size - 1) for axis in (0, 1))
        rows = partners.to(self._device, non_blocking=True).view(n, 1, 1)
        return others[rows, :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)

    def _textures(self, n: int, size: int, generator: torch.Generator) -> Tensor:
        """Returns content of other things, float32 ``(n, 3, size, size)``."""
        if self._foreign is None:
            return procedural_textures(n, size, self._noise, self._device)
        crops = random_crops(self._foreign, n, size, generator)
        return crops.to(self._device, non_blocking=True).float() / 255

    def _rotate(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Turns each image about its centre; its border goes on beyond it."""
        n, size = len(images), images.shape[-1]
        turns = (2 * torch.rand(n, generator=generator) - 1) * math.radians(
            self._settings.angle_max
        )
        turns = turns.to(self._device, non_blocking=True).view(n, 1, 1)
        place = torch.arange(size, device=self._device, dtype=torch.float32) - (size - 1) / 2
        y, x = place.view(1, size, 1), place.view(1, 1, size)
        centre = (size - 1) / 2
        return _sample(
            images,
            y * turns.cos() + x * turns.sin() + centre,
            x * turns.cos() - y * turns.sin() + centre,
        )

    def _smooth_noise(self, channels: int, size: int, deviation: Tensor) -> Tensor:
        """Returns noise ``(n, channels, size, size)``, smoothed by a Gaussian per image."""
        shape = (len(deviation), channels, size, size)
        noise = torch.rand(shape, generator=self._noise, device=self._device) * 2 - 1
        kernel = _gaussian_kernels(deviation, size)
        return kernel @ noise @ kernel.mT

    def _between(self, u: Tensor, low: float, high: float) -> Tensor:
        """Returns lengths in pixels of these images from numbers in ``[0, 1]``."""
        return (low + (high - low) * u) * self._scale

    @staticmethod
    def _draw(weights: Tensor, n: int, generator: torch.Generator) -> Tensor:
        if len(weights) == 0:
            return torch.zeros(n, dtype=torch.int64)
        return torch.multinomial(weights, n, replacement=True, generator=generator)


def _inside(boxes: Tensor, size: int) -> Tensor:
    """Returns whether pixels are in the boxes, bool ``(n, 1, size, size)``."""
    place = torch.arange(size, device=boxes.device)
    rows = (place >= boxes[:, 0, None]) & (place <= boxes[:, 2, None])
    columns = (place >= boxes[:, 1, None]) & (place <= boxes[:, 3, None])
    return (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)


def _gaussian_kernels(deviation: Tensor, size: int) -> Tensor:
    """Returns smoothing matrices ``(n, 1, size, size)`` along one axis; their rows sum to 1."""
    place = torch.arange(size, device=deviation.device, dtype=torch.float32)
    steps = (place[:, None] - place).square() / (2 * deviation.square().view(-1, 1, 1, 1))
    # Five deviations are enough; beyond them are numbers so small that CPUs are slow with them.
    return torch.softmax(steps.masked_fill(steps > 12.5, math.inf).neg(), dim=-1)


def _sample(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Returns images read at pixel coordinates ``(n, H, W)``, bilinearly."""
    grid = torch.stack([x, y], dim=-1) * (2 / (images.shape[-1] - 1)) - 1
    return F.grid_sample(images, grid, padding_mode="border", align_corners=True)
