"""The Ray that a sweep runs on: one that is found, or one of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray
from ray.exceptions import AuthenticationError

from anomtune.errors import SweepError
from anomtune.search.run.process import muted, unchanged_process
from anomtune.search.run.ray_internals import SWITCHES, live_nodes


@contextmanager
def ray_cluster(address: str | None) -> Iterator[None]:
    """Connects to a Ray cluster, or starts one on this machine for the time of the context.

    A Ray that this process has started already is used, and left running.

    Args:
        address: ``None`` for this machine, ``auto`` or an address for a running cluster.

    Raises:
        SweepError: If there is no cluster at the address.
    """
    if ray.is_initialized():
        yield
        return
    # The switches before the start: the workers have them from the raylet.
    with unchanged_process(SWITCHES), muted(logging.ERROR, "ray"):
        _start(address)
        try:
            yield
        finally:
            ray.shutdown()


def _start(address: str | None) -> None:
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            configure_logging=False,
        )
    except AuthenticationError as error:
        raise SweepError(
            f"{f'--address {address}' if address else 'Ray on this machine'}: it asks for a token "
            "and there is none, or another; put it into ~/.ray/auth_token or the file that "
            "RAY_AUTH_TOKEN_PATH names, and set RAY_AUTH_MODE=token"
        ) from error
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if address is None:
            raise SweepError(f"Ray does not start on this machine: {reason}") from error
        raise SweepError(
            f"--address {address}: no Ray cluster to use there ({reason}); start one with "
            f"`ray start --head`, or leave --address out"
        ) from None


def living_nodes() -> list[Mapping[str, float]]:
    """Returns what every node of the cluster has that is alive now."""
    return [node.resources for node in live_nodes(ray.nodes())]
