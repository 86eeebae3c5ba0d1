"""What fits images and machine: sizes, protocol, methods, and how sure an answer will be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from anomtune.errors import DataError
from anomtune.models.layers.backbones import Backbone, weights_at_hand
from anomtune.search.detector.devices import choose_device
from anomtune.search.propose.look import CategoryLook

#: AUROC at which the width of an interval is foretold: what a usable detector has.
AREA = 0.9
_FEW = 10  # Anomalous images below which halving them leaves too few on either side.
_DEFECT = 4  # Pixels of the map that the side of a small defect should have.
_USUAL = {"cuda": 256, "cpu": 128}
_MOST = {"cuda": 512, "cpu": 256}
_BACKBONES: dict[str, tuple[Backbone, ...]] = {
    "cuda": ("wide_resnet50_2", "resnet50", "resnet34", "resnet18", "mobilenet_v2"),
    "cpu": ("mobilenet_v2", "resnet18", "resnet34", "resnet50", "wide_resnet50_2"),
}
_METHODS = {"cuda": ("patchcore", "padim", "rd4ad", "recontrast"), "cpu": ("patchcore", "padim")}
_LONG = 2.0  # Hours from which a CPU trains as well.


def half_width(n_normal: int, n_anomalous: int, area: float = AREA) -> float:
    """Returns half of the 95 % interval that an AUROC will have.

    Hanley and McNeil, Radiology 143 (1982), with their approximation of Q1 and Q2.

    Args:
        n_normal: Normal images, at least one.
        n_anomalous: Anomalous images, at least one.
        area: The AUROC, in (0, 1).
    """
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    spread = (
        area * (1 - area) + (n_anomalous - 1) * (q1 - area**2) + (n_normal - 1) * (q2 - area**2)
    )
    return 1.96 * math.sqrt(spread / (n_normal * n_anomalous))


@dataclass(frozen=True, slots=True)
class Choice:
    """What a sweep shall do.

    Attributes:
        categories: Those that can be searched.
        left_out: The others, each with the reason.
        protocol: Of the validation.
        why: The reason, in words.
        confirm: Whether there are held-out images of both kinds.
        image_size: Side of the maps.
        sized: Its reason.
        device: ``cuda`` or ``cpu``.
        backbone: Of all methods.
        at_hand: Whether its weights are on this machine.
        methods: As a sweep file has them.
    """

    categories: tuple[CategoryLook, ...]
    left_out: tuple[tuple[str, str], ...]
    protocol: str
    why: str
    confirm: bool
    image_size: int
    sized: str
    device: str
    backbone: Backbone
    at_hand: bool
    methods: dict[str, Any]


def choose(categories: Sequence[CategoryLook], hours: float) -> Choice:
    """Decides.

    Args:
        categories: What was seen.
        hours: What the sweep may take.

    Raises:
        DataError: If no category can be searched; says what is missing.
    """
    faults = [(look.name, look.fault or _lacking(look)) for look in categories]
    left_out = tuple((name, fault) for name, fault in faults if fault)
    usable = tuple(look for look, (_, fault) in zip(categories, faults, strict=True) if not fault)
    if not usable:
        more = f" (and {len(left_out) - 1} more categories)" if len(left_out) > 1 else ""
        name, fault = left_out[0]
        raise DataError((fault if fault.startswith(name) else f"{name}: {fault}") + more)
    device = choose_device().type
    protocol, why = _protocol(usable)
    both = all(min(look.judges) > 0 for look in usable)
    size, sized = _image_size(usable, device)
    known = [name for name in _BACKBONES[device] if weights_at_hand(name)]
    backbone = known[0] if known else _BACKBONES[device][0]
    names = _METHODS[device] + (("rd4ad",) if device == "cpu" and hours >= _LONG else ())
    methods = {name: {"fixed": {"backbone": backbone}} for name in names}
    return Choice(
        usable, left_out, protocol, why, both, size, sized, device, backbone, bool(known), methods
    )


def _lacking(look: CategoryLook) -> str:
    if look.train >= 2:
        return ""
    if min(look.judges) > 1 and look.train and _can_halve(look):
        return ""
    there = sum(not s.anomalous for s in look.samples)
    return (
        f"{there} normal images, of which {look.train} would train; at least 2 must, and some "
        "ten are the least to learn from: add normal images"
    )


def _can_halve(look: CategoryLook) -> bool:
    own = [s for s in look.samples if s.part == "test" and not s.domain]
    kinds = [s.defect for s in own if s.anomalous]
    return look.judges[0] > 1 and any(kinds.count(kind) > 1 for kind in kinds)


def _protocol(usable: Sequence[CategoryLook]) -> tuple[str, str]:
    fewest = min(look.judges[1] for look in usable)
    halves = all(_can_halve(look) for look in usable)
    single = any(look.train < 2 for look in usable)
    if halves and (fewest >= _FEW or single):
        return "labelled", "half of the images that judge choose, the other half confirm"
    if fewest == 0:
        return "synthetic", (
            "no anomalous image (in every category): artificial damage stands in; collect some "
            "anomalous images before you trust the choice"
        )
    return "synthetic", (
        f"{fewest} anomalous images are too few to halve: artificial damage chooses, and all of "
        "them confirm"
    )


def _image_size(usable: Sequence[CategoryLook], device: str) -> tuple[int, str]:
    sides = [min(size) for look in usable for size in look.sizes]
    own = _up(median(sides)) if sides else _USUAL[device]
    size, why = _USUAL[device], f"usual on this machine ({device})"
    defects = [share for look in usable for share in look.defects]
    if defects:
        small = float(np.percentile(defects, 10))
        wanted = _up(_DEFECT / small)
        if wanted > size:
            size = min(wanted, _MOST[device])
            why = f"small defects are {small:.1%} of the side: {small * size:.1f} pixels here"
    if own < size:
        size, why = own, "the images have no more pixels"
    return max(32, min(size, 4096)), why


def _up(side: float) -> int:
    """Returns the next multiple of 32."""
    return max(32, math.ceil(side / 32) * 32)
