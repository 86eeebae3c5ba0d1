"""The `anomtune` command. Each command is a thin call, and imports what it needs itself."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from anomtune.cli import cluster as cluster_commands
from anomtune.cli import detector as cli_detector
from anomtune.cli import report as cli_report
from anomtune.cli.terminal import BAD_INPUT, INTERRUPTED, UNUSABLE, console, refuse

if TYPE_CHECKING:
    import pyarrow as pa

app = typer.Typer(
    help="Search hyperparameters for visual anomaly detection, honestly, on one machine or many.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_GOES_ON = "Interrupted. The same command goes on from here."

Directory = Annotated[str, typer.Argument(help="The directory of a sweep.", metavar="DIR")]


@app.command()
def sweep(
    file: Annotated[
        Path | None, typer.Argument(metavar="SWEEP.yaml", help="Default: the built-in demo sweep.")
    ] = None,
    directory: Annotated[
        str | None, typer.Option("--dir", help="Where results go. Default: sweeps/NAME.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a key.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster.")] = None,
) -> None:
    """Run a sweep, or go on with it; the same command again resumes it."""
    from anomtune.cli.monitor import Monitor
    from anomtune.cli.tables import leaderboard_note, leaderboard_table
    from anomtune.search.config import load_sweep

    config = load_sweep(file, overrides or ())
    where = directory or f"sweeps/{config.name}"
    out, log = console(), console(stderr=True)
    log.print(f"anomtune sweep {config.name} -> {where}", highlight=False)

    from anomtune.search.run.engine import terminate_as_interrupt
    from anomtune.search.sweep import run_sweep

    try:
        with terminate_as_interrupt():
            outcome = run_sweep(config, where, address=address, monitor=Monitor(log))
    except KeyboardInterrupt:  # while it was still preparing
        log.print(_GOES_ON, style="bold")
        raise typer.Exit(INTERRUPTED) from None
    out.print(leaderboard_table(outcome.leaderboard))
    out.print(leaderboard_note(outcome.leaderboard), style="dim", highlight=False)
    if outcome.interrupted:
        log.print(_GOES_ON, style="bold")
        raise typer.Exit(INTERRUPTED)
    for study in outcome.unusable:
        log.print(
            f"{study}: no trial completed; the records in {where}/trials/{study} say why",
            style="bold red",
            markup=False,
            highlight=False,
        )
    usable = [row for row in outcome.leaderboard.to_pylist() if row["params"] is not None]
    place = shlex.quote(where)
    commands = [
        (f"anomtune report {place}", "the decision in one page"),
        (f"anomtune leaderboard {place} --format csv", "every column"),
        (f"anomtune tensorboard {place}", "curves and hyperparameters"),
    ]
    if usable:
        chosen = f"anomtune best {place} --category {shlex.quote(usable[0]['category'])}"
        commands.insert(0, (chosen, "the chosen config as YAML"))
    out.print("\nNext:")
    for command, purpose in commands:
        out.print(f"  {command}  # {purpose}", markup=False, highlight=False, soft_wrap=True)
    if outcome.unusable:
        raise typer.Exit(UNUSABLE)


@app.command()
def leaderboard(
    directory: Directory,
    category: Annotated[str | None, typer.Option(help="Only this category.")] = None,
    method: Annotated[str | None, typer.Option(help="Only this method.")] = None,
    form: Annotated[str, typer.Option("--format", help="table, json or csv.")] = "table",
) -> None:
    """Show the leaderboard, also of a sweep that still runs."""
    board = _board(directory, category, method)
    if form == "json":
        print(json.dumps(board.to_pylist(), default=str, indent=2))
    elif form == "csv":
        from pyarrow import csv

        buffer = io.BytesIO()
        plain = board.cast(_without_dictionaries(board))
        csv.write_csv(plain, buffer)
        sys.stdout.write(buffer.getvalue().decode())
    elif form == "table":
        from anomtune.cli.tables import leaderboard_note, leaderboard_table

        out = console()
        out.print(leaderboard_table(board))
        out.print(leaderboard_note(board), style="dim", highlight=False)
    else:
        refuse(f"--format {form}: there is table, json, csv")


@app.command()
def best(
    directory: Directory,
    category: Annotated[
        str | None, typer.Option(help="The category to decide for; may be left out if one.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Default: the method of rank 1.")] = None,
) -> None:
    """Print the chosen config of a category as YAML."""
    from anomtune.search.config import dump_yaml
    from anomtune.search.store.records import open_sweep

    rows = _board(directory, category, method).to_pylist()
    names = list(dict.fromkeys(row["category"] for row in rows))
    if len(names) > 1:
        refuse(f"--category: say which; there is {', '.join(names)}")
    row = rows[0]
    if row["params"] is None:
        refuse(f"{names[0]}/{row['method']}: no completed trial yet, so there is no best config")
    config, _ = open_sweep(directory)
    chosen = {
        "dataset": config.dataset.model_dump(exclude={"categories"}, exclude_none=True),
        "category": row["category"],
        "method": row["method"],
        "image_size": config.image_size,
        "seed": config.seed,
        "hyperparameters": json.loads(row["params"]),
        "validation": {
            **config.validation.model_dump(),
            "split_hash": row["split_hash"],
            "auroc": row["val_auroc"],
            "interval": [row["val_auroc_low"], row["val_auroc_high"]],
            "default_auroc": row["default_val_auroc"],
        },
        "trial": row["trial_number"],
    }
    sys.stdout.write(dump_yaml(chosen))


@app.command()
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
                field, str(info.default), _range_text(space.get(field)), info.description or ""
            )
        out.print(table, "")
        if kind.presets:
            out.print("presets: " + ", ".join(kind.presets) + "\n", highlight=False)


@app.command()
def datasets() -> None:
    """List the dataset families."""
    from anomtune.registry import DATASETS

    table = Table(box=None, pad_edge=False)
    table.add_column("dataset")
    table.add_column("what it reads")
    for name in DATASETS.names():
        summary = (DATASETS.get(name).__doc__ or "").strip().splitlines()
        table.add_row(name, summary[0] if summary else "")
    console().print(table)


@app.command()
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
    from anomtune.datasets.opening import open_dataset
    from anomtune.datasets.splits.audit import inspect
    from anomtune.datasets.splits.manifest import manifest as list_parts
    from anomtune.datasets.splits.manifest import write_manifest
    from anomtune.datasets.splits.split import Validation

    source = open_dataset(dataset, root)
    validation = Validation(protocol, fraction, seed)  # type: ignore[arg-type]
    report = inspect(source, category)
    table = Table(box=None, pad_edge=False)
    for column in ("category", "train", "good", "defective", "defect types", "sizes", "shifted"):
        table.add_column(column, justify="right" if column in {"train", "good"} else "left")
    for row in report.counts:
        sizes = dict.fromkeys(size for size in (row.smallest, row.largest) if size is not None)
        table.add_row(
            row.category,
            str(row.n_train),
            str(row.n_test_normal),
            str(row.n_test_anomalous),
            ", ".join(f"{defect} {number}" for defect, number in row.defects),
            " to ".join(f"{height}x{width}" for height, width in sizes),
            ", ".join(f"{domain} {number}" for domain, number in row.domains),
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


@app.command()
def tensorboard(
    directory: Directory,
    category: Annotated[str | None, typer.Option(help="Only this category.")] = None,
    method: Annotated[str | None, typer.Option(help="Only this method of the category.")] = None,
    port: Annotated[int, typer.Option(help="0 = any free port.")] = 6006,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Open TensorBoard on the curves of a sweep."""
    if method is not None and category is None:
        refuse("--method: say which --category too")
    logdir = "/".join(filter(None, (directory, "tensorboard", category, method)))
    if "://" not in directory and not Path(logdir).is_dir():
        refuse(f"{logdir}: no such folder; give the directory of a sweep with trials")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", logdir]
    raise typer.Exit(subprocess.call([*command, "--port", str(port), "--host", host]))  # noqa: S603


for _command in (cli_detector.train, cli_detector.predict, cli_detector.export, cli_report.report):
    app.command()(_command)
cluster_commands.register(app)


def main() -> None:
    """Runs the command; bad input ends with one line and exit code 2, never with a traceback."""
    from anomtune.errors import DataError, MethodError, SweepError

    try:
        app()
    except (SweepError, DataError, MethodError) as error:
        refuse(str(error))


def _board(directory: str, category: str | None, method: str | None) -> pa.Table:
    """Compiles the leaderboard and keeps the rows that were asked for."""
    import pyarrow.compute as pc

    from anomtune.errors import suggest
    from anomtune.search.results.leaderboard import compile_leaderboard
    from anomtune.search.store.records import open_sweep

    config, store = open_sweep(directory)
    board = compile_leaderboard(config, store)
    for column, value in (("category", category), ("method", method)):
        if value is None:
            continue
        known = list(dict.fromkeys(board[column].to_pylist()))
        if value not in known:
            refuse(f"--{column} {value}: not in this sweep{suggest(value, known)}")
        board = board.filter(pc.equal(board[column].cast("string"), value))
    return board


def _without_dictionaries(table: pa.Table) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            (field.name, pa.string() if pa.types.is_dictionary(field.type) else field.type)
            for field in table.schema
        ]
    )


def _range_text(item: Any) -> str:
    if item is None:
        return "fixed"
    values = getattr(item, "choices", None)
    if values is not None:
        return ", ".join(map(str, values))
    return f"{item.low} to {item.high}{' (log)' if item.log else ''}"


if __name__ == "__main__":
    main()
