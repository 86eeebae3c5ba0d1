"""The Ray that a sweep runs on: one that is found, or one of its own."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import ray
from ray._private import services, utils
from ray.exceptions import AuthenticationError

from anomtune.errors import INTERRUPTED, SweepError
from anomtune.names import readable
from anomtune.search.run.process import muted, no_interrupt_lost, unchanged_process
from anomtune.search.run.ray_internals import (
    COMMAND_LINE,
    HEAD_PATIENCE,
    LONGEST_SOCKET,
    OWN,
    STARTER,
    SWITCHES,
    TEMPORARY_FOLDER,
    live_nodes,
)

#: Bytes of the path of a socket that the kernel takes.
_LONGEST_PATH = 103 if sys.platform == "darwin" else 107
#: Folders that are short, and nearly everywhere.
_SHORT = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - what is made there is its owner's alone

#: In this part of the time after which Ray ends a process whose head has gone, we do.
_SOONER = 0.5
#: How often the head is looked for in that time.
_LOOKS = 20


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
    with (
        unchanged_process(SWITCHES),
        muted(logging.ERROR, "ray"),
        _folder_for_sockets(address) as folder,
    ):
        try:
            with _ended_with_head(address):
                with _group_of_their_own(), _command_line_in_utf8(), no_interrupt_lost():
                    _start(address, folder)
                yield
        finally:
            ray.shutdown()


@contextmanager
def _ended_with_head(address: str | None) -> Iterator[None]:
    """Ends this process, as one that was interrupted, when the head of its cluster has gone.

    Ray does so too, but with exit code 1, which says that a sweep has finished. Nothing can be
    ended in order any more: whatever Ray is asked waits for the head. The records are safe.
    """
    if address is None:
        yield
        return
    name, usual = HEAD_PATIENCE
    pause = _SOONER * float(os.environ.get(name, usual)) / _LOOKS
    ended = threading.Event()
    # A head that never was there is Ray's to tell of.
    at_first = _answers(address, pause)

    def watch() -> None:
        met, missed = at_first, 0
        while missed < _LOOKS:
            if ended.wait(pause):
                return
            answers = _answers(address, pause)
            met, missed = met or answers, 0 if answers else missed + met
        print(
            f"anomtune: the head of the Ray cluster at {address} has gone; start the cluster, and "
            "then the same command, which goes on from here",
            file=sys.stderr,
            flush=True,
        )
        os._exit(INTERRUPTED)

    thread = threading.Thread(target=watch, name="head-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _answers(address: str, seconds: float) -> bool:
    """Whether the head of a cluster can be reached; true while it is not known where that is."""
    try:
        if (head := _head(address)) is not None:
            socket.create_connection(head, timeout=seconds).close()
    except (OSError, ValueError):
        return False
    return True


def _head(address: str) -> tuple[str, int] | None:
    """Returns where the head of a cluster listens, ``None`` while that is not known."""
    if "://" in address or ":" not in address:  # ``auto``, for one
        if not ray.is_initialized():
            return None
        address = ray.get_runtime_context().gcs_address
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


@contextmanager
def _folder_for_sockets(address: str | None) -> Iterator[str | None]:
    """Yields a folder for the Ray of this machine, ``None`` if Ray's own choice will do.

    The path of a socket is short by the kernel's rule, and the folders that a scheduler gives its
    jobs are long. The folder is private, and removed at the end.

    Raises:
        SweepError: If there is no place for one.
    """
    usual = os.environ.get(TEMPORARY_FOLDER) or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108
    if address is not None or _has_room(usual):
        yield None
        return
    for short in _SHORT:
        try:
            private = Path(tempfile.mkdtemp(prefix="anomtune-", dir=short))
            break
        except OSError:
            continue
    else:
        raise SweepError(
            f"TMPDIR is {usual}: too long for the sockets of Ray, and {', '.join(_SHORT)} cannot "
            f"be used; set {TEMPORARY_FOLDER} to a short folder"
        )
    try:
        # Below it: Ray opens its own folder to everybody.
        yield str(private / "ray")
    finally:
        _remove(private)


def _has_room(folder: str) -> bool:
    try:
        path = os.path.join(os.path.abspath(folder), LONGEST_SOCKET).encode()
    except UnicodeEncodeError:  # Ray takes no other name
        return False
    return len(path) <= _LONGEST_PATH


def _remove(folder: Path) -> None:
    """Removes a folder in which processes that are ending may still write."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


@contextmanager
def _command_line_in_utf8() -> Iterator[None]:
    """Lets Ray have the command line of this process, whatever names of files stand in it."""
    original = getattr(utils, COMMAND_LINE)
    setattr(utils, COMMAND_LINE, lambda: readable(original()))
    try:
        yield
    finally:
        setattr(utils, COMMAND_LINE, original)


@contextmanager
def _group_of_their_own() -> Iterator[None]:
    """Starts Ray's processes outside of the caller's process group.

    ``timeout``, Slurm and others send SIGTERM to the whole group. A Ray that it ends takes the
    driver with it before that has written its last record. Should the driver be killed, the kernel
    ends them all the same; elsewhere than on Linux Ray needs the group for that.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    starter = getattr(services, STARTER)
    setattr(services, STARTER, partial(starter, process_group=0))
    try:
        yield
    finally:
        setattr(services, STARTER, starter)


def _start(address: str | None, folder: str | None) -> None:
    try:
        ray.init(
            _temp_dir=folder,
            address=address or "local",
            include_dashboard=None if address else False,
            _system_config=None if address else OWN,
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
