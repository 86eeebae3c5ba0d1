"""The commented sweep file that `anomtune init` writes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from anomtune.errors import one_line
from anomtune.search.propose.choose import AREA, Choice, choose, half_width
from anomtune.search.propose.look import CategoryLook, Look, look
from anomtune.search.yaml_text import dump_yaml

#: Hours of a sweep where nobody says.
HOURS = 1.0
_SHOWN = 20  # Categories that the comments describe.


@dataclass(frozen=True, slots=True)
class Proposal:
    """A sweep file.

    Attributes:
        name: Of the sweep.
        text: The file.
        notes: What is missing or worth a thought, a line each.
    """

    name: str
    text: str
    notes: tuple[str, ...]


def propose(place: str, hours: float = HOURS) -> Proposal:
    """Looks at images and writes a sweep file that fits them and this machine.

    Args:
        place: A folder or a table; a path or a URI.
        hours: What the sweep may take.

    Raises:
        DataError: If there is nothing to search; says what is missing.
    """
    seen = look(place)
    choice = choose(seen.categories, hours)
    name = _name(place)
    notes = tuple(map(one_line, _notes(choice)))
    return Proposal(name, "\n".join(_lines(name, seen, choice, hours, notes)) + "\n", notes)


def _lines(
    name: str, seen: Look, choice: Choice, hours: float, notes: tuple[str, ...]
) -> Iterator[str]:
    root = str(seen.dataset.root)
    yield f"# A sweep of {one_line(root)}, as `anomtune init` proposes it."
    yield f"# Layout: {seen.layout}."
    for category in choice.categories[:_SHOWN]:
        yield from (f"# {line}" for line in _described(category, choice))
    if len(choice.categories) > _SHOWN:
        yield f"# ... and {len(choice.categories) - _SHOWN} categories more."
    yield from (f"# Note: {note}." for note in notes)
    yield ""
    section = {"name": seen.dataset.name, "root": root}
    if choice.left_out:
        section["categories"] = [category.name for category in choice.categories]  # type: ignore[assignment]
    yield dump_yaml({"name": name, "dataset": section}).rstrip()
    yield f"# {choice.why[0].upper()}{choice.why[1:]}."
    yield dump_yaml({"validation": {"protocol": choice.protocol}}).rstrip()
    yield f"# Side of the maps in pixels: {choice.sized}."
    yield f"image_size: {choice.image_size}"
    one_pass = "one pass over the images" if choice.device == "cpu" else "of all kinds"
    yield f"# Methods that fit this machine ({choice.device}) and {hours:g} h: {one_pass}."
    if not choice.at_hand:
        yield f"# The weights of {choice.backbone} are not here yet; the sweep downloads them."
    yield dump_yaml({"methods": choice.methods}).rstrip()
    yield "# What the whole sweep may take, confirm runs included."
    yield dump_yaml({"budget": {"hours": hours}}).rstrip()
    yield "trials: 30"
    if not choice.confirm:
        yield "# Nothing is held out of both kinds that could confirm the winner."
        yield "confirm: 0"


def _described(category: CategoryLook, choice: Choice) -> Iterator[str]:
    normal, anomalous = category.judges
    sizes = sorted(set(category.sizes))
    size = (
        " to ".join(dict.fromkeys(f"{w}x{h}" for w, h in (sizes[0], sizes[-1]))) if sizes else "?"
    )
    colour = "grey" if category.grey else "colour"
    masks = sum(s.mask is not None for s in category.samples)
    types = ", ".join(f"{kind} {n}" for kind, n in category.types.items())
    yield one_line(
        f"{category.name}: {colour}, {size} pixels ({len(sizes and category.sizes)} looked at)"
    )
    yield one_line(
        f"  {category.train} images train, {normal} normal and {anomalous} anomalous judge"
        + (f" ({types}{f'; {masks} masks' if masks else ''})" if types else "")
    )
    if min(normal, anomalous) > 0:
        share = 2 if choice.protocol == "labelled" else 1
        held = max(1, normal // share), max(1, anomalous // share)
        yield one_line(
            f"  expect of {held[0]} normal and {held[1]} anomalous held-out images: "
            f"AUROC {AREA} +-{half_width(*held):.2f}"
        )


def _notes(choice: Choice) -> Iterator[str]:
    for name, fault in choice.left_out:
        yield f"{name} is left out: {fault.removeprefix(f'{name}: ')}"
    for category in choice.categories:
        if not category.judges[1]:
            yield f"{category.name}: no anomalous image, so nothing tells how well detectors do"
        if 0 < category.train < 10:
            yield f"{category.name}: {category.train} images are few to learn from; add normal ones"
        if len(set(category.sizes)) > 1:
            shapes = {round(w / h, 2) for w, h in category.sizes}
            if len(shapes) > 1:
                yield (
                    f"{category.name}: images of several shapes; each is squashed to a square, so "
                    "crop them alike if they show one view"
                )
        if category.prefixes:
            found = ", ".join(f"{prefix} ({n})" for prefix, n in category.prefixes)
            yield (
                f"{category.name}: names begin with {found}; if these are different products, give "
                "each a folder of its own, or a category in a table"
            )
    if not choice.at_hand:
        yield (
            f"no weights of {choice.backbone} on this machine; they are downloaded, or "
            "`anomtune doctor` says where to put them"
        )


def _name(place: str) -> str:
    stem = PurePosixPath(place.rstrip("/").replace("\\", "/")).name
    stem = re.sub(r"\.(csv|tsv|parquet|json)$", "", stem, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "sweep"
