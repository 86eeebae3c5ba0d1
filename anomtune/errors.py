"""The errors of anomtune. Each message is one line: what is wrong, where, and what to do.

They are `ValueError` where somebody's input is at fault, so that a pydantic validator may raise
them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from anomtune.names import readable

#: Exit codes of the command: 0 done, 1 not all of it is usable, 2 bad input, 3 interrupted and
#: resumable.
UNUSABLE, BAD_INPUT, INTERRUPTED = 1, 2, 3

#: Characters of a message. What is wrong may be a value of a megabyte, in anybody's file.
_LONGEST = 1600


class AnomtuneError(Exception):
    """Whatever anomtune refuses or cannot do."""

    def __str__(self) -> str:
        # A message may name a file, whose name may hold anything.
        return one_line(super().__str__())


class DataError(AnomtuneError, ValueError):
    """A dataset cannot be used as it is."""


class ImageError(DataError):
    """One image or mask cannot be used.

    Args:
        where: The file.
        reason: What is wrong and what to do, in one line without the location.
    """

    def __init__(self, where: str, reason: str) -> None:
        # Both go to ``args``, so that the error survives a trip between processes.
        super().__init__(where, reason)
        self.where = where
        self.reason = reason

    def __str__(self) -> str:
        return one_line(f"{self.where}: {self.reason}")


class MethodError(AnomtuneError, ValueError):
    """A method or a trained detector cannot be used as asked."""


class TrainingDivergedError(AnomtuneError, ArithmeticError):
    """A loss or a score became NaN or infinite: these hyperparameters do not train."""


class SweepError(AnomtuneError, ValueError):
    """A sweep, or the config of one training, cannot be used as asked."""


class StorageError(AnomtuneError):
    """The place of a sweep, a model or an export cannot be read or written, or is another's."""


def suggest(wrong: str, known: Iterable[str]) -> str:
    """Returns a clause that names what exists and what was probably meant."""
    names = list(known)
    meant = nearest(wrong, names)
    clause = f"; did you mean {meant!r}?" if meant else ""
    return f"; there is {', '.join(names) or 'none'}{clause}"


def nearest(wrong: str, known: Iterable[str]) -> str | None:
    """Returns what was probably meant, if anything comes near."""
    return next(iter(difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.5)), None)


def one_line(text: str) -> str:
    """Escapes what the name of a file may hold and a line of text may not.

    Of a text that is too long for a line the middle is left out.
    """
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in readable(text))
