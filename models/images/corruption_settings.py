"""What can be set of the corruptions of training images, and how a mix of them is written.

The paper (Bauer, Nakajima and Mueller, section 3.2) gives no numbers: all of them are inferred.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from anomtune.models.hyperparameters import Hyperparameters
from anomtune.models.ranges import Choice

#: What a patch can be replaced by.
CONTENTS = ("elastic", "zeros", "patch_swap", "occlusion")
#: What can be done on top of that: to the patch, or to the whole image.
CHANGES = ("brightness", "rotation")

#: The kinds of `anomtune.datasets.splits.damage` that do the same to a region as a corruption
#: does: warp it; cover it with one colour; lay normal content from elsewhere over it; lay
#: something foreign over it, which is a texture or, from many a photo, next to one colour.
#: Brightness and rotation are none of those kinds.
_SAME_DAMAGE = {
    "elastic": {"elastic"},
    "zeros": {"occlusion"},
    "patch_swap": {"cut_paste"},
    "occlusion": {"occlusion", "texture"},
}


class CorruptionHyperparameters(Hyperparameters):
    """What can be set of `Corruptor`."""

    corruption: Annotated[
        str,
        Choice(
            choices=(
                "elastic",
                "zeros",
                "patch_swap",
                "occlusion",
                "elastic+patch_swap",
                "elastic+brightness",
                "elastic+occlusion",
                "elastic+occlusion+rotation",
            )
        ),
    ] = Field(
        default="elastic",
        description="Kinds of corruption, each image gets one: elastic, zeros, patch_swap, "
        "occlusion, and brightness or rotation, which act on one of the former. Weights other "
        "than 1 follow a colon: elastic:3+occlusion:1. Source: paper (elastic; cable and screw "
        "elastic+occlusion, transistor with rotation as well).",
    )
    textures: str = Field(
        default="auto",
        min_length=1,
        description="Content of occlusions: a folder of images (DTD, for instance), procedural, "
        "or auto: the dataset's other categories if it has any, else procedural. "
        "Source: inferred; the paper says a different data source.",
    )
    patches: int = Field(
        default=3,
        ge=1,
        description="Patches per image are 1 to this many. Source: inferred.",
    )
    patch_min: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="Smallest side of a patch, of the image's side. Source: inferred.",
    )
    patch_max: float = Field(
        default=0.4,
        gt=0,
        le=1,
        description="Largest side of a patch, of the image's side. Source: inferred from the "
        "paper's theory, which wants less than half of the image corrupted.",
    )
    displacement_min: float = Field(
        default=5.0,
        ge=0,
        description="Smallest amplitude of elastic deformations, in pixels of an image of 512. "
        "Source: inferred.",
    )
    displacement_max: float = Field(
        default=30.0,
        ge=0,
        description="Largest amplitude of elastic deformations, in pixels of an image of 512. "
        "Source: inferred.",
    )
    smoothness_min: float = Field(
        default=4.0,
        gt=0,
        description="Smallest deviation of the Gaussian that smooths displacements, in pixels of "
        "an image of 512. Source: inferred.",
    )
    smoothness_max: float = Field(
        default=16.0,
        gt=0,
        description="Largest deviation of that Gaussian, in pixels of an image of 512. "
        "Source: inferred.",
    )
    blur_min: float = Field(
        default=2.0,
        gt=0,
        description="Smallest deviation of the Gaussian that softens shapes, in pixels of an "
        "image of 512. Source: inferred.",
    )
    blur_max: float = Field(
        default=8.0,
        gt=0,
        description="Largest deviation of that Gaussian, in pixels of an image of 512, and at "
        "most a sixth of the patch. Source: inferred.",
    )
    brightness_max: float = Field(
        default=0.3,
        gt=0,
        le=1,
        description="Largest change of brightness, of the range of pixels. Source: inferred.",
    )
    angle_max: float = Field(
        default=45.0,
        gt=0,
        le=180,
        description="Largest angle of rotations in degrees. Source: inferred.",
    )
    clean: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Fraction of images that stay as they are. Source: inferred.",
    )

    @field_validator("corruption")
    @classmethod
    def _known(cls, value: str) -> str:
        corruption_weights(value)
        return value

    @model_validator(mode="after")
    def _ordered(self) -> CorruptionHyperparameters:
        for name in ("patch", "displacement", "smoothness", "blur"):
            if getattr(self, f"{name}_min") > getattr(self, f"{name}_max"):
                raise ValueError(f"{name}_min must not be above {name}_max")
        return self

    def training_damage(self) -> frozenset[str]:
        """Returns what the corruptions have in common with `anomtune.datasets.splits.damage`."""
        kinds = corruption_weights(self.corruption)
        return frozenset().union(*(_SAME_DAMAGE.get(kind, ()) for kind in kinds))


def corruption_weights(mix: str) -> dict[str, float]:
    """Reads a mix of corruptions.

    Args:
        mix: Kinds with or without a weight, such as ``elastic:3+occlusion``.

    Returns:
        The share of each kind; they sum to 1.

    Raises:
        ValueError: If it cannot be read; the message says why.
    """
    weights: dict[str, float] = {}
    for part in mix.split("+"):
        name, colon, number = (piece.strip() for piece in part.partition(":"))
        if name not in CONTENTS + CHANGES:
            known = ", ".join(CONTENTS + CHANGES)
            raise ValueError(f"no corruption {name!r} in {mix!r}: there are {known}")
        if name in weights:
            raise ValueError(f"{name} is named twice in {mix!r}")
        try:
            weights[name] = float(number) if colon else 1.0
        except ValueError:
            raise ValueError(f"the weight of {name} in {mix!r} is no number") from None
        if not (weights[name] >= 0 and math.isfinite(weights[name])):
            raise ValueError(f"the weight of {name} in {mix!r} must be finite and not negative")
    total = sum(weights.values())
    if total == 0:
        raise ValueError(f"at least one weight in {mix!r} must be positive")
    return {name: weight / total for name, weight in weights.items() if weight > 0}
