"""The colours of methods and of what becomes of trials, for the report and for `anomtune watch`."""

from __future__ import annotations

from collections.abc import Iterable

#: Legible on white and on near-black, and apart for the colour-blind; by order of the methods.
COLOURS = (
    "#3d85c6",
    "#d9822b",
    "#2f9e77",
    "#b565a7",
    "#c9504f",
    "#8f8a2e",
    "#6b74d6",
    "#808890",
)


def palette(methods: Iterable[str]) -> dict[str, str]:
    """Returns a colour for each method of a sweep."""
    return {method: COLOURS[index % len(COLOURS)] for index, method in enumerate(methods)}
