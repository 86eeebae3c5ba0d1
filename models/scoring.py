"""How evidence becomes a map and a score: chosen after training, so that one training judges many.

This module does not import torch, so that configurations can be read and checked quickly.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import chain, combinations, product
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from anomtune.models.ranges import Choice, choices_of
from anomtune.settings import Settings

#: How the maps of several scales become one.
Combine = Literal["sum", "product", "maximum"]
#: What a map of the evidence is compared with.
Normalise = Literal["none", "position"]
#: How a map becomes a score; see `Scoring.reduce`.
Reduce = Literal["max", "top", "mean", "sum", "own"]


class Scoring(Settings):
    """Everything about a trained detector that can be changed without training it again.

    The defaults of a method are its paper's, which give the paper's maps and scores. A field whose
    annotation carries choices is varied by a search. A method with settings of its own adds them in
    a subclass. Those that change its forward pass, and not its training, are named in ``forward``;
    those that say how it makes maps or scores of its own, in ``own``.

    >>> paper = Scoring(sigma=4.0)
    >>> len(list(paper.alternatives(("layer1", "layer2"))))
    126
    >>> paper.rule
    'max'
    """

    #: Fields that change the evidence itself: to vary one is another pass over the images.
    forward: ClassVar[frozenset[str]] = frozenset()
    #: Which of ``sigma`` and ``reduce`` may be ``own``, and the fields that take part only then.
    own: ClassVar[Mapping[str, frozenset[str]]] = {}

    scales: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Which maps of the evidence are used, by name; null: all of them.",
    )
    normalise: Annotated[Normalise, Choice(choices=("none", "position"))] = Field(
        default="none",
        description="Whether each map is taken in deviations from what normal training images "
        "show at that place (position).",
    )
    combine: Annotated[Combine, Choice(choices=("sum", "product"))] = Field(
        default="sum", description="How several of them become one."
    )
    sigma: Annotated[float | Literal["own"], Choice(choices=(0.0, 2.0, 4.0, 8.0))] = Field(
        default=0.0,
        union_mode="left_to_right",
        description="Gaussian smoothing of the map in pixels of a map of 256; own: what the method "
        "does in its place.",
    )
    border: Annotated[float, Choice(choices=(0.0, 0.0625))] = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="Part of the side, at each edge of what the network sees, that takes no part "
        "in the score.",
    )
    reduce: Annotated[Reduce, Choice(choices=("max", "top", "mean"))] = Field(
        default="max",
        description="The score: the map's maximum, the mean of its highest part (top), its mean or "
        "sum; own: what the method does in its place.",
    )
    share: float = Field(
        default=0.01, gt=0, le=1, description="The part of the pixels that top takes the mean of."
    )

    @field_validator("scales")
    @classmethod
    def _names_differ(cls, scales: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if scales is not None and len(set(scales)) < len(scales):
            raise ValueError("names one twice")
        return scales

    @field_validator("sigma", "reduce")
    @classmethod
    def _can_be(cls, value: Any, info: ValidationInfo) -> Any:
        name = str(info.field_name)
        if value == "own" and name not in cls.own:
            usual = cls.model_fields[name].default
            raise ValueError(f"this method has none of its own; use {usual} or another")
        if isinstance(value, float) and value < 0:
            raise ValueError("must be 0 or more")
        return value

    @model_validator(mode="after")
    def _signs_are_kept(self) -> Self:
        if self.normalise == "position" and self.combine == "product":
            raise ValueError("combine: a product of deviations loses their signs; use sum")
        if self.normalise == "position" and self.sigma == "own":
            raise ValueError("sigma: the method's own maps are not of deviations; use a number")
        return self

    @property
    def rule(self) -> str:
        """How an image's score is drawn from its map, in a word or two."""
        return score_rule(self.model_dump())

    def changed(self, values: Mapping[str, Any]) -> Self:
        """Returns it with other values of some fields, which are checked.

        Raises:
            pydantic.ValidationError: If a value cannot be.
        """
        return type(self)(**{**self.model_dump(), **values})

    def alternatives(self, scales: tuple[str, ...], pinned: Collection[str] = ()) -> Iterator[Self]:
        """Yields what a search judges: this scoring first, and none that ranks images like another.

        All combinations of the fields that turn evidence into scores; and for every other value of
        a field in ``forward``, which needs evidence of its own, a few of them.

        Args:
            scales: Names of the evidence's maps.
            pinned: Fields that keep their value.
        """
        seen = set()
        for scoring in chain((self,), self._all(scales, frozenset(pinned))):
            same = repr(scoring.acting(scales))
            if same not in seen:
                seen.add(same)
                yield scoring

    def acting(self, scales: tuple[str, ...]) -> dict[str, Any]:
        """Returns its fields without those that take no part in how it ranks images.

        Args:
            scales: Names of the evidence's maps.
        """
        values = self.model_dump()
        for name, fields in self.own.items():
            if values[name] != "own":
                values = {field: value for field, value in values.items() if field not in fields}
        if self.reduce == "own":
            kept = {"reduce", *self.forward, *self.own["reduce"]}
            return {field: value for field, value in values.items() if field in kept}
        used = scales if self.scales is None else self.scales
        values["scales"] = tuple(name for name in scales if name in used)
        if len(used) == 1:
            del values["combine"]
        if self.reduce != "top":
            del values["share"]
        if self.is_mean:
            values["reduce"] = "mean"
            if self.sigma != "own":
                # Smoothing loses nothing at the edge of a map, and through a border next to none:
                # it leaves means alone.
                del values["sigma"]
        return values

    @property
    def is_mean(self) -> bool:
        """Whether scores are means of maps, or sums, which rank images alike."""
        return self.reduce in ("mean", "sum")

    def _all(self, scales: tuple[str, ...], pinned: frozenset[str]) -> Iterator[Self]:
        yield from self._combinations(scales, pinned)
        for name in sorted(self.forward - pinned):
            for value in choices_of(type(self), name):
                if value != getattr(self, name):
                    few = pinned | {"scales", "combine", "border", "normalise"}
                    yield from self.changed({name: value})._combinations(scales, few)

    def _combinations(self, scales: tuple[str, ...], pinned: frozenset[str]) -> Iterator[Self]:
        subsets: list[Any] = [self.scales]
        if "scales" not in pinned:
            subsets = _with(self.scales, tuple(self.subsets(scales)))
        varied = [
            "normalise",
            "combine",
            "sigma",
            "border",
            "reduce",
            *sorted(set().union(*self.own.values())),
        ]
        values = [
            [getattr(self, name)]
            if name in pinned | self.forward
            else _with(getattr(self, name), choices_of(type(self), name))
            for name in varied
        ]
        for chosen in product(subsets, *values):
            found = dict(zip(("scales", *varied), chosen, strict=True))
            # Deviations have a sign, and the methods' own maps are made of what is not normalised.
            if found["normalise"] == "none" or (
                found["combine"] != "product" and found["sigma"] != "own"
            ):
                yield self.changed(found)

    def subsets(self, scales: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        """Yields the scales that a search uses together: all subsets, the smallest first."""
        for size in range(1, len(scales) + 1):
            yield from combinations(scales, size)

    @property
    def key(self) -> str:
        """Names it: the same for equal ones, in every process."""
        return self.model_dump_json()


def score_rule(scoring: Mapping[str, Any]) -> str:
    """Says how a scoring draws an image's score from its map; what it leaves out is usual."""
    usual = Scoring.model_fields
    reduce: str = scoring.get("reduce", usual["reduce"].default)
    share = scoring.get("share", usual["share"].default)
    return f"top {100 * share:g} %" if reduce == "top" else reduce


def _with(value: Any, others: Collection[Any]) -> list[Any]:
    return [value, *(other for other in others if other != value)]
