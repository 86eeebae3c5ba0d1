"""What can be named in a sweep file: methods, datasets, samplers, pruners, metrics and loggers.

Each has one registry, and each registry knows a name in three ways:

* a decorator, in a script or a notebook::

      @anomtune.register_method("mine")
      class Mine(anomtune.GradientDetector[MineHyperparameters]): ...

* an import path wherever a name is asked for: ``my_package.my_module:Mine``;
* an entry point of an installed package, which is how anomtune declares its own::

      [project.entry-points."anomtune.methods"]
      mine = "my_package.my_module:Mine"

Names are known without importing what they name.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, overload

from anomtune.errors import AnomtuneError, DataError, MethodError, SweepError, one_line, suggest

#: A name is a folder of a sweep directory, too.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

T = TypeVar("T")
C = TypeVar("C")


@dataclass(frozen=True)
class Registry(Generic[T]):
    """The things of one kind, by name.

    Attributes:
        kind: What they are, in messages (``method``).
        error: What is raised where a name cannot be used.
        base: Import path of the class that they derive from; "" for anything that can be called.
        instances: Whether they are instances of ``base`` and not classes.
        families: Modules that know names which begin with a word and a point, by that word: those
            of another library's things, which are there if it is installed.
    """

    kind: str
    error: type[AnomtuneError]
    base: str
    instances: bool = False
    families: Mapping[str, str] = field(default_factory=dict)
    _registered: dict[str, T] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """The group of entry points."""
        return f"anomtune.{self.kind}s"

    @overload
    def register(self, name: str) -> Callable[[C], C]: ...
    @overload
    def register(self, name: str, item: C) -> C: ...

    def register(self, name: str, item: Any = None) -> Any:
        """Makes something known under a name, in this process and in the workers of its sweeps.

        Registering a name again replaces what it meant, as a cell of a notebook that is run again
        does. Usable as a decorator: ``@register("mine")``.

        Raises:
            AnomtuneError: Of the registry's kind, if it is something else than the registry holds,
                or an installed package has the name.
        """
        if not isinstance(name, str):
            raise self.error(f'give it a name: @anomtune.register_{self.kind}("name")')
        if item is None:
            return lambda decorated: self.register(name, decorated)
        if not _NAME.fullmatch(name):
            raise self.error(
                f"{self.kind} {name!r}: choose a name of letters, digits, '.', '_' and '-' that "
                "begins with a letter or a digit"
            )
        if name in self._entries():
            raise self.error(
                f"{self.kind} {name!r} is the name of an installed one; choose another"
            )
        if wrong := self._misfit(item):
            raise self.error(f"{self.kind} {name!r}: {wrong}")
        self._registered[name] = item
        return item

    def names(self) -> tuple[str, ...]:
        """Returns all names, sorted."""
        return tuple(sorted({*self._registered, *self._entries()}))

    def declared(self) -> tuple[str, ...]:
        """Returns the names without those of families, which are many, sorted."""
        return tuple(sorted({*self._registered, *_installed(self.group)}))

    def get(self, name: str) -> T:
        """Returns what a name or an import path means.

        Raises:
            AnomtuneError: Of the registry's kind, if there is nothing of that name, if two
                packages claim it, or if it cannot be imported or is something else.
        """
        if name in self._registered:
            return self._registered[name]
        if ":" in name:
            entry, remedy = EntryPoint(name, name, self.group), "correct the import path"
        else:
            entry, remedy = self._entry(name), "repair or uninstall that package"
        try:
            item = _import(entry.value)
        except Exception as error:  # whatever is imported may raise anything
            raise self._unusable(entry, f"{type(error).__name__}: {error}", remedy) from error
        if wrong := self._misfit(item):
            raise self._unusable(entry, wrong, remedy)
        found: T = item
        return found

    def unusable(self, name: str, reason: str) -> AnomtuneError:
        """Returns the error of something that was found and cannot be used."""
        if name in self._registered or ":" in name:
            return self.error(f"{self.kind} {name!r} cannot be used: {' '.join(reason.split())}")
        return self._unusable(self._entry(name), reason, "repair or uninstall that package")

    def name_of(self, item: T) -> str:
        """Returns the name of what is registered or installed, else its import path.

        Raises:
            AnomtuneError: Of the registry's kind, if a worker could not find it again.
        """
        for name, known in self._registered.items():
            if known is item:
                return name
        path = f"{getattr(item, '__module__', None)}:{getattr(item, '__qualname__', '')}"
        for name, entry in self._entries().items():
            if entry.value == path:
                return name
        if path.startswith("__main__:") or "<locals>" in path:
            raise self.error(
                f"{path.partition(':')[2]}: give it a name with @anomtune.register_{self.kind}"
            )
        return path

    def registered(self) -> Mapping[str, T]:
        """Returns what was registered in this process."""
        return dict(self._registered)

    def _entries(self) -> Mapping[str, EntryPoint]:
        declared = {name: found[0] for name, found in _installed(self.group).items()}
        found = {
            name: EntryPoint(name, value, self.group)
            for family in self.families.values()
            for name, value in _import(family).values().items()
        }
        return found | declared

    def _entry(self, name: str) -> EntryPoint:
        found = _installed(self.group).get(name, ())
        family = self.families.get(name.partition(".")[0])
        if not found and family is not None:
            if name in self._entries():
                return self._entries()[name]
            raise self.error(_import(family).why_not(name))
        if len(found) > 1:
            values = ", ".join(entry.value for entry in found)
            raise self.error(
                f"{self.kind} {name!r} is declared more than once: {values}; "
                "uninstall all but one of these packages"
            )
        if not found:
            raise self.error(f"no {self.kind} {name!r}{suggest(name, self.declared())}")
        return found[0]

    def _misfit(self, item: object) -> str | None:
        """Returns why something cannot be held here, if it cannot."""
        if not self.base:
            return None if callable(item) else "it cannot be called"
        base = _import(self.base)
        if self.instances:
            fits = isinstance(item, base)
        else:
            fits = isinstance(item, type) and issubclass(item, base)
        what = "" if self.instances else "subclass of "
        return None if fits else f"it is no {what}{self.base.replace(':', '.')}"

    def _unusable(self, entry: EntryPoint, reason: str, remedy: str) -> AnomtuneError:
        package = f" of the package {entry.dist.name}" if entry.dist else ""
        what = "" if entry.value == entry.name else f" ({entry.value}{package})"
        return self.error(
            f"{self.kind} {entry.name!r}{what} cannot be used: "
            f"{one_line(' '.join(reason.split()))}; {remedy}"
        )


def _import(path: str) -> Any:
    module, _, attributes = path.partition(":")
    found: Any = importlib.import_module(module)
    for attribute in attributes.split(".") if attributes else ():
        found = getattr(found, attribute)
    return found


def _installed(group: str) -> Mapping[str, tuple[EntryPoint, ...]]:
    """Returns the entry points of a group; those of packages that come later are found too."""
    return _entry_points(group, tuple(sys.path))


@cache
def _entry_points(group: str, path: tuple[str, ...]) -> Mapping[str, tuple[EntryPoint, ...]]:
    found: dict[str, dict[str, EntryPoint]] = {}
    for entry in entry_points(group=group):
        # An editable install can list the same entry point twice: equal ones are no conflict.
        found.setdefault(entry.name, {})[entry.value] = entry
    return {name: tuple(entries.values()) for name, entries in found.items()}


METHODS: Registry[Any] = Registry(
    "method",
    MethodError,
    "anomtune.models.base:Detector",
    families={"anomalib": "anomtune.models.foreign.catalogue"},
)
DATASETS: Registry[Any] = Registry("dataset", DataError, "anomtune.datasets.base:Dataset")
SAMPLERS: Registry[Callable[..., Any]] = Registry("sampler", SweepError, "")
PRUNERS: Registry[Callable[..., Any]] = Registry("pruner", SweepError, "")
METRICS: Registry[Any] = Registry(
    "metric", SweepError, "anomtune.search.metrics.metric:Metric", instances=True
)
LOGGERS: Registry[Callable[..., Any]] = Registry("logger", SweepError, "")

ALL: tuple[Registry[Any], ...] = (METHODS, DATASETS, SAMPLERS, PRUNERS, METRICS, LOGGERS)


def registrations() -> dict[str, dict[str, Any]]:
    """Returns all that was registered in this process, for its workers to `adopt`."""
    return {registry.kind: dict(registry.registered()) for registry in ALL}


def adopt(given: Mapping[str, Mapping[str, Any]]) -> None:
    """Makes known in this process what another has registered."""
    for registry in ALL:
        # Whatever is installed here: the name means what it meant there.
        registry._registered.update(given.get(registry.kind, {}))


register_method = METHODS.register
register_dataset = DATASETS.register
register_sampler = SAMPLERS.register
register_pruner = PRUNERS.register
register_logger = LOGGERS.register
