"""All that one training depends on: one config of one method for one category."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from anomtune.datasets.splits.validation import Validation
from anomtune.search.config import ImageSize, Seed
from anomtune.search.source import DatasetConfig
from anomtune.settings import Settings


class Found(Settings):
    """What a search measured of a config; nothing depends on it.

    Attributes:
        trial: Number of the trial that the config comes from.
        auroc: Its validation AUROC, in [0, 1].
        interval: Its 95 % interval: of that training, with other images.
        default_auroc: AUROC of the paper's own config.
        confirmed_auroc: Mean validation AUROC over the seeds of the confirm runs.
        confirmed_interval: Its 95 % interval, with other images and other seeds.
    """

    trial: Annotated[int, Field(ge=0)]
    auroc: float
    interval: tuple[float, float]
    default_auroc: float | None = None
    confirmed_auroc: float | None = None
    confirmed_interval: tuple[float, float] | None = None


class TrainingSpec(Settings):
    """What is trained on what. ``anomtune best`` writes it and ``anomtune train`` reads it.

    Attributes:
        dataset: Where the images are.
        category: One of its categories.
        method: Name of the method.
        image_size: Side of the maps in pixels.
        seed: Seed of the training.
        hyperparameters: What differs from the paper's own for this dataset and category (trial 0
            of a study; `anomtune methods NAME --dataset D --category C` shows it), or all of them;
            those of the scoring in ``scoring``, or beside it.
        validation: Which images set the threshold.
        split_hash: Names the exact images of training and validation; other ones are refused.
        found: What a search measured of it.
    """

    dataset: DatasetConfig
    category: str
    method: str
    image_size: ImageSize = 256
    seed: Seed = 0
    hyperparameters: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    validation: Validation = Validation()
    split_hash: str | None = None
    found: Found | None = None
