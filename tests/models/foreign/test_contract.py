"""Models of anomalib keep the contract of a method, all that can be built without a download."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from anomtune.models.testing import check_method
from anomtune.registry import METHODS

pytest.importorskip("anomalib")
pytestmark = pytest.mark.slow

VIT = {"encoder_name": "vit_small_patch14_reg4_dinov2"}
#: Settings with which a model is small, and the side of the images.
SMALL: dict[str, tuple[dict[str, Any], int]] = {
    "anomaly_dino": ({"encoder_name": "vit_small_patch14_dinov2"}, 56),
    "cfa": ({"backbone": "resnet18", "gamma_d": 4}, 64),
    "cflow": (
        {
            "backbone": "resnet18",
            "layers": ("layer2", "layer3"),
            "coupling_blocks": 1,
            "condition_vector": 16,
            "fiber_batch_size": 16,
        },
        64,
    ),
    "dfkde": ({"n_pca_components": 4}, 32),
    "dfm": ({"backbone": "resnet18"}, 64),
    "dinomaly": (VIT, 56),
    "draem": ({}, 32),
    "dsr": ({}, 64),
    "efficient_ad": ({"teacher_out_channels": 4, "batch_size": 1}, 256),
    "fastflow": ({"flow_steps": 1}, 64),
    "foundad": (
        {"encoder_name": "dinov2_vit_small_14", "pred_depth": 1, "pred_emb_dim": 48},
        56,
    ),
    "fre": ({"backbone": "resnet18", "latent_dim": 10}, 64),
    "ganomaly": ({"n_features": 8, "latent_vec_size": 10}, 32),
    "general_ad": (
        {"backbone": "vit_small_patch14_dinov2.lvd142m", "layers": (3,), "hidden_dim": 64},
        56,
    ),
    "glass": (
        {
            "backbone": "resnet18",
            "pretrain_embed_dim": 32,
            "target_embed_dim": 32,
            "discriminator_hidden": 32,
            "step": 3,
        },
        64,
    ),
    "inp_former": (VIT, 56),
    "l2bt": ({}, 56),
    "mh_patchcore": (
        {
            "backbone": "resnet18",
            "layers": ("layer2",),
            "memory_bank_size": 20,
            "local_coreset_size": 10,
        },
        64,
    ),
    "padim": ({"n_features": 20}, 32),
    "patchcore": ({"backbone": "resnet18"}, 32),
    "patchflow": (
        {"backbone": "resnet18", "flow_feature_dim": 16, "flow_hidden_dim": 8, "num_scales": 2},
        128,
    ),
    "rad": ({"backbone": "vit_small_patch16_dinov3"}, 64),
    "reverse_distillation": ({"backbone": "resnet18"}, 32),
    "stfpm": ({}, 32),
    "super_add": (
        {
            "backbone": "vit_small_patch16_dinov3",
            "layers": (3, 6),
            "patch_size": 64,
            "patch_overlap": 16,
        },
        64,
    ),
    "supersimplenet": ({"backbone": "resnet18"}, 128),
    "uflow": ({"backbone": "resnet18", "flow_steps": 1}, 64),
}
#: Those that take a few seconds; the others are checked where ANOMTUNE_ALL_MODELS is set.
QUICK = {
    "dfkde",
    "dfm",
    "fastflow",
    "foundad",
    "fre",
    "ganomaly",
    "general_ad",
    "mh_patchcore",
    "padim",
    "patchcore",
    "rad",
    "stfpm",
    "uflow",
}
#: Too large for a test: networks of a fixed size, checked by hand.
LARGE = {"csflow", "uninet"}


def hyperparameters(name: str, settings: dict[str, Any]) -> Any:
    kind = METHODS.get(f"anomalib.{name}").Hyperparameters
    usual = {"batch_size": 3, "weights": "random"}
    return kind(**{k: v for k, v in usual.items() if k in kind.model_fields} | settings)


def test_every_model_is_tested_here() -> None:
    names = {name for name in METHODS.names() if name.startswith("anomalib.")}
    assert {f"anomalib.{name}" for name in (*SMALL, *LARGE)} == names


@pytest.mark.usefixtures("small_networks")
@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_model_keeps_the_contract(name: str) -> None:
    if name not in QUICK and "ANOMTUNE_ALL_MODELS" not in os.environ:
        pytest.skip("takes long: set ANOMTUNE_ALL_MODELS")
    settings, size = SMALL[name]
    torch.set_num_threads(1)
    check_method(METHODS.get(f"anomalib.{name}"), hyperparameters(name, settings), image_size=size)
