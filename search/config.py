"""The sweep file: its schema, its defaults, and a one-line error for whatever is wrong in it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from anomtune.datasets.splits.division import Division
from anomtune.datasets.splits.validation import Validation
from anomtune.errors import SweepError, suggest
from anomtune.names import typed
from anomtune.search.explain import explain
from anomtune.search.logger_config import LoggerConfig
from anomtune.search.source import DatasetConfig
from anomtune.search.yaml_text import dump_yaml, read_yaml, read_yaml_file
from anomtune.settings import Settings

#: The key of a sweep directory's own sweep.yaml that says which version wrote it.
MADE_BY = "made_by"

#: What torch, NumPy and Parquet all take.
Seed = Annotated[int, Field(ge=0, lt=2**63)]


#: Side of the square maps in pixels.
ImageSize = Annotated[int, Field(ge=32, le=4096, multiple_of=32)]


class MethodConfig(Settings):
    """How one method is searched.

    Attributes:
        preset: A named setting of the paper to start from.
        fixed: Values that replace the paper's defaults and are not searched. Those of the scoring
            stand in ``scoring``, or beside it where the method has no field of that name.
        space: Ranges that replace or add to the method's own.
    """

    preset: str | None = None
    fixed: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    space: dict[str, dict[str, Any]] = {}  # noqa: RUF012


class ConfirmConfig(Settings):
    """How many configs of each study are confirmed on held-out images, and with which seeds.

    The paper's own config is confirmed beside them; 0 = no confirm.
    """

    top: Annotated[int, Field(ge=0)] = 3
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (1, 11, 111)


class BudgetConfig(Settings):
    """What a sweep may spend; one of the two.

    Attributes:
        hours: Wall-clock hours of the whole sweep, over all its starts, confirm runs included.
        trials: Trials of each category, shared by its methods.
    """

    hours: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    trials: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.hours is None) == (self.trials is None):
            raise ValueError("set hours or trials, one of the two")
        return self


class MaxConfig(Settings):
    """What a sweep occupies at most, all of its runs together; the rest of a cluster is for others.

    Attributes:
        cpu: CPU cores.
        gpu: GPUs.
    """

    cpu: Annotated[int, Field(ge=1)] | None = None
    gpu: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class ResourcesConfig(Settings):
    """What one trial occupies, and all of them together at most.

    Attributes:
        cpu: CPU cores, also its number of threads.
        gpu: GPUs, below 1 a share of one; ``auto`` = as many trials on a GPU as its memory holds
            and its speed bears, without GPUs none.
        accelerator: The GPU type that it must be, by Ray's name for it (``A100``).
        max: What the sweep occupies at most; default: all there is.
    """

    cpu: int = Field(1, ge=1)
    gpu: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    accelerator: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    max: MaxConfig = MaxConfig()

    @model_validator(mode="after")
    def _accelerator_is_used(self) -> Self:
        if self.accelerator is not None and self.gpu == 0:
            raise ValueError(f"accelerator {self.accelerator} with gpu: 0; set gpu, or leave it")
        if isinstance(self.gpu, float) and self.gpu > 1 and not self.gpu.is_integer():
            raise ValueError("gpu: more than one GPU is a whole number of them")
        return self

    @model_validator(mode="after")
    def _holds_a_trial(self) -> Self:
        if self.max.cpu is not None and self.max.cpu < self.cpu:
            raise ValueError(f"max.cpu: {self.max.cpu} is less than a trial's cpu: {self.cpu}")
        one = 1.0 if self.gpu == "auto" else self.gpu
        if self.max.gpu is not None and self.max.gpu < one:
            wants = f"gpu: {self.gpu:g}" if self.gpu != "auto" else "whole GPU, with gpu: auto"
            raise ValueError(f"max.gpu: {self.max.gpu:g} is less than a trial's {wants}")
        return self


class Sweep(Settings):
    """A grid of studies: every method on every category.

    Keys and defaults are those of a sweep file; ``dataset`` may be a dataset as well.

    >>> import anomtune as at
    >>> sweep = at.Sweep(
    ...     name="line-3",
    ...     dataset=at.Folder("/data/line-3"),
    ...     methods={"patchcore": {}, "rd4ad": {"fixed": {"backbone": "resnet18"}}},
    ...     sampler="optuna.samplers:QMCSampler",
    ... )
    >>> sweep.dataset.name, sweep.dataset.root, sweep.trials
    ('folder', '/data/line-3', 50)
    >>> at.Sweep(name="line-3", dataset=at.Synthetic(), methods={"padim": {}}, trails=5)
    Traceback (most recent call last):
    anomtune.errors.SweepError: trails: unknown key; there is name, ...; did you mean 'trials'?

    Raises:
        SweepError: Naming the first wrong key.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    dataset: DatasetConfig
    validation: Validation = Validation()
    methods: dict[str, MethodConfig] = Field(min_length=1)
    image_size: ImageSize = 256
    trials: int = Field(50, ge=1)
    budget: BudgetConfig | None = None
    allocation: Literal["race", "even"] = "race"
    scoring: Literal["search", "paper"] = "search"
    warm_start: tuple[str, ...] = ()
    rungs: int = Field(8, ge=1)
    sampler: str = "tpe"
    pruner: str = "successive_halving"
    confirm: ConfirmConfig = ConfirmConfig()
    resources: ResourcesConfig = ResourcesConfig()
    concurrency: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    loggers: tuple[LoggerConfig, ...] = ()
    seed: Seed = 0

    if not TYPE_CHECKING:  # the signature is that of the fields

        def __init__(self, /, **keys: Any) -> None:
            try:
                super().__init__(**keys)
            except ValidationError as error:
                raise SweepError(explain(error, Sweep)) from None

    @field_validator("methods", mode="before")
    @classmethod
    def _empty_is_default(cls, methods: Any) -> Any:
        # `rd4ad:` with nothing behind it means what `rd4ad: {}` does.
        if not isinstance(methods, dict):
            return methods
        return {name: {} if method is None else method for name, method in methods.items()}

    @field_validator("confirm", mode="before")
    @classmethod
    def _number_is_top(cls, confirm: Any) -> Any:
        return {"top": confirm} if isinstance(confirm, int) else confirm

    def to_yaml(self) -> str:
        """Returns the resolved config as a sweep file, its hash in a comment on top."""
        return (
            f"# resolved sweep, sha256 {self.digest()}\n{dump_yaml(self.model_dump(mode='json'))}"
        )

    def digest(self) -> str:
        """Returns a hash of the config, independent of the order and layout of the file."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def load_sweep(path: str | os.PathLike[str] | None, overrides: Sequence[str] = ()) -> Sweep:
    """Reads a sweep file and applies ``a.b=c`` overrides to it.

    Args:
        path: The sweep file; ``None`` for the built-in demo sweep.
        overrides: Dotted keys and YAML values, as in ``methods.rd4ad.fixed.lr=1e-3``.

    Raises:
        SweepError: If the file cannot be read or does not fit the schema.
    """
    if path is None:
        demo = resources.files("anomtune.search").joinpath("demo.yaml")
        return sweep_of(demo.read_text(encoding="utf-8"), "demo sweep", overrides)
    return _overridden(read_yaml_file(path, "sweep file"), str(path), overrides)


def sweep_of(text: str, origin: str, overrides: Sequence[str] = ()) -> Sweep:
    """Reads the text of a sweep file, as `load_sweep` reads the file.

    Raises:
        SweepError: If it does not fit the schema.
    """
    return _overridden(read_yaml(text, origin), origin, overrides)


def _overridden(data: Any, origin: str, overrides: Sequence[str]) -> Sweep:
    if not isinstance(data, dict):
        raise SweepError(f"{origin}: a sweep file is a mapping of keys; `anomtune init` writes one")
    data.pop(MADE_BY, None)  # the resolved file of a sweep directory is a sweep file too
    for override in overrides:
        _apply_override(data, override)
    return parse_sweep(data, origin)


def parse_sweep(data: Mapping[Any, Any], origin: str) -> Sweep:
    """Validates the content of a sweep file.

    Raises:
        SweepError: Naming the first wrong key, and for an unknown one the nearest that exists.
    """
    for key in data:
        if not isinstance(key, str):
            known = suggest(str(key), list(Sweep.model_fields))
            raise SweepError(f"{origin}: {key!r}: unknown key{known}")
    try:
        config = Sweep.model_validate(data)
    except ValidationError as error:
        raise SweepError(f"{origin}: {explain(error, Sweep)}") from None
    return config


def _apply_override(data: dict[str, Any], override: str) -> None:
    # Messages name the key alone: the value may be a secret, in a place where it is refused.
    dotted, equals, value = typed(override).partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        raise SweepError(f"--set {dotted}: write key=value, for example --set trials=20")
    target = data
    for depth, key in enumerate(keys[:-1], start=1):
        if target.get(key) is None:
            target[key] = {}
        target = target[key]
        if not isinstance(target, dict):
            raise SweepError(f"--set {dotted}: {'.'.join(keys[:depth])} is a value, not a section")
    target[keys[-1]] = read_yaml(value, f"--set {dotted}")


#: What may differ when a sweep directory is used again: it changes no result that is there.
_FREE = {*("resources", "concurrency", "confirm", "budget", "allocation", "warm_start", "loggers")}


def check_extends(old: Sweep, new: Sweep, directory: str) -> None:
    """Checks that a sweep may go on in the directory of an earlier start.

    More trials, methods and categories extend a sweep; what changes no result is free.

    Raises:
        SweepError: If anything else differs; the message names the key and both values.
    """
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    for key in before:
        if key in _FREE or before[key] == after[key]:
            continue
        if key == "trials" and after[key] > before[key]:
            continue
        if key == "methods" and _extends(before[key], after[key]):
            continue
        if key == "dataset":
            old_set, new_set = (_divided(section) for section in (before[key], after[key]))
            rest_equal = _without_categories(old_set) == _without_categories(new_set)
            if rest_equal and set(old_set["categories"]) <= set(new_set["categories"]):
                continue
        where, was, now = _first_difference(key, before[key], after[key])
        if where == "validation.without_damage":
            now += " (no method may be validated by damage that one of the sweep trains on)"
        raise SweepError(
            f"{directory}: holds a sweep with {where} = {was}, now it is {now}; "
            f"restore it, or start another directory with --dir"
        )


#: In what directories may differ that are read as one: it says nothing of their results, or, as
#: what a sweep was started from, belongs to the categories that are there.
_OF_A_DIRECTORY = {"name", "resources", "concurrency", "loggers", "warm_start"}


def join_sweeps(configs: Mapping[str, Sweep]) -> Sweep:
    """Returns the sweep that several are which have divided its categories among them.

    Args:
        configs: As in their directories, categories spelled out, by the names of these.

    Raises:
        SweepError: If they are not one sweep, or two have the same category; the message names the
            key and the directories.
    """
    (first, config), *others = configs.items()
    wanted = config.model_dump(mode="json")
    where = dict.fromkeys(config.dataset.categories or (), first)
    for directory, other in others:
        found = other.model_dump(mode="json")
        for key in wanted:
            here, there = found[key], wanted[key]
            if key == "dataset":
                here, there = _without_categories(here), _without_categories(there)
            if key in _OF_A_DIRECTORY or here == there:
                continue
            name, is_, was = _first_difference(key, here, there)
            raise SweepError(
                f"{directory}: has {name} = {is_}, and {first} has {was}; directories are read as "
                "one if they are one sweep that was divided by category"
            )
        for category in other.dataset.categories or ():
            if category in where:
                raise SweepError(
                    f"{directory}: has the category {category}, and so has {where[category]}; "
                    "directories are read as one if each has categories of its own"
                )
            where[category] = directory
    return _joined(list(configs.values()), tuple(where))


def _joined(configs: Sequence[Sweep], categories: tuple[str, ...]) -> Sweep:
    divisions = [c.dataset.division for c in configs if c.dataset.division is not None]
    counts = {name: count for division in divisions for name, count in division.counts.items()}
    division = divisions[0].model_copy(update={"counts": counts}) if divisions else None
    dataset = configs[0].dataset.model_copy(update={"categories": categories, "division": division})
    names = dict.fromkeys(config.name for config in configs)
    started_from = dict.fromkeys(place for config in configs for place in config.warm_start)
    return configs[0].model_copy(
        update={
            "name": ", ".join(names),
            "dataset": dataset,
            "warm_start": tuple(started_from),
        }
    )


def _without_categories(section: Mapping[str, Any]) -> dict[str, Any]:
    return {**_divided(section), "categories": None}


def _divided(section: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a dataset's section with its division spelled out, but for what it gave."""
    division = section.get("division") or Division().model_dump(mode="json")
    return {**section, "division": {**division, "counts": {}}}


def _extends(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return all(new.get(name) == value for name, value in old.items())


def _first_difference(key: str, old: Any, new: Any) -> tuple[str, str, str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *new]:
            if old.get(name) != new.get(name):
                return _first_difference(f"{key}.{name}", old.get(name), new.get(name))
    return key, json.dumps(old), json.dumps(new)
