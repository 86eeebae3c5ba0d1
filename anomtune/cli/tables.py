"""The leaderboard, the status of a sweep and doctor's checks as people read them in a terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from rich.console import Group
from rich.table import Table
from rich.text import Text

from anomtune.cli.events import study_row
from anomtune.cli.terminal import cell
from anomtune.errors import one_line
from anomtune.search.decide.progress import StudyProgress
from anomtune.search.results.columns import columns_named, is_of_plugin, ranked_by_both
from anomtune.search.results.figures import figure
from anomtune.search.results.status import SweepStatus, status_line

if TYPE_CHECKING:
    from anomtune.cluster.doctor import Check

#: Columns of the leaderboard that a terminal has room for: the figures that a decision needs.
_BEFORE = ("category", "rank", "method", "val_auroc", "val_auroc_low", "gain")
_AFTER = ("trials", "train_seconds", "image_ms", "parameters")
#: Between them, those of these in which anything was measured, and metrics of plug-ins.
_MEASURED = ("confirmed_auroc_mean", "confirmed_auroc_low", "test_auroc_mean", "shifted_auroc_mean")

_TO_THE_LEFT = {"category", "method"}


def leaderboard_table(board: pa.Table) -> Table:
    """Returns the leaderboard as people read it."""
    rows = board.to_pylist()
    names = board.schema.names
    columns = columns_named(names)
    optional = [*_MEASURED, *filter(is_of_plugin, names)]
    measured = [name for name in optional if any(row[name] is not None for row in rows)]
    before, after = list(_BEFORE), list(_AFTER)
    if ranked_by_both(rows):
        after = ["trials", "image_ms"]  # make room for both intervals
    elif "confirmed_auroc_low" in measured:
        before.remove("val_auroc_low")  # an interval is enough: that of what ranks
    shown = [columns[name] for name in (*before, *measured, *after)]
    table = Table(header_style="bold", box=None, pad_edge=False)
    for column in shown:
        left = column.name in _TO_THE_LEFT
        table.add_column(
            cell(column.title), justify="left" if left else "right", no_wrap=column.name != "rank"
        )
    above = None
    for row in rows:
        if above not in (None, row["category"]):
            table.add_section()
        # A category is named once.
        first = row["category"] if row["category"] != above else ""
        table.add_row(cell(first), *(cell(column.format(row)) for column in shown[1:]))
        above = row["category"]
    return table


def leaderboard_note(board: pa.Table) -> str:
    """Returns what a reader of the table must know about its figures."""
    rows = board.to_pylist()
    protocols = sorted({row["validation"] for row in rows})
    note = f"AUROC on {'/'.join(protocols)} validation images; gain over the paper's own config."
    if any(row["confirmed_auroc_mean"] is not None for row in rows):
        note += (
            " Confirmed: the same over seeds, which ranks, less what choosing a scoring may have "
            "added by chance (scoring_error); held out: images not seen before."
        )
    if ranked_by_both(rows):
        note += " Rows that are not confirmed (-) come last, ranked by the search's AUROC."
    if any(row["tied"] for row in rows):
        note += " = : not to be told apart from the best by a paired test (5 %)."
    if any(row["tied"] is None and row["rank"] > 1 and row["params"] is not None for row in rows):
        note += " Unmarked rows may be as good: `tied` is not known of all of them."
    return note


def status_table(status: SweepStatus) -> Group:
    """Returns the status of a sweep as people read it."""
    confirms = any(study.confirm_target for study in status.studies)
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("study", no_wrap=True)
    titles = ["trials", "running", "pruned", "failed", "best", "default"]
    for title in [*titles, *(["confirmed"] if confirms else [])]:
        table.add_column(title, justify="right")
    for study in status.studies:
        table.add_row(
            cell(str(study.key)),
            f"{study.ended}/{study.target}",
            str(study.running or ""),
            str(study.pruned or ""),
            str(study.failed or ""),
            figure(study.best),
            figure(study.default),
            *([f"{study.confirmed}/{study.confirm_target}"] if confirms else []),
        )
    return Group(
        table, *failed_confirm_runs(status.studies), Text(status_line(status), style="bold")
    )


def status_rows(status: SweepStatus) -> Iterator[dict[str, Any]]:
    """Yields the status of a sweep for machines: a row for each study, and one for the sweep."""
    for study in status.studies:
        yield {"row": "study", **study_row(study)}
    fields = {field.name: getattr(status, field.name) for field in dataclasses.fields(status)}
    del fields["studies"]
    yield {"row": "sweep", **fields}


def failed_confirm_runs(studies: Iterable[StudyProgress]) -> list[Text]:
    """Returns a line for each study of which a confirm run has failed."""
    return [
        Text(one_line(f"{study.key}: {study.failed_runs}"), style="bold red")
        for study in studies
        if study.failed_runs is not None
    ]


def checks_table(checks: Sequence[Check]) -> Group:
    """Returns a table of nodes and subjects, and below it what is to be done."""
    subjects = list(dict.fromkeys(check.subject for check in checks))
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("node", no_wrap=True)
    for subject in subjects:
        table.add_column(subject, overflow="fold")
    for node in dict.fromkeys(check.node for check in checks):
        own = {check.subject: check for check in checks if check.node == node}
        table.add_row(
            cell(node), *(_cell(own[subject]) if subject in own else "" for subject in subjects)
        )
    bad = [check for check in checks if not check.good]
    lines = [
        Text(f"{c.node}: {c.subject}: {'; '.join(filter(None, (c.found, c.remedy)))}", style="red")
        for c in bad
    ]
    return Group(table, *lines, *([] if bad else [Text("All is well.", style="bold green")]))


def _cell(check: Check) -> Text:
    return cell(check.found) if check.good else Text("FAIL", style="bold red")
