"""The commands of `anomtune` that deal with clusters. Each imports what it needs itself."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from anomtune.cli.output import is_json, notes, write_rows
from anomtune.cli.terminal import cell, console
from anomtune.errors import INTERRUPTED, UNUSABLE

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

#: Ray's own commands take a dashboard's address from it, too.
_ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
Address = Annotated[
    str,
    typer.Option(envvar=_ADDRESS_VARIABLE, help="The cluster's dashboard, http://head:8265."),
]
Unauthenticated = Annotated[
    bool,
    typer.Option("--allow-unauthenticated", help="Use a dashboard that lets everybody in."),
]
Identity = Annotated[str, typer.Argument(metavar="ID", help="As `anomtune jobs` lists it.")]


def submit(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.yaml")],
    address: Address,
    directory: Annotated[
        str | None,
        typer.Option("--dir", help="Where results go: a path that all nodes share, or s3://."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a key.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Show its log and end with its exit code.")
    ] = False,
    no_ship: Annotated[
        bool, typer.Option("--no-ship", help="Use the anomtune that the nodes have.")
    ] = False,
    allow_unauthenticated: Unauthenticated = False,
) -> None:
    """Run a sweep on a Ray cluster; the same again resumes it."""
    from anomtune.cluster import jobs as cluster_jobs
    from anomtune.cluster.connect import connect, dashboard_url, is_loopback
    from anomtune.search.config import load_sweep

    config = load_sweep(file, overrides or ())
    here = is_loopback(dashboard_url(address))
    where = cluster_jobs.shared_directory(directory, config.name, here=here)
    config = cluster_jobs.portable(config, here=here)
    client = connect(address, allow_unauthenticated=allow_unauthenticated)
    identity = cluster_jobs.submit(client, config, where, ship=not no_ship)
    log = notes()
    log.print(f"{config.name} -> {where}, as job", highlight=False, markup=False)
    print(identity)
    if wait:
        _follow(client, identity)


def jobs(address: Address, allow_unauthenticated: Unauthenticated = False) -> None:
    """List the sweeps that a cluster runs or has run, the latest first."""
    from anomtune.cluster.connect import connect
    from anomtune.cluster.jobs import list_jobs

    found = list_jobs(connect(address, allow_unauthenticated=allow_unauthenticated))
    if is_json():
        write_rows(map(asdict, found))
        return
    table = Table(header_style="bold", box=None, pad_edge=False)
    for column in ("id", "state", "sweep", "started", "directory"):
        table.add_column(column, overflow="fold")
    for job in found:
        state = job.state if not job.exit_code else f"{job.state} ({job.exit_code})"
        started = f"{job.started:%Y-%m-%d %H:%M} UTC" if job.started else ""
        table.add_row(*map(cell, (job.id, state, job.name, started, job.directory)))
    console().print(table)


def status(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="The directory of a sweep.")],
    address: Annotated[str | None, typer.Option(help="Also tell its job on this cluster.")] = None,
    allow_unauthenticated: Unauthenticated = False,
) -> None:
    """Show how far a sweep is: trials, the best so far, the time left."""
    from anomtune.cli.tables import status_rows, status_table
    from anomtune.search.results.status import sweep_status
    from anomtune.search.store.directory import read_sweep

    config, store = read_sweep(directory)
    found, out = sweep_status(config, store, datetime.now(UTC)), console()
    if is_json():
        write_rows(status_rows(found))
    else:
        out.print(status_table(found))
    if address is None:
        return
    from anomtune.cluster.connect import connect
    from anomtune.cluster.jobs import list_jobs

    client = connect(address, allow_unauthenticated=allow_unauthenticated)
    place = directory.rstrip("/") if "://" in directory else str(Path(directory).absolute())
    job = next((job for job in list_jobs(client) if job.directory == place), None)
    if is_json():
        write_rows({"row": "job", **asdict(each)} for each in (job,) if each is not None)
        return
    told = f"job {job.id}: {job.state}" if job else "no job of this directory on the cluster"
    out.print(told, highlight=False, markup=False)


def logs(
    identity: Identity,
    address: Address,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on, and end with its exit code.")
    ] = False,
    allow_unauthenticated: Unauthenticated = False,
) -> None:
    """Show what a job prints."""
    from anomtune.cluster.connect import connect
    from anomtune.cluster.jobs import find_job, read_logs

    client = connect(address, allow_unauthenticated=allow_unauthenticated)
    if not follow:
        _write(read_logs(client, identity))
        return
    find_job(client, identity)
    _follow(client, identity)


def stop(
    identity: Identity, address: Address, allow_unauthenticated: Unauthenticated = False
) -> None:
    """End a job in order; the same sweep submitted again goes on."""
    from anomtune.cluster.connect import connect
    from anomtune.cluster.jobs import stop as stop_job

    client = connect(address, allow_unauthenticated=allow_unauthenticated)
    ran = stop_job(client, identity)
    told = "stopping; submitted again it goes on" if ran else "had ended already"
    notes().print(f"{identity}: {told}", highlight=False, markup=False)


def doctor(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="SWEEP.yaml", help="Also check its weights and its images."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            envvar=_ADDRESS_VARIABLE,
            help="The dashboard of a cluster; on a node of it, auto. Default: here.",
        ),
    ] = None,
    directory: Annotated[
        str | None, typer.Option("--dir", help="Also check this sweep directory.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a key.")
    ] = None,
    no_ship: Annotated[
        bool, typer.Option("--no-ship", help="Use the anomtune that the nodes have.")
    ] = False,
    allow_unauthenticated: Unauthenticated = False,
) -> None:
    """Check every node: versions, GPUs, weights, images, storage, clock, disk, tokens."""
    from anomtune.cluster import jobs as cluster_jobs
    from anomtune.cluster.connect import connect, dashboard_url, is_loopback
    from anomtune.search.config import load_sweep

    config = load_sweep(file, overrides or ()) if file else None
    if address is None or "://" not in address:
        from anomtune.cli.tables import checks_table
        from anomtune.cluster.doctor import examine

        checks = examine(config, directory, address)
        console().print(checks_table(checks))
        raise typer.Exit(0 if all(check.good for check in checks) else UNUSABLE)
    here = is_loopback(dashboard_url(address))
    if config is not None:
        config = cluster_jobs.portable(config, here=here)
    if directory is not None:
        directory = cluster_jobs.shared_directory(directory, "", here=here)
    client = connect(address, allow_unauthenticated=allow_unauthenticated)
    identity = cluster_jobs.submit_doctor(client, config, directory, ship=not no_ship)
    _follow(client, identity)


def _follow(client: JobSubmissionClient, identity: str) -> None:
    """Shows a job's log and ends the command with its exit code."""
    from anomtune.cluster.jobs import follow

    try:
        code = follow(client, identity, _write)
    except KeyboardInterrupt:
        console(stderr=True).print(
            f"The job goes on. See it again: anomtune logs {identity} -f",
            style="bold",
            highlight=False,
            markup=False,
        )
        raise typer.Exit(INTERRUPTED) from None
    raise typer.Exit(code)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
