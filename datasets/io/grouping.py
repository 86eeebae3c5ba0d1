"""Images of the same part by a pattern: what of an image's path names the part."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from anomtune.datasets.base import Problem, Sample
from anomtune.datasets.io.files import some
from anomtune.errors import DataError


def compiled(pattern: str) -> re.Pattern[str]:
    """Returns a regular expression that names groups.

    Raises:
        DataError: If it is none, or matches the empty text: then every image would be of one group.
    """
    try:
        found = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise DataError(
            f"dataset.group: {pattern!r} is not a regular expression ({error}); write one whose "
            r"parentheses name the part, as in '^(.+)_view\d+'"
        ) from None
    if found.fullmatch(""):
        raise DataError(f"dataset.group: {pattern!r} matches anything; say what names the part")
    return found


def grouped(
    category: str, samples: Sequence[Sample], pattern: re.Pattern[str]
) -> tuple[tuple[Sample, ...], tuple[Problem, ...]]:
    """Gives samples the groups that their keys name, and says which have none.

    Args:
        category: Where they are of.
        samples: The samples.
        pattern: Is searched in the key. What its parentheses capture is the name of the group; the
            whole match where it has none.
    """
    named, alone = [], []
    for sample in samples:
        match = pattern.search(sample.key)
        if match is None:
            alone.append(sample.key)
            named.append(sample)
            continue
        captured = [part for part in match.groups() if part is not None]
        named.append(replace(sample, group="/".join(captured) or match[0]))
    if not alone:
        return tuple(named), ()
    nothing = len(alone) == len(samples)
    what = f"{pattern.pattern!r} is found in no path of an image, such as {some(alone[:1])}"
    if not nothing:
        what = f"{some(alone)}: no group by {pattern.pattern!r}, each counts as a part of its own"
    return tuple(named), (Problem(category, "", f"dataset.group: {what}", fatal=nothing),)
