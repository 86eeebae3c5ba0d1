"""What no split may take apart: images of one group, and images of the same pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anomtune.datasets.base import Sample
from anomtune.datasets.io import store


@dataclass(frozen=True, slots=True)
class Unit:
    """Images that stay on one side.

    Attributes:
        name: What their place is drawn by: the digest of the pixels of a single image, else one of
            all of them. So names of files and of groups decide nothing.
        members: Indices of the samples, in the order in which they were given.
    """

    name: str
    members: tuple[int, ...]


def units(
    indices: Sequence[int], samples: Sequence[Sample], pixel_hashes: Sequence[str]
) -> list[Unit]:
    """Joins samples that are of one group or have the same pixels, and what these join again.

    Args:
        indices: Which of the samples.
        samples: All of a category.
        pixel_hashes: Their digests.
    """
    parents = {index: index for index in indices}

    def find(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    first: dict[tuple[str, str], int] = {}
    for index in indices:
        ties = [("pixels", pixel_hashes[index])]
        if samples[index].group:
            ties.append(("group", samples[index].group))
        for tie in ties:
            parents[find(index)] = find(first.setdefault(tie, index))
    joined: dict[int, list[int]] = {}
    for index in indices:
        joined.setdefault(find(index), []).append(index)
    return [
        Unit(_name({pixel_hashes[i] for i in members}), tuple(members))
        for members in joined.values()
    ]


def _name(hashes: set[str]) -> str:
    return next(iter(hashes)) if len(hashes) == 1 else store.digest(sorted(hashes))
