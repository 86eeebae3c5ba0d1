"""What people call normal images and masks: names of folders, and labels in tables."""

from __future__ import annotations

_NORMAL = frozenset(
    {"good", "ok", "normal", "gut", "nominal", "defectfree", "nodefect", "nondefective"}
)
_MASKS = frozenset(
    {"groundtruth", "groundtruths", "groundtruthmask", "groundtruthmasks", "gt", "mask", "masks"}
)

_PARTS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev"})


def plain(name: str) -> str:
    """Returns the letters and digits of a name, in lower case."""
    return "".join(c for c in name.casefold() if c.isalnum())


def means_normal(name: str) -> bool:
    """Whether a name says that images are normal."""
    return plain(name) in _NORMAL


def means_part(name: str) -> bool:
    """Whether a folder of that name is a part of a divided dataset."""
    return plain(name) in _PARTS


def means_masks(name: str) -> bool:
    """Whether a folder of that name holds masks."""
    return plain(name) in _MASKS
