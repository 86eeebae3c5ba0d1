"""The methods that are installed, by name: ours and those of other packages.

A package adds a method by declaring an entry point::

    [project.entry-points."anomtune.methods"]
    my_method = "my_package.my_module:MyDetector"

Names are known without importing torch or any method.
"""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from anomtune.models.hyperparameters import MethodError

if TYPE_CHECKING:
    from anomtune.models.base import Detector

GROUP = "anomtune.methods"


def available() -> tuple[str, ...]:
    """Returns the names of all installed methods, sorted."""
    return tuple(sorted({entry.name for entry in entry_points(group=GROUP)}))


def get_method(name: str) -> type[Detector[Any]]:
    """Returns the detector class of a method.

    Raises:
        MethodError: If there is no such method, if two packages claim the name, or if the
            package that declares it cannot be imported or gives something else.
    """
    entry = _entry_point(name)
    try:
        method = entry.load()
    except Exception as error:  # a plug-in may raise anything while it is imported
        raise _unusable(entry, f"{type(error).__name__}: {error}") from error

    from anomtune.models.base import Detector  # noqa: PLC0415 - imports torch

    if not (isinstance(method, type) and issubclass(method, Detector)):
        raise _unusable(entry, "it is not a subclass of anomtune.models.base.Detector")
    return method


def _unusable(entry: EntryPoint, reason: str) -> MethodError:
    package = f" of the package {entry.dist.name}" if entry.dist else ""
    return MethodError(
        f"method {entry.name!r} ({entry.value}{package}) cannot be used: "
        f"{' '.join(reason.split())}; repair or uninstall that package"
    )


def _entry_point(name: str) -> EntryPoint:
    # An editable install can list the same entry point twice: equal ones are no conflict.
    found = {entry.value: entry for entry in entry_points(group=GROUP, name=name)}
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise MethodError(
            f"method {name!r} is declared more than once: {', '.join(found)}; "
            "uninstall all but one of these packages"
        )
    known = available()
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise MethodError(f"no method {name!r}: there are {', '.join(known) or 'none'}{hint}")
