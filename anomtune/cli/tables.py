"""The leaderboard as people read it in a terminal."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from rich.markup import escape
from rich.table import Table


def leaderboard_table(board: pa.Table) -> Table:
    """Returns the leaderboard as people read it: the figures that a decision needs."""
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("category", no_wrap=True)
    table.add_column("rank", justify="right")
    table.add_column("method", no_wrap=True)
    rows = board.to_pylist()
    confirmed = [
        (title, column)
        for title, column in (
            ("confirmed", "confirmed_auroc_mean"),
            ("held out", "test_auroc_mean"),
            ("shifted", "shifted_auroc_mean"),
        )
        if any(row[column] is not None for row in rows)
    ]
    for title in ("AUROC", "95 % interval", "gain", *(title for title, _ in confirmed)):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("trials", "train s", "ms/image", "params"):
        table.add_column(title, justify="right", no_wrap=True)
    before = None
    for row in rows:
        if before not in (None, row["category"]):
            table.add_section()
        interval = (
            f"{row['val_auroc_low']:.3f}-{row['val_auroc_high']:.3f}"
            if row["val_auroc"] is not None
            else ""
        )
        table.add_row(
            escape(row["category"]) if row["category"] != before else "",
            f"{'=' if row['tied'] else ''}{row['rank']}",
            row["method"],
            figure(row["val_auroc"]),
            interval,
            "" if row["gain"] is None else f"{row['gain']:+.3f}",
            *(_spread(row, column) for _, column in confirmed),
            _trials(row),
            "" if row["train_seconds"] is None else f"{row['train_seconds']:.1f}",
            "" if row["image_ms"] is None else f"{row['image_ms']:.1f}",
            "" if row["parameters"] is None else f"{row['parameters'] / 1e6:.1f}M",
        )
        before = row["category"]
    return table


def leaderboard_note(board: pa.Table) -> str:
    """Returns what a reader of the table must know about its figures."""
    rows = board.to_pylist()
    protocols = sorted({row["validation"] for row in rows})
    note = f"AUROC on {'/'.join(protocols)} validation images; gain over the paper's own config."
    if any(row["confirmed_auroc_mean"] is not None for row in rows):
        note += " Confirmed: the same over seeds, which ranks; held out: images not seen before."
    if any(row["tied"] for row in rows):
        note += " = : not to be told apart from the best by a paired test (5 %)."
    return note


def _spread(row: dict[str, Any], column: str) -> str:
    std = row.get(column.replace("_mean", "_std"))
    return figure(row[column]) + (f" ±{std:.3f}" if std is not None else "")


def _trials(row: dict[str, Any]) -> str:
    extra = [f"{row[name]} {name}" for name in ("pruned", "failed") if row[name]]
    return f"{row['trials']}" + (f" ({', '.join(extra)})" if extra else "")


def figure(value: float | None) -> str:
    """Returns an AUROC with three digits, a dash where there is none."""
    return "-" if value is None else f"{value:.3f}"
