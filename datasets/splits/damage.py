"""Artificial damage: anomalies for validation where nobody has labelled any.

Each mechanism takes a normal image and returns a damaged one with the region it changed. Kinds,
places, sizes and strengths are drawn over wide ranges, because a detector is to be chosen that
finds more than one sort of flaw. Cut-and-paste follows CutPaste (Li et al., CVPR 2021), the
texture blend follows DRAEM (Zavrtanik et al., ICCV 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomtune.datasets.drawing.shapes import noise
from anomtune.errors import suggest

VERSION = 1  # Raise it when a mechanism draws differently: it is part of the split's identity.
COPIES = 3

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# A change below this many grey levels, or on fewer pixels, cannot be called damage.
_LEAST_CHANGE = 12
_LEAST_SHARE = 0.0008
_ATTEMPTS = 8
# What shows on any image, the flat ones included; the first that may be used is fallen back to.
_ALWAYS_SHOW = ("occlusion", "texture", "roughen")


@dataclass(frozen=True, slots=True)
class Damaged:
    """A damaged copy.

    Attributes:
        image: ``(H, W, 3)`` uint8.
        mask: ``(H, W)`` bool, true where the image was changed.
        mechanism: How it was damaged, a name of `MECHANISMS`.
    """

    image: Image
    mask: Mask
    mechanism: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where damage goes.

    Attributes:
        whole: The whole image, ``(H, W, 3)``.
        image: The part of it that holds the region, ``(h, w, 3)``.
        window: Where that part lies.
        region: ``(h, w)`` bool, what is to be damaged.
    """

    whole: Floats
    image: Floats
    window: tuple[slice, slice]
    region: Mask


def check_without(without: Collection[str]) -> None:
    """Makes sure that enough mechanisms are left without some.

    Raises:
        ValueError: If one of them does not exist, or too few are left; the message says which.
    """
    for name in without:
        if name not in MECHANISMS:
            raise ValueError(f"no damage {name!r}{suggest(name, MECHANISMS)}")
    left = [name for name in MECHANISMS if name not in without]
    if len(left) < 2 or not set(left) & set(_ALWAYS_SHOW):
        raise ValueError(
            f"leaves {' and '.join(left) or 'nothing'} to damage copies with; at least two must "
            f"be left, among them one of {', '.join(_ALWAYS_SHOW)}"
        )


def damaged_copies(
    image: Image, turn: int, seed: int, without: Collection[str] = ()
) -> list[Damaged]:
    """Returns `COPIES` damaged copies of an image, each by another mechanism if so many are left.

    Args:
        image: ``(H, W, 3)`` uint8.
        turn: Number of the image; the mechanisms take turns.
        seed: The same seed gives the same copies.
        without: Mechanisms that must not be used, see `check_without`.
    """
    names = [name for name in MECHANISMS if name not in without]
    fallback = next(name for name in _ALWAYS_SHOW if name not in without)
    copies = []
    for number in range(COPIES):
        name = names[(turn * COPIES + number) % len(names)]
        rng = np.random.Generator(np.random.PCG64([seed, number]))
        copies.append(damage(image, name, rng, fallback))
    return copies


def damage(
    image: Image, mechanism: str, rng: np.random.Generator, fallback: str = "occlusion"
) -> Damaged:
    """Damages an image.

    A draw that changes next to nothing (a blur on a plain surface) is drawn again, stronger; if
    the image gives the mechanism nothing to work on, the fall-back is used instead, and the copy
    says so.

    Args:
        image: ``(H, W, 3)`` uint8, at least 8 pixels wide and high.
        mechanism: A name of `MECHANISMS`.
        rng: Source of all randomness.
        fallback: A mechanism that shows on any image.
    """
    source = image.astype(np.float64)
    grey = bool((image[..., 0] == image[..., 1]).all() and (image[..., 1] == image[..., 2]).all())
    # An occlusion shows at once; version 1 drew it once.
    last_attempts = 1 if fallback == "occlusion" else _ATTEMPTS
    for attempt in range(_ATTEMPTS + last_attempts):
        given_up = attempt >= _ATTEMPTS
        strength = 1.0 if given_up else min(1.0, rng.uniform(0.25, 1.0) * (1 + attempt / 4))
        region = _region(image.shape[0], image.shape[1], rng)
        name = fallback if given_up else mechanism
        window = _window(region)
        before = source[window]
        changed = MECHANISMS[name](Place(source, before, window, region[window]), strength, rng)
        if grey:
            # Colour on a grey image would be the one thing that every detector finds.
            changed = changed.mean(axis=2, keepdims=True)
        from scipy import ndimage  # noqa: PLC0415 - not where detectors are only used

        # Soft edges: a hard cut would give every one of them away.
        soft = ndimage.gaussian_filter(region[window].astype(np.float64), 0.7)[..., None]
        result = image.copy()
        result[window] = np.clip(np.rint(before + soft * (changed - before)), 0, 255)
        change = np.abs(result[window].astype(np.int16) - image[window])
        difference = np.zeros(image.shape[:2], dtype=np.int16)
        # Three slices: a reduction over an axis this short is slow.
        difference[window] = np.maximum(np.maximum(change[..., 0], change[..., 1]), change[..., 2])
        least = max(4, _LEAST_SHARE * difference.size)
        if np.count_nonzero(difference >= _LEAST_CHANGE) >= least:
            break
    return Damaged(result, difference > 2, name)


def _region(height: int, width: int, rng: np.random.Generator) -> Mask:
    """Draws a spot, a streak or a patch with an irregular rim; 0.2 % to 6 % of the image."""
    yy, xx = np.mgrid[0:height, 0:width].astype(np.float64)
    side = min(height, width)
    area = side * side * 10 ** rng.uniform(-2.6, -1.3)
    ratio = 10 ** rng.uniform(0, rng.choice([0.3, 1.2]))
    long, short = np.sqrt(area * ratio / np.pi), np.sqrt(area / ratio / np.pi)
    long, short = min(long, 0.45 * side), max(short, 1.0)
    # Products lie in the middle of their images more often than not.
    cy, cx = (np.clip(rng.normal(0.5, 0.18), 0.1, 0.9) * n for n in (height, width))
    angle = rng.uniform(0, np.pi)
    u = (xx - cx) * np.cos(angle) + (yy - cy) * np.sin(angle)
    v = (yy - cy) * np.cos(angle) - (xx - cx) * np.sin(angle)
    rim = 0.45 * noise(height, width, max(2.0, short), rng)
    mask: Mask = (u / long) ** 2 + (v / short) ** 2 + rim < 1
    mask[int(cy), int(cx)] = True
    return mask


def _window(region: Mask) -> tuple[slice, slice]:
    """Returns the part of the image that a mechanism need compute, with a margin for filters."""
    rows, columns = (np.flatnonzero(region.any(axis=axis)) for axis in (1, 0))
    margin = 4 + max(region.shape) // 8
    return (
        slice(max(rows[0] - margin, 0), rows[-1] + margin + 1),
        slice(max(columns[0] - margin, 0), columns[-1] + margin + 1),
    )


def _cut_paste(place: Place, strength: float, rng: np.random.Generator) -> Floats:
    """Lays another part of the image, shifted in brightness, over the region."""
    height, width, _ = place.whole.shape
    shift = [int(rng.integers(n // 8, n - n // 8 + 1)) for n in (height, width)]
    pasted = np.roll(place.whole, shift, axis=(0, 1))[place.window]
    return np.asarray(pasted + rng.choice([-1, 1]) * 40 * strength * rng.uniform(0, 1))


def _texture(place: Place, strength: float, rng: np.random.Generator) -> Floats:
    """Blends a foreign texture of several octaves into the region."""
    height, width, _ = place.image.shape
    grain = rng.uniform(1.5, max(2.0, place.whole.shape[0] / 12))
    texture = sum(noise(height, width, grain * 2**o, rng) * 0.6**o for o in range(3))
    colour = rng.uniform(20, 235, size=3)
    foreign = colour + 35 * np.asarray(texture)[..., None]
    share = 0.25 + 0.6 * strength
    return np.asarray((1 - share) * place.image + share * foreign)


def _blur(place: Place, strength: float, rng: np.random.Generator) -> Floats:
    """Wipes out the detail of the region."""
    from scipy import ndimage  # noqa: PLC0415 - not where detectors are only used

    sigma = 1 + 5 * strength * place.whole.shape[0] / 128
    return np.asarray(ndimage.gaussian_filter(place.image, (sigma, sigma, 0)))


def _roughen(place: Place, strength: float, rng: np.random.Generator) -> Floats:
    """Roughens the region with noise, grey or coloured."""
    height, width, _ = place.image.shape
    channels = 3 if rng.random() < 0.3 else 1
    grain = rng.uniform(0.5, 2.5)
    grains = np.stack([noise(height, width, grain, rng) for _ in range(channels)], axis=2)
    return np.asarray(place.image + 60 * strength * grains)


def _occlusion(place: Place, strength: float, rng: np.random.Generator) -> Floats:
    """Covers the region with one colour, away from its own; weak ones let it shine through."""
    own = place.image[place.region].mean(axis=0)
    colour = np.where(own > 127, own - rng.uniform(40, 127, 3), own + rng.uniform(40, 127, 3))
    if rng.random() < 0.5:  # Grey things on grey products, coloured ones at times.
        colour = own + np.sign(colour - own).sum() / 3 * np.abs(colour - own).mean()
    share = 0.3 + 0.7 * strength
    return np.asarray((1 - share) * place.image + share * colour)


def _elastic(place: Place, strength: float, rng: np.random.Generator) -> Floats:
    """Warps the region, as if the part were bent or the weave pulled."""
    from scipy import ndimage  # noqa: PLC0415 - not where detectors are only used

    height, width, _ = place.image.shape
    reach = (2 + 7 * strength) * place.whole.shape[0] / 128
    grain = max(3.0, place.whole.shape[0] / 14)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    rows += reach * noise(height, width, grain, rng)
    columns += reach * noise(height, width, grain, rng)
    return np.stack(
        [
            ndimage.map_coordinates(place.image[..., c], [rows, columns], order=1, mode="reflect")
            for c in range(3)
        ],
        axis=2,
    )


MECHANISMS: dict[str, Callable[[Place, float, np.random.Generator], Floats]] = {
    "cut_paste": _cut_paste,
    "blur": _blur,
    "occlusion": _occlusion,
    "texture": _texture,
    "roughen": _roughen,
    "elastic": _elastic,
}
