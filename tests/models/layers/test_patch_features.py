from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import nn

from anomtune.models.layers.backbones import load_backbone
from anomtune.models.layers.patch_features import PatchFeatures


def test_features_are_neighbourhood_means_with_zeros_beyond_the_border() -> None:
    encoder = load_backbone("mobilenet_v2", "random")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = PatchFeatures(encoder, stages=(1,), neighbourhood=3)
    assert (features.channels, features.stride) == (32, 8)
    with torch.no_grad():
        found, stage = features(images), encoder(images)[1]
    mean = ndimage.uniform_filter(stage.double().numpy(), (1, 1, 3, 3), mode="constant")
    np.testing.assert_allclose(found.numpy(), mean, atol=1e-5)


def test_coarser_stages_come_to_the_grid_of_the_finest() -> None:
    encoder = load_backbone("mobilenet_v2", "random")
    images = torch.rand(1, 3, 64, 96)
    features = PatchFeatures(encoder, stages=(0, 2), neighbourhood=1)
    assert (features.channels, features.stride) == (24 + 96, 4)
    with torch.no_grad():
        found, stages = features(images), encoder(images)
    assert found.shape == (1, 120, 16, 24)
    assert torch.equal(found[:, :24], stages[0])


class _Wide(nn.Module):
    """WideResNet50's second and third stage: 512 and 1024 channels."""

    channels = (256, 512, 1024)
    strides = (4, 8, 16)

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.stages = [
            torch.randn(2, 256, 12, 12, generator=generator),
            torch.randn(2, 512, 6, 6, generator=generator),
            torch.randn(2, 1024, 3, 3, generator=generator),
        ]

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return self.stages


def test_pooled_features_of_wide_resnet50() -> None:
    """Official code: 512 numbers of each stage; the second one's middle counts double."""
    encoder = _Wide(torch.Generator().manual_seed(0))
    features = PatchFeatures(encoder, pooled=1024)  # type: ignore[arg-type]
    assert features.channels == 1024
    found = features(torch.zeros(2, 3, 48, 48))
    second, third = encoder.stages[1], encoder.stages[2]
    sums = F.avg_pool2d(second, 3, 1, 1) * 9
    torch.testing.assert_close(found[:, :512], (sums + second) / 10, rtol=1e-4, atol=1e-5)
    means = F.interpolate(F.avg_pool2d(third, 3, 1, 1), (6, 6), mode="bilinear")
    pairs = means.unflatten(1, (512, 2)).mean(2)
    torch.testing.assert_close(found[:, 512:], pairs, rtol=1e-4, atol=1e-5)


def test_pooled_features_in_the_order_of_the_official_code() -> None:
    """Unfolded, brought to one grid, and then pooled, for channels that divide nothing."""
    encoder = load_backbone("mobilenet_v2", "random")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stages = encoder(images)[1:]
        found = PatchFeatures(encoder, pooled=50)(images)
        vectors = []
        for stage in stages:
            patches = F.unfold(stage, 3, padding=1).unflatten(2, stage.shape[-2:])
            patches = F.interpolate(patches, (8, 8), mode="bilinear")
            vectors.append(F.adaptive_avg_pool1d(patches.flatten(2).mT, 50))
        both = F.adaptive_avg_pool1d(torch.cat(vectors, 2), 50)
    torch.testing.assert_close(found.flatten(2).mT, both, rtol=1e-4, atol=1e-5)
