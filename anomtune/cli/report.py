"""The command `anomtune report`."""

from __future__ import annotations

from typing import Annotated

import typer

from anomtune.cli.terminal import console


def report(
    directory: Annotated[str, typer.Argument(help="The directory of a sweep.", metavar="DIR")],
) -> None:
    """Write report.html, one page for people, also of a sweep that still runs."""
    from anomtune.search.report import write_report

    written = write_report(directory)
    console().print(
        f"{written.location} ({written.size / 1e6:.1f} MB)",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
