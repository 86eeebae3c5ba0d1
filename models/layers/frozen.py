"""What a frozen encoder says of images that are shown to it again and again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor


class KnownFeatures:
    """Features of known images, found by what the encoder is shown of them.

    They were computed once, each image with the same others: whoever asks, and in whatever batch,
    gets the same bits.

    Args:
        digests: Of the N images, as `digests_of` gives them.
        stages: Their features ``(N, h, w, C)`` by stage of the encoder, float32, on the CPU; they
            may lie in a file.
        seconds: What the encoder took for one image, in a batch.
    """

    def __init__(
        self, digests: Sequence[bytes], stages: Sequence[Tensor], seconds: float = 0.0
    ) -> None:
        self.seconds = seconds
        self._rows = {digest: row for row, digest in enumerate(digests)}
        self._stages = tuple(stages)

    def find(self, images: Tensor) -> list[Tensor] | None:
        """Returns the features by stage ``(B, C, h, w)`` of normalised images ``(B, 3, S, S)``.

        They are float32 where a training computes in less. ``None`` if one image is not known.
        """
        rows = [self._rows.get(digest) for digest in digests_of(images)]
        known = [row for row in rows if row is not None]
        if len(known) < len(rows):
            return None
        chosen = torch.tensor(known)
        # Channels last in memory, as encoders give them.
        return [stage.index_select(0, chosen).permute(0, 3, 1, 2) for stage in self._stages]


@torch.no_grad()
def targets(encoder: Callable[[Tensor], list[Tensor]], images: Tensor) -> list[Tensor]:
    """Returns what a frozen encoder says of normalised images, for others to learn.

    On a CPU in float32, whatever the training computes in: there it is asked once, for training
    and scoring alike, and who asks anew must be told the same.
    """
    on_cpu = images.device.type == "cpu"
    with torch.autocast("cpu", enabled=False) if on_cpu else nullcontext():
        return encoder(images)


def digests_of(images: Tensor) -> list[bytes]:
    """Returns what names each of the normalised images ``(B, 3, S, S)``: a digest of its values."""
    by_pixel = images.permute(0, 2, 3, 1).contiguous().numpy()
    # CPUs have instructions for SHA-256: half the time of BLAKE2.
    return [hashlib.sha256(image).digest()[:16] for image in by_pixel]
