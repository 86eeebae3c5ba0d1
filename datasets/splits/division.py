"""Training and test images of a dataset whose authors have not divided it: content decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field

from anomtune.datasets.base import UNDIVIDED, Sample
from anomtune.datasets.io import store
from anomtune.datasets.splits.units import units
from anomtune.settings import Settings

_LEAST = 2  # Normal images to judge by that the protocol `labelled` needs.


class DivisionCounts(Settings):
    """What a division of a category gave.

    Attributes:
        train: Normal images to train on.
        normal: Normal images to judge by.
        anomalous: Anomalous images to judge by.
    """

    train: int = Field(ge=0)
    normal: int = Field(ge=0)
    anomalous: int = Field(ge=0)

    def __str__(self) -> str:
        return (
            f"{self.train} images train, {self.normal} normal and {self.anomalous} anomalous judge"
        )


class Division(Settings):
    """How images are divided that lie in no ``train`` and no ``test``: the section of a sweep file.

    Normal images are drawn by a digest of the seed and of their pixels; names and order decide
    nothing. The first of them train, the others judge, and so do all anomalous ones. Images of one
    group and images of the same pixels stay together: those of a group with an anomalous image
    judge. Without any anomalous image there is nothing to judge, and all train.

    Attributes:
        train: Share of the normal images that trains. Of four and more at least two judge.
        seed: Chooses among the divisions.
        counts: What it gave, by category. A sweep fills it in; where it is given, images that give
            something else are refused.
    """

    train: float = Field(0.6, gt=0, lt=1)
    seed: int = Field(0, ge=0, lt=2**63)
    counts: dict[str, DivisionCounts] = {}  # noqa: RUF012 - pydantic copies it

    def __str__(self) -> str:
        return (
            f"divided by content hash: {self.train:.0%} of the normal images train, seed "
            f"{self.seed}"
        )


def divide(
    samples: Sequence[Sample], pixel_hashes: Sequence[str], rule: Division
) -> tuple[tuple[Sample, ...], DivisionCounts | None]:
    """Gives every undivided sample its part; those that have one keep it.

    Args:
        samples: The ``N`` samples of a category.
        pixel_hashes: ``N`` digests of their pixels.
        rule: How to divide.

    Returns:
        The samples in the same order; and how many images play which part, shifted domains apart,
        ``None`` if nothing was undivided.
    """
    undivided = [i for i, sample in enumerate(samples) if sample.part == UNDIVIDED]
    if not undivided:
        return tuple(samples), None
    train: set[int] = set()
    free = []
    # Images of shifted domains judge, but where their group trains: the leak audit sees to that.
    own = [i for i, sample in enumerate(samples) if not sample.domain]
    for unit in units(own, samples, pixel_hashes):
        if all(_may_train(samples[i]) for i in unit.members):
            free.append(unit)
    free.sort(key=lambda unit: store.digest("division", rule.seed, unit.name))
    normal = [i for i in undivided if not samples[i].anomalous and not samples[i].domain]
    wanted = round(rule.train * len(normal))
    if not any(sample.anomalous for sample in samples):
        wanted, least = len(normal), 0
    else:
        bound = len(normal) - sum(len(unit.members) for unit in free)
        least = 0 if bound >= _LEAST else min(_LEAST, len(free) // 2)
    for unit in free[: len(free) - least]:
        if train and len(train) >= wanted:
            break
        train.update(unit.members)
    divided = tuple(
        replace(sample, part="train" if i in train else "test")
        if sample.part == UNDIVIDED
        else sample
        for i, sample in enumerate(samples)
    )
    judges = [divided[i] for i in own if divided[i].part == "test"]
    anomalous = sum(sample.anomalous for sample in judges)
    return divided, DivisionCounts(
        train=len(own) - len(judges), normal=len(judges) - anomalous, anomalous=anomalous
    )


def _may_train(sample: Sample) -> bool:
    return sample.part == UNDIVIDED and not sample.anomalous
