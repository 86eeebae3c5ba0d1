"""What the engine and a worker tell each other.

Tune carries both: a run's config is a dictionary, and so is a result. One of its keys holds the
message, as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from anomtune.errors import AnomtuneError, DataError, StorageError, SweepError
from anomtune.search.run.trial import TrialResult, TrialSpec
from anomtune.search.store.part import MessageText
from anomtune.search.store.records import ConfirmResult

_KEY = "message"
#: Failures of the surroundings: no fault of the config, which must not be marked by them.
SURROUNDINGS = (DataError, SweepError, StorageError)


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Assignment(_Message):
    """What a worker is to do.

    Attributes:
        spec: What to train on what.
        confirm: Whether it is a confirm run.
        shape: What it occupies, as Ray counts it.
    """

    spec: TrialSpec
    confirm: bool
    shape: dict[str, float]

    def to_config(self) -> dict[str, Any]:
        """Returns it as the config of a run."""
        return {_KEY: self.model_dump_json()}

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Returns what the config of a run says."""
        return cls.model_validate_json(config[_KEY])


class Placed(_Message):
    """A new worker says where it is; the first result of its first run.

    Attributes:
        node: Ray's name of the node.
        gpus: The GPUs that it has there.
    """

    kind: Literal["placed"] = "placed"
    node: str
    gpus: tuple[str, ...]
    final: ClassVar[bool] = False


class TrialReport(_Message):
    """A trial has reached a rung; with `TrialResult.facts` its last."""

    kind: Literal["trial"] = "trial"
    result: TrialResult

    @property
    def final(self) -> bool:
        """Whether it ends the run."""
        return self.result.facts is not None


class ConfirmReport(_Message):
    """A confirm run has ended."""

    kind: Literal["confirm"] = "confirm"
    result: ConfirmResult
    final: ClassVar[bool] = True


class Failed(_Message):
    """The config cannot be trained.

    Attributes:
        error: Why, in one line.
        traceback: Where, if it was not expected.
    """

    kind: Literal["failed"] = "failed"
    error: MessageText
    traceback: MessageText | None
    final: ClassVar[bool] = True


class OutOfMemory(_Message):
    """The run's share of a GPU was too small."""

    kind: Literal["out_of_memory"] = "out_of_memory"
    final: ClassVar[bool] = True


class Aborted(_Message):
    """The surroundings fail, and with them the sweep.

    Attributes:
        error: Which of `SURROUNDINGS`, by the name of its class.
        reason: What it says.
    """

    kind: Literal["aborted"] = "aborted"
    error: str
    reason: MessageText
    final: ClassVar[bool] = True

    @classmethod
    def by(cls, error: AnomtuneError) -> Self:
        """Returns the message of one of `SURROUNDINGS`."""
        name = next(kind.__name__ for kind in SURROUNDINGS if isinstance(error, kind))
        return cls(error=name, reason=str(error))

    def exception(self) -> AnomtuneError:
        """Returns the error as it was raised on the worker."""
        return next(kind for kind in SURROUNDINGS if kind.__name__ == self.error)(self.reason)


Message = Placed | TrialReport | ConfirmReport | Failed | OutOfMemory | Aborted

_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


def to_result(message: Message) -> dict[str, Any]:
    """Returns a message as a result of Tune."""
    return {_KEY: message.model_dump_json(), "done": message.final}


def from_result(result: Mapping[str, Any] | None) -> Message | None:
    """Returns the message in a result of Tune, ``None`` if there is none."""
    if result is None or _KEY not in result:
        return None
    return _MESSAGE.validate_json(result[_KEY])
