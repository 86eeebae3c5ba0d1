"""Samplers and pruners are made by factories, which may be anybody's: Optuna's, or a user's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from anomtune.errors import AnomtuneError, SweepError
from anomtune.registry import Registry

T = TypeVar("T")


def make(
    registry: Registry[Callable[..., Any]], name: str, offered: Mapping[str, Any], kind: type[T]
) -> T:
    """Calls a factory with those of the offered arguments that its signature names.

    Args:
        registry: Samplers or pruners.
        name: Registered, of an entry point, or an import path.
        offered: What it may ask for.
        kind: What it must return.

    Raises:
        SweepError: Naming the key of the sweep file, if there is no such factory, it wants
            something else, raises, or makes something else.
    """
    try:
        factory = registry.get(name)
        try:
            made = factory(**_arguments(factory, offered))
        except Exception as error:  # a factory may raise anything
            reason = f"{type(error).__name__}: {error}"
            raise registry.unusable(name, reason) from error
        if not isinstance(made, kind):
            raise registry.unusable(
                name, f"it makes a {type(made).__name__}, not an Optuna {kind.__name__}"
            )
    except AnomtuneError as error:
        raise SweepError(f"{registry.kind}: {error}") from error
    return made


@contextmanager
def blamed(registry: Registry[Callable[..., Any]], name: str) -> Iterator[None]:
    """Says of whatever is raised whose sampler or pruner it was.

    Raises:
        SweepError: For every exception.
    """
    try:
        yield
    except Exception as error:  # anybody's sampler may raise anything
        raise registry.unusable(name, f"{type(error).__name__}: {error}") from error


def _arguments(factory: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    named = inspect.signature(factory).parameters
    given = {name: offered[name] for name in named if name in offered}
    for name, parameter in named.items():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is parameter.empty and not variadic and name not in given:
            raise TypeError(f"it wants {name}, and there is only {', '.join(offered)}")
    return given
