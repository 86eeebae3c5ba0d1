"""The command `anomtune reproduce`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from anomtune.cli.completion import dataset_names, method_names, published_categories
from anomtune.cli.output import notes
from anomtune.cli.terminal import cell, console, refuse
from anomtune.errors import INTERRUPTED, UNUSABLE

if TYPE_CHECKING:
    from anomtune.models.hyperparameters import Protocol
    from anomtune.search.results.reproduction import Figure, Reproduction

#: How many remarks on the images are shown.
_WARNINGS = 5


def reproduce(
    method: Annotated[str, typer.Argument(metavar="METHOD", autocompletion=method_names)],
    dataset: Annotated[str, typer.Argument(metavar="DATASET", autocompletion=dataset_names)],
    root: Annotated[str | None, typer.Argument(metavar="ROOT", help="Folder or URI.")] = None,
    categories: Annotated[
        list[str] | None,
        typer.Option(
            "--category",
            help="Only this one; can be repeated.",
            autocompletion=published_categories,
        ),
    ] = None,
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", help="Can be repeated. Default: the paper's.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="A row of its ablation instead; `anomtune methods` has them.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Replace a hyperparameter of the paper."),
    ] = None,
    image_size: Annotated[
        int, typer.Option(min=1, help="Side of the maps; papers have 256.")
    ] = 256,
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Where runs go. Default: reproduced/METHOD-DATASET."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda. Default: a GPU if there is one.")
    ] = None,
) -> None:
    """Train a paper's config with its seeds, judge it as the paper does, compare the figures.

    The whole test set judges, as in the papers: none of these figures is one of unseen images.
    """
    if device not in (None, "cpu", "cuda"):
        refuse(f"--device {device}: there is cpu, cuda")
    from anomtune.names import typed
    from anomtune.registry import METHODS
    from anomtune.search.reproduce import reproduce as run

    protocol = METHODS.get(method).Hyperparameters.protocol
    where = out or f"reproduced/{method.replace(':', '.')}-{dataset}"
    log, errors = notes(), console(stderr=True)

    def tell(category: str, seed: int, iteration: int, total: int) -> None:
        line = f"{category}, seed {seed}: iteration {iteration} of {total}"
        log.print(line, style="dim", highlight=False, markup=False)

    source: dict[str, Any] = {"name": dataset, "root": root}
    try:
        found = run(
            method,
            source | ({"categories": [*map(typed, categories)]} if categories else {}),
            where,
            seeds=seeds or (),
            image_size=image_size,
            preset=preset,
            hyperparameters=_values(overrides or ()),
            device=device,
            on_progress=tell,
        )
    except KeyboardInterrupt:
        log.print("Interrupted. The same command goes on from here.", style="bold")
        raise typer.Exit(INTERRUPTED) from None
    for warning in found.warnings[:_WARNINGS]:
        log.print(warning, style="yellow", highlight=False, markup=False)
    if more := len(found.warnings[_WARNINGS:]):
        log.print(f"and {more} more; `anomtune audit` has all of them", style="yellow")
    _show(found, protocol, where)
    failed = [run for runs in found.runs.values() for run in runs if run.state == "FAIL"]
    for each in failed:
        line = f"{each.category}, seed {each.seed}: {each.error}"
        errors.print(line, style="bold red", highlight=False, markup=False)
    if failed:
        raise typer.Exit(UNUSABLE)


def _values(overrides: list[str] | tuple[str, ...]) -> dict[str, Any]:
    from anomtune.names import typed
    from anomtune.search.yaml_text import read_yaml

    found = {}
    for override in overrides:
        name, equals, value = typed(override).partition("=")
        if not equals or not name:
            refuse(f"--set {override}: write name=value, for example --set backbone=resnet18")
        found[name] = read_yaml(value, f"--set {override}")
    return found


def _show(found: Reproduction, protocol: Protocol, where: str) -> None:
    from anomtune.search.metrics.metric import metrics

    out = console()
    rows = found.rows()
    titles = {metric.name: metric.title for metric in metrics()}
    names = [
        name
        for name in found.figure_names
        if any(row.figures[name].mean is not None for row in rows)
        or any(row.figures[name].published is not None for row in rows)
    ]
    table = Table(box=None, pad_edge=False)
    table.add_column(found.config.dataset.name)
    told = {name for row in rows for name in names if row.figures[name].published is not None}
    for name in names:
        table.add_column(titles[name], justify="right")
        for column in ("paper", "difference") if name in told else ():
            table.add_column(column, justify="right")
    for row in rows:
        label = f"{row.category} ({row.domain})" if row.domain else row.category
        cells = [
            cell for name in names for cell in _cells(row.figures[name])[: 3 if name in told else 1]
        ]
        table.add_row(cell(label), *cells, style="bold" if row.category == "mean" else None)
    out.print(table)
    for line in (*_notes(found, protocol), f"runs in {where}"):
        out.print(line, style="dim", highlight=False, markup=False)


def _cells(figure: Figure) -> tuple[str, str, str]:
    ours = "" if figure.mean is None else f"{figure.mean:.4f}"
    if figure.std is not None:
        ours += f" +- {figure.std:.4f}"
    told = "" if figure.published is None else f"{figure.published:.4f}"
    difference = "" if figure.difference is None else f"{figure.difference:+.4f}"
    return ours, told, difference


def _notes(found: Reproduction, protocol: Protocol) -> list[str]:
    counts = {len(runs) for runs in found.runs.values()}
    seeds = sorted({run.seed for runs in found.runs.values() for run in runs})
    sources = dict.fromkeys(row.source for row in found.rows() if row.source)
    how = "resized to the maps" if protocol.masks == "resized" else "resized, any part counts"
    seen = {run.seen for runs in found.runs.values() for run in runs} - {1.0}
    rim = "".join(f"; pixels of the middle {each:.1%} of each side" for each in sorted(seen))
    lines = [
        "The whole test set, as in the paper: no figure of unseen images. "
        f"Seed{'s' if max(counts) > 1 else ''} {', '.join(map(str, seeds))}; masks {how}{rim}.",
        f"Protocol: {protocol.source}{' Inferred.' if protocol.inferred else ''}",
    ]
    lines += [f"Published: {source}" for source in sources]
    if not sources:
        where = found.config.dataset.name
        lines.append(f"No published figure of {found.method} by category of {where} is known here.")
    if found.inferred:
        lines.append(f"Inferred, not told by the paper: {', '.join(found.inferred)}.")
    if found.differs:
        lines.append(f"Not the paper's config: {'; '.join(found.differs)}.")
    return lines
