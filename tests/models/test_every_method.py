"""What every installed method must do, on the built-in dataset: find a defect, and clean up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from anomtune.datasets.io.cache import open_category
from anomtune.datasets.opening import open_dataset
from anomtune.errors import MethodError
from anomtune.models.testing import check_detects, check_memory
from anomtune.registry import METHODS

SIZE = 64
TINY: dict[str, Any] = {"backbone": "mobilenet_v2", "weights": "random", "batch_size": 4}

#: Settings with which a method learns in a few seconds: sizes and lengths alone.
SHORT: dict[str, dict[str, Any]] = {
    "cutpaste": {"width": 16, "batch_size": 8, "iterations": 60},
    "deep_svdd": {
        "resolution": SIZE,
        "batch_size": 8,
        "iterations": 100,
        "pretraining": 0.35,
        "lr": 1e-3,
    },
    # The features of a critic of so few steps say nothing yet.
    "f_anogan": {
        "width": 8,
        "codes": 16,
        "resolution": SIZE,
        "batch_size": 4,
        "iterations": 200,
        "encoder_lr": 1e-3,
        "lr": 1e-3,
        "kappa": 0.0,
    },
    "gmm_contrastive": {**TINY, "iterations": 4, "dimensions": 16, "components": 4, "em_steps": 5},
    "gnl": {**TINY, "epochs": 2},
    "kdad": {"weights": "random", "batch_size": 4, "iterations": 40, "lr": 3e-3},
    "padim": {"backbone": "mobilenet_v2", "weights": "random", "channels": 20},
    "patchcore": {"backbone": "mobilenet_v2", "weights": "random"},
    "rd4ad": {**TINY, "epochs": 4},
    "recontrast": {**TINY, "iterations": 30},
    "spr": {"width": 8, "resolution": SIZE, "batch_size": 4, "epochs": 8, "lr": 3e-3},
    "ssae": {
        "width": 8,
        "resolution": SIZE,
        "batch_size": 4,
        "iterations": 80,
        "lr": 4e-3,
        "progressive": False,
        "squared": True,
    },
}


def hyperparameters(method: str, **changes: Any) -> Any:
    return METHODS.get(method).Hyperparameters(**{**SHORT[method], **changes})


def test_every_method_is_tested_here() -> None:
    assert set(SHORT) == set(METHODS.declared()) - {"toy"}


@pytest.fixture(scope="module")
def washers() -> tuple[Tensor, Tensor, Tensor]:
    """Training images, normal test images, and the same with a blot that anybody would see."""
    arrays = open_category(open_dataset("synthetic", None), "washer", SIZE)
    images = torch.from_numpy(arrays.images[:]).permute(0, 3, 1, 2)
    train = [i for i, s in enumerate(arrays.samples) if s.part == "train"]
    normal = [i for i, s in enumerate(arrays.samples) if s.part == "test" and not s.anomalous][:4]
    clean = images[normal].clone()
    defective = clean.clone()
    for number, corner in enumerate(((8, 20), (20, 40), (40, 12), (30, 28))):
        row, column = corner
        defective[number, :, row : row + 14, column : column + 14] = torch.tensor(
            [200, 30, 160], dtype=torch.uint8
        ).view(3, 1, 1)
    return images[train], clean, defective


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(SHORT))
def test_an_obvious_defect_scores_above_its_clean_twin(
    method: str, washers: tuple[Tensor, Tensor, Tensor], weights: str
) -> None:
    train, clean, defective = washers
    hp = hyperparameters(method)
    if "weights" in type(hp).model_fields:
        if weights == "random":
            pytest.skip("needs MobileNetV2's weights")
        hp = hyperparameters(method, weights=weights)
        try:
            METHODS.get(method).prepare(hp)
        except MethodError as missing:
            pytest.skip(str(missing))
    assert hp.input_size(SIZE) == SIZE
    check_detects(
        METHODS.get(method), hp, train=train, clean=clean, defective=defective, image_size=SIZE
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(SHORT))
def test_fifty_trainings_in_one_process_leave_nothing_behind(method: str) -> None:
    changes = {"resolution": 32} if method in ("deep_svdd", "f_anogan", "spr", "ssae") else {}
    check_memory(METHODS.get(method), hyperparameters(method, **changes), image_size=32)
