"""Where the sweeps of a Ray cluster note what they hold and want: its own key-value store."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from pydantic import ValidationError
from ray.experimental import internal_kv

from anomtune.search.run.claims import Claim

_NAMESPACE = b"anomtune"
#: Claims of other versions are not understood: with these sweeps the cluster is shared as Ray does.
_PREFIX = b"claims/1/"


class RayBoard:
    """A `Board` for the drivers that are connected to the same cluster.

    A claim goes when its driver ends. One that is killed leaves it, and it changes no more. While
    the cluster does not answer there is nobody else: the runs themselves will tell of that.
    """

    def __init__(self) -> None:
        self._name = secrets.token_hex(8)

    def read(self) -> Mapping[str, Claim]:
        """Returns the claims of all other drivers, by name."""
        found = {}
        with suppress(Exception):
            for key in internal_kv._internal_kv_list(_PREFIX, namespace=_NAMESPACE):
                name = key.removeprefix(_PREFIX).decode()
                content = internal_kv._internal_kv_get(key, namespace=_NAMESPACE)
                if name == self._name or content is None:
                    continue
                with suppress(ValidationError):
                    found[name] = Claim.model_validate_json(content)
        return found

    def write(self, claim: Claim) -> None:
        """Replaces this driver's claim."""
        key, content = _PREFIX + self._name.encode(), claim.model_dump_json().encode()
        with suppress(Exception):
            internal_kv._internal_kv_put(key, content, namespace=_NAMESPACE)

    def remove(self, name: str) -> None:
        """Removes the claim of a driver that is gone."""
        with suppress(Exception):
            internal_kv._internal_kv_del(_PREFIX + name.encode(), namespace=_NAMESPACE)


@contextmanager
def ray_board() -> Iterator[RayBoard]:
    """Yields the board of the cluster that this process is connected to."""
    board = RayBoard()
    try:
        yield board
    finally:
        board.remove(board._name)
