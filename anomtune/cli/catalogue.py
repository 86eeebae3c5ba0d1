"""The commands that say what can be swept, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from anomtune.cli.terminal import cell, console, refuse, require_writable
from anomtune.errors import BAD_INPUT


def methods(name: Annotated[str | None, typer.Argument(help="Only this method.")] = None) -> None:
    """List the methods with every default, range and preset."""
    from anomtune.registry import METHODS

    out = console()
    for method in METHODS.names() if name is None else (name,):
        kind = METHODS.get(method).Hyperparameters
        space = kind.search_space()
        table = Table(title=method, title_justify="left", box=None, pad_edge=False)
        for column in ("hyperparameter", "default", "searched over", "meaning"):
            table.add_column(column, overflow="fold")
        for field, info in kind.model_fields.items():
            table.add_row(
                *map(
                    cell,
                    (
                        field,
                        str(info.default),
                        _range_text(space.get(field)),
                        info.description or "",
                    ),
                )
            )
        out.print(table, "")
        if kind.presets:
            out.print("presets: " + ", ".join(kind.presets) + "\n", highlight=False, markup=False)


def datasets() -> None:
    """List the dataset families."""
    from anomtune.registry import DATASETS

    table = Table(box=None, pad_edge=False)
    table.add_column("dataset")
    table.add_column("what it reads")
    for name in DATASETS.names():
        summary = (DATASETS.get(name).__doc__ or "").strip().splitlines()
        table.add_row(cell(name), cell(summary[0] if summary else ""))
    console().print(table)


def audit(
    dataset: Annotated[str, typer.Argument(metavar="DATASET")],
    root: Annotated[str | None, typer.Argument(metavar="ROOT", help="Folder or URI.")] = None,
    category: Annotated[str | None, typer.Option(help="Only this category.")] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv", help="Write which image plays which part of a split."),
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="Of the manifest: labelled, synthetic or test.")
    ] = "labelled",
    fraction: Annotated[float, typer.Option(help="Of the manifest: validation's share.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Of the manifest: chooses the split.")] = 0,
) -> None:
    """Read every image and mask of a data folder and say what is wrong with it."""
    from pydantic import ValidationError

    from anomtune.datasets.opening import open_dataset
    from anomtune.datasets.splits.audit import inspect
    from anomtune.datasets.splits.manifest import manifest as list_parts
    from anomtune.datasets.splits.manifest import write_manifest
    from anomtune.datasets.splits.validation import Validation
    from anomtune.names import typed
    from anomtune.search.config import explain

    if manifest is not None:
        require_writable("--manifest", manifest, manifest)
    source = open_dataset(dataset, root)
    try:
        validation = Validation.model_validate(
            {"protocol": protocol, "fraction": fraction, "seed": seed}
        )
    except ValidationError as error:
        refuse(f"--{explain(error, Validation)}")
    report = inspect(source, None if category is None else typed(category))
    table = Table(box=None, pad_edge=False)
    for column in ("category", "train", "good", "defective", "defect types", "sizes", "shifted"):
        table.add_column(column, justify="right" if column in {"train", "good"} else "left")
    for row in report.counts:
        sizes = dict.fromkeys(size for size in (row.smallest, row.largest) if size is not None)
        table.add_row(
            cell(row.category),
            str(row.n_train),
            str(row.n_test_normal),
            str(row.n_test_anomalous),
            cell(", ".join(f"{defect} {number}" for defect, number in row.defects)),
            " to ".join(f"{height}x{width}" for height, width in sizes),
            cell(", ".join(f"{domain} {number}" for domain, number in row.domains)),
        )
    out = console()
    out.print(table)
    for problem in report.problems:
        style = "red" if problem.fatal else "yellow"
        # A known dataset's categories go by its name; a folder's stand for themselves.
        place = "" if dataset == "folder" else f"{dataset}/"
        out.print(f"{place}{problem}", style=style, highlight=False, markup=False, soft_wrap=True)
    fatal = sum(problem.fatal for problem in report.problems)
    out.print(f"{len(report.problems)} problems, {fatal} of them fatal", style="bold")
    if fatal:
        raise typer.Exit(BAD_INPUT)
    if manifest is not None:
        names = [row.category for row in report.counts]
        write_manifest(
            manifest, [row for name in names for row in list_parts(source, name, validation)]
        )


def _range_text(item: Any) -> str:
    if item is None:
        return "fixed"
    values = getattr(item, "choices", None)
    if values is not None:
        return ", ".join(map(str, values))
    return f"{item.low} to {item.high}{' (log)' if item.log else ''}"
