"""Configs and trained models of the toy method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anomtune.search.detector.train import train


def toy_config(root: Path, **hyperparameters: Any) -> dict[str, Any]:
    """Returns a config as `anomtune train` takes it: brightness, so that bright spots are found."""
    return {
        "dataset": {"name": "folder", "root": str(root)},
        "category": "plate",
        "method": "toy",
        "image_size": 32,
        "hyperparameters": {"quality": 1.0, **hyperparameters},
    }


def save_toy(root: Path, folder: Path, **hyperparameters: Any) -> Path:
    """Trains the toy and saves it; returns the folder."""
    train(toy_config(root, **hyperparameters), device="cpu").save(folder)
    return folder
