"""A sweep as a job of a Ray cluster: shipped, followed, stopped; submitted again, it goes on.

A job's id is made of its sweep directory and a counter. So the cluster itself says whether the
sweep runs already, and takes only one of two that are submitted at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import ClientError

from anomtune.datasets.io.uri import has_secrets, is_uri
from anomtune.errors import INTERRUPTED, UNUSABLE, SweepError
from anomtune.names import to_name, to_text
from anomtune.search.config import Sweep
from anomtune.search.run.process import muted
from anomtune.search.run.ray_internals import CLIENT_LOGGERS, JOB_STOP_WAIT

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_FILE = "sweep.yaml"
_PARTS = ("search", "models", "datasets", "cluster")  # besides the root package itself
#: Seconds between SIGTERM and SIGKILL when a job is stopped. Ray's three are too few for the
#: trials that run to be let go and the tables to be written.
_STOP_PATIENCE = "60"
_PREFIX = "anomtune"
_ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}


@dataclass(frozen=True)
class Job:
    """A job of anomtune on a cluster.

    Attributes:
        id: What `logs` and `stop` want.
        state: Ray's word: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        name: Of the sweep.
        directory: Its sweep directory.
        started: When, UTC.
        exit_code: Of the driver; ``None`` while it runs and if it was stopped.
    """

    id: str
    state: str
    name: str
    directory: str
    started: datetime | None
    exit_code: int | None

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return self.state in _ENDED


def shared_directory(directory: str | None, name: str, *, here: bool) -> str:
    """Returns where a sweep that runs on a cluster keeps its results.

    Args:
        directory: What the user said; ``None`` for ``sweeps/NAME``.
        name: Of the sweep.
        here: Whether the cluster is on this machine, so that a relative path has a meaning.

    Raises:
        SweepError: If it means nothing on the cluster, or carries credentials.
    """
    chosen = directory or f"sweeps/{name}"
    if is_uri(chosen):
        if has_secrets(chosen):
            raise SweepError(
                "--dir: carries credentials, which everybody could read in the job; take them out "
                "and set them in the environment of the cluster's nodes"
            )
        return chosen.rstrip("/")
    if Path(chosen).is_absolute():
        return str(Path(chosen))
    if here:
        return str(Path(chosen).absolute())
    raise SweepError(
        f"--dir {chosen}: the cluster has another working directory; give an absolute path on "
        "storage that all its nodes share, or s3://bucket/folder"
    )


def portable(config: Sweep, *, here: bool) -> Sweep:
    """Returns a sweep that means the same on the cluster, and makes sure that it holds no secret.

    Args:
        config: The sweep as it was read.
        here: Whether the cluster is on this machine, so that a relative path has a meaning.

    Raises:
        SweepError: If it does not.
    """
    root = config.dataset.root
    if root is None:
        section = config.dataset.with_paths(lambda key, at: _portable_path(key, at, here=here))
        return config.model_copy(update={"dataset": section})
    if is_uri(root):
        if has_secrets(root):
            raise SweepError(
                "dataset.root: carries credentials, which everybody could read in the job; take "
                "them out and set them in the environment of the cluster's nodes"
            )
        return config
    section = config.dataset.model_copy(update={"root": _portable_path("root", root, here=here)})
    return config.model_copy(update={"dataset": section})


def _portable_path(key: str, given: str, *, here: bool) -> str:
    path = Path(to_name(given)).expanduser() if here else Path(to_name(given))
    if not path.is_absolute() and not here:
        raise SweepError(
            f"dataset.{key}: {given} is relative; give the path that the images have on the nodes, "
            "or s3://bucket/folder"
        )
    return to_text(path.absolute())


def submit(client: JobSubmissionClient, config: Sweep, directory: str, *, ship: bool = True) -> str:
    """Starts a sweep on a cluster, or what is left of it; returns the job's id.

    Args:
        client: Of the cluster.
        config: The sweep.
        directory: Its directory, as `shared_directory` returns it.
        ship: Whether to send this anomtune along, in front of the one that the nodes may have.

    Raises:
        SweepError: If the sweep runs there already, or the cluster does not take it.
    """
    stem = _stem(config.name, directory)
    earlier = [job for job in list_jobs(client) if job.id.rpartition("-")[0] == stem]
    for job in earlier:
        if not job.ended:
            raise SweepError(
                f"{directory}: this sweep runs there already, as job {job.id}; follow it with "
                "`anomtune logs`, or end it with `anomtune stop`"
            )
    number = max((int(job.id.rpartition("-")[2]) for job in earlier), default=0) + 1
    command = ["sweep", _FILE, "--address", "auto", "--dir", directory]
    files = {_FILE: config.to_yaml()}
    facts = {"name": config.name, "directory": directory, "sweep": config.digest()}
    return run_command(client, f"{stem}-{number}", command, files, facts, ship=ship)


def submit_doctor(
    client: JobSubmissionClient,
    config: Sweep | None,
    directory: str | None,
    *,
    ship: bool = True,
) -> str:
    """Lets a cluster examine itself, for a sweep or in general; returns the job's id.

    Raises:
        SweepError: If the cluster does not take it.
    """
    command, files = ["doctor"], {}
    if config is not None:
        command.append(_FILE)
        files[_FILE] = config.to_yaml()
    command += ["--address", "auto", *(["--dir", directory] if directory else [])]
    identity = f"{_PREFIX}-doctor-{secrets.token_hex(4)}"
    return run_command(client, identity, command, files, {"name": "doctor"}, ship=ship)


def run_command(
    client: JobSubmissionClient,
    identity: str,
    command: Sequence[str],
    files: dict[str, str],
    facts: dict[str, str],
    *,
    ship: bool = True,
) -> str:
    """Runs an anomtune command on the head node, in a folder with some files; returns the job's id.

    Args:
        client: Of the cluster.
        identity: The id.
        command: What follows ``anomtune``.
        files: Texts by name.
        facts: What is to be said of the job; everybody can read it.
        ship: Whether to send this anomtune along.

    Raises:
        SweepError: If the cluster does not take it.
    """
    with tempfile.TemporaryDirectory(prefix="anomtune-") as scratch:
        folder = Path(scratch, "files")
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        environment: dict[str, Any] = {
            "working_dir": str(folder),
            "env_vars": {JOB_STOP_WAIT: _STOP_PATIENCE},
        }
        if ship:
            environment["py_modules"] = [str(path) for path in unpacked_wheel(Path(scratch))]
        with _explained():
            return str(
                client.submit_job(
                    # Not the script `anomtune`, which only an installation has.
                    entrypoint=f"exec python -m anomtune {shlex.join(command)}",
                    submission_id=identity,
                    runtime_env=environment,
                    metadata={"anomtune": metadata.version("anomtune"), **facts},
                )
            )


def unpacked_wheel(scratch: Path) -> list[Path]:
    """Lays out the code that runs here as a wheel of it would be unpacked, for ``py_modules``.

    Unpacked, because Ray gives a wheel to pip, which would add all its dependencies: another torch
    and another Ray in front of those of the nodes. The metadata is what names methods and datasets.

    Returns:
        The folder of the package and that of its metadata.
    """
    package = scratch / "anomtune"
    ignored = shutil.ignore_patterns("__pycache__")
    for part in ("", *_PARTS):
        file = import_module(f"anomtune.{part}".rstrip(".")).__file__
        assert file is not None
        shutil.copytree(Path(file).parent, package / part, ignore=ignored, dirs_exist_ok=True)
    distribution = metadata.distribution("anomtune")
    info = scratch / f"anomtune-{distribution.version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: anomtune\nVersion: {distribution.version}\n",
        encoding="utf-8",
    )
    entry_points = distribution.read_text("entry_points.txt") or ""
    (info / "entry_points.txt").write_text(entry_points, encoding="utf-8")
    return [package, info]


def list_jobs(client: JobSubmissionClient) -> list[Job]:
    """Returns the jobs of anomtune on a cluster, the latest first."""
    with _explained():
        found = client.list_jobs()
    jobs = [
        Job(
            id=details.submission_id,
            state=details.status.value,
            name=details.metadata.get("name", ""),
            directory=details.metadata.get("directory", ""),
            started=_time(details.start_time),
            exit_code=details.driver_exit_code,
        )
        for details in found
        if details.submission_id and "anomtune" in (details.metadata or {})
    ]
    return sorted(jobs, key=lambda job: job.started or datetime.min.replace(tzinfo=UTC))[::-1]


def find_job(client: JobSubmissionClient, identity: str) -> Job:
    """Returns a job of anomtune.

    Raises:
        SweepError: If there is none of that id.
    """
    jobs = list_jobs(client)
    for job in jobs:
        if job.id == identity:
            return job
    known = ", ".join(job.id for job in jobs) or "none"
    raise SweepError(f"{identity}: no such job on this cluster; there is {known}")


def follow(client: JobSubmissionClient, identity: str, write: Callable[[str], object]) -> int:
    """Passes on what a job prints until it ends; returns its exit code.

    A stopped job is an interrupted sweep, which can be resumed. An error of ``write`` (nobody reads
    on) is not the cluster's, and is raised as it is.

    Raises:
        SweepError: If the connection breaks; the job goes on.
    """

    async def tail() -> None:
        async with aclosing(client.tail_job_logs(identity)) as printed:
            while True:
                with _explained():
                    lines = await anext(printed, None)
                if lines is None:
                    return
                write(lines)

    asyncio.run(tail())
    job = find_job(client, identity)
    if job.exit_code is not None:
        # Ray's view of a process that a signal ended is negative.
        return job.exit_code if job.exit_code >= 0 else UNUSABLE
    return INTERRUPTED if job.state == "STOPPED" else UNUSABLE


def read_logs(client: JobSubmissionClient, identity: str) -> str:
    """Returns what a job has printed so far.

    Raises:
        SweepError: If there is no such job.
    """
    find_job(client, identity)
    with _explained():
        return str(client.get_job_logs(identity))


def stop(client: JobSubmissionClient, identity: str) -> bool:
    """Asks a job's driver to end; returns whether it ran.

    It gets SIGTERM, ends in order, and the same sweep submitted again goes on.

    Raises:
        SweepError: If there is no such job.
    """
    if find_job(client, identity).ended:
        return False
    with _explained():
        return bool(client.stop_job(identity))


def _stem(name: str, directory: str) -> str:
    return f"{_PREFIX}-{name}-{hashlib.sha256(directory.encode()).hexdigest()[:8]}"


def _time(milliseconds: int | None) -> datetime | None:
    return None if not milliseconds else datetime.fromtimestamp(milliseconds / 1000, UTC)


@contextmanager
def _explained() -> Iterator[None]:
    """Turns what goes wrong between here and the cluster into one line, and mutes Ray's client."""
    try:
        with muted(logging.WARNING, *CLIENT_LOGGERS):
            yield
    except (RuntimeError, OSError, ClientError) as error:  # requests' errors are OSErrors
        # Ray sends the traceback of the head; its last line says what it is about.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise SweepError(f"the cluster answers: {lines[-1]}") from None
