from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

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
