"""The commands that say what can be swept, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from anomtune.cli.completion import dataset_names, method_names, published_categories
from anomtune.cli.output import is_json, write_rows
from anomtune.cli.terminal import cell, console, refuse, require_writable
from anomtune.errors import BAD_INPUT

if TYPE_CHECKING:
    from rich.console import Console

    from anomtune.datasets.base import Dataset
    from anomtune.datasets.io.eviction import Entry
    from anomtune.datasets.splits.audit import Audit
    from anomtune.models.hyperparameters import Setting
    from anomtune.models.scoring import Scoring
    from anomtune.search.decide.plan import SearchPlan


def methods(
    name: Annotated[
        str | None, typer.Argument(help="Only this method.", autocompletion=method_names)
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="With what its paper set on this dataset.", autocompletion=dataset_names),
    ] = None,
    category: Annotated[
        str | None,
        typer.Option(help="And on this category of it.", autocompletion=published_categories),
    ] = None,
) -> None:
    """List the methods with every default, range and preset: what trial 0 of a study has."""
    from anomtune.registry import METHODS
    from anomtune.search.config import MethodConfig
    from anomtune.search.decide.plan import plan_search
    from anomtune.search.results.paper_results import published

    if dataset is None and category is not None:
        refuse("--category: of which dataset? give --dataset as well")
    if dataset is not None:
        _check_category(dataset, category)
    place = "/".join(filter(None, (dataset, category)))
    out = console()
    if is_json():
        for method in METHODS.names() if name is None else (name,):
            plan = plan_search(method, MethodConfig(), dataset or "", category, image_size=None)
            decided = METHODS.get(method).Hyperparameters.settings_for(dataset or "", category)
            write_rows(_rows(plan, decided))
        return
    for method in METHODS.names() if name is None else (name,):
        kind = METHODS.get(method).Hyperparameters
        plan = plan_search(method, MethodConfig(), dataset or "", category, image_size=None)
        decided = kind.settings_for(dataset or "", category)
        title = f"{method} on {place}" if place else method
        table = Table(title=cell(title), title_justify="left", box=None, pad_edge=False)
        for column in ("hyperparameter", "default", "searched over", "meaning"):
            table.add_column(column, overflow="fold")
        for row in (
            *training_rows(plan, decided),
            *scoring_rows(plan.defaults.scoring, decided),
        ):
            table.add_row(*map(cell, row))
        out.print(table, "")
        if dataset is not None and category is not None:
            known = published(dataset, category, method)
            if known is not None:
                figures = ", ".join(f"{name} {value:g}" for name, value in known.figures.items())
                out.print(f"published: {figures} ({known.source})\n", highlight=False)
        for setting in kind.settings:
            if dataset is None or (category is None and setting.dataset == dataset):
                _print_setting(out, setting)
        if kind.presets:
            out.print("presets: " + ", ".join(kind.presets) + "\n", highlight=False, markup=False)


def _rows(plan: SearchPlan, decided: Mapping[str, Setting]) -> Iterator[dict[str, Any]]:
    """Yields what can be set of a method for machines: values as they are, ranges as text."""
    values = plan.defaults.model_dump(mode="json")
    for prefix, known, rows in (
        ("", values, training_rows(plan, decided)),
        ("scoring.", values["scoring"], scoring_rows(plan.defaults.scoring, decided)),
    ):
        for name, _, searched, meaning in rows:
            yield {
                "method": plan.method,
                "hyperparameter": name,
                "default": known[name.removeprefix(prefix)],
                "searched": searched,
                "meaning": meaning,
            }


def training_rows(plan: SearchPlan, decided: Mapping[str, Setting]) -> Iterator[tuple[str, ...]]:
    """Yields what can be set of a method's training; a search tries values of the ranges."""
    from anomtune.models.ranges import SizeRange

    ranges = plan.defaults.search_space()
    for field, info in type(plan.defaults).model_fields.items():
        meaning = info.description or ""
        if field in decided:
            meaning = f"{origin(decided[field])}\n{meaning}"
        if field != "scoring":
            value = str(getattr(plan.defaults, field))
            sizes = ranges.get(field)  # which a plan has for one image_size alone
            relative = isinstance(sizes, SizeRange) and field not in decided
            searched = str(sizes) if relative else _range_text(plan.space.get(field))
            yield field, value, searched, meaning


def scoring_rows(scoring: Scoring, decided: Mapping[str, Setting]) -> Iterator[tuple[str, ...]]:
    """Yields what can be set of a method after training; every trial judges all the choices."""
    from anomtune.models.ranges import ranges_of

    choices = ranges_of(type(scoring))
    for name, info in type(scoring).model_fields.items():
        meaning = info.description or ""
        if setting := decided.get(f"scoring.{name}"):
            meaning = f"{origin(setting)}\n{meaning}"
        judged = "subsets" if name == "scales" else _range_text(choices.get(name))
        yield f"scoring.{name}", str(getattr(scoring, name)), judged, meaning


def datasets() -> None:
    """List the dataset families."""
    from anomtune.registry import DATASETS

    table = Table(box=None, pad_edge=False)
    table.add_column("dataset")
    table.add_column("what it reads")
    for name in DATASETS.names():
        lines = (DATASETS.get(name).__doc__ or "").strip().splitlines()
        summary = lines[0] if lines else ""
        if is_json():
            write_rows([{"dataset": name, "reads": summary}])
        table.add_row(cell(name), cell(summary))
    if not is_json():
        console().print(table)


def audit(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help="A dataset, or a sweep file that has one.",
            autocompletion=dataset_names,
        ),
    ],
    root: Annotated[str | None, typer.Argument(metavar="ROOT", help="Folder or URI.")] = None,
    category: Annotated[
        str | None,
        typer.Option(help="Only this category.", autocompletion=published_categories),
    ] = None,
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
    from anomtune.search.config import load_sweep
    from anomtune.search.explain import explain

    if manifest is not None:
        require_writable("--manifest", manifest, manifest)
    if root is None and dataset.lower().endswith((".yaml", ".yml")):
        config = load_sweep(dataset)
        source, dataset = config.dataset.open(), config.dataset.name
    else:
        source = open_dataset(dataset, root)
    try:
        validation = Validation.model_validate(
            {"protocol": protocol, "fraction": fraction, "seed": seed}
        )
    except ValidationError as error:
        refuse(f"--{explain(error, Validation)}")
    report = inspect(source, None if category is None else typed(category), validation)
    fatal = sum(problem.fatal for problem in report.problems)
    if is_json():
        write_rows({"row": "category", **asdict(row)} for row in report.counts)
        write_rows({"row": "problem", **asdict(problem)} for problem in report.problems)
    else:
        _show_audit(report, dataset, source)
    if fatal:
        raise typer.Exit(BAD_INPUT)
    if manifest is not None:
        names = [row.category for row in report.counts]
        write_manifest(
            manifest, [row for name in names for row in list_parts(source, name, validation)]
        )


def _show_audit(report: Audit, dataset: str, source: Dataset) -> None:
    from anomtune.datasets.splits.division import Division

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
    for row in report.counts:
        if row.division is not None:
            line = f"{row.category}: {source.division or Division()}: {row.division}"
            out.print(cell(line), soft_wrap=True)
    for problem in report.problems:
        style = "red" if problem.fatal else "yellow"
        # A known dataset's categories go by its name; a folder's stand for themselves.
        place = "" if dataset in {"folder", "table"} else f"{dataset}/"
        out.print(f"{place}{problem}", style=style, highlight=False, markup=False, soft_wrap=True)
    fatal = sum(problem.fatal for problem in report.problems)
    out.print(f"{len(report.problems)} problems, {fatal} of them fatal", style="bold")


def cache() -> None:
    """Show what this machine keeps of images and features, and how much it may take."""
    from anomtune.datasets.io.eviction import entries
    from anomtune.datasets.io.store import bound, cache_root
    from anomtune.names import to_text

    root, most = cache_root(), bound()
    known = entries(root)
    if is_json():
        write_rows(_cache_rows(known))
        taken = sum(entry.size for entry in known)
        write_rows([{"row": "cache", "root": to_text(root), "bytes": taken, "most_bytes": most}])
        return
    table = Table(box=None, pad_edge=False)
    for column in ("kind", "entries", "size", "used last"):
        table.add_column(column, justify="right" if column in {"entries", "size"} else "left")
    for kind in sorted({entry.kind for entry in known}):
        own = [entry for entry in known if entry.kind == kind]
        last = datetime.fromtimestamp(max(entry.used for entry in own)).astimezone()
        size = sum(entry.size for entry in own)
        table.add_row(
            cell(kind), str(len(own)), _gigabytes(size), last.isoformat(" ", "minutes")[:16]
        )
    out = console()
    if known:
        out.print(table)
    taken = sum(entry.size for entry in known)
    out.print(
        f"{root}: {_gigabytes(taken)} of at most {_gigabytes(most)} (ANOMTUNE_CACHE_GB); what was "
        "used least recently goes first, and all of it may be deleted when nothing runs.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _cache_rows(known: Sequence[Entry]) -> Iterator[dict[str, Any]]:
    for kind in sorted({entry.kind for entry in known}):
        own = [entry for entry in known if entry.kind == kind]
        used = datetime.fromtimestamp(max(entry.used for entry in own), UTC)
        size = sum(entry.size for entry in own)
        yield {"row": "kind", "kind": kind, "entries": len(own), "bytes": size, "used_last": used}


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _check_category(dataset: str, category: str | None) -> None:
    """Refuses a dataset or category that a table of defaults would silently not know."""
    from anomtune.errors import suggest
    from anomtune.registry import DATASETS
    from anomtune.search.results.paper_results import published_categories

    DATASETS.get(dataset)
    known = published_categories(dataset)
    if category is not None and known and category not in known:
        refuse(f"--category: no category {category!r} of {dataset}{suggest(category, known)}")


def origin(setting: Setting) -> str:
    """Returns where a default comes from that the method does not have by itself."""
    where = f"{setting.dataset}/{', '.join(setting.categories)}".rstrip("/")
    return f"For {where}{' (inferred)' if setting.inferred else ''}: {setting.source}"


def _print_setting(out: Console, setting: Setting) -> None:
    values = ", ".join(f"{name} {value}" for name, value in by_name(setting.values))
    out.print(f"{values}\n  {origin(setting)}", highlight=False, markup=False)


def by_name(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields fields and their values; those of a scoring one by one."""
    for name, value in values.items():
        if name == "scoring":
            yield from ((f"scoring.{field}", given) for field, given in value.items())
        else:
            yield name, value


def _range_text(item: Any) -> str:
    if item is None:
        return "fixed"
    values = getattr(item, "choices", None)
    if values is not None:
        return ", ".join(map(str, values))
    return f"{item.low} to {item.high}{' (log)' if item.log else ''}"
