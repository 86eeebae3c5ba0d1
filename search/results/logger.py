"""Loggers: what happens in a sweep, told to other systems as it happens.

A sweep file names a logger as it names a sampler, and may give it options. ``mlflow`` is the one
that anomtune brings. `anomtune.search.results.delivery` calls them.

The resolved sweep file lies in the sweep directory for everybody to read, so no option holds a
secret: ``token: $LAB_TOKEN`` names an environment variable of the driver, which is read when the
logger is made, and written nowhere.
"""

from __future__ import annotations

import inspect
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from anomtune.errors import AnomtuneError, SweepError, suggest
from anomtune.registry import LOGGERS
from anomtune.search.config import Sweep
from anomtune.search.logger_config import VARIABLE, LoggerConfig
from anomtune.search.store.records import AnyRecord

#: Environment variables whose values are shown nowhere.
_SECRET = re.compile(r"token|secret|passw|credential|api_?key|access_?key", re.IGNORECASE)
#: Shorter ones would hide what is none.
_SHORTEST_SECRET = 4

#: In any text: who is asking, in a URL, and what its query may hold.
_USER = re.compile(r"(?<=://)[^/\s@'\"]+@")
_QUERY = re.compile(r"(?<=[?&])([^=&\s]*(?:token|secret|passw|key|sig)[^=&\s]*)=[^&\s'\"]+", re.I)


class Logger(ABC):
    """Is told of the runs of a sweep: of trials and confirm runs.

    It is made and called by a thread of its own, and the sweep never waits for it.

    - `update` comes with the record of a run when it begins, at each rung, and when it ends. A
      logger that takes long is given the newest state alone: several rungs may be new in it.
    - What `update` raises is told once, and the record comes again after a while.
    - The next start of the sweep brings what has not arrived. After a kill that may be a little
      more: the `path` of a record says which run it is, the length of its curve how far it is.

    >>> class Announcer(Logger):
    ...     def update(self, record):
    ...         if record.state == "COMPLETE":
    ...             print(f"{record.path}: {record.value:.3f}")
    """

    @abstractmethod
    def update(self, record: AnyRecord) -> None:
        """Takes a run as it is now.

        Args:
            record: A trial, as the scoring of its study reads it, or a confirm run.

        Raises:
            Exception: If it has not arrived.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing to end
        """Ends what is open, when a sweep ends or is interrupted; not when it is killed."""


@dataclass(frozen=True)
class LoggerMaker:
    """Makes one of the loggers of a sweep.

    Attributes:
        config: What the sweep file says of it.
        make: Makes it.
        secrets: What is shown nowhere.
    """

    config: LoggerConfig
    make: Callable[[], Logger]
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def shown(self, error: BaseException) -> str:
        """Returns an error in a line, without secrets that it may quote."""
        said = str(error)
        text = " ".join((f"{type(error).__name__}: {said}" if said else repr(error)).split())
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return _QUERY.sub(r"\1=***", _USER.sub("***@", text))


def logger_makers(
    sweep: Sweep,
    directory: str,
    sweep_id: str = "",
    environment: Mapping[str, str] = os.environ,
) -> list[LoggerMaker]:
    """Returns what makes the loggers of a sweep, which need not be there yet; makes none.

    A factory is called with its options, and with those of these arguments that its signature
    names: ``sweep``, the resolved config; ``directory``, where it writes; ``sweep_id``, which names
    that directory, at every start and wherever it lies.

    Args:
        sweep: The config.
        directory: Local path or URI of the sweep directory.
        sweep_id: Its name.
        environment: Of the process.

    Raises:
        SweepError: Naming the key of the sweep file, if there is no such logger, or it cannot be
            called so.
    """
    offered = {"sweep": sweep, "directory": directory, "sweep_id": sweep_id}
    known = [value for name, value in environment.items() if _SECRET.search(name)]
    makers = []
    for number, config in enumerate(sweep.loggers):
        told: list[str] = []
        try:
            options = _resolved(config.options, environment, told)
            make = _maker(config.name, offered, options)
        except AnomtuneError as error:
            # Of our own, MLflow's says what to install.
            cause = error.__cause__ if isinstance(error.__cause__, AnomtuneError) else error
            raise SweepError(f"loggers.{number}: {cause}") from error
        secrets = {secret for secret in (*told, *known) if len(secret) >= _SHORTEST_SECRET}
        makers.append(LoggerMaker(config, make, tuple(sorted(secrets, key=len, reverse=True))))
    return makers


def _maker(
    name: str, offered: Mapping[str, Any], options: Mapping[str, Any]
) -> Callable[[], Logger]:
    factory = LOGGERS.get(name)
    if isinstance(factory, type) and not issubclass(factory, Logger):
        raise LOGGERS.unusable(name, "it is no subclass of anomtune.Logger")
    parameters = inspect.signature(factory).parameters
    takes_any = any(item.kind is item.VAR_KEYWORD for item in parameters.values())
    free = [parameter for parameter in parameters if parameter not in offered]
    for option in options:
        if option in offered or not (takes_any or option in parameters):
            raise SweepError(f"logger {name!r}: has no option {option!r}{suggest(option, free)}")
    given = {key: value for key, value in offered.items() if key in parameters} | dict(options)
    try:
        inspect.signature(factory).bind(**given)
    except TypeError as error:
        raise SweepError(f"logger {name!r}: {error}; set it in its options") from error

    def make() -> Logger:
        made = factory(**given)
        if not isinstance(made, Logger):
            raise LOGGERS.unusable(
                name, f"it makes a {type(made).__name__}, not an anomtune.Logger"
            )
        return made

    return make


def _resolved(value: Any, environment: Mapping[str, str], told: list[str]) -> Any:
    """Returns options with the environment variables that they name; notes their values."""
    if isinstance(value, Mapping):
        return {key: _resolved(item, environment, told) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, environment, told) for item in value]
    if not isinstance(value, str) or (found := VARIABLE.fullmatch(value)) is None:
        return value
    if found[1] not in environment:
        raise SweepError(f"the environment has no variable {found[1]}; set it where the sweep runs")
    told.append(environment[found[1]])
    return environment[found[1]]
