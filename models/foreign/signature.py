"""Hyperparameters of a foreign model: what its constructor takes, as a pydantic model."""

from __future__ import annotations

import collections.abc
import inspect
import pathlib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import Field, create_model

from anomtune.models.foreign.table import Entry
from anomtune.models.hyperparameters import Hyperparameters, TrainedHyperparameters
from anomtune.models.ranges import FloatRange, SizeRange
from anomtune.models.scoring import Scoring

#: Parameters of every model of anomalib that are no hyperparameters: what is done around it, and
#: what is ours to say (precision, and weights by another name).
_AROUND = (
    "self",
    "pre_processor",
    "post_processor",
    "evaluator",
    "visualizer",
    "pre_trained",
    "precision",
)
#: Names of learning rates in signatures.
LEARNING_RATES = ("lr", "learning_rate")
#: Where the name of an encoder says how large its patches are.
_PATCH = re.compile(r"patch(\d+)|_vit_\w+_(\d+)$")


@dataclass(frozen=True)
class Parameter:
    """A parameter of a constructor that is a hyperparameter.

    Attributes:
        name: Its name.
        kind: Its type, of what YAML can say: numbers, words, tuples, null.
        default: Its default, as such a type.
        enumeration: The class of which the constructor wants a member, if any.
        listed: Whether the constructor wants a list where YAML's is kept as a tuple.
        description: What the model's documentation says of it.
    """

    name: str
    kind: Any
    default: Any
    enumeration: type[Enum] | None
    listed: bool
    description: str

    def given(self, value: Any) -> Any:
        """Returns a value as the constructor wants it."""
        if self.enumeration is not None and value is not None:
            return self.enumeration(value)
        return _lists(value) if self.listed and isinstance(value, tuple) else value


class MapScoring(Scoring):
    """Of a model that smooths its map; ``sigma: own`` is its own smoothing."""

    own: ClassVar[Mapping[str, frozenset[str]]] = {"sigma": frozenset()}


class RuleScoring(Scoring):
    """Of a model that scores images by a rule of its own: ``reduce: own``."""

    own: ClassVar[Mapping[str, frozenset[str]]] = {"reduce": frozenset()}


class OwnScoring(Scoring):
    """Of a model that smooths its map and scores images by a rule of its own."""

    own: ClassVar[Mapping[str, frozenset[str]]] = {"sigma": frozenset(), "reduce": frozenset()}


class ScoreAlone(Scoring):
    """Of a model that has a score and no map: there is nothing to choose."""

    def _all(self, scales: tuple[str, ...], pinned: frozenset[str]) -> Iterator[typing.Self]:
        yield from ()


class ForeignHyperparameters(Hyperparameters):
    """What can be set of every foreign model."""

    #: What the table says of the model.
    entry: ClassVar[Entry] = Entry()
    #: What the constructor takes of them.
    parameters: ClassVar[Mapping[str, Parameter]] = {}

    resolution: int | None = Field(
        default=None,
        ge=32,
        description="Side of the images that the model sees, in pixels; null: the sweep's "
        "image_size, rounded to what the model can see. Source: ours.",
    )

    @property
    def scales(self) -> tuple[str, ...]:
        """Layers whose maps anomalib puts together, where these can be had apart."""
        named = self.entry.scales
        if isinstance(named, str):
            return tuple(getattr(self, named))
        if named and str(getattr(self, "backbone", "")).startswith(("resnet", "wide_resnet")):
            return named
        return ("map",)

    @property
    def side_step(self) -> int:
        """What the side of the images must be a multiple of."""
        for name in ("encoder_name", "backbone"):
            found = _PATCH.search(str(getattr(self, name, "")))
            if found is not None:
                return int(found[1] or found[2])
        return self.entry.multiple_of

    def input_size(self, image_size: int) -> int:
        """Returns ``resolution``, or the size of the maps as near as the model can see it."""
        if self.resolution is not None:
            return self.resolution
        return max(self.entry.smallest, round(image_size / self.side_step) * self.side_step)

    def foreign_images(self) -> str | None:
        """Returns the folder of images of other things, if the model was given one."""
        named = self.entry.source_images
        return getattr(self, named) if named else None

    def training_damage(self) -> frozenset[str]:
        """Returns the damage that the model learns to find; see `Hyperparameters`."""
        return frozenset(self.entry.damage)

    def constructor_arguments(self) -> dict[str, Any]:
        """Returns what the constructor is given of them."""
        return {
            name: parameter.given(getattr(self, name))
            for name, parameter in self.parameters.items()
        }


class ForeignTrained(ForeignHyperparameters, TrainedHyperparameters):
    """Of a model that is trained step by step."""


class ForeignOnePass(ForeignHyperparameters):
    """Of a model that looks at all training images once."""

    def training_iterations(self, n_images: int) -> int:
        """Returns 1: the only iteration is the pass over all training images."""
        return 1


def make_hyperparameters(
    name: str, module: str, model: type, entry: Entry, *, one_pass: bool
) -> type[ForeignHyperparameters]:
    """Returns the hyperparameters of a foreign model.

    Args:
        name: Of the class.
        module: Where it will be found by that name.
        model: The model's class.
        entry: What the table says of it.
        one_pass: Whether it looks at all training images once.
    """
    # What the method settles itself; these go to the constructor all the same.
    settled = {"batch_size", "epochs", *entry.hidden, *_AROUND}
    found = {p.name: p for p in parameters_of(model) if p.name not in settled}
    fields: dict[str, Any] = {}
    if entry.weights:
        fields["weights"] = (
            Literal["pretrained", "random"],
            Field(
                default="pretrained",
                description="Weights of the pretrained networks, from files on the machine: "
                "nothing is downloaded. Source: anomalib.",
            ),
        )
    if not one_pass:
        fields |= _lengths(entry)
        if not set(LEARNING_RATES) & set(found):
            fields["lr_factor"] = (
                Annotated[float, FloatRange(low=0.1, high=10.0, log=True)],
                Field(
                    default=1.0,
                    gt=0,
                    description="What the model's learning rate is multiplied with"
                    f"{f', {entry.learning_rate:g}' if entry.learning_rate else ''}: it cannot be "
                    "set otherwise. Source: anomalib (1); range inferred.",
                ),
            )
    for parameter in found.values():
        fields[parameter.name] = _field(parameter, entry)
    if entry.multiple_of <= 32 and entry.multiple_of != 14 and entry.smallest < 256:
        usual = ForeignHyperparameters.model_fields["resolution"]
        fields["resolution"] = (
            Annotated[int | None, SizeRange(factors=(0.75, 1.0, 1.5))],
            Field(default=None, ge=32, description=f"{usual.description} Range inferred."),
        )
    fields["scoring"] = _scoring(entry)
    create: Any = create_model
    made = create(
        name,
        __base__=ForeignOnePass if one_pass else ForeignTrained,
        __module__=module,
        __doc__=f"What can be set of anomalib's {model.__name__}.",
        **fields,
    )
    made.entry, made.parameters = entry, found
    kinds: type[ForeignHyperparameters] = made
    return kinds


def parameters_of(model: type) -> Iterator[Parameter]:
    """Yields the parameters of a model's constructor that configurations can hold."""
    constructor: Any = model.__init__  # type: ignore[misc]
    documented = _documentation(inspect.getdoc(model) or "")
    for name, parameter in inspect.signature(constructor).parameters.items():
        if name in _AROUND or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        hint = _hint(parameter.annotation, constructor.__globals__, parameter.default)
        kind, enumeration = _plain(hint, parameter.default)
        default = parameter.default
        if isinstance(default, Enum):
            default = default.value
        elif isinstance(default, pathlib.Path):
            default = str(default)
        yield Parameter(
            name=name,
            kind=kind,
            default=_tuples(default),
            enumeration=enumeration,
            listed="tuple" not in str(hint),
            description=documented.get(name, "A parameter of the model."),
        )


def _hint(annotation: Any, names: Mapping[str, Any], default: Any) -> Any:
    """Returns what an annotation means, which may name what only type checkers import."""
    if not isinstance(annotation, str):
        return annotation
    known = {**vars(collections.abc), **vars(typing), **vars(pathlib), **names}
    try:
        return eval(annotation, known)  # noqa: S307 - the text is that of an installed module
    except NameError:
        return type(default)


def _plain(hint: Any, default: Any) -> tuple[Any, type[Enum] | None]:
    """Returns the type of what YAML can say in its place, and the enumeration that is meant."""
    if isinstance(hint, type) and issubclass(hint, Enum):
        return Literal[tuple(member.value for member in hint)], hint
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [_plain(argument, None) for argument in get_args(hint)]
        enumeration = next((kind for _, kind in kinds if kind is not None), None)
        if enumeration is not None:  # the other one is its value
            return _plain(enumeration, None)
        return Union[tuple(dict.fromkeys(kind for kind, _ in kinds))], None  # noqa: UP007
    return str if hint is pathlib.Path else _sequence(hint, default), None


def _sequence(hint: Any, default: Any) -> Any:
    """Returns tuples in the place of all sequences; what is none as it is."""
    origin, arguments = get_origin(hint), get_args(hint)
    several: Any = tuple
    if hint is tuple and isinstance(default, tuple):
        return several[type(default[0]), ...]
    if origin is tuple and Ellipsis not in arguments:
        return several[tuple(_plain(argument, None)[0] for argument in arguments)]
    if origin in (list, tuple, collections.abc.Sequence):
        return several[_plain(arguments[0], None)[0], ...]
    return hint


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _lists(value: Any) -> Any:
    return list(map(_lists, value)) if isinstance(value, tuple) else value


def _documentation(text: str) -> dict[str, str]:
    """Returns what the ``Args`` of a docstring say of each parameter, in one line."""
    _, found, section = text.partition("Args:\n")
    said: dict[str, list[str]] = {}
    name = ""
    for line in section.splitlines() if found else ():
        if line and not line.startswith(" "):
            break  # the next section
        begins = re.match(r"    (\w+)(?: \(.*?\))?: ?(.*)", line)
        if begins:
            name = begins[1]
            said[name] = [begins[2]]
        elif name:
            said[name].append(line.strip())
    return {name: _first_sentences(" ".join(lines)) for name, lines in said.items()}


def _first_sentences(text: str) -> str:
    """Returns what a parameter is, without its default, which stands apart."""
    plain = re.sub(r"\s+", " ", text.replace("``", "")).strip()
    plain = re.sub(r" ?Defaults? to .*$", "", plain)
    return plain.rstrip(".") + "."


def _field(parameter: Parameter, entry: Entry) -> tuple[Any, Any]:
    """Returns the annotation and the field of a parameter."""
    kind, default, source = parameter.kind, parameter.default, "anomalib"
    if parameter.name in entry.defaults:
        ours = entry.defaults[parameter.name]
        default, source = ours.value, ours.source
        kind = kind | None if default is None else kind
    if default is inspect.Parameter.empty:
        default = ...
    if parameter.name in entry.ranges:
        sourced = entry.ranges[parameter.name]
        source = sourced.source if parameter.name not in entry.defaults else source
        kind = Annotated[kind, sourced.of(parameter.kind)]
    description = f"{parameter.description} Source: {source}."
    return kind, Field(default=default, description=description)


def _lengths(entry: Entry) -> dict[str, Any]:
    """Returns the fields that say how long a training takes."""
    usual = TrainedHyperparameters.model_fields
    said = {name: usual[name].description for name in ("epochs", "iterations", "batch_size")}
    chosen = "epochs" if entry.iterations is None else "iterations"
    source = f"Source: {entry.length_source}."
    return {
        "epochs": (
            int | None,
            Field(
                default=entry.epochs if chosen == "epochs" else None,
                ge=1,
                description=f"{str(said['epochs']).partition(' Source')[0]} {source}",
            ),
        ),
        "iterations": (
            int | None,
            Field(
                default=entry.iterations,
                ge=1,
                description=f"{str(said['iterations']).partition(' Source')[0]} {source}",
            ),
        ),
        "batch_size": (
            int,
            Field(default=entry.batch_size, ge=1, description=f"{said['batch_size']} {source}"),
        ),
    }


def _scoring(entry: Entry) -> tuple[Any, Any]:
    """Returns the field of the scoring: by default maps and scores are the model's own."""
    if entry.scores == "alone":
        return ScoreAlone, Field(
            default=ScoreAlone(),
            description="The model's score; it makes no map. Source: anomalib.",
        )
    smooths, rules = entry.smoothing is not None, entry.scores == "own"
    kind: type[Scoring] = {
        (False, False): Scoring,
        (True, False): MapScoring,
        (False, True): RuleScoring,
        (True, True): OwnScoring,
    }[smooths, rules]
    return kind, Field(
        default=kind(
            sigma="own" if smooths else 0.0,
            reduce="own" if rules else "max",
            combine=entry.combine,
        ),
        description="How evidence becomes maps and scores: as in anomalib. Source: anomalib.",
    )


def arguments_named(model: type, names: Sequence[str]) -> tuple[str, ...]:
    """Returns which of some names the constructor of a model takes."""
    constructor: Any = model.__init__  # type: ignore[misc]
    return tuple(name for name in names if name in inspect.signature(constructor).parameters)
