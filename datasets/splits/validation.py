"""How the validation images of a category are chosen: the ``validation`` section of every file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from anomtune.datasets.splits.damage import check_without
from anomtune.settings import Settings

Protocol = Literal["labelled", "synthetic", "test"]


class Validation(Settings):
    """How the validation images are chosen.

    Attributes:
        protocol: ``labelled`` divides the dataset's test images into validation and held-out test;
            ``synthetic`` holds out normal training images and damages copies of them; ``test``
            validates on the whole test part, as the papers do.
        fraction: Share of the images that goes to validation, of each defect type (``labelled``)
            or of the training images (``synthetic``); unused by ``test``.
        seed: Chooses among the splits of one kind.
        without_damage: Kinds of damage (see `splits.damage`) that ``synthetic`` leaves out,
            because a method to be judged trains on them (a sweep adds those of its methods);
            nothing with other protocols.
    """

    protocol: Protocol = "labelled"
    fraction: float = Field(0.5, gt=0, lt=1)
    seed: int = Field(0, ge=0, lt=2**63)  # what torch, NumPy and Parquet all take
    without_damage: tuple[str, ...] = ()

    @field_validator("without_damage")
    @classmethod
    def _can_be_left_out(cls, without: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        protocol = info.data.get("protocol", "synthetic")
        if without and protocol != "synthetic":
            raise ValueError(f"nothing is damaged under {protocol!r}; remove it")
        check_without(without)
        return without
