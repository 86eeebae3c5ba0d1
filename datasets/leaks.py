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
    both labels, or that repeat another test image (the first by defect type and key stays).

    Returns:
        The indices of the test samples to leave out, and one problem per repeated image.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, pixel_hash in enumerate(pixel_hashes):
        groups[pixel_hash].append(index)
    dropped: set[int] = set()
    problems: list[Problem] = []

    def report(index: int, message: str) -> None:
        problems.append(Problem(category, samples[index].key, message, fatal=False))

    for group in groups.values():
        if len(group) == 1:
            continue
        group.sort(key=lambda i: (samples[i].defect, samples[i].key))
        train = [i for i in group if samples[i].part == "train"]
        test = [i for i in group if samples[i].part == "test"]
        for index in train[1:]:
            report(index, f"same pixels as {samples[train[0]].key}; it counts twice in training")
        if train:
            dropped.update(test)
            for index in test:
                report(
                    index,
                    f"same pixels as the training image {samples[train[0]].key}; left out of "
                    "validation and test",
                )
        elif len({samples[i].anomalous for i in test}) == 2:
            dropped.update(test)
            for index in test:
                other = next(i for i in test if samples[i].anomalous != samples[index].anomalous)
                report(
                    index,
                    f"same pixels as {samples[other].key}, which has the other label; both left "
                    "out of validation and test",
                )
        else:
            dropped.update(test[1:])
            for index in test[1:]:
                report(
                    index,
                    f"same pixels as {samples[test[0]].key}; left out of validation and test",
                )
    return frozenset(dropped), tuple(sorted(problems, key=lambda p: p.key))
