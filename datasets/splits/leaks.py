"""Images that occur more than once, and which of them may judge a detector."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from anomtune.datasets.base import Problem, Sample


def find_leaks(
    category: str, samples: Sequence[Sample], pixel_hashes: Sequence[str]
) -> tuple[frozenset[int], tuple[Problem, ...]]:
    """Finds pixel-equal images within and between the parts of a category.

    Training images are never dropped. Of test images those are dropped that also train, that carry
    both labels, that repeat another test image of the same domain (the first by defect type and
    key stays), or whose group trains.

    Returns:
        The indices of the test samples to leave out, and one problem per repeated image.
    """
    train_of: dict[str, list[int]] = defaultdict(list)
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    by_name = sorted(range(len(samples)), key=lambda i: (samples[i].defect, samples[i].key))
    for index in by_name:
        if samples[index].part == "train":
            train_of[pixel_hashes[index]].append(index)
        else:
            groups[samples[index].domain, pixel_hashes[index]].append(index)
    dropped: set[int] = set()
    problems: list[Problem] = []

    def report(index: int, message: str, *, drop: bool = True) -> None:
        problems.append(Problem(category, samples[index].key, message, fatal=False))
        if drop:
            dropped.add(index)

    for same in train_of.values():
        for index in same[1:]:
            message = f"same pixels as {samples[same[0]].key}; it counts twice in training"
            report(index, message, drop=False)
    for (_, pixel_hash), same in groups.items():
        if train := train_of.get(pixel_hash):
            for index in same:
                report(
                    index,
                    f"same pixels as the training image {samples[train[0]].key}; left out of "
                    "validation and test",
                )
        elif len({samples[i].anomalous for i in same}) == 2:
            for index in same:
                other = next(i for i in same if samples[i].anomalous != samples[index].anomalous)
                report(
                    index,
                    f"same pixels as {samples[other].key}, which has the other label; both left "
                    "out of validation and test",
                )
        else:
            for index in same[1:]:
                report(
                    index,
                    f"same pixels as {samples[same[0]].key}; left out of validation and test",
                )
    grouped = _grouped_with_training(category, samples, [i for i in by_name if i not in dropped])
    dropped |= set(grouped)
    problems += grouped.values()
    return frozenset(dropped), tuple(sorted(problems, key=lambda p: p.key))


def _grouped_with_training(
    category: str, samples: Sequence[Sample], order: Sequence[int]
) -> dict[int, Problem]:
    """Returns the test samples whose group trains, each with what to say of it.

    Corrupted copies are not among them: they go where their originals go.
    """
    trains = {
        samples[i].group: samples[i].key for i in reversed(order) if samples[i].part == "train"
    }
    trains.pop("", None)
    return {
        i: Problem(
            category,
            sample.key,
            f"of the same group ({sample.group}) as the training image {trains[sample.group]}; "
            "left out of validation and test",
            fatal=False,
        )
        for i, sample in ((i, samples[i]) for i in order)
        if sample.part == "test" and sample.origin is None and sample.group in trains
    }
